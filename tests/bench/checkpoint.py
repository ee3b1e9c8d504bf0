"""What checkpoints and a signal cost at a small size, on this machine's CPU: `python -m
tests.bench.checkpoint`.

held: how long a step is kept waiting by one checkpoint, that is while the state is copied; written: how long the write
then takes beside the training; share: what a checkpoint a minute takes of the training time, all of the write counted;
interrupt: from SIGTERM to the end of the process, the last step and its checkpoint included.
"""
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common.values import Interval
from tests.bench.step import LADDER
from tests.conftest import BACKENDS, ROOT, environment


def bench(backend):
    """Prints one row of the table."""
    from common.checkpoint import Saver
    from common.params import initial_weights
    from tests.conftest import trainer_class
    kind = trainer_class(backend)
    s = dataclasses.replace(kind.settings_class(), **LADDER, compile=False)
    trainer = kind(s, initial_weights(s))
    tokens = np.random.default_rng(0).integers(0, s.vocab_size, (16, s.train_seq_len + 1)).astype(np.int32)
    times, held, told = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saver = Saver(Path(folder), {}, Interval("60s"), lambda kind, **values: told.append(values))
        for step in range(13):
            start = time.perf_counter()
            float(trainer.train_step(tokens, 1.0, 0.9))
            times.append(time.perf_counter() - start)
            if step >= 3:
                start = time.perf_counter()
                saver.save(step, 0.0, trainer.state())
                held.append(time.perf_counter() - start)
                saver.collect()
    step, held, written = (
        statistics.median(times),
        statistics.median(held),
        statistics.median(t["seconds"] for t in told),
    )
    print(
        f"{backend:<8}{told[0]['bytes'] / 2**20:>6.0f} MiB   step {1e3 * step:>5.0f} ms   held {1e3 * held:>4.0f} ms   "
        f"written {1e3 * written:>5.0f} ms   share {100 * (held + written) / 60:.2f} %   "
        f"interrupt {interrupt(backend):.1f} s",
        flush=True,
    )


def interrupt(backend):
    """Seconds from SIGTERM to the end of a run that is well under way."""
    from common.data.folder import write_shard
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        random = np.random.default_rng(0)
        for split, size in (("train", 100_000), ("val", 5000)):
            write_shard(folder / f"x_{split}_0.bin", random.integers(4, 260, size))
        env = environment(
            folder, **LADDER | {"vocab_size": 0}, tokenizer_path="bytes", run_id="r", compile=True,
            iterations=10**6, micro_batch_tokens=4096
        )
        process = subprocess.Popen(
            [sys.executable, ROOT / BACKENDS[backend]],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = folder / "runs" / "r" / "train.log"
        while not (log.exists() and "step:5/" in log.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        start = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait()
        seconds = time.perf_counter() - start
        assert "status=interrupted" in log.read_text() and list(log.parent.glob("step-*.checkpoint"))
        return seconds


if __name__ == "__main__":
    if sys.argv[1:]:
        bench(sys.argv[1])
    else:
        for backend in BACKENDS:
            subprocess.run([sys.executable, "-m", "tests.bench.checkpoint", backend], check=True, env=os.environ)
