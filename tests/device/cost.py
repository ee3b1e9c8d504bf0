"""Counts a training step for an H100 and prints where its bytes and time go: `python -m tests.device.cost`.

    python -m tests.device.cost WORLD_SIZE NAME=VALUE...    other ranks than 8, other settings than the default
    python -m tests.device.cost --update                    write tests/device/costs.json, the table of all cases
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.device import roofline

ROOT = Path(__file__).parents[2]
COSTS = Path(__file__).with_name("costs.json")
COLUMNS = "launches", "bytes", "peak", "collectives"  # the last three in bytes


def counted(module, *arguments):
    """What tests/device/step.py or cases.py prints, as a dict. It runs in a process of its own, and sees no GPU."""
    done = subprocess.run([sys.executable, "-m", f"tests.device.{module}", *arguments], check=False, cwd=ROOT,
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tests.device.{module} failed:\n{done.stderr[-5000:]}")
    return json.loads(done.stdout)


def spilling(found):
    """Names of kernels that keep registers in memory in each of their configurations. Inductor times these on the
    device and passes over those that spill, where it has another."""
    return sorted(name for name, forms in found["kernels"].items() if all(stack for _, _, stack in forms))


def write_costs(found):
    """One line for each case, so that a difference shows what a change costs. ms: of the roofline."""
    rows = [f"    {json.dumps(name)}: {json.dumps({column: case[column] for column in (*COLUMNS, 'ms')})}"
            for name, case in found["cases"].items()]
    cases = ",\n".join(rows)
    spills = len(spilling(found))
    COSTS.write_text(f'{{\n  "torch": "{found["torch"]}",\n  "spilling kernels": {spills},\n'
                     f'  "cases": {{\n{cases}\n  }}\n}}\n')


def print_kernels(launches, top):
    by_name = {}
    for launch in launches:
        row = by_name.setdefault(launch["name"], [0, 0])
        row[0] += 1
        row[1] += launch["bytes"]
    for name, (number, moved) in sorted(by_name.items(), key=lambda item: -item[1][1])[:top]:
        print(f"{moved / 1e6:11,.1f} MB {number:5} x  {name:.90}")


def print_roofline(step, world_size):
    rows = roofline.table(step["launches"])
    print(f"\n{'':42}{'launches':>9}{'GB':>8}{'TFLOP':>8}{'ms':>8}")
    for kind, (number, moved, flops, ms) in sorted(rows.items(), key=lambda item: -item[1][3]):
        print(f"{kind:42}{number:9}{moved / 1e9:8.2f}{flops / 1e12:8.2f}{ms:8.2f}")
    number, moved, flops, ms = (sum(column) for column in zip(*rows.values()))
    print(f"{'all, without collectives':42}{number:9}{moved / 1e9:8.2f}{flops / 1e12:8.2f}{ms:8.2f}")
    if step["collectives"]:
        size = sum(size for _, size, _ in step["collectives"])
        wire = roofline.wire_ms(step["collectives"], world_size)
        name, number = "collectives (Adam overlaps the all-gather)", len(step["collectives"])
        print(f"{name:42}{number:9}{size / 1e9:8.2f}{'':8}{wire:8.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world_size", nargs="?", type=int, default=8)
    parser.add_argument("changes", nargs="*", metavar="NAME=VALUE", help="settings")
    parser.add_argument("--attention", choices=roofline.ATTENTION, default="cudnn",
                        help="the kernel that is taken where the trainer allows both")
    parser.add_argument("--top", type=int, default=40, help="how many kernels to print")
    parser.add_argument("--out", help="file for all that was counted, as JSON")
    parser.add_argument("--update", action="store_true", help="write the table of costs")
    given = parser.parse_args()
    if given.update:
        write_costs(counted("cases"))
        return
    step = counted("step", str(given.world_size), given.attention, *given.changes)
    if given.out:
        Path(given.out).write_text(json.dumps(step))
    print_kernels(step["launches"], given.top)
    print_roofline(step, given.world_size)
    for name, size, dtype in step["collectives"]:
        print(f"{name:40}{size / 1e6:11,.2f} MB {dtype}")
    launches, moved = len(step["launches"]), sum(launch["bytes"] for launch in step["launches"])
    print(f"\nrank 0 of {given.world_size}: {launches} launches, {moved / 1e9:.2f} GB, "
          f"peak {step['peak'] / 2**30:.2f} GiB; {step['graphs']} graphs, breaks {step['graph_breaks']}")
    print(f"the first step took {step['seconds']:.0f} CPU s here, without compiling its Triton kernels")
    print(f"the host waits: {step['waits']}, reads {step['host_reads']}, sends and waits {step['host_numbers']}")
    print(f"dtypes: {step['dtypes']}")
    print(f"\n{roofline.__doc__}\n{roofline.assumptions()}")


if __name__ == "__main__":
    main()
