"""The FineWeb download, against a hub on this machine: `python -m pytest tests/data/test_fineweb.py`."""
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece

from common.data import fineweb
from common.data.folder import write_shard
from common.data.tokenizers import decode_ids
from common.dataset import open_data
from common.settings import Settings, UserError
from common.shards import open_shard
from common.tokenizer import load_tokenizer
from tests.conftest import ROOT
from tests.data.hub import REPO, Hub, digest, git_digest

DATASET, VOCABULARY = "datasets/datasets/fineweb10B_sp300", 300
TRAIN = [f"fineweb_train_{i:06}.bin" for i in range(3)]
VAL = [f"fineweb_val_{i:06}.bin" for i in range(2)]
MODEL = "datasets/tokenizers/fineweb_300_bpe.model"


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """The files of a small published export, {path: bytes}; its tokenizer is of the published family; and its text."""
    folder = tmp_path_factory.mktemp("export")
    random, words = np.random.default_rng(0), "the cat sat on a mat then ran off to see what there was to eat".split()
    texts = [" ".join(random.choice(words, 50)) for _ in range(120)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=VOCABULARY, byte_fallback=True,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2)
    (folder / "model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(folder / "model")
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    train, val = np.concatenate(ids[:60]), np.concatenate(ids[60:])
    assert len(val) > 3000
    files = {MODEL: model.getvalue(), "README.md": b"# Golf\n",
             "datasets/docs_selected.jsonl": b'{"text": "the cat"}\n',
             "datasets/tokenizers/fineweb_8192_bpe.model": b"another",
             "datasets/datasets/fineweb10B_byte260/x_val_0.bin": b"",
             "datasets/manifest.json": json.dumps({"datasets": [{"name": "fineweb10B_sp300"}]}).encode()}
    # The first is above 10 MiB, so that a download of it can be broken off; the border of val is inside a document.
    shards = [np.resize(train, 6_000_000), train[1000:], train, val[:2001], val[2001:]]
    for name, tokens in zip(TRAIN + VAL, shards, strict=True):
        write_shard(folder / name, tokens)
        files[f"{DATASET}/{name}"] = (folder / name).read_bytes()
    return SimpleNamespace(files=files, val_text="".join(texts[60:]), val_documents=60, val_tokens=len(val),
                           val_bytes=sum(map(len, texts[60:])))


@pytest.fixture
def hub(export):
    with Hub(export.files) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.resumed.set()
        server.shutdown()


def start(endpoint, out, *arguments, before="pass"):
    """The command in a process of its own, as the library reads its environment when imported. `before` runs first."""
    code = f"import sys; {before}; from common.data.__main__ import main; sys.exit(main(['fineweb', *sys.argv[1:]]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))} | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-c", code, "--variant", "sp300", "--out", out, "--repo", REPO, *arguments]
    return subprocess.Popen([*map(str, command)], env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def run(hub, out, *arguments, before="pass", code=0):
    """What it printed, and its errors."""
    process = start(f"http://127.0.0.1:{hub.server_port}", out, *arguments, before=before)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == code, printed + errors
    return printed, errors


def expected_manifest(hub, export, train):
    def table(names):
        data = {name: hub.files[f"{DATASET}/{name}"] for name in names}
        shards = [{"file": name, "tokens": len(data[name]) // 2 - 512, "sha256": digest(data[name])} for name in names]
        return {"tokens": sum(shard["tokens"] for shard in shards), "shards": shards}

    val = table(VAL) | {"documents": export.val_documents, "bytes": export.val_bytes}
    return {"format": "parity-golf-data 1", "name": "fineweb10B_sp300", "splits": {"train": table(train), "val": val},
            "tokenizer": {"kind": "sentencepiece", "file": "tokenizer.model", "sha256": digest(hub.files[MODEL]),
                          "vocab_size": VOCABULARY}}


def check_folder(hub, export, out, train, *more):
    assert json.loads((out / "manifest.json").read_bytes()) == expected_manifest(hub, export, train)
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted([*train, *VAL, "tokenizer.model", "manifest.json", *more])
    for name in [*train, *VAL]:
        assert (out / name).read_bytes() == hub.files[f"{DATASET}/{name}"]


def test_the_folder_serves_as_data_path(hub, export, tmp_path):
    """Through a connection that breaks once, which is taken up where it broke."""
    hub.faults[f"{DATASET}/{TRAIN[0]}"] = ["cut"]
    out = tmp_path / "new" / "data"
    printed, _ = run(hub, out, "--train-shards", 2, "--with-docs")
    check_folder(hub, export, out, TRAIN[:2], "docs_selected.jsonl")
    assert sorted(hub.downloads) == sorted([
        *((name, "") for name in [*VAL, *TRAIN[:2], "docs_selected.jsonl", "manifest.json", "fineweb_300_bpe.model"]),
        (TRAIN[0], f"bytes={10 << 20}-")]), "each once"
    assert f"{export.val_documents} documents, {export.val_tokens:,} tokens, {export.val_bytes:,} bytes" in printed
    assert "docs_selected.jsonl" in printed and "2 of 3 shards" in printed

    data = open_data(Settings(data_path=str(out), vocab_size=VOCABULARY, train_seq_len=64))
    tokens = np.concatenate([open_shard(out / name) for name in VAL])
    assert data.val.length == export.val_tokens and decode_ids(data.tokenizer, tokens).decode() == export.val_text


def test_a_second_run_fetches_only_what_is_missing_or_differs(hub, export, tmp_path):
    out = tmp_path / "data"
    run(hub, out, "--train-shards", 1)
    hub.downloads.clear()
    run(hub, out, "--train-shards", 99, "--prefix", "/datasets/")
    assert hub.names() == TRAIN[1:], "more of them"
    check_folder(hub, export, out, TRAIN)

    hub.downloads.clear()
    manifest = (out / "manifest.json").read_bytes()
    printed, _ = run(hub, out, "--train-shards", 1)
    assert hub.downloads == [] and (out / "manifest.json").read_bytes() == manifest and "3 of 3" in printed

    # Published anew: one shard of the same size, and one of ours was damaged.
    changed = bytearray(hub.files[f"{DATASET}/{TRAIN[1]}"])
    changed[2000:2002] = changed[2002:2004] = b"\7\0"
    hub.files[f"{DATASET}/{TRAIN[1]}"] = bytes(changed)
    (out / VAL[0]).write_bytes(b"damaged")
    run(hub, out, "--train-shards", 1)
    assert hub.names() == [TRAIN[1], VAL[0]]
    check_folder(hub, export, out, TRAIN)


@pytest.mark.slow
def test_a_bad_shard_is_fetched_once_more_and_then_named(hub, export, tmp_path):
    out, path = tmp_path / "data", f"{DATASET}/{TRAIN[1]}"
    run(hub, out, "--train-shards", 1)
    hub.downloads.clear()
    hub.faults[path] = ["corrupt", "corrupt"]
    (out / ".partial").mkdir()
    (out / ".partial" / "of_an_earlier_run.bin.incomplete").write_bytes(b"1")
    _, errors = run(hub, out, "--train-shards", 2, code=2)
    assert re.fullmatch(rf"error: fetched twice: \S*{TRAIN[1]}: .* not the .*\n", errors)
    assert hub.names() == [TRAIN[1]] * 2 and not list(out.rglob(f"*{TRAIN[1]}")) + list(out.rglob("*.incomplete"))

    hub.faults |= {path: ["corrupt"], MODEL: ["corrupt"]}
    (tmp_path / "home").rename(tmp_path / "old home")  # where the library keeps the tokenizer
    run(hub, out, "--train-shards", 2)
    assert hub.names() == [TRAIN[1]] * 4 and hub.faults[path] == hub.faults[MODEL] == []
    check_folder(hub, export, out, TRAIN[:2])


@pytest.mark.parametrize("place, value, message", [
    (1024 + 2 * 700, 300, "token 700 .* is 300"), (8, 5, "header says 5 tokens")])
def test_a_shard_that_was_published_bad_is_named(hub, tmp_path, place, value, message):
    data = bytearray(hub.files[f"{DATASET}/{VAL[1]}"])
    data[place : place + 4 if place < 1024 else place + 2] = value.to_bytes(4 if place < 1024 else 2, "little")
    hub.files[f"{DATASET}/{VAL[1]}"] = bytes(data)
    _, errors = run(hub, tmp_path / "data", code=2)
    assert re.search(rf"^error: .*{VAL[1]}.*{message}", errors) and not (tmp_path / "data" / "manifest.json").exists()


def test_an_interrupted_run_is_taken_up(hub, export, tmp_path):
    out = tmp_path / "data"
    hub.faults[f"{DATASET}/{TRAIN[0]}"] = ["stall"]
    process = start(f"http://127.0.0.1:{hub.server_port}", out,
                    before="import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")
    assert hub.stalled.wait(60)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in out.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "another command that writes to" in run(hub, out, code=2)[1]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "error: interrupted" in errors
    assert not (out / "manifest.json").exists()
    whole = {path.name for path in out.glob("*.bin")}
    assert TRAIN[0] not in whole
    hub.downloads.clear()
    run(hub, out)  # default: 80
    assert set(hub.names()) == {*TRAIN, *VAL} - whole
    ranges = [wanted for name, wanted in hub.downloads if name == TRAIN[0]]
    assert ranges == [f"bytes={10 << 20}-"], "continues where it was"
    check_folder(hub, export, out, TRAIN)


def test_more_than_a_file_can_be_was_left(hub, export, tmp_path):
    whole = hub.files[f"{DATASET}/{TRAIN[0]}"]
    part = tmp_path / "data" / ".partial" / f"{git_digest(whole)}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(whole + b"x")
    run(hub, tmp_path / "data", "--train-shards", 1)
    check_folder(hub, export, tmp_path / "data", TRAIN[:1])


@pytest.mark.slow
def test_a_server_that_is_busy_for_a_moment_is_asked_again(hub, export, tmp_path):
    hub.faults = {f"{DATASET}/{TRAIN[0]}": ["busy"], f"{DATASET}/{VAL[0]}": ["busy", "busy", "busy"]}
    _, errors = run(hub, tmp_path / "data", "--train-shards", 1, code=2)
    assert re.match(f"error: .*{VAL[0]}.*run this again.*503", errors)
    run(hub, tmp_path / "data", "--train-shards", 1)
    check_folder(hub, export, tmp_path / "data", TRAIN[:1])


def test_a_changed_folder_has_no_manifest_until_it_is_whole(hub, export, tmp_path):
    out = tmp_path / "data"
    run(hub, out, "--train-shards", 1)
    die = ("import os; replace = os.replace; "
           f"os.replace = lambda a, b: (replace(a, b), os.path.dirname(b) == {str(out)!r} and os._exit(9))")
    run(hub, out, before=die, code=9)
    assert {*TRAIN[1:]} & {path.name for path in out.iterdir()} and not (out / "manifest.json").exists()
    run(hub, out)
    check_folder(hub, export, out, TRAIN)


def test_validation_that_is_not_the_published_one_is_reported(hub, export, tmp_path):
    out, scored = tmp_path / "data", (export.val_tokens - 1) // 1024 * 1024
    for tokens, size, warned in ((scored, export.val_bytes * 1.0004, False), (scored, export.val_bytes * 1.0006, True),
                                 (scored + 1024, export.val_bytes, True)):
        known = (f"from common.data import fineweb; fineweb.VAL_TOKENS = {{'sp300': {tokens}}}; "
                 f"fineweb.VAL_BYTES = {int(size)}")
        _, errors = run(hub, out, "--train-shards", 1, before=known)
        assert errors.startswith("warning: ") == warned
        assert all(f"{number:,}" in errors for number in (scored, export.val_bytes, tokens, int(size))) == warned


def spoil(hub, out, what):
    if what == "foreign shard":
        out.mkdir()
        (out / "mine_train_000.bin").write_bytes(b"")
    elif what == "foreign manifest":
        out.mkdir()
        (out / "manifest.json").write_text('{"format": "parity-golf-data 1", "name": "pydoc"}')
    elif what == "no space":
        hub.sizes[f"{DATASET}/{TRAIN[0]}"] = 10**18
    elif what == "other vocabulary":
        hub.files["datasets/fineweb10B_sp400/x_train_0.bin"] = hub.files["datasets/fineweb10B_sp400/x_val_0.bin"] = b""
        hub.files["datasets/manifest.json"] = b'{"datasets": {"fineweb10B_sp400": {"model": "fineweb_300_bpe.model"}}}'
    elif what == "no tokenizer":
        del hub.files[MODEL]


@pytest.mark.parametrize("what, arguments, message", [
    ("repo", ["--repo", "someone/nothing"], "someone/nothing, revision main.*RepositoryNotFoundError"),
    ("revision", ["--revision", "old"], "revision old.*RevisionNotFoundError"),
    ("prefix", ["--prefix", "elsewhere"], "folder elsewhere.*EntryNotFoundError"),
    ("variant", ["--variant", "sp7"], "no shards in a folder fineweb10B_sp7; there are: byte260, sp300\n"),
    ("no tokenizer", [], "looked for fineweb_300_bpe.model; there are: fineweb_8192_bpe.model\n"),
    ("other vocabulary", ["--variant", "sp400"], "fineweb_300_bpe.model has 300 ids"),
    ("shards", ["--train-shards", "0"], "--train-shards 0"),
    ("no space", [], r"needs 1,000,000,000,0\S+ bytes more, [\d,]+ are free"),
    ("foreign shard", [], "mine_train_000.bin is not of fineweb10B_sp300"),
    ("foreign manifest", [], "is not a fineweb10B_sp300 data set"),
])
def test_errors_are_one_line_and_change_nothing(hub, tmp_path, what, arguments, message):
    out = tmp_path / "data"
    spoil(hub, out, what)
    before = {path: path.read_bytes() for path in out.glob("*")}
    _, errors = run(hub, out, *arguments, code=2)
    assert re.match("error: ", errors) and re.search(message, errors) and errors.count("\n") == 1
    assert out.exists() == bool(before) and {path: path.read_bytes() for path in out.glob("*")} == before
    assert not set(hub.names())


def test_without_a_connection_or_the_library(hub, tmp_path):
    with Hub({}) as closed:
        endpoint = f"http://127.0.0.1:{closed.server_port}"
    _, errors = start(endpoint, tmp_path / "data").communicate(timeout=60)
    assert re.fullmatch(f"error: .* {endpoint}; check the names and the connection.*\n", errors)
    _, errors = run(hub, tmp_path / "data", before="sys.modules['huggingface_hub'] = None", code=2)
    assert re.fullmatch(r"error: .*pip install '\.\[data\]'.*\n", errors)
    assert not (tmp_path / "data").exists()


PATHS = ["a/d/fineweb10B_sp4/x_train_1.bin", "a/d/fineweb10B_sp4/x_train_0.bin", "a/d/fineweb10B_sp4/x_val_0.bin",
         "a/t/fineweb_4_bpe.model", "a/t/fineweb_5_bpe.model", "a/t/other.model"]


@pytest.mark.parametrize("manifest, model", [
    (None, "fineweb_4_bpe.model"), ([1], "fineweb_4_bpe.model"), ({"datasets": 5}, "fineweb_4_bpe.model"),
    ({"datasets": ["fineweb10B_sp4"], "tokenizers": [None]}, "fineweb_4_bpe.model"),
    ({"datasets": [{"name": "fineweb10B_sp4", "tokenizer_path": "gone.model"}]}, "fineweb_4_bpe.model"),
    ({"datasets": [{"name": "fineweb10B_sp5", "model": "t/other.model"}]}, "fineweb_4_bpe.model"),
    ({"datasets": [{"path": "d/fineweb10B_sp4", "tokenizer": {"file": "t/other.model"}}]}, "other.model"),
    ({"datasets": [{"name": "fineweb10B_sp4", "tokenizer_name": "bpe4", "kind": "bpe"}],
      "tokenizers": [{"name": "bpe5", "kind": "bpe", "model_path": "t/fineweb_5_bpe.model"},
                     {"name": "bpe4", "kind": "bpe", "model_path": "t/other.model"}]}, "other.model"),
    ({"datasets": {"fineweb10B_sp4": {"tokenizer": "b"}}, "tokenizers": {"b": {"m": "other.model"}}}, "other.model"),
])
def test_the_published_manifest_may_name_the_tokenizer(manifest, model):
    shards, found = fineweb.find_dataset(PATHS, json.dumps(manifest).encode(), "sp4")
    assert found == f"a/t/{model}" and shards == {"train": [PATHS[1], PATHS[0]], "val": [PATHS[2]]}


def test_a_manifest_that_is_not_json_is_ignored():
    assert fineweb.find_dataset(PATHS, b"\xff{", "sp4")[1] == "a/t/fineweb_4_bpe.model"
    with pytest.raises(UserError, match="there are: sp4"):
        fineweb.find_dataset(PATHS[:2], b"", "sp4")
