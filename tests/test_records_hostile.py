"""Hostile record folders end in a failed check, in bounded time and memory; the sandbox holds.

Run: `python -m pytest tests/test_records_hostile.py`.
"""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import pytest

from records import sandbox
from records.__main__ import main
from records.folder import open_folder
from records.verdict import exit_code, status_of
from records.verify import NAMES, verify_folder
from tests.conftest import ROOT
from tests.made_records import make_record

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


@pytest.fixture
def try_script(tmp_path):
    """Smoke-runs a folder with this train_gpt.py; (status, what was observed)."""
    assert not sandbox.can_sandbox(), f"the sandbox is tested where it can be set up: {sandbox.can_sandbox()}"

    def call(source, seconds=20):
        folder = tmp_path / "track_non_record_16mb/2026-05-01_x"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train_gpt.py").write_text(source)
        found = list(sandbox.check_smoke(open_folder(folder), seconds))
        assert os.listdir(folder) == ["train_gpt.py"]  # a copy ran
        return (status_of(found), found[0].observed) if found else ("PASS", "")
    return call


SCORE = "\nprint('final_int8_zlib_roundtrip_exact val_loss:1.0 val_bpb:1.0')"


@pytest.mark.parametrize(("source", "words"), [
    ("import os\nwhile True: os.fork()", "too many processes"),
    ("while True: pass", "still running"),
    ("raise SystemExit(3)", "exit code 3"),
    ("import time, sys\nsys.stdout.close()\nwhile True: time.sleep(1)", "still running"),
    ("x = 1", "without a final score"),
    ("while True: print('x' * 1000000)", "exit code"),
    ("import os; os.kill(1, 9); os.kill(os.getppid(), 9)\nraise SystemExit(4)", "exit code"),
])
def test_scripts_that_loop_fork_or_flood_are_ended(try_script, source, words):
    status, observed = try_script(source, 3 if words == "still running" else 20)
    assert status == "FAIL" and words in observed


def test_memory_is_bounded(try_script, monkeypatch):
    monkeypatch.setattr(sandbox, "MEMORY", 300 << 20)
    monkeypatch.setattr(sandbox.run_jailed, "__defaults__", (sandbox.SECONDS, 300 << 20))
    status, observed = try_script("""
x = [bytearray(1 << 24) for _ in range(60)]
x = [bytes(1 << 24).replace(b"\\0", b"x") for _ in range(60)]""")
    assert status == "FAIL" and "of memory" in observed


def test_shared_memory_that_nobody_maps_counts(try_script, monkeypatch):
    monkeypatch.setattr(sandbox.run_jailed, "__defaults__", (sandbox.SECONDS, 300 << 20))
    status, observed = try_script("""import os, time
files = [os.memfd_create("x") for _ in range(6)]
for file in files:
    for _ in range(100): os.write(file, bytes(1 << 20))
time.sleep(5)""")
    assert status == "FAIL" and "of memory" in observed


def test_nothing_outside_the_copy_can_be_written_and_no_network_is_there(try_script, tmp_path):
    (tmp_path / "mine").write_text("mine")
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=server.accept, daemon=True).start()
    status, observed = try_script(f"""
import os, socket
for path in ({str(tmp_path / 'mine')!r}, {str(ROOT / 'README.md')!r}):
    try: open(path, "a"); raise SystemExit(5)
    except OSError: pass
try: socket.create_connection({server.getsockname()!r}, 2); raise SystemExit(6)
except OSError: pass
here = socket.create_server(("127.0.0.1", 0)); socket.create_connection(here.getsockname(), 2)
assert "SECRET" not in os.environ and os.environ["ITERATIONS"] == "2"
assert os.path.isfile("smoke_data/smoke_val_000000.bin")
open("mine", "w").write("in the copy"){SCORE}""")
    server.close()
    assert (status, observed) == ("PASS", "") and (tmp_path / "mine").read_text() == "mine"


def test_the_kernel_cannot_be_set_and_no_device_or_socket_outside_is_there(try_script):
    outside = "/run" if os.access("/run", os.W_OK) else "/tmp"
    with tempfile.TemporaryDirectory(dir=outside) as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")
        server.listen()
        assert try_script(f"""
import os, socket
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/pid_max", "/proc/sysrq-trigger"):
    try: os.open(path, os.O_WRONLY); raise SystemExit(path)
    except OSError: pass
try: socket.socket(socket.AF_UNIX).connect("{folder}/s"); raise SystemExit("connected")
except OSError: pass
assert set(os.listdir("/dev")) == {{"null", "zero", "random", "urandom", "shm", "fd"}}, os.listdir("/dev")
assert len(os.urandom(8)) == len(open("/dev/urandom", "rb").read(8)) == 8 and open("/dev/null", "w").write("x")
open("/dev/shm/x", "w").write("x"){SCORE}""") == ("PASS", "")


@pytest.mark.parametrize(("last", "status"), [("CUDA is not available", "NOT VERIFIED"), ("broken", "FAIL")])
def test_only_the_last_line_can_ask_for_a_gpu(try_script, last, status):
    assert try_script(f"print('cuda available')\nraise SystemExit({last!r})")[0] == status


def test_a_probe_that_hangs_is_not_a_sandbox(monkeypatch):
    monkeypatch.setattr(sandbox, "UNSHARE", ("sh", "-c", "exec sleep 9"))
    monkeypatch.setattr(sandbox, "PROBE_SECONDS", 0.2)
    assert "did not answer" in sandbox.can_sandbox()


def test_what_a_script_leaves_running_is_ended_with_it(try_script, tmp_path):
    name = f"left_over_{os.getpid()}"
    status, observed = try_script(f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", {name!r}], start_new_session=True){SCORE}""")
    assert (status, observed) == ("PASS", "")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert name.encode() not in path.read_bytes()


def test_without_a_sandbox_nothing_runs(clean, monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "UNSHARE", ("unshare", "--no-such-flag"))
    monkeypatch.setattr(sandbox, "run_jailed", None)  # a call would raise
    result = verify_folder(clean, smoke=True)
    assert status_of(result["smoke run"]) == "NOT VERIFIED" and exit_code([result]) == 3
    assert main(["verify", "--smoke", str(clean)]) == 3 and "not run" in capsys.readouterr().out
