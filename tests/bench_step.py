"""Times optimizer steps of both trainers at the demonstration's size, on this machine's CPU: `python -m
tests.bench_step`."""
import dataclasses
import os
import statistics
import subprocess
import sys
import time

import numpy as np

SIZE = {"vocab_size": 1024, "num_layers": 4, "model_dim": 256, "num_heads": 4, "num_kv_heads": 2, "train_seq_len": 256,
        "train_batch_tokens": 4096, "device": "cpu"}


def bench(backend, dtype, steps=25):
    """Prints one row of the table."""
    started = time.perf_counter()
    if backend == "torch":
        from train_gpt import TorchTrainer as Trainer
    else:
        from train_gpt_mlx import MlxTrainer as Trainer
    from common.params import initial_weights
    s = dataclasses.replace(Trainer.settings_class(), **SIZE, compute_dtype=dtype)
    trainer = Trainer(s, initial_weights(s))
    tokens = np.random.default_rng(0).integers(0, s.vocab_size, (16, s.train_seq_len + 1)).astype(np.int32)
    for _ in range(3):
        float(trainer.train_step(tokens, 1.0, 0.9))
    ready, times = time.perf_counter() - started, []
    for _ in range(steps):
        start = time.perf_counter()
        float(trainer.train_step(tokens, 1.0, 0.9))
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(f"{backend:<8} {str(trainer.dtype).split('.')[-1]:<9} {1e3 * median:>7.0f} ms/step {4096 / median:>8,.0f} tokens/s   "
          f"{ready:>5.1f} s to the first timed step", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        bench(*sys.argv[1:])
    else:  # each in a process of its own, without compiled code of earlier runs
        for arguments in (["torch", "auto"], ["torch", "float32"], ["mlx", "float32"]):
            subprocess.run([sys.executable, "-m", "tests.bench_step", *arguments], check=True,
                           env=os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"})
