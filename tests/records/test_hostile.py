"""Hostile record folders end in a failed check, in bounded time and memory.

Run: `python -m pytest tests/records/test_hostile.py`.
"""
import json
import os
import shutil
import subprocess
import sys
import zlib

import pytest

from records.verify import NAMES
from tests.conftest import ROOT
from tests.records.made_records import make_record

MEMORY = 3 << 30  # of address space; the interpreter with numpy and scipy takes most of one


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_record(tmp_path_factory.mktemp("clean"), (1.8,))


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


def deep(folder):
    for _ in range(300):
        folder /= "d"
        folder.mkdir()


def file(name, data):
    """Writes a file, in place of what was there."""
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def large(name):
    """100 MB of nothing."""
    return lambda folder: sparse(folder / name, 100 << 20)


def pipe(name):
    return lambda folder: (folder / name).unlink() or os.mkfifo(folder / name)


def link(name, target):
    return lambda folder: (folder / name).unlink(missing_ok=True) or (folder / name).symlink_to(target)


TEMPTING = [b"Total submission size" + b" a" * 9000, *[b"val_loader:" + b" tokens" * 2000] * 200]
MANY_KEYS = "{" + "".join(f'"{i}":0,' for i in range(60_000)) + '"a":1,"a":2}'
CODE_BOMB = f"import zlib\nexec(zlib.decompress(bytes.fromhex('{zlib.compress(bytes(16 << 20), 1).hex()}')))"
DEEP_CALLS = "f(" * 150 + ")" * 150 + "\n" + "a." * 200_000 + "b"
HOSTILE = {  # name -> (check that must fail, what spoils the folder)
    "log of 100 MB": ("logs", large("train.log")),
    "log of long lines": ("logs", file("train.log", b"step:" + b"1" * (3 << 20))),
    "log that tempts a regular expression": ("logs", file("train.log", b"\n".join(TEMPTING))),
    "numbers without end": ("schema", file("submission.json", '{"val_bpb": ' + "9" * 9000 + "}")),
    "json of 100 MB": ("schema", large("submission.json")),
    "json of nested lists": ("schema", file("submission.json", "[" * 500_000)),
    "json of 60,000 keys": ("schema", file("submission.json", MANY_KEYS)),
    "json of lone surrogates": ("schema", file("submission.json", '{"author": "\\udc80"}')),
    "json that is a pipe": ("schema", pipe("submission.json")),
    "log that is a pipe": ("logs", pipe("train.log")),
    "json that is a device": ("schema", link("submission.json", "/dev/zero")),
    "README that is a link out": ("layout", link("README.md", "/etc/hostname")),
    "link in a circle": ("layout", link("loop", "loop")),
    "link to the root": ("layout", link("root", "/")),
    "folders without end": ("layout", deep),
    "5,000 files": ("layout", lambda folder: [(folder / f"{i}.txt").touch() for i in range(5000)]),
    "name that is not text": ("layout", lambda folder: open(os.fsencode(folder) + b"/\xff\n", "w").close()),
    "code of 100 MB": ("compile", large("train_gpt.py")),
    "code nested too deeply": ("compile", file("train_gpt.py", "-" * 900_000 + "1")),
    "code of deep calls": ("compile", file("train_gpt.py", DEEP_CALLS)),
    "code that is a bomb": ("compile", file("train_gpt.py", CODE_BOMB)),
    "code in another coding": ("compile", file("train_gpt.py", b"# coding: utf-7\n+AGE-\xff")),
    "model that is a bomb": ("artifact", file("model.int8.zlib", zlib.compress(bytes(160 << 20), 1))),
    "model of another layout": ("artifact", file("model.int8.zlib", zlib.compress(b"\xff" * 8 + b"{}"))),
}


@pytest.fixture(scope="module")
def judged(clean, tmp_path_factory):
    """What one process of bounded memory says of all of them: name -> check -> status."""
    folders = {}
    for number, (name, (_, spoil)) in enumerate(HOSTILE.items()):
        folders[name] = tmp_path_factory.mktemp(f"hostile{number}") / clean.parent.name / clean.name
        shutil.copytree(clean, folders[name])
        spoil(folders[name])
    command = f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))\n" \
              "from records.__main__ import main; sys.exit(main(['verify', '--json', *sys.argv[1:]]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    given = [sys.executable, "-c", command, *map(str, folders.values())]
    done = subprocess.run(given, env=environment, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (1, b""), done.stderr
    found = json.loads(done.stdout)
    checks = {name: found[str(path)]["checks"] for name, path in folders.items()}
    return {name: {check: made[check]["status"] for check in NAMES} for name, made in checks.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_fails_a_named_check(judged, name):
    assert judged[name][HOSTILE[name][0]] == "FAIL", judged[name]
