"""The smoke run: what it fails, what it leaves to another machine, that the score must move; the sandbox holds.

Run: `python -m pytest tests/records/test_smoke.py`.
"""
import contextlib
import os
import pwd
import re
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from records import jail, sandbox, smoke
from records.__main__ import main
from records.folder import open_folder
from records.sandbox import Limits
from records.smoke import Run, check_smoke, judge
from records.verdict import exit_code, status_of
from records.verify import verify_folder
from tests.conftest import BACKENDS, ROOT, tiered
from tests.records.made_records import SCRIPT, make_record


@pytest.fixture
def try_script(tmp_path):
    """Smoke-runs a folder with this train_gpt.py; (status, what was observed)."""
    assert not sandbox.can_sandbox(), f"the sandbox is tested where it can be set up: {sandbox.can_sandbox()}"

    def call(source, files=(), **limits):
        folder = tmp_path / "track_non_record_16mb/2026-05-01_x"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"train_gpt.py": source, **dict(files)}.items():
            (folder / name).write_text(text)
        before = sorted(os.listdir(folder))
        found = list(check_smoke(open_folder(folder), Limits(**{"cpu": 20, "idle": 20} | limits)))
        assert sorted(os.listdir(folder)) == before  # a copy ran
        return (status_of(found), found[0].observed) if found else ("PASS", "")
    return call


SCORE = """
import array, os, random
data = array.array("H", open(os.environ["DATA_PATH"] + "/fineweb_val_000000.bin", "rb").read()[1024:])
loss = sum(data) / len(data) + random.Random(os.environ["SEED"]).random()
print("seed:" + os.environ["SEED"])
print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{loss / 2:.8f}")
"""
FINAL = "print('final_int8_zlib_roundtrip_exact val_loss:{} val_bpb:{}')"

# In the manner of the challenge: settings from the environment, a SentencePiece tokenizer, shards by their names.
CHALLENGE = """
import glob, math, os
import numpy as np
import sentencepiece
steps, batch = int(os.environ.get("ITERATIONS", 20000)), int(os.environ.get("TRAIN_BATCH_TOKENS", 524288))
layers, width = int(os.environ.get("NUM_LAYERS", 9)), int(os.environ.get("MODEL_DIM", 512))
length, seed = int(os.environ.get("TRAIN_SEQ_LEN", 1024)), int(os.environ.get("SEED", 1337))
path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
words = sentencepiece.SentencePieceProcessor(os.environ.get("TOKENIZER_PATH", "fineweb_1024_bpe.model"))
vocab = int(os.environ.get("VOCAB_SIZE", 1024))
assert words.vocab_size() == vocab and batch >= 8 * length

def shard(pattern):
    [file] = sorted(glob.glob(os.path.join(path, pattern)))
    header = np.fromfile(file, "<i4", 256)
    assert header[0] == 20240520 and header[1] == 1
    return np.fromfile(file, "<u2", header[2], offset=1024).astype(np.int64)

random = np.random.default_rng(seed)
bytes_of = np.array([1 if words.is_byte(i) else len(words.id_to_piece(i)) for i in range(vocab)])
layer = [random.normal(0, 0.2, (vocab, width))] + [random.normal(0, 0.2, (width, width)) for _ in range(layers)]
head = random.normal(0, 0.2, (width, vocab))

def features(tokens):
    x = layer[0][tokens]
    for w in layer[1:]:
        x = x + np.maximum(x @ w, 0)
    return x

def logs(x):
    z = x @ head
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)

train, val = shard("fineweb_train_*.bin"), shard("fineweb_val_*.bin")
print(f"seed:{seed}")
for step in range(steps):
    part = train[step * batch:][:batch + 1]
    x = features(part[:-1])
    error = np.exp(logs(x))
    error[np.arange(batch), part[1:]] -= 1
    head -= 0.1 * x.T @ error / batch
loss = -logs(features(val[:-1]))[np.arange(len(val) - 1), val[1:]].mean()
bpb = loss / math.log(2) * (len(val) - 1) / bytes_of[val[1:]].sum()
print(f"step:{steps}/{steps} val_loss:{loss:.4f} val_bpb:{bpb:.4f} train_time:9ms step_avg:4.50ms")
print(f"final_int8_zlib_roundtrip val_loss:{loss:.4f} val_bpb:{bpb:.4f} eval_time:3ms")
print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}")
"""


@pytest.mark.parametrize("source", [SCORE, CHALLENGE, SCRIPT.decode()], ids=["short", "challenge", "made record"])
def test_a_script_whose_score_moves_with_data_and_seed_passes(try_script, source):
    assert try_script(source) == ("PASS", "")


def test_a_model_that_the_tiny_sizes_do_not_suit_runs_at_its_own(try_script):
    own = "import os\nassert int(os.environ.get('NUM_LAYERS', 11)) == 11, 'two layers are too few'\n"
    assert try_script(own + SCORE) == ("PASS", "")


SEED = 'os.environ["SEED"]'


@pytest.mark.parametrize(("source", "status", "words"), [
    ("print('step:2/2 val_loss:1.9000')\n" + FINAL.format("1.91234567", "1.21234567"), "FAIL", "with the data"),
    (SCORE.replace("{loss / 2:.8f}", "1.21234567"), "FAIL", "with the data: val_bpb"),
    (SCORE.replace("{loss:.8f}", "1.91234567"), "FAIL", "with the data: val_loss"),
    (SCORE.replace("{loss:.8f}", "1.91").replace("{loss / 2:.8f}", "{loss / 2:.2f}"), "NOT VERIFIED", "with the data"),
    (SCORE.replace("sum(data) / len(data)", "0"), "FAIL", "with the data"),
    (SCORE.replace(f"random.Random({SEED})", "random.Random(1)"), "FAIL", "with the seed"),
    (SCORE.replace(SEED, "'1'").replace('"seed:" + ', ""), "NOT VERIFIED", "with the seed"),
])
def test_a_score_that_does_not_move_is_found(try_script, source, status, words):
    found = try_script(source)
    assert found[0] == status and words in found[1], found


STEPS = "print('step:1/20000 train_loss:6.9000 train_time:900ms step_avg:900.00ms', flush=True)\n"


@pytest.mark.parametrize(("source", "limits", "status", "words"), tiered([
    ("import os\nwhile True: os.fork()", {}, "FAIL", "too many processes"),
    ("while True: pass", {"cpu": 1}, "FAIL", "used 1 s of CPU time"),
    ("import os\nos.fork()\nwhile True: pass", {"cpu": 2}, "FAIL", "used 2 s of CPU time"),
    (STEPS + "while True: pass", {"cpu": 1}, "NOT VERIFIED", "used 1 s of CPU time"),
    ("import time, sys\nsys.stdout.close()\nwhile True: time.sleep(9)", {"idle": 1}, "NOT VERIFIED",
     "without any work"),
    ("import time\nfor _ in range(99): time.sleep(0.1); sum(range(99999))", {"wall": 1, "idle": 9}, "NOT VERIFIED",
     "had not ended after 1 s"),
    ("raise SystemExit(3)", {}, "FAIL", "exit code 3"),
    ("raise SystemExit(127)", {}, "FAIL", "exit code 1"),
    ("x = 1", {}, "FAIL", "without a final score"),
    (FINAL.format("nan", "nan"), {}, "FAIL", "without a final score"),
    ("while True: print('x' * 1000000)", {}, "FAIL", "exit code"),
    ("import os; os.kill(1, 9); os.kill(os.getppid(), 9)\nraise SystemExit(4)", {}, "FAIL", "exit code"),
    ("x = [bytearray(1 << 24) for _ in range(60)]\nx = [bytes(1 << 24).replace(b'\\0', b'x') for _ in range(60)]",
     {"memory": 300 << 20}, "FAIL", "of memory"),
    ("import os, time\nfiles = [os.memfd_create('x') for _ in range(6)]\n"
     "for file in files:\n    for _ in range(100): os.write(file, bytes(1 << 20))\ntime.sleep(5)",
     {"memory": 300 << 20}, "FAIL", "of memory"),
], 4))
def test_what_does_not_end_by_itself_is_ended(try_script, source, limits, status, words):
    found = try_script(source, **limits)
    assert found[0] == status and words in found[1], found


def test_a_busy_machine_is_no_idle_script(monkeypatch):
    """A process that gets no CPU time although it asks for some is not one that waits."""
    monkeypatch.setattr(jail, "stat_of", lambda path: ("S", 0.0))
    monkeypatch.setattr(jail, "PROCESSES", 1 << 20)  # outside a sandbox it sees those of the whole machine, and
    # counts the CPU time of all that these tests have run
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    monkeypatch.setattr(jail, "is_runnable", lambda process: True)
    assert jail.watch(child, 1 << 20, 60, 0.1, 1 << 40) == 0
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9)"])
    monkeypatch.setattr(jail, "is_runnable", lambda process: False)
    assert jail.watch(child, 1 << 20, 60, 0.1, 1 << 40) == jail.IDLE
    child.kill()
    child.wait()


def test_a_thread_that_asks_for_a_cpu_is_runnable():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    idle = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        idle.stdout.readline()
        for _ in range(1000):  # until it sleeps in read()
            if not jail.is_runnable(idle.pid):
                break
        assert jail.is_runnable(busy.pid) and not jail.is_runnable(idle.pid) and not jail.is_runnable(1 << 30)
    finally:
        for process in (busy, idle):
            process.kill()
            process.communicate()


def traceback_of(words, source="    x = f()"):
    return f'Traceback (most recent call last):\n  File "train_gpt.py", line 3, in <module>\n{source}\n{words}\n'


LOCAL = [  # fails on every machine
    traceback_of("NameError: name 'cuda_step' is not defined"),
    traceback_of("AssertionError", "    assert loss < 3"),
    traceback_of("AssertionError: two layers"),
    traceback_of("FileNotFoundError: [Errno 2] No such file or directory: 'weights.bin'"),
    traceback_of("ImportError: cannot import name 'fast' from 'helper' (/tmp/x/helper.py)"),
    traceback_of("ModuleNotFoundError: No module named 'helper.fast'"),
    traceback_of("AttributeError: module 'math' has no attribute 'sqr'"),
    traceback_of("KeyError: 'LEARNING_RATE'"),
    "cuda is available\nbroken\n",
    '  File "train_gpt.py", line 1\n    def f(:\n          ^\nSyntaxError: invalid syntax\n',
]
ELSEWHERE = [  # (what is missing here, output)
    ("a CUDA GPU", traceback_of("RuntimeError: CUDA is required")),
    ("a CUDA GPU", traceback_of("AssertionError: CUDA")),
    ("a CUDA GPU", traceback_of("AssertionError", "    assert torch.cuda.is_available()\n    ^^^^^^^")),
    ("a CUDA GPU", traceback_of("AssertionError: Torch not compiled with CUDA enabled")),
    ("a CUDA GPU", traceback_of("RuntimeError: Found no NVIDIA driver on your system. Please check that you have an "
                                "NVIDIA GPU and installed a driver from\nhttp://www.nvidia.com/Download/index.aspx")),
    ("a CUDA GPU", traceback_of("FileNotFoundError: [Errno 2] No such file or directory: 'nvidia-smi'")),
    ("a CUDA GPU", "CUDA is not available\n"),
    ("a CUDA GPU", "error: DEVICE=gpu, but PyTorch sees no GPU here: use DEVICE=cpu\n"),
    ("the Python package flash_attn", traceback_of("ModuleNotFoundError: No module named 'flash_attn'")),
    ("the Python package triton", traceback_of("ModuleNotFoundError: No module named 'triton.language'")),
    ("the Python package zstandard", traceback_of("ModuleNotFoundError: No module named 'zstandard'")),
    ("the Python package mlx", "error: No module named 'mlx': `pip install '.[mlx]'` provides MLX\n"),
    ("another version of the Python package torch",
     traceback_of("AttributeError: module 'torch.nn' has no attribute 'RMSNorm'")),
    ("another version of the Python package brotli",
     traceback_of("ImportError: cannot import name 'x' from 'brotli' (/usr/lib/brotli.py)")),
    ("PyTorch", "PyTorch is not installed: see the README.\n"),
    ("mlx", traceback_of("RuntimeError: no backend: run pip install -U 'mlx[cpu]' first")),
    ("the library libmlx.so", traceback_of("ImportError: libmlx.so: cannot open shared object file: No such file")),
    ("the library libcupti.so.12", traceback_of("OSError: libcupti.so.12: cannot open shared object file: No file")),
    ("the command zstd", traceback_of("FileNotFoundError: [Errno 2] No such file or directory: 'zstd'")),
    ("a C compiler", traceback_of("torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found in None")),
    ("a home folder or user", traceback_of("KeyError: 'HOME'")),
    ("a home folder or user", traceback_of("KeyError: 'getpwuid(): uid not found: 1000'")),
    ("torchrun", traceback_of("KeyError: 'LOCAL_RANK'")),
    ("a sandbox", "unshare: unshare failed: No space left on device\n"),
    ("the data at ./data/datasets/fineweb10B_sp1024/fineweb_train_*.bin", traceback_of(
        "FileNotFoundError: No files found for pattern: ./data/datasets/fineweb10B_sp1024/fineweb_train_*.bin")),
]


def judged(folder, output, code=1):
    (folder / "train_gpt.py").write_text("")
    (folder / "helper.py").write_text("")
    [finding] = judge(open_folder(folder), Run(code, output.encode()), Limits())
    return finding


@pytest.mark.parametrize("output", LOCAL)
def test_what_fails_on_every_machine_fails(tmp_path, output):
    finding = judged(tmp_path, output)
    assert finding.status == "FAIL" and finding.observed == f"exit code 1: {output.splitlines()[-1]}"


@pytest.mark.parametrize(("missing", "output"), ELSEWHERE)
def test_what_only_this_machine_lacks_is_named_and_not_verified(tmp_path, missing, output):
    finding = judged(tmp_path, output)
    assert finding.status == "NOT VERIFIED"
    assert re.match(f"this machine lacks {re.escape(missing)}[: ]", finding.observed), finding


def test_a_package_that_is_missing_here_is_named_by_the_run_itself(try_script):
    assert try_script("import flash_attn_interface_of_no_one") == (
        "NOT VERIFIED", "this machine lacks the Python package flash_attn_interface_of_no_one: "
                        "ModuleNotFoundError: No module named 'flash_attn_interface_of_no_one'")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads the newest grammar that is known here")
def test_a_grammar_that_this_python_lacks_is_not_verified(try_script):
    status, observed = try_script("try: pass\nexcept ValueError, TypeError: pass")
    assert status == "NOT VERIFIED" and "lacks Python 3.14" in observed


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
assert os.path.isfile("smoke_data/fineweb_val_000000.bin")
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


@pytest.fixture
def homeless(monkeypatch):
    """A user without HOME and without an entry in the list of users, as containers with `--user 12345` have."""
    def no_entry(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    for name in ("HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_home_or_passwd_entry_can_make_the_smoke_run(try_script, homeless):
    """The script is given a home and a name of its own."""
    asks = "import getpass, pathlib\nassert pathlib.Path.home().is_dir() and getpass.getuser() == 'record'\n"
    assert try_script(asks + SCORE) == ("PASS", "")


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_python_that_the_sandbox_cannot_execute_says_nothing_of_the_record(mode, tmp_path, monkeypatch):
    """It lies where only its owner may go, as a user without a home often has it."""
    clean = make_record(tmp_path, (1.8,))
    smoke.tokenizer_model()
    if mode:
        (tmp_path / "python").write_text("")
        (tmp_path / "python").chmod(mode)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert verify_folder(clean)["compile"][0].observed.startswith("not read: [Errno")
    [finding] = check_smoke(open_folder(clean))
    assert finding.status == "NOT VERIFIED" and "not run: unshare: failed to execute" in finding.observed, finding


def test_a_machine_without_room_for_a_copy_says_nothing_of_the_record(tmp_path, monkeypatch):
    clean = make_record(tmp_path, (1.8,))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    [finding] = verify_folder(clean, smoke=True)["smoke run"]
    assert finding.status == "NOT VERIFIED" and "not run: [Errno 2]" in finding.observed, finding


@pytest.mark.parametrize("missing", ["mlx", "torch"])
def test_a_backend_that_is_missing_here_leaves_its_records_not_verified(missing, tmp_path, data_path, monkeypatch,
                                                                       capsys):
    """Records of both backends in one command: those of the other backend are judged all the same."""
    monkeypatch.setitem(sys.modules, BACKENDS[missing].removesuffix(".py"), None)
    clean = make_record(tmp_path, (1.8,))
    log = clean / "train.log"
    log.write_text(log.read_text().replace("backend:torch", f"backend:{missing}"))
    [finding] = verify_folder(clean, data=data_path)["re-evaluation"]
    assert finding.status == "NOT VERIFIED" and f"make install BACKEND={missing}" in finding.observed
    assert main(["verify", str(clean), "--data", str(data_path), "--backend", missing]) == 2
    assert f"make install BACKEND={missing}" in capsys.readouterr().err


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


def test_without_a_sandbox_nothing_runs(tmp_path, monkeypatch, capsys):
    clean = make_record(tmp_path, (1.8,))
    monkeypatch.setattr(sandbox, "UNSHARE", ("unshare", "--no-such-flag"))
    monkeypatch.setattr(smoke, "run_jailed", None)  # a call would raise
    result = verify_folder(clean, smoke=True)
    assert status_of(result["smoke run"]) == "NOT VERIFIED" and exit_code([result]) == 3
    assert main(["verify", "--smoke", str(clean)]) == 3 and "not run" in capsys.readouterr().out
