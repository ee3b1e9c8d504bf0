"""Inductor compiles for the fake H100: its kernels are kept as source and recorded when they are launched."""
from typing import ClassVar

import torch
import triton
from torch._inductor import async_compile, config
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.runtime import triton_helpers
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from tests.device.fake import H100, constant

TARGET = GPUTarget("cuda", 10 * H100.major + H100.minor, H100.warp_size)
LIMITS = {"max_shared_mem": H100.shared_memory_per_block_optin, "multiprocessor_count": H100.multi_processor_count,
          "max_num_regs": H100.regs_per_multiprocessor, "warpSize": H100.warp_size}


class Driver:
    """Triton's driver of the fake device."""

    get_current_target = constant(TARGET)
    get_current_device = get_current_stream = constant(0)
    get_active_torch_device = constant(torch.device("cuda", 0))
    get_device_interface = constant(torch.cuda)
    is_active = constant(True)

    class utils:
        get_device_properties = constant(LIMITS)


class Kernel:
    """A Triton kernel as Inductor's code calls it. A launch is reported to `on_launch`."""

    sources: ClassVar = {}  # name -> source; with + at the end for another one of that name, as of another graph
    on_launch = staticmethod(constant(None))

    def __init__(self, name, source):
        signature = source.partition(f"def {name}(")[2].partition("):")[0]
        self.updated = signature.count("in_out_ptr")  # the first arguments
        while Kernel.sources.setdefault(name, source) != source:
            name += "+"
        self.name = name

    def run(self, *arguments, stream=None, **flags):
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        Kernel.on_launch(self.name, tensors, tensors[:self.updated])


class OnCpu(TorchDispatchMode):
    """Inductor folds constants with real tensors of one element: here on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


def fold_on_cpu(real):
    def deduce(self, node):
        with OnCpu():
            return real(self, node)
    return deduce


def install():
    """After fake.install()."""
    triton.runtime.driver.set_active(Driver())
    triton_helpers.set_driver_to_gpu = constant(None)
    config.compile_threads = 1
    config.fx_graph_remote_cache = config.autotune_local_cache = False
    async_compile.AsyncCompile.triton = lambda self, name, source, device_str="cuda": Kernel(name, source)
    guards = torch._C._dynamo.guards  # what generated code calls in place of PyTorch's slower functions
    guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda")
    guards._reinterpret_tensor = lambda x, size, stride, offset=0: torch.as_strided(
        x, size, stride, x.storage_offset() + offset)
    guards.assert_alignment = constant(None)
    available, torch.cuda.is_available = torch.cuda.is_available, constant(False)
    joint_graph.lazy_init()  # patterns are traced with real tensors, on the CPU where there is no GPU
    post_grad.lazy_init()
    torch.cuda.is_available = available
    joint_graph.lazy_init = post_grad.lazy_init = constant(None)
    folder = joint_graph.UniformValueConstantFolder
    folder._deduce_value = fold_on_cpu(folder._deduce_value)
