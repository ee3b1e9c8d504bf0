"""Times optimizer steps of both trainers on this CPU: at the size of the parity ladder with twice its batch, and at
that of RECIPE=laptop; and the time to the first one, with nothing cached.

    python -m tests.bench.step                     each backend, dtype and size, in a process of its own
    python -m tests.bench.step --against FOLDER    the same in turns with a checkout of another commit, step by step:
                                                   what else runs on the machine then hits both
"""
import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CASES = [[*case, size] for size in ("ladder", "laptop") for case in (("torch", "auto"), ("torch", "float32"),
                                                                     ("mlx", "float32"))]
ROOT = Path(__file__).resolve().parents[2]
LADDER = {"num_layers": 4, "model_dim": 256, "num_heads": 4, "num_kv_heads": 2, "train_seq_len": 256,
          "train_batch_tokens": 4096, "vocab_size": 1024}


def make_step(backend, dtype, size):
    """(trainer, step): step() trains once and returns its seconds. From the checkout that is first in the path."""
    from common import recipes
    from common.params import initial_weights
    from parity.trainers import load_trainer
    kind = load_trainer(backend)
    values = LADDER if size == "ladder" else recipes.RECIPES[size] | {"vocab_size": 2048, "bos_id": 1}
    s = dataclasses.replace(kind.settings_class(**values), device="cpu", compute_dtype=dtype)
    trainer = kind(s, initial_weights(s))
    rows = s.train_batch_tokens // s.train_seq_len
    tokens = np.random.default_rng(0).integers(0, s.vocab_size, (rows, s.train_seq_len + 1)).astype(np.int32)

    def step():
        start = time.perf_counter()
        float(trainer.train_step(tokens, 1.0, 0.9))
        return time.perf_counter() - start

    for _ in range(3):
        step()
    return trainer, step


def bench(backend, dtype, size, steps):
    """Prints one row of the table."""
    started = time.perf_counter()
    from common.params import flops_per_token
    trainer, step = make_step(backend, dtype, size)
    ready = time.perf_counter() - started
    median = statistics.median(step() for _ in range(steps))
    dtype, rate = str(trainer.dtype).split(".")[-1], trainer.s.train_batch_tokens / median
    share = rate * flops_per_token(trainer.s) / trainer.matmul_flops()
    print(f"{backend:<8} {dtype:<9} {size:<7} {1e3 * median:>7.0f} ms/step {rate:>8,.0f} tokens/s "
          f"{share:>5.0%} of the matmul peak {ready:>5.1f} s to the first timed step", flush=True)


def serve(backend, dtype, size):
    """Answers each line of the input with the seconds of a step."""
    _, step = make_step(backend, dtype, size)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)


def against(folder, backend, dtype, size, steps):
    """Prints one row: median and least time of both checkouts, and the ratios."""
    workers = [subprocess.Popen([sys.executable, __file__, backend, dtype, size, "--serve"], text=True, cwd=root,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                env=os.environ | {"PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"})
               for root in (folder, ROOT)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", "a worker failed: see above"
    times = [[], []]
    for _ in range(steps):
        for worker, seconds in zip(workers, times):
            worker.stdin.write("\n")
            worker.stdin.flush()
            seconds.append(float(worker.stdout.readline()))
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    row = f"{backend:<8} {dtype:<9} {size:<7}"
    for name, figure in (("median", statistics.median), ("least", min)):
        before, now = map(figure, times)
        row += f"  {name} {1e3 * before:>5.0f} -> {1e3 * now:>5.0f} ms, {before / now:.2f}x"
    print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="backend, dtype and size, as in: mlx float32 laptop")
    parser.add_argument("--against", metavar="FOLDER", type=Path)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(*given.case)
    elif given.against:
        for case in [given.case] if given.case else CASES:
            against(given.against.resolve(), *case, given.steps)
    elif given.case:
        bench(*given.case, given.steps)
    else:  # each in a process of its own, without compiled code of earlier runs
        for case in CASES:
            subprocess.run([sys.executable, "-m", "tests.bench.step", *case, "--steps", str(given.steps)], check=True,
                           env=os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"})


if __name__ == "__main__":
    main()
