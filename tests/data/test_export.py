"""Documents to shards: `python -m pytest tests/data/test_export.py`."""
import bz2
import concurrent.futures
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace

import numpy as np
import pytest

from common.data import __main__ as command
from common.data import documents, export
from common.data.documents import block_texts, find_files, read_blocks
from common.data.tokenizers import decode_ids, train_tokenizer, try_model
from common.data.workers import Died
from common.dataset import open_data
from common.settings import Settings, UserError
from common.shards import find_shards, open_shard
from common.tokenizer import load_tokenizer, locate_tokenizer
from tests.conftest import ROOT, tiered
from tests.data.test_tokenizer import ODD, TEXT, train

WORDS = TEXT.split()


def texts(count, seed=0, length=40):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, length))) + ODD[i % len(ODD)] + str(i)
            for i in range(count)]


def write_jsonl(path, corpus):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(corpus)))
    return path


def run(*arguments):
    return command.main(["export", *map(str, arguments)])


def read(folder, split):
    """The texts of a split, and its tokens."""
    data = json.loads((folder / "manifest.json").read_bytes())
    tokenizer = load_tokenizer(locate_tokenizer(folder, data["tokenizer"]["file"]))
    tokens = np.concatenate([open_shard(path) for path in find_shards(folder, split)])
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    assert starts[0] == 0
    return [decode_ids(tokenizer, ids[1:]).decode() for ids in np.split(tokens, starts[1:])], tokens


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 2000)  # in the process that reads: many blocks from little text


@pytest.mark.parametrize("tokenizer", tiered(["bytes", "bpe:400", "unigram:310"], 3))
def test_every_document_in_order_whatever_the_workers(small_blocks, tmp_path, tokenizer, capsys):
    corpus = texts(300)
    source = write_jsonl(tmp_path / "a.jsonl", corpus)
    for workers in (1, 3):
        assert run(source, "--tokenizer", tokenizer, "--val-docs", 50, "--shard-tokens", 3000, "--sample-bytes", 20_000,
                   "--workers", workers, "--out", tmp_path / f"out{workers}") == 0
    files = contents(tmp_path / "out1")
    assert files == contents(tmp_path / "out3") and len(files) > 6
    assert read(tmp_path / "out1", "val")[0] == corpus[:50]
    assert read(tmp_path / "out1", "train")[0] == corpus[50:]
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "out1", "out3"}, "nothing half-made stays behind"

    manifest = json.loads(files["manifest.json"])
    for split, part in (("val", corpus[:50]), ("train", corpus[50:])):
        found, tokens = manifest["splits"][split], read(tmp_path / "out1", split)[1]
        size, chain = sum(len(text.encode()) for text in part), b""
        for text in part:
            chain = hashlib.sha256(chain + hashlib.sha256(text.encode()).digest()).digest()
        assert (found["documents"], found["tokens"]) == (len(part), len(tokens))
        assert found["bytes"] == found["text_bytes"] == size
        assert found["documents_sha256"] == chain.hex() and found["changed_documents"] == 0
        assert [shard["tokens"] for shard in found["shards"][:-1]] == [3000] * (len(found["shards"]) - 1)
        for shard in found["shards"]:
            assert shard["sha256"] == hashlib.sha256(files[shard["file"]]).hexdigest()
    assert manifest["splits"]["val"]["first_document"] == 0
    assert f"{len(read(tmp_path / 'out1', 'train')[1]):,} tokens" in capsys.readouterr().out

    # The manifest supplies tokenizer and vocabulary.
    data = open_data(Settings(data_path=str(tmp_path / "out1"), train_seq_len=64))
    assert data.train.length == manifest["splits"]["train"]["tokens"]
    assert data.tokenizer.vocab_size == manifest["tokenizer"]["vocab_size"]


def test_formats_give_the_same_documents(small_blocks, tmp_path):
    import pyarrow
    from pyarrow import parquet
    corpus = texts(120)
    lines = write_jsonl(tmp_path / "a.jsonl", corpus[:50])
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    with gzip.open(tmp_path / "folder" / "b.jsonl.gz", "wb") as file:  # no line end at the end
        file.write("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in corpus[50:80]).encode())
    table = pyarrow.table({"id": list(range(30)), "text": corpus[80:110]})
    parquet.write_table(table, tmp_path / "folder" / "c.parquet", row_group_size=7)
    for i, text in enumerate(corpus[110:]):
        (tmp_path / "folder" / "deeper" / f"{i}.txt").write_bytes(text.encode())
    (tmp_path / "folder" / "notes.md").write_text("not a document")
    assert run(lines, tmp_path / "folder", "--tokenizer", "bytes", "--val-docs", 20, "--workers", 2,
               "--out", tmp_path / "out") == 0
    assert read(tmp_path / "out", "val")[0] + read(tmp_path / "out", "train")[0] == corpus
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["source"]["files"][0] == ["a.jsonl", lines.stat().st_size]
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize("raw, separator, expected", [
    (b"one\n\ntwo \xe2\x82\xac\n\n\n\nthree\n\n", r"\n\n", ["one", "two \u20ac", "", "three"]), (b"", r"\n", [""]),
    (b"a<|end|>b<|end|>c", "<|end|>", ["a", "b", "c"]), (b"a\xe2\x80\x94b", "\u2014", ["a", "b"]),
    (b"a\xe2\x80\x94b", r"\u2014", ["a", "b"]), (b"a\xc3\xa9b", r"\xe9", ["a", "b"]),
    (b"a\nb", "", ["a\nb"])])
def test_a_text_file_is_cut_at_the_separator(monkeypatch, tmp_path, raw, separator, expected):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 5)
    (tmp_path / "a.txt").write_bytes(raw)
    blocks = list(read_blocks([tmp_path / "a.txt"], "text", documents._separator(separator)))
    found = [(number, text) for block in blocks for number, text, _ in block_texts(block, "text")]
    assert found == [*enumerate(expected, 1)] and blocks[-1].place == len(raw)


BAD_LINES = [b'{"text": "good"}', b"", b'{"text": "broken', b'{"body": "x"}', b'{"text": null}', b"[1]",
             b'{"text": "\xff"}', b'{"text": "\\ud800 x"}', b'\xef\xbb\xbf{"text": "bom"}', b"[" * 100_000,
             b'{"text": "last"}\r']


def test_bad_lines_are_left_out_if_wanted(small_blocks, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(BAD_LINES))
    arguments = (path, "--tokenizer", "bytes", "--val-docs", 2, "--workers", 1, "--out", tmp_path / "out")
    assert run(*arguments) == 2
    assert f"error: {path}:3 is not JSON" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(*arguments, "--skip-bad") == 0
    printed = capsys.readouterr().out
    assert f"left out: 5 lines or rows, the first: {path}:3 is not JSON" in printed
    assert f"repaired: 2 lines or rows, the first: {path}:7 has bytes that are not UTF-8 (byte 10: 0xff)" in printed
    kept = read(tmp_path / "out", "val")[0] + read(tmp_path / "out", "train")[0]
    assert kept == ["good", "\ufffd", "\ufffd x", "bom", "last"]


@pytest.mark.parametrize("number, message", [(4, "has no text; its keys are: body"), (5, "has no text: it is null"),
                                             (6, "has no text: it is not an object"), (10, "is not JSON")])
def test_what_is_wrong_with_a_line(number, message):
    [found] = block_texts(documents.Block("a", 1, BAD_LINES[number - 1], 0), "text")
    assert found[:2] == (1, None) and found[2].startswith(message)


def refusal(tmp_path, capsys):
    """The one line of error of a command that made nothing."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "out").exists()
    return error


@pytest.mark.parametrize("name, data, message", [
    ("a.csv", b"x", "documents are .jsonl"), ("none.jsonl", None, "no such file or folder"),
    ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-12], "cut short"), ("a.jsonl.gz", b"no gzip", "damaged"),
    ("a.parquet", b"PAR1 no", "damaged"), ("a.jsonl", b'{"text": "' + b"x" * (10 << 20), "longer than 8,388,608"),
    ("a.txt", b"x" * (9 << 20), "--separator"), ("a.jsonl", b"", "0 documents, of which the first 2")])
def test_files_that_cannot_be_read(tmp_path, capsys, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert run(tmp_path / name, "--tokenizer", "bytes", "--val-docs", 2, "--workers", 1, "--out", tmp_path / "out") == 2
    error = refusal(tmp_path, capsys)
    assert message in error and (name in error or data == b"")


def test_parquet_columns(tmp_path):
    import pyarrow
    from pyarrow import parquet
    path = tmp_path / "a.parquet"
    column = pyarrow.array([b"a", None, b"\xff", b""], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": column, "n": [1, 2, 3, 4]}), path)
    [block] = read_blocks([path], "text", b"")
    assert [found[:2] for found in block_texts(block, "text")] == [(1, "a"), (2, None), (3, "\ufffd"), (4, "")]
    for key, message in (("body", "no column body; there are: text, n"),
                         ("n", f"{path}: column n is int64, not a string")):
        with pytest.raises(UserError, match=message):
            list(read_blocks([path], key, b""))


def read_file(path, separator=b"", key="text"):
    return [found for block in read_blocks([path], key, separator) for found in block_texts(block, key)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_is_obeyed(small_blocks, tmp_path, encoding):
    """Text and lines, compressed or not; the mark is not part of the text. Half a surrogate pair is reported."""
    corpus = ["one caf\u00e9", "two \U0001f600 " * 900, "\n", "three"]
    mark = "\ufeff".encode(encoding)
    path = tmp_path / "a.txt"
    path.write_bytes(mark + "<end>".join(corpus).encode(encoding))
    assert read_file(path, b"<end>") == [(i, text, "") for i, text in enumerate(corpus, 1)]
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in corpus)
    path.write_bytes(gzip.compress(mark + lines.encode(encoding)))
    assert read_file(path) == [(i, text, "") for i, text in enumerate(corpus, 1)]
    path.with_name("b.txt").write_bytes(mark + "a\ud800b".encode(encoding, "surrogatepass"))
    [(_, text, problem)] = read_file(path.with_name("b.txt"))
    assert text[0] + text[-1] == "ab" and "\ufffd" in text and problem


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_16_without_a_byte_order_mark_is_refused(tmp_path, encoding, name):
    """It is valid UTF-8 too: each second character would be a NUL."""
    (tmp_path / name).write_bytes('{"text": "one and two"}'.encode(encoding))
    with pytest.raises(UserError, match=f"{name}: looks like UTF-16 without a byte-order mark: save it as UTF-8"):
        read_file(tmp_path / name)


@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_line_ends_of_windows_separate_documents(monkeypatch, tmp_path, block):
    monkeypatch.setattr(documents, "BLOCK_BYTES", block)
    path = tmp_path / "a.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(f"one{end}more{end}{end}two{end}{end}{end}three".encode())
        assert [text for _, text, _ in read_file(path, b"\n\n")] == [f"one{end}more", "two", f"{end}three"]


def test_a_separator_that_never_occurs_is_reported_once(tmp_path, capsys):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"text {i} of some words")
    arguments = tmp_path, "--tokenizer", "bpe:280", "--val-docs", 1, "--workers", 1
    assert run(*arguments, "--separator", "<end>", "--out", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert error.count(f"warning: --separator '<end>' occurs in none of 6 .txt files, the first {tmp_path}/0.txt") == 1
    (tmp_path / "3.txt").write_text("text<end>two")
    assert run(*arguments, "--separator", "<end>", "--out", tmp_path / "out2") == 0
    assert run(*arguments, "--out", tmp_path / "out3") == 0
    assert "--separator" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "whole.txt"])
def test_documents_that_are_too_long_are_left_out_if_wanted(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr(documents, "DOCUMENT_LIMIT", 1000)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 300)
    corpus = ["one", "x" * 5000, "two", "y" * 2500, "three", "z" * 9000]
    path, kept = tmp_path / name, ["one", "two", "three"]
    if name == "a.jsonl":
        write_jsonl(path, corpus)
    elif name == "a.parquet":
        import pyarrow
        from pyarrow import parquet
        parquet.write_table(pyarrow.table({"text": corpus}), path)
    else:
        path.write_text("<end>".join(corpus))
    separator = b"<end>" if name == "a.txt" else b""
    found = read_file(path, separator)
    assert [text for _, text, _ in found if text is not None] == (kept if name != "whole.txt" else [])
    long = [number for number, text, problem in found if text is None and "is longer than 1,000 bytes" in problem]
    assert long == ([2, 4, 6] if name != "whole.txt" else [1])
    if name == "a.jsonl":
        arguments = (path, "--tokenizer", "bpe:260", "--val-docs", 1, "--workers", 1, "--out", tmp_path / "out")
        assert run(*arguments) == 2 and f"{path}:2 is longer than" in refusal(tmp_path, capsys)
        assert run(*arguments, "--tokenizer", "bytes", "--skip-bad") == 0
        assert f"left out: 3 lines or rows, the first: {path}:2 is longer" in capsys.readouterr().out
        assert read(tmp_path / "out", "val")[0] + read(tmp_path / "out", "train")[0] == kept


@pytest.mark.parametrize("column", [
    lambda pa: pa.array([["a", "b"]]), lambda pa: pa.array([{"x": "a"}]), lambda pa: pa.array([1.5]),
    lambda pa: pa.array([[b"a"]], pa.list_(pa.binary())),
    lambda pa: pa.array([[("k", "v")]], pa.map_("string", "string"))])
def test_a_column_that_is_not_a_string_is_named_by_its_type(tmp_path, column):
    import pyarrow
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({"body": column(pyarrow)}), tmp_path / "a.parquet")
    kind = str(parquet.read_schema(tmp_path / "a.parquet").field("body").type)
    with pytest.raises(UserError) as error:
        read_file(tmp_path / "a.parquet", key="body")
    assert f"column body is {kind}, not a string" in str(error.value) and "damaged" not in str(error.value)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary", "dictionary"])
def test_any_column_of_strings_is_read(tmp_path, kind):
    import pyarrow
    from pyarrow import parquet
    column = pyarrow.array(["a", None, "\u00e9"])
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "A.PARQUET")
    assert [text for _, text, _ in read_file(*find_files([tmp_path]))] == ["a", None, "\u00e9"]


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.zst", "a.ndjson", "a.NDJSON.GZ", "a.JSONL", "a.jsonl.bz2",
                                  "a.ndjson.xz", "a.Txt", "a.txt.zst"])
def test_files_are_read_by_their_endings(tmp_path, name):
    """In upper case too, compressed in the usual ways; one that is cut short is refused."""
    import pyarrow
    path, ending = tmp_path / name, name.lower().rsplit(".", 1)[-1]
    text = "".join(f"text number {i * i}, " for i in range(99))
    data = text.encode() if ".txt" in name.lower() else json.dumps({"text": text}).encode()
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
                "zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True)}.get(ending, bytes)
    path.write_bytes(compress(data))
    (tmp_path / "dataset.json").write_text("{}")
    assert find_files([tmp_path]) == find_files([path]) == [path]
    assert read_file(path) == [(1, text, "")]
    if compress is not bytes:
        path.write_bytes(compress(data)[:-9])
        with pytest.raises(UserError, match="cut short or damaged"):
            read_file(path)


def test_a_folder_without_documents(tmp_path):
    (tmp_path / ".hidden.txt").write_text("x")
    with pytest.raises(UserError, match="no file in it is .jsonl"):
        find_files([tmp_path])


@pytest.mark.parametrize("arguments, message", [
    (["--tokenizer", "bpe:100"], "--tokenizer bpe:100: the size must be 260"),
    (["--tokenizer", "unigram:70000"], "to 65536"), (["--tokenizer", "bpe"], "the size must be"),
    (["--tokenizer", "wordpiece:300"], "none of bpe:SIZE"), (["--tokenizer", "none.model"], "no such file"),
    (["--tokenizer", "bpe:9000"], "vocabulary size 9000: the texts give at most"),
    (["--tokenizer", "unigram:9000"], "the texts give at most"),
    (["--tokenizer", "bytes", "--val-docs", "0"], "--val-docs 0"),
    (["--tokenizer", "bytes", "--val-docs", "60"], "60 documents, of which the first 60"),
    (["--tokenizer", "bytes", "--workers", "0"], "--workers 0"),
    (["--tokenizer", "bytes", "--shard-tokens", "0"], "--shard-tokens 0")])
def test_what_is_not_possible_is_reported_in_one_line(tmp_path, capsys, arguments, message):
    source = write_jsonl(tmp_path / "a.jsonl", texts(60))
    assert run(source, "--val-docs", 5, "--workers", 1, "--out", tmp_path / "out", *arguments) == 2
    assert message in refusal(tmp_path, capsys)


def test_copies_of_validation_are_left_out_of_training(tmp_path, capsys):
    out, source = tmp_path / "out", write_jsonl(tmp_path / "a.jsonl", ["a", "b", "c", "b", "d", "a", "d"])
    assert run(source, "--tokenizer", "bytes", "--val-docs", 2, "--workers", 1, "--out", out) == 0
    assert read(out, "val")[0] == ["a", "b"] and read(out, "train")[0] == ["c", "d", "d"]
    assert "left out of training: 2 copies" in capsys.readouterr().out
    source = write_jsonl(tmp_path / "b.jsonl", ["a", "a"])
    assert run(source, "--tokenizer", "bytes", "--val-docs", 1, "--workers", 1, "--out", tmp_path / "no") == 2
    assert "all training documents are copies" in capsys.readouterr().err


def test_a_published_model_may_change_text_and_it_is_reported_by_how_much(tmp_path, capsys):
    model, out = train(tmp_path / "published.model"), tmp_path / "out"
    corpus = ["plain text here", " two  spaces ", "\ufb01 ligature", "more", "the end"]
    source = write_jsonl(tmp_path / "a.jsonl", corpus)
    assert run(source, "--tokenizer", model, "--val-docs", 3, "--workers", 1, "--out", out) == 0
    found = json.loads((out / "manifest.json").read_bytes())["splits"]["val"]
    kept = ["plain text here", "two spaces", "fi ligature"]
    before, after = sum(len(text.encode()) for text in corpus[:3]), sum(map(len, kept))
    assert read(out, "val")[0] == kept
    assert (found["bytes"], found["text_bytes"], found["changed_documents"]) == (after, before, 2)
    changes = f"changes 2 documents: it counts {after} bytes, the text has {before}, {before - after:+}"
    assert changes in capsys.readouterr().out


def test_a_tokenizer_is_made_from_a_sample_of_training_text_that_its_size_bounds(small_blocks, tmp_path):
    corpus, taken, size = texts(200), [], 0
    for i in sorted(range(20, 200), key=lambda i: hashlib.sha256(corpus[i].encode()).digest()):
        if size < 5000:
            taken.append(i)
            size += len(corpus[i].encode())
    assert run(write_jsonl(tmp_path / "a.jsonl", corpus), "--tokenizer", "bpe:320", "--val-docs", 20,
               "--sample-bytes", 5000, "--workers", 2, "--out", tmp_path / "out") == 0
    expected = train_tokenizer([corpus[i] for i in sorted(taken)], 320)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == expected


def test_a_model_that_crashes_the_library_is_named(tmp_path, monkeypatch, capsys):
    """A stand-in for such a model: in any other process, what loads a model dies by a signal as native code does."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "import sentencepiece\n"
        "if 'spawn_main' in ' '.join(sys.orig_argv):\n"
        "    sentencepiece.SentencePieceProcessor.LoadFromSerializedProto = lambda *_: os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    model = train(tmp_path / "a.model")
    with pytest.raises(UserError, match="a.model: the SentencePiece library crashes on this model"):
        try_model(model)
    source = write_jsonl(tmp_path / "a.jsonl", texts(9))
    assert run(source, "--tokenizer", model, "--val-docs", 2, "--out", tmp_path / "out") == 2
    assert "crashes on this model" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("trained, message", [
    (os.abort, "--tokenizer bpe:300: the process that made it died, perhaps for lack of memory: use a smaller"),
    (lambda: b"no model", "--tokenizer bpe:300 is not possible for these texts: ")])
def test_what_goes_wrong_with_our_own_model_is_not_blamed_on_a_file(tmp_path, capsys, monkeypatch, trained, message):
    """A stand-in for training that dies, or makes a model that cannot be used; and its time is shown."""
    class Pool:
        def submit(self, *_):
            job = concurrent.futures.Future()
            if trained is os.abort:
                job.set_exception(Died())
            else:
                threading.Timer(0.1, lambda: job.set_result(trained())).start()
            return job

    monkeypatch.setattr(export, "MAKING_SHOWN", 0.02)
    options = Namespace(tokenizer="bpe:300", vocab_size=300, model_type="bpe")
    with pytest.raises(UserError) as error:
        (tmp_path / "a.model").write_bytes(export.make_tokenizer(Pool(), options, []))
        export.load_made(tmp_path / "a.model", options)
    assert str(error.value).startswith(message) and "a.model" not in str(error.value)
    assert ("making bpe:300: 0 s" in capsys.readouterr().err) == (trained is not os.abort)


# interruptions --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """3 MB, which are 60 blocks and 15 shards."""
    return write_jsonl(tmp_path_factory.mktemp("source") / "a.jsonl", texts(1500, length=700))


@pytest.fixture(scope="module")
def whole(long_source, tmp_path_factory):
    """The files of an export that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(start(long_source, out))
    return contents(out)


def start(source, out, *arguments, before="pass"):
    """An export in a process of its own; `before` runs in it first."""
    code = (f"import sys; {before}; from common.data import documents; documents.BLOCK_BYTES = 50_000; "
            "from common.data.__main__ import end_with, main; end_with(main(['export', *sys.argv[1:]]))")
    program = [sys.executable, "-c", code, source, "--tokenizer", "bytes", "--val-docs", 100,
               "--shard-tokens", 200_000, "--workers", 2, "--out", out, *arguments]
    return subprocess.Popen([*map(str, program)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process, code=0):
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == code, printed + errors
    return printed + errors


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid):
    return ps("--ppid", str(pid), "-o", "pid=").split()


def ps(*arguments):
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout


def runs(pid):
    shown = ps("-p", pid, "-o", "stat=").strip()
    return shown and not shown.startswith("Z")


SLOW = ("import time; from common.data import export; write = export.write_shard; "
        "export.write_shard = lambda *a: (write(*a), time.sleep(0.3))")
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.mark.parametrize("how", tiered([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], 3))
def test_an_export_that_was_ended_continues(long_source, whole, tmp_path, how):
    out, staging = tmp_path / "out", tmp_path / ".out.partial"
    process = start(long_source, out, before=f"{SLOW}; {INTERRUPTIBLE}")
    wait_for(lambda: len(list(staging.glob("*_train_*.bin"))) >= 3)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(how)
    said = finish(process, -9 if how == signal.SIGKILL else 2)
    if how != signal.SIGKILL:
        assert "\nerror: interrupted; complete shards are kept" in f"\n{said}" and "Traceback" not in said
    wait_for(lambda: not any(map(runs, workers)))
    assert not out.exists() and len(list(staging.glob("*.bin"))) < len(whole) - 2
    times = {path.name: path.stat().st_mtime_ns for path in staging.glob("*_train_00000[01].bin")}
    (staging / ".docs_train_000099.bin.tmp").touch()  # as of a write that was killed
    assert "continues after" in finish(start(long_source, out))
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*_train_00000[01].bin")} == times
    assert contents(out) == whole and not staging.exists()
    if how == signal.SIGKILL:
        assert "is already there" in finish(start(long_source, out))
        assert "is not this export" in finish(start(long_source, out, "--val-docs", 101), 2)


def test_other_documents_start_again(long_source, whole, tmp_path):
    source, out, staging = tmp_path / "a.jsonl", tmp_path / "out", tmp_path / ".out.partial"
    source.write_bytes(long_source.read_bytes())
    process = start(source, out, before=SLOW)
    wait_for(lambda: len(list(staging.glob("*_train_*.bin"))) >= 2)
    process.kill()
    process.communicate()
    os.utime(source, (1, 1))
    assert "continues" not in finish(start(source, out))
    assert contents(out) == whole


@pytest.mark.slow
def test_two_exports_into_one_folder(long_source, whole, tmp_path):
    process = start(long_source, tmp_path / "out", before=SLOW)
    wait_for((tmp_path / ".out.partial" / "state.json").exists)
    said = finish(start(long_source, tmp_path / "out"), 2)
    assert f"another command that writes to {tmp_path / '.out.partial'} is under way" in said
    finish(process)
    assert contents(tmp_path / "out") == whole


def test_the_lock_ends_with_its_process(tmp_path):
    staging = tmp_path / ".out.partial"
    staging.mkdir()
    lock = os.open(staging, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    source = write_jsonl(tmp_path / "a.jsonl", texts(9))
    arguments = source, "--tokenizer", "bytes", "--val-docs", 2, "--workers", 1, "--out", tmp_path / "out"
    assert run(*arguments) == 2
    os.close(lock)
    assert run(*arguments) == 0


LIMIT = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
         "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))")


@pytest.mark.parametrize("limit", ["file size", "disk"])
def test_a_full_disk_leaves_nothing_that_looks_complete(long_source, whole, tmp_path, limit):
    out = tmp_path / "disk" / "out"
    out.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", out.parent]
    if limit == "disk" and (os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode):
        pytest.skip("only root can mount a small disk; the limit of the file size is tested everywhere")
    try:
        said = finish(start(long_source, out, before=LIMIT if limit == "file size" else "pass"), 2)
        assert "\nerror: " in f"\n{said}" and "Traceback" not in said
        assert "No space left" in said or "File too large" in said
        assert not out.exists() and not list(out.parent.rglob("manifest.json")) and not list(out.parent.rglob("*.tmp"))
        for path in out.parent.rglob("*.bin"):
            open_shard(path)
        if limit == "disk":
            subprocess.run(["mount", "-o", "remount,size=64m", out.parent], check=True)
        finish(start(long_source, out))
        assert contents(out) == whole
    finally:
        if limit == "disk":
            subprocess.run(["umount", out.parent], check=True)
