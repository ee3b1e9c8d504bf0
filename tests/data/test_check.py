"""check, stats and samples of a data folder: `python -m pytest tests/data/test_check.py`."""
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common.data import __main__ as command
from common.data import check, documents, folder, stats
from common.data.folder import read_documents, write_shard
from common.dataset import open_data
from common.published import VAL_BYTES, VAL_TOKENS
from common.settings import Settings, UserError
from common.shards import open_shard
from common.tokenizer import load_tokenizer
from tests.conftest import ROOT
from tests.data.test_export import texts, write_jsonl
from tests.data.test_tokenizer import train

CORPUS = ["first", *texts(150, seed=1)]


def run(*arguments):
    return command.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{kind: folder} of the same documents, 40 of them validation, in shards of 2,000 tokens; and the documents."""
    root = tmp_path_factory.mktemp("exported")
    model = train(root / "published.model", vocab_size=330)
    source = write_jsonl(root / "a.jsonl", CORPUS)
    for kind, tokenizer in (("bpe", "bpe:400"), ("bytes", "bytes"), ("published", model)):
        assert run("export", source, "--tokenizer", tokenizer, "--val-docs", 40, "--shard-tokens", 2000,
                   "--workers", 1, "--out", root / kind) == 0
    return root, source


@pytest.fixture
def copy(exported, tmp_path):
    """Makes a copy of one of the folders, to be damaged."""
    def make(kind):
        shutil.copytree(exported[0] / kind, tmp_path / kind)
        return tmp_path / kind
    return make


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(folder, "PIECE_TOKENS", 700)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 3000)


def checked(capsys, *arguments, code=0):
    capsys.readouterr()
    assert run("check", *arguments, "--workers", 1) == code
    shown = capsys.readouterr()
    bad = [line for line in shown.out.splitlines() if line.startswith("BAD")]
    assert bool(bad) == bool(code) and (f"error: {arguments[0]}: {len(bad)} disagreements" in shown.err) == bool(code)
    return shown.out, bad


def edit(path, place, value):
    tokens = np.array(open_shard(path))
    tokens[place] = value
    write_shard(path, tokens)


def change_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def without_digests(path):
    """So that what is wrong in the shards is looked for in the documents."""
    change_manifest(path, lambda m: [
        shard.pop("sha256") for split in m["splits"].values() for shard in split["shards"]])


@pytest.mark.parametrize("kind", ["bpe", "bytes", "published"])
def test_what_was_exported_agrees(small_pieces, exported, capsys, kind):
    root, source = exported
    manifest = json.loads((root / kind / "manifest.json").read_text())
    shown, _ = checked(capsys, root / kind, "--docs", source)
    for split in ("train", "val"):
        found = manifest["splits"][split]
        size, tokens = found["bytes"], found["tokens"]
        assert f"{split}, bytes of {found['documents']:,} documents in {tokens:,} tokens: {size:,}" in shown
        assert f"{split}, tokens of the source text: {found['tokens']:,}" in shown
        assert f"{split}, bytes of the source text: {found['text_bytes']:,}" in shown
        assert (f"{split}: the tokenizer changes {found['changed_documents']}" in shown) == (kind == "published")
    assert "no document of validation is in training" in shown
    assert "the source text is not available" in checked(capsys, root / kind)[0]


SHARD = "docs_train_000001.bin"


@pytest.mark.parametrize("spoil, message", [
    (lambda path: (path / "docs_val_000000.bin").write_bytes(b"short"),
     r"val docs_val_000000.bin: 5 bytes, less than a shard's header"),
    (lambda path: os.truncate(path / SHARD, 2000), f"{SHARD}.*truncated"),
    (lambda path: (path / SHARD).write_bytes(b"\x88\xd8\x34\x01\x02" + bytes(1100)), "magic 20240520, version 2"),
    (lambda path: edit(path / SHARD, 77, 400), rf"{SHARD}: token 77 \(byte 1178\) is 400"),
    (lambda path: edit(path / SHARD, 77, 5), f"{SHARD}: sha256 .*, in the manifest"),
    (lambda path: (path / SHARD).unlink(), "names of the shards"),
    (lambda path: shutil.copy(path / "docs_val_000000.bin", path / "docs_val_000099.bin"), "names of the shards"),
    (lambda path: change_manifest(path, lambda m: m["tokenizer"].update(vocab_size=401)),
     "vocab_size: manifest 401, file 400"),
    (lambda path: change_manifest(path, lambda m: m["tokenizer"].update(sha256="0")), "tokenizer .*sha256: manifest 0"),
])
def test_damaged_files_are_found(copy, capsys, spoil, message):
    path = copy("bpe")
    spoil(path)
    _, bad = checked(capsys, path, code=2)
    assert any(re.search(message, line) for line in bad), bad


def test_a_changed_token_is_located(small_pieces, copy, exported, capsys):
    path = copy("bpe")
    without_digests(path)
    tokens = np.array(open_shard(path / "docs_train_000001.bin"))
    place = int(np.flatnonzero(tokens[100:] == 1)[0]) + 103
    edit(path / "docs_train_000001.bin", place, 4 + 0xff)  # a byte that is not UTF-8
    _, bad = checked(capsys, path, "--docs", exported[1], code=2)
    where = f"docs_train_000001.bin token {place:,}"
    whole = np.concatenate([open_shard(path / f"docs_train_00000{i}.bin")[:2000] for i in (0, 1)])
    document = int((whole[:2000 + place] == 1).sum()) - 1
    decoded = f"BAD   train document {document:,}: {where} (byte "
    assert any(line.startswith(decoded) and r"stands for b'\xff" in line for line in bad), bad
    given = f"BAD   train, {exported[1]}:{40 + document + 1}: {where} has id 259, the text gives {tokens[place]}"
    assert any(line.startswith(given) for line in bad), bad
    assert any("train, digest of the texts" in line for line in bad) and not any("val" in line for line in bad)


def test_a_missing_document_is_located_and_the_rest_still_compared(small_pieces, copy, exported, capsys):
    path = copy("bytes")
    without_digests(path)
    paths = sorted(path.glob("docs_train_*.bin"))
    whole = np.concatenate([open_shard(part) for part in paths])
    starts = np.flatnonzero(whole == 1)
    whole[starts[5]:starts[6]] = 4 + ord("x")  # document 5 becomes a part of document 4
    for part, tokens in zip(paths, np.split(whole, range(2000, len(whole), 2000))):
        write_shard(part, tokens)
    _, bad = checked(capsys, path, "--docs", exported[1], code=2)
    located = [re.search(r"a.jsonl:(\d+)", line)[1] for line in bad if "a.jsonl:" in line]
    assert located == ["45", "46"] and any("train, documents: manifest 111, found 110" in line for line in bad)


def test_a_wrong_table_is_located(copy, monkeypatch, capsys):
    """In this process: the table says one byte more for a token, the decoders do not."""
    path = copy("bpe")
    tokenizer = check.cached_tokenizer(str(path / "tokenizer.model"))
    tokens = open_shard(path / "docs_val_000000.bin")
    place = int(np.flatnonzero(tokens[50:] > 4)[0]) + 50
    tokenizer.byte_counts[tokens[place]] += 1
    counted, decoded, _, problems = check.check_piece(
        (str(path), (str(path / "tokenizer.model"),), "val", 0, len(tokens)))
    wrong = int((tokens == tokens[place]).sum())
    assert sum(counted) >= sum(decoded) + wrong and len(problems) > 0
    length = len(tokenizer.token_bytes[tokens[place]])
    assert f"(id {tokens[place]}): the table counts {length + 1} bytes, it stands for {length}" in problems[0][1]


@pytest.mark.parametrize("key, value", [
    ("splits", []), ("splits", {"train": {}, "val": {}}), ("splits", {"train": {"shards": [{}]}}), ("name", None),
    ("tokenizer", "bytes"), ("source", 1), ("format", [])])
@pytest.mark.parametrize("name", ["check", "stats", "samples"])
def test_a_manifest_of_another_shape_is_reported(copy, capsys, key, value, name):
    path = copy("bytes") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {key: value}))
    assert run(name, path.parent) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}: ") and "make the data again" in shown and shown.count("\n") == 1


@pytest.mark.parametrize("key", ["documents", "tokens", "bytes", "documents_sha256"])
def test_what_the_manifest_promises_is_compared(copy, capsys, key):
    path = copy("bpe")
    change_manifest(path, lambda m: m["splits"]["val"].update({key: 7}))
    _, bad = checked(capsys, path, code=2)
    assert len(bad) == 1 and "manifest 7" in bad[0]


def test_overlap_is_located(copy, exported, capsys):
    path = copy("bytes")
    without_digests(path)
    val = np.array(open_shard(path / "docs_val_000000.bin"))
    end = int(np.flatnonzero(val == 1)[1])
    write_shard(path / "docs_train_000099.bin", val[:end])
    change_manifest(path, lambda m: m["splits"]["train"].update(documents=112, documents_sha256=None, shards=[
        *m["splits"]["train"]["shards"], {"file": "docs_train_000099.bin", "tokens": end}]))
    _, bad = checked(capsys, path, code=2)
    copies = "1 training documents are copies of validation documents, the first: training 111 of validation 0"
    assert any(copies in line for line in bad), bad


def test_published_numbers(copy, capsys, monkeypatch):
    path = copy("published")
    change_manifest(path, lambda m: (m.update(name="fineweb10B_sp330"), m.pop("source")))
    val = json.loads((path / "manifest.json").read_text())["splits"]["val"]
    scored = (val["tokens"] - 1) // 1024 * 1024
    for tokens, size, says in ((scored, val["bytes"], []), (scored + 1024, val["bytes"], ["scored tokens of sp330"]),
                               (scored, 10, ["bytes of the scored"])):
        monkeypatch.setattr(check, "VAL_TOKENS", {"sp330": tokens})
        monkeypatch.setattr(check, "VAL_BYTES", size)
        monkeypatch.setattr(check, "VAL_BYTES_TOLERANCE", 0.2)  # the tail is much of so little text
        _, bad = checked(capsys, path, code=2 if says else 0)
        assert len(bad) == len(says) and all(word in line for word, line in zip(says, bad))
    assert (VAL_TOKENS["sp1024"], VAL_BYTES) == (62_021_632, 151_080_891)


def test_shards_of_other_origin(exported, tmp_path, capsys):
    """A prefix of the training shards, the documents beside them, and no manifest."""
    root, source = exported
    for name in ("docs_val_000000.bin", "docs_train_000000.bin"):
        shutil.copy(root / "published" / name, tmp_path)
    assert run("check", tmp_path, "--workers", 1) == 2
    assert "manifest.json: No such file or directory" in capsys.readouterr().err
    for path in (root / "published").glob("docs_val_*.bin"):
        shutil.copy(path, tmp_path)
    shutil.copy(source, tmp_path / "docs_selected.jsonl")
    shown, _ = checked(capsys, tmp_path, "--tokenizer", root / "published.model")
    assert "note  train: the tokenizer changes" in shown and "no document of validation" in shown
    assert "40 documents" in shown


@pytest.mark.parametrize("piece", [1, 3, 7, 100])
def test_pieces_see_each_document_once(piece):
    class Stream:
        tokens = np.array([9, 9, 1, 5, 6, 1, 1, 7, 7, 7, 7, 7, 7, 7, 7, 1], np.int32)
        length, ends = 16, [16]

        def read(self, start, count):
            return self.tokens[start:start + count]

    found = []
    for start in range(0, 16, piece):
        first, tokens, borders = read_documents(Stream(), 1, start, min(start + piece, 16))
        found += [(first + int(a), tokens[a:b].tolist()) for a, b in itertools.pairwise(borders)]
    assert found == [(0, [9, 9]), (2, [1, 5, 6]), (5, [1]), (6, [1, *[7] * 8]), (15, [1])]


# stats and samples ----------------------------------------------------------------------------------------------------


def test_stats(small_pieces, exported, tmp_path, capsys):
    root, _ = exported
    assert run("stats", root / "bytes", "--workers", 1, "--png", tmp_path / "a.png") == 0
    shown = capsys.readouterr().out
    val = "".join(CORPUS[:40]).encode()
    tokens = np.concatenate([open_shard(path) for path in sorted((root / "bytes").glob("*_val_*"))])
    share = np.bincount(tokens)[np.bincount(tokens) > 0] / len(tokens)
    entropy = -(share * np.log2(share)).sum() * len(tokens) / len(val)
    assert f"val: {len(val) + 40:,} tokens, 40 documents, {len(val):,} bytes" in shown
    assert f"unigram entropy: {entropy:.4f} bits per byte" in shown
    lengths = [len(text.encode()) + 1 for text in CORPUS[:40]]
    assert re.search(rf"128 to 255 +{sum(128 <= n < 256 for n in lengths)} ", shown.split("val: ")[1])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "a.png").stat().st_size > 10_000


def test_stats_says_what_is_wrong(copy, capsys):
    path = copy("bytes")
    edit(path / "docs_train_000000.bin", 3, 300)
    assert run("stats", path, "--workers", 1) == 2
    assert "ids beyond the tokenizer's 260" in capsys.readouterr().err
    assert stats.unigram_bits(np.array([1, 0]), np.array([1, 1])) == pytest.approx(np.log2(3) + np.log2(1.5))


def test_samples_show_borders(exported, copy, capsys):
    root, _ = exported
    assert run("samples", root / "bytes", "--at", 0, "--windows", 2, "--length", 8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["--- docs_val_000000.bin token 0, 8 tokens", "<BOS>|f|i|r|s|t", "<BOS>|" + CORPUS[1][0]]
    assert lines[3].startswith("--- docs_val_000000.bin token 8, 8 tokens")
    path = copy("bytes")
    write_shard(path / "docs_train_000000.bin", np.array([1, 4 + 0xe2, 4 + 10, 4 + ord("|"), 300, 2, 4 + ord("\\")]))
    assert run("samples", path, "--split", "train", "--shard", 0) == 0
    assert "<BOS>|\\xe2|\\n|\\||<id 300>|<control 2>|\\" in capsys.readouterr().out
    shown = []
    for seed in (0, 0, 1):
        assert run("samples", root / "bpe", "--seed", seed) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    for arguments, message in ((["--shard", 99], "--shard 99: val has shards 0 to"),
                               (["--at", 10**9], "--at 1000000000: there are"), (["--windows", 0], "--windows 0")):
        assert run("samples", root / "bpe", *arguments) == 2
        assert message in capsys.readouterr().err


def test_a_closed_pipe_ends_a_command_quietly(exported):
    """As `| head -1` does; so many windows fill the pipe."""
    command = [sys.executable, "-m", "common.data", "samples", exported[0] / "bytes", "--windows", "20000"]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"--- docs_val_000000.bin token ")
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0


def test_one_reader_checks_the_version_of_a_manifest(copy):
    """A manifest may lack the version; one that is unknown is refused, also for training."""
    path = copy("bpe")
    settings = Settings(data_path=str(path), train_seq_len=64)
    digest = open_data(settings).tokenizer_sha256
    change_manifest(path, lambda m: m.pop("format"))
    assert open_data(settings).tokenizer_sha256 == digest == folder.DataFolder(path).tokenizer.sha256
    change_manifest(path, lambda m: m.update(format="parity-golf-data 2", tokenizer=None))
    for read in (lambda: open_data(settings), lambda: folder.DataFolder(path)):
        with pytest.raises(UserError, match=r"manifest.json: is of format parity-golf-data 2, not .* 1: make the data"):
            read()


@pytest.mark.parametrize("name", ["check", "stats", "samples"])
def test_no_data_folder(tmp_path, capsys, name):
    assert run(name, tmp_path / "none") == 2 and "no such folder" in capsys.readouterr().err
    for text, message in (
            ('{"format": "parity-golf-data 2", "tokenizer": {"file": "bytes"}}',
             "is of format parity-golf-data 2, not parity-golf-data 1"),
            ("[]", "is not a data manifest"),
            ('{"format": "parity-golf-data 1", "tokenizer": {"file": "bytes"}}', "is not a data manifest")):
        (tmp_path / "manifest.json").write_text(text)
        assert run(name, tmp_path) == 2 and message in capsys.readouterr().err


def test_bytes_that_the_text_does_not_have_are_warned_of(copy):
    """A tokenizer that counts more of validation than its text has makes scores too good."""
    path = copy("published")
    size = json.loads((path / "manifest.json").read_text())["splits"]["val"]["text_bytes"]
    for counted in (size, size + 1):
        change_manifest(path, lambda m, counted=counted: m["splits"]["val"].update(bytes=counted))
        warnings = open_data(Settings(data_path=str(path), train_seq_len=64)).warnings
        expected = f"counts {counted} bytes of validation, but its text has {size}"
        assert [expected in text for text in warnings] == [True] * (counted - size)


def test_only_the_manifest_of_the_download_keeps_the_published_rule(tmp_path):
    """Of the same files, the challenge's are counted as its scores were, all others as what they decode to."""
    model = train(tmp_path / "tokenizer.model", user_defined_symbols=["\u2581\u2581"])
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    tokenizer = load_tokenizer(model)
    double, tokens = tokenizer.token_bytes.index(b"  "), tokenizer.encode("The quick brown fox " * 40)
    for split in ("train", "val"):
        write_shard(tmp_path / f"x_{split}_0.bin", [tokenizer.bos_id, *tokens])
    for name, counted in (("fineweb10B_sp320", 3), ("docs", 1), ("", 1), (None, 1)):
        manifest = {"tokenizer": {"file": "tokenizer.model", "sha256": digest}} | ({"name": name} if name else {})
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        if name is None:
            (tmp_path / "manifest.json").unlink()
        data = open_data(Settings(data_path=str(tmp_path), train_seq_len=64, tokenizer_path=str(model)))
        assert data.tokenizer.byte_counts[double] == counted
        if name:
            opened = folder.DataFolder(tmp_path)
            assert opened.tokenizer.byte_counts[double] == counted
            _, load_as, *_ = next(opened.pieces("val"))
            assert load_tokenizer(*load_as).byte_counts[double] == counted


def write_table(path, parts, bos=0):
    path.write_text("\n".join([f"parity-golf-table 1 {bos}", *(part.hex() for part in parts)]) + "\n")
    return path


def test_a_table_of_bytes_serves_as_tokenizer(tmp_path, capsys):
    """Of any make: documents are exported by the longest match, and counted and checked like the others."""
    corpus = [f"the cat {i} sat on caf\u00e9 \U0001f600 and the mat" for i in range(60)]
    parts = [b"", *(bytes([b]) for b in range(256)), b"the", b" the", b" cat ", b"\xf0\x9f", b""]
    table, source = write_table(tmp_path / "own", parts), write_jsonl(tmp_path / "a.jsonl", corpus)
    out = tmp_path / "out"
    assert run("export", source, "--tokenizer", f"table:{table}", "--val-docs", 9, "--workers", 1, "--out", out) == 0
    entry = json.loads((out / "manifest.json").read_text())["tokenizer"]
    assert (entry["kind"], entry["file"], entry["vocab_size"]) == ("table", "tokenizer.table", 262)
    for arguments in ((), ("--docs", source), ("--tokenizer", f"table:{table}")):
        assert "bytes of 9 documents" in checked(capsys, out, *arguments)[0]
    data = open_data(Settings(data_path=str(out), train_seq_len=64))
    assert data.tokenizer.token_bytes == parts and data.tokenizer.kind == "table"
    ids = data.val.read(0, 5).tolist()
    assert [parts[i] for i in ids] == [b"", b"the", b" cat ", b"0", b" "] and data.tokenizer.boundary[261]


def test_shards_of_a_table_are_compared_with_their_text(tmp_path, capsys):
    """Shards of their owner's making, which are no longest match; a table that counts too much is found."""
    parts = [b"", *(bytes([b]) for b in range(256)), b"the"]
    table, source = write_table(tmp_path / "own", parts), write_jsonl(tmp_path / "a.jsonl", ["the val " * 20, "train"])
    for split, text in (("val", "the val " * 20), ("train", "train")):
        write_shard(tmp_path / f"x_{split}_0.bin", [0] + [1 + b for b in text.encode()])
    data = open_data(Settings(data_path=str(tmp_path), train_seq_len=64, tokenizer_path=f"table:{table}"))
    assert data.tokenizer.byte_counts[data.val.read(0, 161)].sum() == 160
    arguments = tmp_path, "--tokenizer", f"table:{table}", "--docs", source
    shown = checked(capsys, *arguments)[0]
    assert "ok    val, bytes of 1 documents in 161 tokens: 160" in shown and "ok    val, digest of the texts" in shown
    parts[1 + ord("v")] = b"vvv"
    write_table(table, parts)
    assert checked(capsys, *arguments, code=2)[1][0].startswith("BAD   val, digest of the texts")


@pytest.mark.parametrize("text", ["", "parity-golf-table 1 0", "parity-golf-table 1 9\n\n61\n",
                                  "parity-golf-table 2 0\n\n", "parity-golf-table 1 0\n\n61",
                                  "parity-golf-table 1 1\n\n61\n", "parity-golf-table 1 0\n\n6\n", "\u00e9", "61\n62",
                                  "parity-golf-table 1 -1\n\n", "parity-golf-table 1 0" + "\n" * 70_000])
def test_what_is_not_a_table_is_refused(tmp_path, text):
    (tmp_path / "own").write_text(text)
    with pytest.raises(UserError, match="own: not a usable table: "):
        load_tokenizer(f"table:{tmp_path}/own")


def test_a_tokenizer_of_another_format_is_told_how_a_table_begins(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match="its first line must be 'parity-golf-table 1 ' and the id of BOS"):
        load_tokenizer(f"table:{tmp_path}/tokenizer.json")


def test_a_table_without_an_id_for_a_byte_is_reported(tmp_path, capsys):
    table, source = write_table(tmp_path / "own", [b"", b"a"]), write_jsonl(tmp_path / "a.jsonl", ["a", "aa", "ab"])
    assert run("export", source, "--tokenizer", f"table:{table}", "--val-docs", 1, "--workers", 1,
               "--out", tmp_path / "out") == 2
    assert f"{source}:3: the table has no id for byte 1 of this document, b'b'" in capsys.readouterr().err
