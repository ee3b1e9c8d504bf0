"""The smoke run: two steps of a record's train_gpt.py on tiny data, from a copy of its folder, in namespaces of its own (Linux, `unshare`).

Inside there is no network but loopback, an environment of our choice, one writable folder (the copy, in memory), and limits on time,
processes, memory and what is written. This stops accidents and lazy cheating. It is no virtual machine: the kernel is shared, files that
you may read can be read, Unix sockets that lie elsewhere than in /run, /tmp and your home (or there, if Python does too) can be
connected to, and what it prints you will see. Where it cannot be set up, nothing is run.
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

from common.shards import write_shard
from records.jail import NO_SANDBOX, TOO_LARGE, TOO_LONG, TOO_MANY
from records.logs import read_log
from records.rules import FAIL, UNVERIFIED, Finding

PROBE_SECONDS, SECONDS, MEMORY, OUTPUT_LIMIT, COPY_LIMIT = 30, 300, 8 << 30, 1 << 20, 64 << 20
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
TINY = {"ITERATIONS": 2, "WARMUP_STEPS": 0, "VOCAB_SIZE": 260, "NUM_LAYERS": 2, "MODEL_DIM": 64, "NUM_HEADS": 4, "NUM_KV_HEADS": 2,
        "TRAIN_SEQ_LEN": 64, "TRAIN_BATCH_TOKENS": 256, "MICRO_BATCH_TOKENS": 256,
        "VAL_BATCH_SIZE": 8192, "VAL_LOSS_EVERY": 0, "MAX_WALLCLOCK_SECONDS": 0, "COMPILE": 0, "DEVICE": "cpu", "COMPUTE_DTYPE": "float32",
        "DATA_PATH": "smoke_data", "RUN_ID": "smoke", "OMP_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1, "PYTHONDONTWRITEBYTECODE": 1}
REASONS = {TOO_LONG: f"was still running after {SECONDS} s and was ended", TOO_MANY: "started too many processes and was ended",
           TOO_LARGE: f"used more than {MEMORY >> 30} GiB of memory and was ended"}


def can_sandbox():
    """Why there is no sandbox here, or ""."""
    if sys.platform != "linux":
        return f"there is no sandbox on {sys.platform}"
    if not shutil.which("unshare"):
        return "`unshare` of util-linux is not installed"
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"`unshare` did not answer in {PROBE_SECONDS} s"
    return f"user namespaces are not allowed here ({done.stderr.strip()[-100:]})" if done.returncode else ""


def write_data(folder):
    """A data folder in byte tokens: 4,096 training tokens, 1,024 of validation."""
    folder.mkdir()
    tokens = np.random.Generator(np.random.Philox(1)).integers(4, 260, 5120).astype(np.uint16)
    write_shard(folder / "smoke_train_000000.bin", tokens[:4096])
    write_shard(folder / "smoke_val_000000.bin", tokens[4096:])
    digest = hashlib.sha256(b"bytes").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": {"file": "bytes", "sha256": digest}}))


def check_smoke(folder, seconds=SECONDS):
    """Findings of the run; none: it exited 0 and printed its final score."""
    if not folder.files.get("train_gpt.py"):
        yield Finding(UNVERIFIED, "no train_gpt.py to run", "it runs from within its folder", "train_gpt.py")
        return
    if sum(folder.files.values()) > COPY_LIMIT:
        yield Finding(UNVERIFIED, f"the folder has {sum(folder.files.values()):,} bytes", f"at most {COPY_LIMIT:,} to be copied", ".")
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
    text = output.decode(errors="replace")
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")[:120]
    last = "".join(c if c.isprintable() else "?" for c in last)
    if code == NO_SANDBOX:
        yield Finding(UNVERIFIED, f"not run: {last}", "a sandbox", "train_gpt.py")
    elif code in REASONS:
        yield Finding(FAIL, REASONS[code].replace(f"{SECONDS} s", f"{seconds} s"), "two steps, then the end", "train_gpt.py")
    elif code and "cuda" in last.lower() and "available" in last.lower():
        yield Finding(UNVERIFIED, f"needs a GPU: {last}", "a machine with one", "train_gpt.py")
    elif code:
        yield Finding(FAIL, f"exit code {code}: {last}", "exit code 0", "train_gpt.py")
    elif not (score := read_log("output", output).score()) or not math.isfinite(score[1]):
        yield Finding(FAIL, "exited 0 without a final score", "the line of the final score", "train_gpt.py")


def run_jailed(command, copy, output, seconds=SECONDS, memory=MEMORY):
    """Exit code of a command inside; its output goes into a file."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(copy), "TMPDIR": str(copy), "LANG": "C.UTF-8"}
    environment |= {name: str(value) for name, value in TINY.items()}
    inside = [str(Path(__file__).with_name("jail.py")), str(copy), str(Path.home()), str(seconds), str(memory), *command]
    jail = [*UNSHARE, sys.executable, "-I", *inside]
    with open(output, "wb") as file:
        process = subprocess.Popen(jail, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=copy,
                                   start_new_session=True)
        try:
            return process.wait(seconds + 30)
        except subprocess.TimeoutExpired:
            return TOO_LONG
        finally:
            process.kill()  # --kill-child: what is inside goes with it
            process.wait()
