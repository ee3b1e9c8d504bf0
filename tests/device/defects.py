"""What makes the host wait, one of each, as the meter counts it: `python -m tests.device.defects` prints JSON."""
import json

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.device.step import start


def events():
    early, late = torch.cuda.Event(), torch.cuda.Event()
    early.record()
    late.record()
    for event in (early, late, early):
        event.synchronize()


def background():
    """What need not wait: copies by way of pinned memory, and an operation on the device."""
    x = torch.ones(8).pin_memory().to("cuda", non_blocking=True)
    torch.empty(8, pin_memory=True).copy_(x * 2, non_blocking=True)
    x.sum().to("cpu", non_blocking=True)


def main():
    meter, counts = start(), {}
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        x = torch.ones(8, device="cuda")
        acts = {
            "a loss that is read": lambda: float(x.sum()),
            "a number that is sent": lambda: x * torch.tensor(2.0, device="cuda"),
            "a copy of memory that is not pinned": lambda: torch.ones(8).to("cuda", non_blocking=True),
            "a copy into memory that is not pinned": lambda: torch.ones(8).copy_(x, non_blocking=True),
            "two events": events,
            "the device": torch.cuda.synchronize,
            "nothing": background,
        }
        for name, act in acts.items():
            meter.start()
            act()
            counted = vars(meter.counted())
            counts[name] = {key: len(counted[key]) for key in ("host_reads", "host_numbers", "waits") if counted[key]}
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
