"""What a step launches on the fake device, the memory that it takes, and where the host waits for it."""
import dataclasses
import traceback
import weakref
from pathlib import Path

import torch
from torch._guards import TracingContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tests.device.fake import WAITS
from tests.device.inductor import Kernel

ROOT = Path(__file__).parents[2]
# operations that launch nothing: they make views, or memory that is not filled
FREE = (
    "aten.detach.", "aten.alias.", "aten.view.", "aten._unsafe_view.", "aten._reshape_alias.", "aten.t.", "aten.lift",
    "aten.transpose.", "aten.permute.", "aten.as_strided.", "aten.slice.", "aten.select.", "aten.unbind.", "aten.split",
    "aten.expand.", "aten.unsqueeze.", "aten.squeeze.", "aten.empty", "aten.new_empty", "aten.set_.", "aten.is_",
    "aten.sym_", "aten.chunk.", "_c10d_functional.wait_tensor.", "prim.")


@dataclasses.dataclass
class Launch:
    """name: of the kernel or operation. bytes: of arguments and results, once each. twice: of those that a generated
    kernel reads and writes in place. inner: length of the sums of a matrix product."""

    name: str
    bytes: int
    twice: int = 0
    flops: int = 0
    inner: int = 0


@dataclasses.dataclass
class Counted:
    """What one call did."""

    launches: list  # of Launch, in order
    peak: int  # bytes of memory on the device
    collectives: list  # (name, bytes, dtype)
    host_reads: list  # FILE:LINE where the host reads from the device and waits
    host_numbers: list  # FILE:LINE where it sends something and waits
    waits: list  # for an event, a stream or the device


class Meter(TorchDispatchMode):
    """Records what is launched inside the `with` since `start`, in order."""

    def __init__(self):
        super().__init__()
        self.forget()
        Kernel.on_launch = self.launched

    @classmethod
    def is_infra_mode(cls):
        return True  # else Dynamo compiles nothing inside it

    def forget(self):
        """Memory is counted from here on."""
        self.storages, self.pinned, self.memory = {}, set(), 0  # bytes of storages that are alive, on the device
        self.start()

    def start(self):
        self.launches, self.collectives, self.host_reads, self.host_numbers = [], [], [], []
        self.peak = self.memory
        WAITS.clear()

    def counted(self):
        return Counted(
            self.launches, self.peak, self.collectives, self.host_reads, self.host_numbers, [*WAITS])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(func)
        if TracingContext.try_get():  # the compiler computes shapes
            return func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for tensor in given:
            tensor.constant = None  # or the fake tensor would be computed with, on the device
        if func is torch.ops.aten._local_scalar_dense.default:  # float(tensor) and the like
            if given[0].device.type == "cuda":
                self.host_reads.append(place())
            return {torch.bool: True}.get(given[0].dtype, 1)
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        for tensor in made:
            self.track(tensor, kwargs.get("pin_memory"))
        self.crossing(func, args, kwargs, given, made)
        tensors = list({id(x): x for x in given + made}.values())
        if name.startswith(FREE) or not any(x.device.type == "cuda" for x in tensors):
            return out
        if name.startswith(("c10d.", "_c10d")):
            self.collective(name, args)
        else:
            self.launched(name, tensors, (), *work(func, args, kwargs, out, made))
        return out

    def launched(self, name, tensors, updated, flops=0, inner=0):
        self.launches.append(Launch(name, sum(map(size, tensors)), sum(map(size, updated)), flops, inner))

    def collective(self, name, args):
        """One of the process group: the bytes of its inputs or outputs, whichever are more."""
        sides = [[x for x in tree_leaves(arg) if isinstance(x, torch.Tensor)] for arg in args]
        moved = max(sum(map(size, side)) for side in sides)
        dtype = next(side[0].dtype for side in sides if side)
        self.collectives.append((name.split(".")[1], moved, str(dtype).removeprefix("torch.")))
        self.launches.append(Launch(name, moved))

    def crossing(self, func, args, kwargs, given, made):
        """Note a copy between host and device for which the host waits. It does not where it says so and the memory of
        the host is pinned; PyTorch pins what it makes itself for such a copy."""
        if func not in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) or not made:
            return
        source, target = given[-1], made[0]
        if source.device.type == target.device.type:
            return
        background = kwargs.get("non_blocking") or (func is torch.ops.aten.copy_.default and args[2:3] == (True,))
        host = source if target.device.type == "cuda" else target
        own = func is torch.ops.aten._to_copy.default and host is target
        if not (background and (own or key(host) in self.pinned)):
            (self.host_numbers if host is source else self.host_reads).append(place())

    def track(self, tensor, pin=False):
        number, storage = key(tensor), tensor.untyped_storage()
        if pin:
            self.pinned.add(number)
            weakref.finalize(storage, self.pinned.discard, number)
        if tensor.device.type == "cuda" and number not in self.storages:
            self.storages[number] = storage.nbytes()
            self.memory += storage.nbytes()
            self.peak = max(self.peak, self.memory)
            weakref.finalize(storage, self.freed, self.storages, number)

    def freed(self, storages, number):
        released = storages.pop(number, 0)
        if storages is self.storages:  # else it was forgotten
            self.memory -= released


def key(tensor):
    return tensor.untyped_storage()._cdata


def size(tensor):
    return tensor.numel() * tensor.itemsize


def work(func, args, kwargs, out, made):
    """(floating-point operations, length of the sums) of a matrix product or attention, else (0, 0)."""
    count = flop_registry.get(func._overloadpacket)
    flops = count(*args, **kwargs, out_val=out) if count else 0
    return flops, flops // (2 * made[0].numel()) if flops else 0


def place():
    """FILE:LINE of the innermost frame in this repository, outside of this folder."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests"):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"
