"""The embedded corpus: `python -m pytest tests/data/test_pydoc.py`."""
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

from common.data import __main__ as command
from common.data import pydoc
from common.data.tokenizers import decode_ids
from common.settings import UserError
from common.shards import check_ids, find_shards, open_shard
from common.tokenizer import Tokenizer, count_bytes, load_tokenizer


def read(folder, split):
    """The tokenizer, the token stream and the texts of a split."""
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    [path] = find_shards(folder, split)
    tokens = np.array(open_shard(path))
    check_ids(tokens, tokenizer.vocab_size, path)
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    assert starts[0] == 0
    return tokenizer, tokens, [decode_ids(tokenizer, ids[1:]).decode() for ids in np.split(tokens, starts[1:])]


def runs_of_8(text):
    found = re.findall(r"\w+", text.lower())
    return set(zip(*(found[i:] for i in range(8)), strict=False))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two folders, built by two processes that hash strings differently."""
    folders = [tmp_path_factory.mktemp("data") / "pydoc" for _ in range(2)]
    for seed, folder in enumerate(folders):
        subprocess.run([sys.executable, "-m", "common.data", "pydoc", "--vocab-size", "400", "--out", folder],
                       check=True, env=os.environ | {"PYTHONHASHSEED": str(seed)})
    return folders


@pytest.mark.slow
def test_equal_bytes_in_two_processes(built):
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in built)
    assert first == second
    assert sorted(first) == ["manifest.json", "pydoc_train_000000.bin", "pydoc_val_000000.bin", "tokenizer.model"]
    assert [path.name for path in built[0].parent.iterdir()] == ["pydoc"], "nothing half-made stays behind"


def test_manifest_is_true(built):
    folder = built[0]
    text = (folder / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=2, sort_keys=True) + "\n"

    def digest(name):
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    splits = {}
    for split in ("train", "val"):
        tokenizer, tokens, texts = read(folder, split)
        size = sum(len(text.encode()) for text in texts)
        assert count_bytes(tokenizer, tokens[:-1], tokens[1:]).sum() == size
        name = f"pydoc_{split}_000000.bin"
        splits[split] = {"documents": len(texts), "tokens": len(tokens), "bytes": size,
                         "shards": [{"file": name, "tokens": len(tokens), "sha256": digest(name)}]}
    model = "tokenizer.model"
    tokenizer = {"kind": "sentencepiece", "file": model, "sha256": digest(model), "vocab_size": 400}
    assert manifest == {"format": "parity-golf-data 1", "name": "pydoc", "python": platform.python_version(),
                        "splits": splits, "tokenizer": tokenizer}


def test_no_validation_text_in_training(built):
    train, val = (read(built[0], split)[2] for split in ("train", "val"))
    held_out = set().union(*map(runs_of_8, val))
    assert len(held_out) > 10_000
    assert held_out.isdisjoint(set().union(*map(runs_of_8, train)))


@pytest.mark.slow
def test_little_text_is_lost(built):
    train, val = (sum(len(text.encode()) for text in read(built[0], split)[2]) for split in ("train", "val"))
    whole = sum(len("\n\n".join(part).encode()) for part in pydoc.documents())
    assert 1_500_000 < whole and 0.95 * whole < train + val < whole
    assert 0.05 < val / whole < 0.12


def held_out_text(text):
    """The text with a number that makes it validation."""
    return next(numbered for i in range(1000) if pydoc._is_validation(numbered := f"{text} {i}"))


def test_split_drops_copies_and_only_them():
    val = held_out_text("one two three four five six seven eight nine alpha beta gamma delta epsilon zeta eta theta")
    near_copy = "Near: TWO three, four\n  *five* six seven; eight nine!"
    near_miss = "three four five six seven eight. Nine of them."
    # Dropping the copy between them would bring together "alpha ... delta" and "epsilon ... theta" as in validation.
    mixed = ["Intro.", near_copy, near_miss, "alpha beta gamma delta", near_copy, "epsilon zeta eta theta", "End."]
    parts = [[val], mixed, [near_copy]]
    assert not any(pydoc._is_validation("\n\n".join(part)) for part in parts[1:])
    assert pydoc.split(parts) == {
        "train": ["Intro.\n\n" + near_miss + "\n\nalpha beta gamma delta\n\nEnd."], "val": [val]}


def test_documents_come_from_sources_that_are_not_imported(tmp_path, monkeypatch):
    files = {
        "b/__init__.py": '"""Package b."""\nraise SystemExit\nif 1:\n try:\n  pass\n except E as e:\n  def f():\n'
                         '    """Line.\n\n    Flat.\n        Indented.\n    """\n    def inner():\n      """No."""\n',
        "b/m.py": 'class C:\n    """C."""\n    class D:\n        async def g(self):\n            """A \\ud800 B."""\n',
        "a.py": "x = 1\n", "broken.py": "def\n", "null.py": "\0", "latin.py": '"""\xe9"""',
        "test/t.py": '"""No."""', "b/tests/t.py": '"""No."""', "site-packages/s.py": '"""No."""'}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(pydoc, "_topics", lambda: ["Topic"])
    assert ["\n\n".join(part) for part in pydoc.documents()] == [
        "Topic", "b\n\nPackage b.\n\nb.f\n\nLine.\n\nFlat.\n    Indented.", "b.m.C\n\nC.\n\nb.m.C.D.g\n\nA ? B."]


def test_cut_keeps_the_text():
    paragraphs = ["x" * 3000, "y" * 1000, "z", "", "\nw" * 3000, "v"]
    cut = pydoc._cut("\n\n".join(paragraphs))
    assert cut == [paragraphs[:2], paragraphs[2:4], paragraphs[4:5], paragraphs[5:]]


def test_unigram_bits():
    # One more of each: 3, 2 and 1 of 6.
    bits = pydoc.unigram_bits(np.array([2, 1, 0]), np.array([1, 1, 2]))
    assert bits == pytest.approx(1 + np.log2(3) + 2 * np.log2(6))


def test_a_document_that_the_tokenizer_changes_is_refused():
    plain = load_tokenizer("bytes")
    broken = Tokenizer(lambda text: plain.encode(text.lower()), plain.decode, plain.bos_id, plain.token_bytes)
    tokens, size, kept = pydoc.encode_document(broken, "abc")
    assert (tokens.tolist(), size, kept) == ([1, 101, 102, 103], 3, True)
    with pytest.raises(UserError, match="Abc"):
        pydoc.encode_document(broken, "Abc")


@pytest.fixture
def small(monkeypatch):
    """A corpus of a hundred documents of random words, so that a build takes no time."""
    generator = np.random.default_rng(0)
    texts = [" ".join("".join(map(chr, word)) for word in generator.integers(97, 123, (200, 5))) for _ in range(100)]
    monkeypatch.setattr(pydoc, "documents", lambda: [[text] for text in texts])


def run(*arguments):
    return command.main(["pydoc", *map(str, arguments)])


def test_command(small, tmp_path, capsys):
    out = tmp_path / "new" / "data"
    assert run("--out", out, "--vocab-size", 300) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and str(out) in printed[0]
    for name, line in zip(("train", "val"), printed[1:], strict=False):
        documents, tokens, size, ratio = (float(part.replace(",", "")) for part in re.findall(r"[\d,.]*\d", line))
        assert line.startswith(name) and len(read(out, name)[2]) == documents and len(read(out, name)[1]) == tokens
        assert ratio == pytest.approx(size / tokens, abs=1e-3)
    assert re.fullmatch(r"unigram entropy .* \d\.\d{3} bits per byte", printed[3])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}

    assert run("--out", out, "--vocab-size", 300) == 0
    assert "already there" in capsys.readouterr().out
    assert run("--out", out, "--vocab-size", 310) == 2
    assert re.fullmatch(r"error: .*vocabulary 300, not 310.*--force\n", capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before

    assert run("--out", out, "--vocab-size", 310, "--force") == 0
    assert load_tokenizer(out / "tokenizer.model").vocab_size == 310
    (out / "pydoc_val_000000.bin").write_bytes(b"")
    assert run("--out", out, "--vocab-size", 310) == 2
    assert "damaged" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["data"]


def test_default_folder_is_named_by_the_vocabulary(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--vocab-size", 300) == 0
    assert (tmp_path / "data/pydoc_sp300/manifest.json").is_file()


@pytest.mark.parametrize("size, message", [(100, "260"), (270, "at least"), (60000, "at most"), (70000, "65536")])
def test_impossible_vocabulary(small, tmp_path, capsys, size, message):
    assert run("--out", tmp_path / "data", "--vocab-size", size) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and str(size) in printed and message in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_never_replaces_anything_else(small, tmp_path, capsys):
    out = tmp_path / "data"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for manifest in (None, "", "[]", '{"format": "parity-golf-data 1", "name": "fineweb"}',
                     '{"format": "parity-golf-data 2", "name": "pydoc"}'):
        if manifest is not None:
            (out / "manifest.json").write_text(manifest)
        assert run("--out", out, "--vocab-size", 300, "--force") == 2
        error = capsys.readouterr().err
        assert "is not a pydoc data set" in error
        assert ("manifest.json: is of format parity-golf-data 2" in error) == ("data 2" in str(manifest))
    assert run("--out", out / "mine.txt", "--vocab-size", 300, "--force") == 2
    assert (out / "mine.txt").read_text() == "mine"


def test_an_interrupted_build_leaves_what_was_there(small, tmp_path, monkeypatch):
    out = tmp_path / "data"
    out.mkdir()
    assert run("--out", out, "--vocab-size", 300) == 0, "an empty folder may be there"
    before = {path: path.read_bytes() for path in out.iterdir()}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", interrupt)
    for folder in (out, tmp_path / "other"):
        assert run("--out", folder, "--vocab-size", 300, "--force") == 2
    assert list(tmp_path.iterdir()) == [out] and {path: path.read_bytes() for path in out.iterdir()} == before


def test_without_a_command_help_is_printed(capsys):
    with pytest.raises(SystemExit) as done:
        command.main([])
    assert done.value.code == 0 and "pydoc" in capsys.readouterr().out
