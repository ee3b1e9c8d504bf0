"""What the parts of the device check share: how one is started, what it prints, and the sizes that it uses.

A part is a function of its options, in a process of its own. It prints for people; `predicted` lines are gathered at
the top of the report. Exit code 0: all held; 1: something did not; 2: it cannot be tried here, and the last line says
why.
"""
import argparse
import dataclasses
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np

from common.params import training_bytes
from common.settings import UserError

PREDICTED = "predicted: "
HELD, DIFFERS = "held", "DIFFERS"
# The size of a rehearsal: settings of a trainer
TINY = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "train_seq_len": 32,
        "train_batch_tokens": 256, "micro_batch_tokens": 256, "compile": False}
COSTS, COUNTED = Path(__file__).with_name("costs.json"), "default, world size 1"
# column of COSTS: (what it is, what it is divided by where it is shown, how often as much may be seen)
COUNTS = {"launches": ("launches of a step", 1, 1.15), "peak": ("peak memory of a step in GiB", 1 << 30, 1.1),
          "ms": ("milliseconds of a step", 1, 1.15)}
verdicts = []  # of the predictions of this process


def predicted(name, said, seen, held):
    """Prints one number that this repository predicts (said) beside what was seen, and whether it held."""
    verdicts.append(bool(held))
    print(f"{PREDICTED}{HELD if held else DIFFERS}: {name}: {said}; seen: {seen}", flush=True)


def row(name, **values):
    """Prints one line of measurements."""
    shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
    print(f"{name:<34} {', '.join(shown)}", flush=True)


def main(parts, arguments=None):
    """Exit code of the part that the command line names; parts: dict name -> function of the options."""
    parser = argparse.ArgumentParser(description="One part of `python -m tests.device.check`.")
    parser.add_argument("part", choices=parts)
    parser.add_argument("--backend", choices=("torch", "mlx"), default="torch")
    parser.add_argument("--data", help="data folder")
    parser.add_argument("--rehearse", action="store_true", help="at a tiny size, on the CPU")
    options = parser.parse_args(arguments)
    try:
        parts[options.part](options)
    except (UserError, ModuleNotFoundError) as error:
        print(f"left out: {error}", flush=True)
        return 2
    return 0 if all(verdicts) else 1


def flags(settings):
    """The command-line flags of a dict of settings."""
    return [f"--{name}={int(value) if isinstance(value, bool) else value}" for name, value in settings.items()]


def step_settings(kind, options, **changes):
    """Settings of class `kind` for a step of the default model on one micro-batch: for one of 8 ranks, a whole one."""
    s = dataclasses.replace(kind(), vocab_size=1024, device="gpu", **changes)
    if options.rehearse:
        return dataclasses.replace(s, **TINY | {"device": "cpu"})
    return dataclasses.replace(s, train_batch_tokens=s.micro_batch_tokens)


def fitting(s, memory):
    """The settings with a batch, and its one micro-batch, that a device of so many bytes can hold."""
    while training_bytes(s, s.train_batch_tokens // s.train_seq_len, 2) > memory and s.train_batch_tokens > 8192:
        half = s.train_batch_tokens // 2
        s = dataclasses.replace(s, train_batch_tokens=half, micro_batch_tokens=half)
    return s


def step_tokens(s):
    """int32 (rows, T + 1) random tokens of one batch."""
    shape = s.train_batch_tokens // s.train_seq_len, s.train_seq_len + 1
    return np.random.default_rng(0).integers(0, s.vocab_size, shape).astype(np.int32)


def wall_ms(call, wait, count, warm=1):
    """(median milliseconds of one call until the device has finished it, of the same until it returns)."""
    for _ in range(warm):
        call()
    whole, until_return = [], []
    for _ in range(count):
        wait()
        start = time.perf_counter()
        call()
        until_return.append(1e3 * (time.perf_counter() - start))
        wait()
        whole.append(1e3 * (time.perf_counter() - start))
    return statistics.median(whole), statistics.median(until_return)


def check_first_loss(loss, s):
    """The first loss is that of a model that knows nothing."""
    predicted("loss of the first step", f"ln {s.vocab_size} = {math.log(s.vocab_size):.2f} within 0.05", f"{loss:.4f}",
              abs(loss - math.log(s.vocab_size)) < 0.05)


def check_counts(device, seen):
    """Against what `python -m tests.device.cost` counted for this step on a fake H100. It compiled the step and ran no
    kernel: a library may launch several for one call, and takes memory of its own. device: name; seen: dict column ->
    number."""
    if "H100" not in device or not COSTS.exists():
        print(f"{COSTS.name} is not there, or not for {device}: launches and time are not compared")
        return
    table = json.loads(COSTS.read_text("utf-8"))
    case = table["cases"][COUNTED]
    print(f"counted with torch {table['torch']}: {case}")
    for column, number in seen.items():
        what, unit, factor = COUNTS[column]
        if column in case:
            predicted(f"{what}, as counted for an H100", f"{case[column] / unit:,.4g}, at most {factor} times",
                      f"{number / unit:,.4g}", number <= factor * case[column])


def check_memory(trainer):
    """Memory stays below what `--preflight` says. On the CPU it is that of the whole process."""
    need, peak = trainer.memory()[1] >> 20, trainer.peak_memory() >> 20
    if trainer.s.device == "cpu":
        row("peak memory", MiB=peak)
    else:
        predicted("peak memory", f"at most {need:,} MiB (preflight)", f"{peak:,} MiB", peak <= need)
