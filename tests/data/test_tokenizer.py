"""Tokenizers: `python -m pytest tests/data/test_tokenizer.py`."""
import hashlib
import io
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.data.tokenizers import decode_ids, tokenizer_entry, train_tokenizer
from common.settings import UserError
from common.tokenizer import (
    MODEL_LIMIT,
    SPACE_MARKER,
    TOKENIZER_KINDS,
    count_bytes,
    load_tokenizer,
    locate_tokenizer,
)

TEXT = "The quick brown fox, who was 42,\n    jumps over the lazy dog.\n\n\nAnd then? \u201cThe end\u201d, caf\u00e9.\n"
OURS = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
ODD = ["", " ", "  ", "\n", "\n\n  \n", "\0", "\t", "\r\n", "a ", " a", SPACE_MARKER, f"a{2 * SPACE_MARKER} b",
       "<s></s><pad>", "<0x41>", "<unk>", " \u2047 ", "\u2585", "\U0001f469\u200d\U0001f4bb", "\ufeff\ufffd\uffff",
       "e\u0301\ufb01\u00a0\u3000", TEXT]


def train(path, texts=(TEXT,), **changes):
    arguments = {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True, "character_coverage": 1.0, "pad_id": 0,
                 "bos_id": 1, "eos_id": 2, "unk_id": 3, "num_threads": 1, "minloglevel": 2} | changes
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=file, **arguments)
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def ours(folder):
    (folder / "ours.model").write_bytes(train_tokenizer([TEXT] * 3, 350))
    return load_tokenizer(folder / "ours.model")


@pytest.fixture(scope="module")
def published(folder):
    return load_tokenizer(train(folder / "published.model", user_defined_symbols=[2 * SPACE_MARKER]), published=True)


def document_bytes(tokenizer, ids):
    ids = np.array([tokenizer.bos_id, *ids], np.uint16)
    return int(count_bytes(tokenizer, ids[:-1], ids[1:]).sum())


def for_odd_texts(test):
    test = settings(deadline=None, database=None, derandomize=True, max_examples=300)(given(text=st.text())(test))
    for text in ODD:
        test = example(text=text)(test)
    return test


@for_odd_texts
def test_sentencepiece_is_lossless(ours, text):
    ids = ours.encode(text)
    assert decode_ids(ours, ids) == text.encode() == b"".join(ours.token_bytes[i] for i in ids)
    assert document_bytes(ours, ids) == len(text.encode())


@for_odd_texts
def test_bytes_are_lossless(text):
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert ids == [4 + byte for byte in text.encode()]
    assert decode_ids(tokenizer, ids) == text.encode() and document_bytes(tokenizer, ids) == len(ids)


def test_a_manifest_names_each_kind(folder, ours):
    """The entry of a folder's tokenizer leads back to the same tokenizer."""
    table = b"parity-golf-table 1 0\n\n61\n20616263\n"
    (folder / "own.table").write_bytes(table)
    digests = {"bytes": hashlib.sha256(b"bytes").hexdigest(),
               "sentencepiece": hashlib.sha256((folder / "ours.model").read_bytes()).hexdigest()}
    entries = [tokenizer_entry(path, load_tokenizer(path)) for path in ("bytes", str(folder / "ours.model"),
                                                                             f"table:{folder}/own.table")]
    assert entries == [{"kind": "bytes", "file": "bytes", "sha256": digests["bytes"], "vocab_size": 260},
                       {"kind": "sentencepiece", "file": "ours.model", "sha256": digests["sentencepiece"],
                        "vocab_size": 350},
                       {"kind": "table", "file": "own.table", "sha256": hashlib.sha256(table).hexdigest(),
                        "vocab_size": 3}]
    assert [entry["kind"] for entry in entries] == list(TOKENIZER_KINDS)
    for entry in entries:
        again = load_tokenizer(locate_tokenizer(folder, entry["file"]))
        assert tokenizer_entry(entry["file"], again) == entry


def test_byte_tokenizer_table():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (260, 1)
    assert tokenizer.token_bytes == [b""] * 4 + [bytes([byte]) for byte in range(256)]
    assert tokenizer.byte_counts.tolist() == [0] * 4 + [1] * 256
    assert not tokenizer.leading_space.any() and tokenizer.boundary.tolist() == [True] * 4 + [False] * 256


def test_our_table(ours):
    assert (ours.vocab_size, ours.bos_id) == (350, 1)
    assert ours.byte_counts.dtype == np.int32 and ours.leading_space.dtype == ours.boundary.dtype == bool
    assert ours.byte_counts.tolist() == [len(part) for part in ours.token_bytes]
    assert not ours.leading_space.any() and ours.boundary.nonzero()[0].tolist() == [0, 1, 2, 3]
    assert {b" ", b"    ", b"\n\n\n"} <= set(ours.token_bytes), "runs of spaces and of line ends become pieces"
    assert ours.encode(SPACE_MARKER) == [4 + byte for byte in SPACE_MARKER.encode()]


def test_training_is_deterministic_and_skips_no_text():
    texts = [TEXT, "zebra\tzebra \0zebra zebra \u2585zebra" + SPACE_MARKER]
    assert train_tokenizer(texts, 340) == train_tokenizer(texts, 340)
    assert b"zebra" in train_tokenizer(texts, 340)


@pytest.mark.parametrize("model_type, size", [("bpe", 400), ("unigram", 266)])
@pytest.mark.parametrize("texts", [
    ["".join(random.Random(0).choices("ACGT", k=300))] * 9,
    ["\u4e2d\u6587\u5b57 " + "\u4e2d\u6587\u5b57\u6f22" * 99] * 2,
    ["ACGT" * 99 + "\n" + "GATTACA" * 50]])
def test_texts_with_few_spaces_or_none_give_a_usable_tokenizer(tmp_path, texts, model_type, size):
    (tmp_path / "a.model").write_bytes(train_tokenizer(texts, size if len(texts) > 2 else 266, model_type))
    tokenizer = load_tokenizer(tmp_path / "a.model")
    for text in (*texts, "with spaces  of \u2581 all kinds "):
        assert decode_ids(tokenizer, tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize("size, message", [
    (0, "260"), (259, "260"), (65537, "65536"), (265, r"at least \d\d\d$"), (5000, r"at most \d\d\d$")])
def test_training_says_which_sizes_are_possible(size, message):
    with pytest.raises(UserError, match=f"size {size}: .*{message}") as error:
        train_tokenizer([TEXT], size)
    if size in (265, 5000):
        train_tokenizer([TEXT], int(str(error.value).split()[-1]))


def test_published_rule(folder, published):
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "published.model"))
    for i in range(model.vocab_size()):
        piece = model.id_to_piece(i)
        row = published.byte_counts[i], published.leading_space[i], published.boundary[i]
        if piece in ("<pad>", "<s>", "</s>", "<unk>"):
            assert row == (0, False, True)
        elif piece.startswith("<0x"):
            assert row == (1, False, False) and published.token_bytes[i] == bytes([int(piece[3:5], 16)])
        elif piece.startswith(SPACE_MARKER):
            assert row == (len(piece[1:].encode()), True, False)
        else:
            assert row == (len(piece.encode()), False, False)
    # As published: one marker is a space, any other in the piece counts its three bytes.
    double = model.piece_to_id(2 * SPACE_MARKER)
    assert published.byte_counts[double] == 3 and published.token_bytes[double] == b"  "


def test_a_marker_counts_more_than_its_space_only_by_the_published_rule(folder, published):
    tokenizer = load_tokenizer(folder / "published.model")
    double = tokenizer.token_bytes.index(b"  ")
    assert (tokenizer.byte_counts[double], published.byte_counts[double]) == (1, 3)
    assert tokenizer.byte_counts.sum() == published.byte_counts.sum() - 2


def test_indentation_counts_the_bytes_of_the_text(tmp_path):
    """Models with a dummy prefix and pieces for runs of spaces, as are usual for code."""
    runs = [count * SPACE_MARKER for count in (2, 4, 8)]
    tokenizer = load_tokenizer(train(tmp_path / "code.model", ["if x:\n    return 1\n"] * 3, vocab_size=290,
                                     normalization_rule_name="identity", remove_extra_whitespaces=False,
                                     user_defined_symbols=runs))
    for text in ("def f(x):\n    if x:\n        return [x,  1]\n", 8 * "    x\n", "  leading and trailing  "):
        ids = tokenizer.encode(text)
        assert document_bytes(tokenizer, ids) == len(text.encode()) and tokenizer.decode(ids) == text.encode()


PARTS = ["a", "return x", "  ", "    ", " ", "\n", "\t", "1", "23", "\u00e9", "\u4e2d", "\U0001f600", ".", "\u00bd",
         "\ufb01", "\u3000", "e\u0301", "\u2026"]


def random_model(generator):
    """Bytes of a SentencePiece model of random texts and options."""
    flags = ("byte_fallback", "add_dummy_prefix", "remove_extra_whitespaces", "split_digits", "split_by_whitespace",
             "allow_whitespace_only_pieces", "split_by_number", "split_by_unicode_script")
    symbols = [2 * SPACE_MARKER, 4 * SPACE_MARKER, SPACE_MARKER + "a", "b" + SPACE_MARKER, "<x>", "\n"]
    file = io.BytesIO()
    texts = ["a b", *("".join(generator.choices(PARTS, k=30)) for _ in range(30))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, pad_id=0, bos_id=1, eos_id=2, unk_id=3, num_threads=1,
        minloglevel=2, vocab_size=310, hard_vocab_limit=False, **{flag: generator.random() < 0.7 for flag in flags},
        model_type=generator.choice(["bpe", "unigram", "char", "word"]),
        character_coverage=generator.choice([1.0, 0.98]), treat_whitespace_as_suffix=generator.random() < 0.1,
        normalization_rule_name=generator.choice(["identity", "nmt_nfkc", "nfkc", "nfkc_cf"]),
        user_defined_symbols=generator.sample(symbols, generator.randrange(4)),
        control_symbols=generator.sample(["<c>", "<d>"], generator.randrange(3)))
    return file.getvalue()


def test_random_models_count_what_decodes_or_are_refused(tmp_path):
    """Any model of the library: where it loads, a document counts the bytes that the library decodes; where it keeps
    the text besides, those of the text."""
    generator, path, loaded = random.Random(0), tmp_path / "a.model", 0
    for _ in range(250):
        path.write_bytes(random_model(generator))
        try:
            tokenizer = load_tokenizer(path)
        except UserError:
            continue
        loaded += 1
        for _ in range(30):
            ids = tokenizer.encode("".join(generator.choices(PARTS, k=generator.randrange(30))))
            decoded = decode_ids(tokenizer, ids)
            assert document_bytes(tokenizer, ids) == len(decoded)
            if all(tokenizer.token_bytes[i] for i in ids):  # the library decodes the unknown id to a sign
                assert decoded == tokenizer.decode(ids)
    assert 100 < loaded < 250


def test_published_documents_count_their_bytes(published):
    documents = ["The quick dog.", "caf\u00e9 \U0001f98a over", "x"]
    stream = np.concatenate([[published.bos_id, *published.encode(text)] for text in documents]).astype(np.uint16)
    total = sum(len(text.encode()) for text in documents)
    assert count_bytes(published, stream[:-1], stream[1:]).sum() == total
    assert [decode_ids(published, published.encode(text)).decode() for text in documents] == documents
    assert published.leading_space[stream].sum() > len(documents) and not published.leading_space[published.bos_id]
    # Without BOS between them each further document would seem to begin with a space.
    joined = stream[stream != published.bos_id]
    assert count_bytes(published, np.append(published.bos_id, joined[:-1]), joined).sum() == total + len(documents) - 1


def test_count_bytes_keeps_the_shape(published):
    ids = np.arange(300).reshape(3, 100)
    counts = count_bytes(published, np.full_like(ids, published.bos_id), ids)
    assert counts.shape == (3, 100) and counts.sum() == published.byte_counts[:300].sum()


def test_unused_ids_are_boundaries(folder, published):
    data = (folder / "published.model").read_bytes()
    control, unused = (b"<pad>\x15\0\0\0\0\x18" + bytes([kind]) for kind in (3, 5))
    assert data.count(control) == 1
    (folder / "unused.model").write_bytes(data.replace(control, unused))
    tokenizer = load_tokenizer(folder / "unused.model")
    assert tokenizer.boundary[0] and tokenizer.byte_counts[0] == 0 and tokenizer.token_bytes[0] == b""


@pytest.mark.parametrize("changes, message", [
    ({"bos_id": -1}, "BOS"),
    ({"add_dummy_prefix": False}, "changes text"),
    (OURS | {"normalization_rule_name": "nfkc"}, "changes text"),
    (OURS | {"byte_fallback": False, "vocab_size": 60}, "changes text"),
    (OURS | {"texts": ["abcabcabc"], "vocab_size": 264}, "space"),
    ({"treat_whitespace_as_suffix": True}, "changes text"),
    ({"model_type": "word", "hard_vocab_limit": False, "remove_extra_whitespaces": False,
      "allow_whitespace_only_pieces": True, "texts": ["a  fox"]}, "spaces as three bytes"),
    ({"denormalization_rule_tsv": True}, "count .* bytes, but decode to"),
])
def test_refuses_models_whose_bytes_cannot_be_counted(tmp_path, changes, message):
    if "denormalization_rule_tsv" in changes:
        (tmp_path / "rules").write_text("71\t\n")  # decodes q to nothing
        changes = {"denormalization_rule_tsv": str(tmp_path / "rules")}
    with pytest.raises(UserError, match=f"a.model.*{message}"):
        load_tokenizer(train(tmp_path / "a.model", **changes))


def test_refuses_what_is_not_a_model(tmp_path, folder, ours):
    path = tmp_path / "a.model"
    for message, size in (
            ("no such file", None), ("not a usable", 0), ("not a usable", 100), ("more than", MODEL_LIMIT + 1)):
        if size is not None:
            with open(path, "wb") as file:
                file.truncate(size)
        with pytest.raises(UserError, match=f"a.model.*{message}"):
            load_tokenizer(path)
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path)
    path.write_bytes((folder / "ours.model").read_bytes()[:-40])
    with pytest.raises(UserError, match="not a usable"):
        load_tokenizer(path)


def test_changed_models_load_or_are_refused(tmp_path, folder, ours, published):
    generator, path, refused = random.Random(0), tmp_path / "a.model", 0
    seeds = [(folder / name).read_bytes() for name in ("ours.model", "published.model")]
    for _ in range(1000):
        data = bytearray(generator.choice(seeds))
        for _ in range(generator.choice((1, 1, 3))):
            place = generator.randrange(len(data))
            data[place : place + generator.choice((0, 1, 1, 9))] = generator.randbytes(generator.choice((0, 1, 1, 4)))
        path.write_bytes(data)
        try:
            tokenizer = load_tokenizer(path)
        except UserError:
            refused += 1
        else:
            assert len(tokenizer.token_bytes) == tokenizer.vocab_size == len(tokenizer.byte_counts)
    assert 0 < refused < 1000
