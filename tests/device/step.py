"""Steps of train_gpt.py on the fake device: `python -m tests.device.step WORLD_SIZE ATTENTION [NAME=VALUE...]`.

Prints one line of JSON. ATTENTION: cudnn or flash, where the trainer allows both. NAME=VALUE are settings; the size
is the default.
"""
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
import types

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import train_gpt
from common.batches import rank_rows
from common.loop import Run, after_step
from common.params import initial_weights
from common.settings import Settings, load_settings
from tests.device import fake, inductor, ranks
from tests.device.meter import Meter

FIRST = 100  # number of a step that is not logged
MOMENTS = "momentum", "exp_avg", "exp_avg_sq"


def start(attention=None):
    """The Meter of this process, which is then of no other use. attention: the kernel that the trainer is to prefer;
    None: the one that it does. A graph is compiled once, and kept in a folder until the process ends."""
    fake.install()
    if attention:
        train_gpt.ATTENTION.sort(key=lambda kernel: kernel.name != f"{attention.upper()}_ATTENTION")
    inductor.install()
    meter = Meter()
    meter.folder = tempfile.TemporaryDirectory(prefix="fake-device-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = meter.folder.name
    return meter


class Rank:
    """A trainer on the fake device. measured(act) gives what act() launches and waits for."""

    def __init__(self, meter, s, world_size):
        if world_size > 1:
            ranks.join(world_size)
        torch._dynamo.reset()
        counters.clear()
        gc.collect()
        meter.forget()
        self.meter, weights = meter, initial_weights(s)
        self.tokens = np.zeros((rank_rows(s, 0, world_size)[1], s.train_seq_len + 1), np.int32)
        with FakeTensorMode(allow_non_fake_inputs=True) as self.mode, meter:
            self.trainer = train_gpt.TorchTrainer(s, weights)
        watch, interrupt = types.SimpleNamespace(steps=0), types.SimpleNamespace(asked=0.0)
        self.run = Run(s, None, self.trainer, None, None, watch, interrupt, FIRST)

    def measured(self, act, *given):
        with self.mode, self.meter:
            self.meter.start()
            act(*given)
            return self.meter.counted()

    def step(self, rounding=False):
        """One optimizer step, and what the loop does after it."""
        loss = self.trainer.train_step(self.tokens, 1.0, 0.95, rounding)
        after_step(self.run, self.tokens, loss, types.SimpleNamespace(disable=True))

    def dtypes(self):
        """dict what -> sorted names of the dtypes that its tensors have."""
        t = self.trainer
        kept = {key: [x for name, x in t.tensors.items() if name.endswith(f".{key}")] for key in MOMENTS}
        kept |= {"weights": t.params.values(), "gradients": [p.grad for p in t.params.values()]}
        return {key: sorted({str(x.dtype).removeprefix("torch.") for x in found}) for key, found in kept.items()}


def count_step(meter, s, world_size, rounding=False):
    """dict of the second step; graphs, and CPU seconds of the first, which compiles."""
    rank, began = Rank(meter, s, world_size), time.process_time()
    rank.measured(rank.step, rounding)
    seconds = time.process_time() - began
    counted = dataclasses.asdict(rank.measured(rank.step, rounding))
    return counted | {"dtypes": rank.dtypes(), "seconds": seconds, "graphs": counters["aot_autograd"]["total"],
                      "graph_breaks": dict(counters["graph_break"])}


def main(world_size, attention, *changes):
    flags = [f"--{name}={value}" for name, _, value in (change.partition("=") for change in changes)]
    s = load_settings(Settings, ["--vocab_size=1024", *flags], {}, print)
    print(json.dumps(count_step(start(attention), s, int(world_size)) | {"kernels": inductor.Kernel.sources}))


if __name__ == "__main__":
    main(*sys.argv[1:])
