"""Times optimizer steps of both trainers at the demonstration's size, on this CPU: `python -m tests.bench_step`."""
import dataclasses
import os
import statistics
import subprocess
import sys
import time

import numpy as np

from common.recipes import CPU_DEMO


def bench(backend, dtype, steps=25):
    """Prints one row of the table."""
    started = time.perf_counter()
    from common.params import initial_weights
    from parity.trainers import load_trainer
    kind = load_trainer(backend)
    s = dataclasses.replace(kind.settings_class(**CPU_DEMO), vocab_size=1024, device="cpu", compute_dtype=dtype)
    trainer = kind(s, initial_weights(s))
    rows = s.train_batch_tokens // s.train_seq_len
    tokens = np.random.default_rng(0).integers(0, s.vocab_size, (rows, s.train_seq_len + 1)).astype(np.int32)
    for _ in range(3):
        float(trainer.train_step(tokens, 1.0, 0.9))
    ready, times = time.perf_counter() - started, []
    for _ in range(steps):
        start = time.perf_counter()
        float(trainer.train_step(tokens, 1.0, 0.9))
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    dtype, rate = str(trainer.dtype).split(".")[-1], s.train_batch_tokens / median
    print(f"{backend:<8} {dtype:<9} {1e3 * median:>7.0f} ms/step {rate:>8,.0f} tokens/s   "
          f"{ready:>5.1f} s to the first timed step", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        bench(*sys.argv[1:])
    else:  # each in a process of its own, without compiled code of earlier runs
        for arguments in (["torch", "auto"], ["torch", "float32"], ["mlx", "float32"]):
            subprocess.run([sys.executable, "-m", "tests.bench_step", *arguments], check=True,
                           env=os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"})
