"""Rehearses the parts for CUDA of the device check on the fake device: `python -m tests.device.on_fake`.

Shapes, names and the order of calls are those of an H100; times are not, and every loss reads 1.
"""
import functools
import types
from unittest.mock import MagicMock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import DeviceType

from tests.device import fake, on_torch, part, ranks
from tests.device.meter import Meter

CUDA = {"set_sync_debug_mode": fake.constant(None), "nccl": types.SimpleNamespace(version=fake.constant((0, 0, 0)))}


def main():
    fake.install()
    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    del on_torch.ATTENTION["efficient"]  # the fake device does not have it
    part.step_settings = functools.partial(part.step_settings, num_layers=2, compile=False)
    part.wall_ms = functools.partial(part.wall_ms, warm=0)
    on_torch.gpu_ms = functools.partial(on_torch.gpu_ms, count=2, warm=0)
    on_torch.profile = profiler
    meter = Meter()
    ranks.join(1)
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        for name, run in on_torch.PARTS.items():
            print(f"######## {name}")
            run(types.SimpleNamespace(rehearse=False))


def profiler(activities):
    """Stands for torch.profiler.profile; it found one launch."""
    launch = MagicMock(device_type=DeviceType.CUDA, is_user_annotation=False)
    launch.time_range = types.SimpleNamespace(start=0.0, end=2.0, elapsed_us=fake.constant(2.0))
    found = MagicMock()
    found.__enter__.return_value.events.return_value = [launch]
    return found


if __name__ == "__main__":
    main()
