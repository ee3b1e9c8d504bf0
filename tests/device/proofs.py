"""What the device check finds right or wrong, on either backend: `python -m tests.device.proofs PART --backend ...`.

It is run in an empty folder, with this repository on the path.
"""
import contextlib
import functools
import hashlib
import io
import json
import re
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

from common.readlog import parse_log
from common.recipes import RECIPES
from common.settings import UserError
from parity.__main__ import main as parity
from parity.trainers import ROOT, SCRIPTS
from tests.device import part
from tests.device.part import TINY, flags, predicted

STEPS = {"float32": 20, "bfloat16": 5}  # of the ladder: many CPUs are slow in bfloat16
MARKS = {"torch": "cuda", "mlx": "metal"}


def device(options):
    return "cpu" if options.rehearse else "gpu"


def ladder(options, dtype):
    """The CPU against the device, rung by rung: as it is, and compiled."""
    size = flags(TINY) if options.rehearse else []
    exported = ["export", "--backend", options.backend, "--device", "cpu", "--dtype", dtype, "--data", options.data]
    steps = 3 if options.rehearse else STEPS[dtype]
    if parity([*exported, "--steps", str(steps), *size, "cpu.parity"]):
        raise UserError("the CPU's side could not be written: see above")
    for compiled in "01" if not options.rehearse else "0":
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = parity(["compare", "cpu.parity", "--backend", options.backend, "--device", device(options),
                           f"--compile={compiled}"])
        print(text := said.getvalue())
        failing = re.search("first failing rung: (.*)", text)
        seen = {0: "all hold", 1: f"beyond it: {failing and failing[1]}"}.get(code, "could not be tried: see above")
        how = "compiled" if compiled == "1" else "not compiled"
        predicted(f"parity's bounds, CPU against device, {dtype}, {how}", "every rung holds", seen, code == 0)


def start(options, name, *more, **changes):
    """A process that trains: a run of that name in this folder, unless it goes on with one."""
    run = [] if "--resume" in more else ["--run-id", name, "--data-path", options.data, "--device", device(options)]
    command = [sys.executable, str(ROOT / SCRIPTS[options.backend]), *run, *more, *flags(changes)]
    print("started:", *command[1:], flush=True)
    with open(f"{name}.out", "a") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)


def ended(process, name):
    """Waits for a run to end well. Exits with the end of what it printed, where it does not."""
    if process.wait():
        text = Path(f"{name}.out").read_text()
        raise SystemExit(f"{text[-3000:]}\nthe run {name} ended with exit code {process.returncode}")


def determinism(options):
    """Two runs with DETERMINISTIC=1 write one model file."""
    size = TINY | {"iterations": 4} if options.rehearse else RECIPES["laptop"] | {"iterations": 60}
    runs = {name: start(options, name, **size | {"deterministic": True, "val_loss_every": 0, "warmup_steps": 1,
                                                 "max_wallclock_seconds": 0}) for name in ("once", "again")}
    digests = []
    for name, process in runs.items():
        ended(process, name)
        digests.append(hashlib.sha256(Path("runs", name, "model.int8.zlib").read_bytes()).hexdigest()[:16])
    predicted("model files of two runs with DETERMINISTIC=1", "equal", " and ".join(digests), len(set(digests)) == 1)


def whole_run(options):
    """A run with a limit of time is killed, goes on, and ends with a score."""
    if options.rehearse:
        size, seconds, every = TINY, 2, 0.4
    else:  # the default model
        size, seconds, every = {"train_batch_tokens": 65536 if options.backend == "torch" else 8192}, 60, 10
    first = start(options, "run", **size | {"max_wallclock_seconds": seconds, "checkpoint_every": f"{every}s",
                                            "val_loss_every": 0, "train_log_every": 10})
    folder = Path("runs/run")
    while not list(folder.glob("*.checkpoint")) and first.poll() is None:
        time.sleep(0.1)
    time.sleep(every / 2)
    if first.poll() is not None:
        raise SystemExit(f"{Path('run.out').read_text()[-3000:]}\nthe run ended before it could be killed")
    first.kill()
    first.wait()
    ended(start(options, "run", "--resume", str(folder)), "run")
    log = (folder / "train.log").read_text()
    print(log[-4000:])
    losses = [values["train_loss"] for kind, values in parse_log(log) if kind == "step"]
    last = dict(parse_log(log))  # of each kind
    status = json.loads((folder / "status.json").read_text())["status"]
    step = last["resume"]["step"]
    predicted("a run that was killed, and is resumed", "capped, from a step above 0", f"{status}, from step {step}",
              status == "capped" and step > 0)
    predicted("its training loss", f"at least 0.5 below {losses[0]:.3f}", f"{losses[-1]:.3f}",
              losses[-1] < losses[0] - 0.5)
    bpb, before = last["final_exact"]["val_bpb"], last["val"]["val_bpb"]
    predicted("its val_bpb as read back", f"within 0.1 of {before:.4f}, before compression", f"{bpb:.4f}",
              abs(bpb - before) < 0.1)


def tests(options):
    """The tests that are marked for the device."""
    if missing := [name for name in ("pytest", "hypothesis") if not util.find_spec(name)]:
        raise UserError(f"`pip install {' '.join(missing)}` provides what the tests need")
    mark, which = MARKS[options.backend], "tests/runs/test_repeatable.py" if options.rehearse else "tests"
    done = subprocess.run([sys.executable, "-m", "pytest", "-m", mark, "-q", "-p", "no:cacheprovider", "-rs", which],
                          cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if not options.rehearse:  # without the device they are skipped
        last = done.stdout.strip().splitlines()[-1]
        predicted(f"tests marked {mark}", "all pass", last, done.returncode == 0 and " passed" in last)


PARTS = {"ladder-float32": functools.partial(ladder, dtype="float32"),
         "ladder-bfloat16": functools.partial(ladder, dtype="bfloat16"),
         "determinism": determinism, "run": whole_run, "tests": tests}

if __name__ == "__main__":
    sys.exit(part.main(PARTS))
