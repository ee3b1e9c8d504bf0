"""Every byte of every document is accounted for, by each tokenizer: `python -m pytest tests/data/test_accounting.py`.

    python -m tests.data.test_accounting --tokens 10000000

exports and checks documents of at least so many tokens with each tokenizer: the embedded corpus, and random documents
of the same alphabets.
"""
import argparse
import contextlib
import io
import json
import re
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.data import __main__ as command
from common.data import check, pydoc
from common.data.documents import Block, block_texts
from common.data.folder import write_shard
from common.data.tokenizers import encode_document, is_lossless, train_tokenizer
from common.tokenizer import TOKENIZER_KINDS, count_bytes, load_tokenizer, locate_tokenizer
from tests.conftest import tiered
from tests.data.test_tokenizer import ODD, TEXT, train

KINDS = "bytes", "bpe", "unigram", "published"
BLOCKS = [range(start, min(start + 128, 0x110000)) for start in range(0, 0x110000, 128)]
ASSIGNED = [block for block in BLOCKS if any(unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co") for c in block)]
EMOJI = ("\U0001f469 \U0001f3fd \u200d \U0001f4bb \U0001f1e9 \U0001f1ea \u2764 \ufe0f \U0001f9d1 \u20e3 1 "
         "\U0001faf1").split()
LETTERS = st.sampled_from(ASSIGNED).flatmap(lambda block: st.text(st.sampled_from(
    [chr(c) for c in block if not 0xD800 <= c < 0xE000] or ["x"]), max_size=30))
CONTROLS = st.text(st.sampled_from(
    [*map(chr, [*range(32), *range(127, 160)]), "\u200b", "\u2028", "\ufeff", "\u2581", " "]), max_size=20)
DOCUMENTS = st.one_of(
    st.text(), LETTERS, CONTROLS, st.lists(st.sampled_from(EMOJI), max_size=12).map("".join),
    st.sampled_from([*ODD, TEXT]), st.tuples(LETTERS, CONTROLS, st.sampled_from(ODD)).map("".join))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    texts = [TEXT, "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440"] * 3
    for kind in ("bpe", "unigram"):
        (folder / kind).write_bytes(train_tokenizer(texts, 310, kind))
    train(folder / "published")
    paths = {kind: locate_tokenizer(folder, kind) for kind in KINDS}
    return {kind: (path, load_tokenizer(path), load_tokenizer(path).decode) for kind, path in paths.items()}


def for_documents(examples):
    def decorate(test):
        test = given(st.lists(DOCUMENTS, max_size=6))(example(["", "", TEXT])(example([*ODD])(test)))
        return settings(deadline=None, database=None, derandomize=True, max_examples=examples)(test)
    return decorate


@pytest.mark.parametrize("kind", tiered(KINDS, 2))
def test_table_decoders_and_text_agree(tokenizers, kind):
    _, tokenizer, decode = tokenizers[kind]
    assert is_lossless(tokenizer) == (kind != "published")

    @for_documents(250)
    def agree(documents):
        stream, total = [np.zeros(0, np.uint16)], 0
        for text in documents:
            tokens, size, kept = encode_document(tokenizer, text)
            raw = decode(tokens[1:].tolist())
            assert tokens[0] == tokenizer.bos_id and size == len(raw)
            assert kept == (raw == text.encode()) and (kept or kind == "published")
            stream.append(tokens)
            total += size
        tokens = np.concatenate(stream)  # BOS keeps documents apart: the sum over the stream is that over the documents
        assert count_bytes(tokenizer, np.append(tokenizer.bos_id, tokens[:-1]).astype(int), tokens).sum() == total

    agree()


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_agrees(tokenizers, kind, tmp_path, monkeypatch):
    path, tokenizer, _ = tokenizers[kind]
    (tmp_path / "x_train_0.bin").touch()
    monkeypatch.setattr(check, "cached_stream", check.cached_stream.__wrapped__)  # the file changes

    @for_documents(40)
    def agree(documents):
        encoded = [encode_document(tokenizer, text) for text in [*documents, "x"]]
        write_shard(tmp_path / "x_train_0.bin", np.concatenate([tokens for tokens, *_ in encoded]))
        end = sum(len(tokens) for tokens, *_ in encoded)
        counted, decoded, _, problems = check.check_piece((str(tmp_path), (path,), "train", 0, end))
        assert counted == decoded == [size for _, size, _ in encoded] and problems == []

    agree()


@settings(deadline=None, database=None, derandomize=True, max_examples=300)
@given(st.binary(max_size=40), st.lists(st.integers(0, 0xFFFF), max_size=10))
@example(b"\xff\xfe\x80", [0xD83D, 0xDE00, 0xDE00, 0xD800])
def test_what_is_not_text_is_replaced(raw, units):
    """Any bytes in a JSON string, and any UTF-16 units as escapes, give text that has UTF-8; a repair is reported."""
    inside = bytes(b for b in raw if b >= 32 and b not in b'"\\')
    line = b'{"text": "' + inside + b"".join(b"\\u%04x" % unit for unit in units) + b'"}'
    [(number, text, problem)] = block_texts(Block("a", 1, line, 0), "text")
    expected = inside.decode(errors="replace")
    halves = np.array(units, "<u2").tobytes().decode("utf-16-le", "surrogatepass")
    expected += re.sub("[\ud800-\udfff]", "\ufffd", halves)
    assert (number, text) == (1, expected) and bool(problem) == (expected != inside.decode(errors="ignore") + halves)


# the long way ---------------------------------------------------------------------------------------------------------


def random_line(random, real):
    """One line of JSON: a document of up to a few KB in any script, emoji, control characters, real text, bytes that
    are not UTF-8, or empty."""
    kind, size = random.integers(8), int(random.integers(0, 800))
    if kind == 0:
        block = ASSIGNED[random.integers(len(ASSIGNED))]
        text = "".join(map(chr, random.integers(block.start, block.stop, size)))
    elif kind == 1:
        text = "".join(map(chr, random.integers(0, 0x110000, size)))
    elif kind == 2:
        text = "".join(random.choice(EMOJI, size))
    elif kind == 3:
        text = "".join(map(chr, random.choice([*range(32), *range(127, 160), 0x2581, 0x20, 0x200B, 0xFEFF], size)))
    elif kind == 4:
        text = "".join(random.choice(ODD, int(random.integers(0, 20)))) + chr(random.integers(0x110000))
    else:
        text = real[random.integers(len(real))] if kind < 7 else ""
    line = json.dumps({"text": text}, ensure_ascii=bool(random.integers(2))).encode("utf-8", "surrogatepass")
    if kind == 5 and size > 400:  # some bytes of real text become others
        middle = bytearray(line)
        for place in random.integers(12, len(line) - 3, 5):
            if middle[place] not in b'"\\' and middle[place - 1] != 92:
                middle[place] = 128 + random.integers(128)
        line = bytes(middle)
    return line + b"\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=10_000_000, help="at least so many with each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random, real = np.random.default_rng(options.seed), ["\n\n".join(part) for part in pydoc.documents()]
    with tempfile.TemporaryDirectory() as folder:
        root, disagreements = Path(folder), 0
        train(root / "published.model", texts=real[:200], vocab_size=1024)
        for kind in ("bpe", "unigram"):  # from real text: random text has too many characters for a small vocabulary
            (root / f"{kind}.model").write_bytes(train_tokenizer(real, 1024, kind))
        for kind in KINDS:
            tokenizer = kind if kind in TOKENIZER_KINDS else root / f"{kind}.model"
            with open(root / "docs.jsonl", "wb") as file:
                for text in real:
                    file.write(json.dumps({"text": text}).encode() + b"\n")
                while file.tell() < 3.5 * options.tokens:
                    file.write(random_line(random, real))
            out, shown = root / kind, io.StringIO()
            with contextlib.redirect_stdout(shown):
                assert command.main(["export", str(root / "docs.jsonl"), "--tokenizer", str(tokenizer),
                                     "--out", str(out), "--val-docs", "1000", "--skip-bad"]) == 0
                code = command.main(["check", str(out), "--docs", str(root / "docs.jsonl")])
            splits = json.loads((out / "manifest.json").read_bytes())["splits"].values()
            bad = [line for line in shown.getvalue().splitlines() if line.startswith("BAD")]
            disagreements += len(bad) + (code != 0 and not bad)
            tokens, documents, size, text, changed = (sum(split[key] for split in splits) for key in (
                "tokens", "documents", "bytes", "text_bytes", "changed_documents"))
            print(f"{kind:<10} {documents:>8,} documents {tokens:>12,} tokens {size:>12,} bytes counted "
                  f"{text:>12,} in the text {changed:>7,} changed {len(bad):>3} disagreements",
                  *bad, sep="\n", flush=True)
            assert tokens >= options.tokens, "too few tokens"
        return int(disagreements > 0)


if __name__ == "__main__":
    raise SystemExit(main())
