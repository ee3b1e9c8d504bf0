"""The smoke run: two steps of a record's train_gpt.py on tiny data, from a copy of its folder, in Linux namespaces of
its own (`unshare`).

Inside there is no network except loopback, an environment of our choice, one writable folder (the copy, in memory), and
limits on time, processes, memory and written bytes. This stops accidents and lazy cheating. It is not a virtual
machine: the kernel is shared, and the code can read every file that you can read. It can connect to Unix sockets
outside /run, /tmp and your home (and inside these, where Python lies in them). You see what it prints. Where the
sandbox cannot be set up, nothing is run.
"""
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from common.data.folder import write_shard
from records.jail import NO_SANDBOX, TOO_LARGE, TOO_LONG, TOO_MANY
from records.logs import read_log
from records.rules import FAIL, UNVERIFIED, Finding

PROBE_SECONDS = 30  # for `unshare` to answer
SECONDS = 300  # of the smoke run
MEMORY = 8 << 30  # bytes of all its processes
OUTPUT_LIMIT = 1 << 20  # bytes of its output that are read, the last ones
COPY_LIMIT = 64 << 20  # bytes of the folder
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc",
           "--kill-child")
TINY = {
    "ITERATIONS": 2, "WARMUP_STEPS": 0, "VAL_LOSS_EVERY": 0, "MAX_WALLCLOCK_SECONDS": 0,
    "VOCAB_SIZE": 260, "NUM_LAYERS": 2, "MODEL_DIM": 64, "NUM_HEADS": 4, "NUM_KV_HEADS": 2,
    "TRAIN_SEQ_LEN": 64, "TRAIN_BATCH_TOKENS": 256, "MICRO_BATCH_TOKENS": 256, "VAL_BATCH_SIZE": 8192,
    "COMPILE": 0, "DEVICE": "cpu", "COMPUTE_DTYPE": "float32",
    "DATA_PATH": "smoke_data", "RUN_ID": "smoke",
    "OMP_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1, "PYTHONDONTWRITEBYTECODE": 1,
}


def can_sandbox():
    """Why a sandbox cannot be set up here; "" where it can."""
    if sys.platform != "linux":
        return f"there is no sandbox on {sys.platform}"
    if not shutil.which("unshare"):
        return "`unshare` of util-linux is not installed"
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"`unshare` did not answer in {PROBE_SECONDS} s"
    if done.returncode:
        return f"user namespaces are not allowed here ({done.stderr.strip()[-100:]})"
    return ""


def write_data(folder):
    """A data folder in byte tokens: 4,096 training tokens, 1,024 of validation."""
    folder.mkdir()
    tokens = np.random.Generator(np.random.Philox(1)).integers(4, 260, 5120).astype(np.uint16)
    write_shard(folder / "smoke_train_000000.bin", tokens[:4096])
    write_shard(folder / "smoke_val_000000.bin", tokens[4096:])
    digest = hashlib.sha256(b"bytes").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": {"file": "bytes", "sha256": digest}}))


def check_smoke(folder, seconds=SECONDS):
    """Findings of the run; none where it exited 0 and printed its final score."""
    if not folder.files.get("train_gpt.py"):
        yield Finding(UNVERIFIED, "no train_gpt.py to run", "it runs from within its folder", "train_gpt.py")
        return
    size = sum(folder.files.values())
    if size > COPY_LIMIT:
        yield Finding(UNVERIFIED, f"the folder has {size:,} bytes", f"at most {COPY_LIMIT:,} to be copied", ".")
        return
    if reason := can_sandbox():
        yield Finding(UNVERIFIED, f"not run: {reason}", "a sandbox", "train_gpt.py")
        return
    with tempfile.TemporaryDirectory(prefix="record_smoke_") as temporary:
        copy = Path(temporary).resolve() / "record"
        copy.mkdir()
        for name in folder.files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / name, copy / name)
        write_data(copy / TINY["DATA_PATH"])
        path = Path(temporary, "output")
        code = run_jailed([sys.executable, "train_gpt.py"], copy, path, seconds)
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - OUTPUT_LIMIT))
            output = file.read(OUTPUT_LIMIT)
    yield from judge(code, output, seconds)


def judge(code, output, seconds):
    """Findings of an exit code and the bytes that were printed."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    last = "".join(c if c.isprintable() else "?" for c in (lines or ["nothing was printed"])[-1][:120])
    ended = {
        TOO_LONG: f"was still running after {seconds} s and was ended",
        TOO_MANY: "started too many processes and was ended",
        TOO_LARGE: f"used more than {MEMORY >> 30} GiB of memory and was ended",
    }
    if code == NO_SANDBOX:
        yield Finding(UNVERIFIED, f"not run: {last}", "a sandbox", "train_gpt.py")
    elif code in ended:
        yield Finding(FAIL, ended[code], "two steps, then the end", "train_gpt.py")
    elif code and "cuda" in last.lower() and "available" in last.lower():
        yield Finding(UNVERIFIED, f"needs a GPU: {last}", "a machine with one", "train_gpt.py")
    elif code:
        yield Finding(FAIL, f"exit code {code}: {last}", "exit code 0", "train_gpt.py")
    elif not (score := read_log("output", output).score()) or not math.isfinite(score[1]):
        yield Finding(FAIL, "exited 0 without a final score", "the line of the final score", "train_gpt.py")


def run_jailed(command, copy, output, seconds=SECONDS, memory=MEMORY):
    """Exit code of a command in the sandbox; its output goes into a file."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(copy), "TMPDIR": str(copy), "LANG": "C.UTF-8"}
    environment |= {name: str(value) for name, value in TINY.items()}
    program = Path(__file__).with_name("jail.py")
    given = map(str, (program, copy, Path.home(), seconds, memory))
    jail = [*UNSHARE, sys.executable, "-I", *given, *command]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            jail,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=copy,
            start_new_session=True,
        )
        try:
            return process.wait(seconds + 30)
        except subprocess.TimeoutExpired:
            return TOO_LONG
        finally:
            process.kill()  # --kill-child: what is inside goes with it
            process.wait()
