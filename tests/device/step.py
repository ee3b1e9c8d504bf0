"""Steps of train_gpt.py on the fake device: `python -m tests.device.step WORLD_SIZE ATTENTION [NAME=VALUE...]`.

Prints one line of JSON. ATTENTION: cudnn or flash, where the trainer allows both. NAME=VALUE are settings; the size
is the default.
"""
import dataclasses
import json
import sys
import time
import types

import numpy as np
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from common.batches import rank_rows
from common.loop import Run, after_step
from common.params import initial_weights
from common.settings import Settings, load_settings
from tests.device import fake, inductor, ranks
from tests.device.meter import Meter

STEPS = 3  # the last is counted
FIRST = 100  # a step that is not logged


@dataclasses.dataclass
class Counted:
    """One optimizer step of one rank, with what the loop does after it."""

    launches: list  # tests/device/meter.py, Launch
    peak: int  # bytes of memory on the device
    collectives: list  # [name, bytes, dtype]
    host_reads: list  # places where the host reads from the device and waits
    host_numbers: list  # places where it sends something and waits
    waits: list  # for an event, a stream or the device
    graphs: int
    graph_breaks: dict
    dtypes: dict  # of masters, gradients and moments: all of each, sorted
    seconds: float  # of the first step, which compiles
    kernels: dict  # name -> source, of those that Inductor wrote


def count_step(s, world_size):
    """Counted of a step with settings `s` in this process, which is then of no other use."""
    fake.install()
    inductor.install()
    meter = Meter()
    if world_size > 1:
        ranks.join(world_size, lambda bucket: meter.launched("c10d.ddp_bucket", [bucket], ()))
    import train_gpt  # after the ranks
    weights = initial_weights(s)
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        trainer = train_gpt.TorchTrainer(s, weights)
        run = Run(s, None, trainer, None, None, types.SimpleNamespace(steps=0), types.SimpleNamespace(asked=0.0))
        run.step, bar = FIRST, types.SimpleNamespace(disable=True)
        tokens = np.zeros((rank_rows(s, 0, world_size)[1], s.train_seq_len + 1), np.int32)
        start, seconds = time.perf_counter(), []
        for _ in range(STEPS):
            meter.start()
            loss = trainer.train_step(tokens, 1.0, 0.95)
            after_step(run, tokens, loss, bar)
            seconds.append(time.perf_counter() - start)
    states = {key: [t for name, t in trainer.tensors.items() if name.endswith(f".{key}")]
              for key in ("momentum", "exp_avg", "exp_avg_sq")}
    states |= {"weights": trainer.params.values(), "gradients": [p.grad for p in trainer.params.values()]}
    return Counted(
        meter.launches, meter.peak, meter.collectives, meter.host_reads, meter.host_numbers, [*fake.WAITS],
        counters["aot_autograd"]["total"], dict(counters["graph_break"]),
        {key: sorted({str(t.dtype).removeprefix("torch.") for t in found}) for key, found in states.items()},
        seconds[0], inductor.Kernel.sources)


def main(world_size, attention, *changes):
    fake.ATTENTION.sort(key=lambda name: name != attention)
    flags = [f"--{name}={value}" for name, _, value in (change.partition("=") for change in changes)]
    s = load_settings(Settings, ["--vocab_size=1024", *flags], {}, print)
    print(json.dumps(dataclasses.asdict(count_step(s, int(world_size)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
