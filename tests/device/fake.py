"""A CUDA device for the CPU build of PyTorch: fake tensors on "cuda", one H100 to this process.

install() comes before anything that names the device, and the trainer runs inside FakeTensorMode. What would read a
value gets 0 or 1; tests/device/meter.py counts such reads.
"""
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.codecache import CppCodeCache
from torch.nn.attention import SDPBackend

GUARD = Path(__file__).with_name("guard.cpp")
H100 = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, warp_size=32, total_memory=85 * 10**9,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20, gcnArchName="", uuid="fake", is_integrated=0, is_multi_gpu_board=0)
WAITS = []  # a name for each wait of the host for the device


class Event:
    """Waiting for one means to wait for all that were recorded before: only the first wait counts."""

    recorded = reached = number = 0

    def __init__(self, *arguments, **flags): ...
    def wait(self, stream=None): ...
    def query(self): return True
    def elapsed_time(self, later): return 1.0

    def record(self, stream=None):
        self.number = Event.recorded = Event.recorded + 1

    def synchronize(self):
        if self.number > Event.reached:
            Event.reached = self.number
            WAITS.append("event")


class Stream:
    cuda_stream = stream_id = device_index = 0
    device = None  # set by install()

    def __init__(self, *arguments, **flags): ...
    def __enter__(self): return self
    def __exit__(self, *error): ...
    def record_event(self, event=None): return event or Event()
    def wait_event(self, event): ...
    def wait_stream(self, stream): ...
    def synchronize(self): WAITS.append("stream")
    def query(self): return True


def constant(value):
    return lambda *arguments, **flags: value


STREAM = Stream()
# of torch.cuda, and where it has the same name, of Dynamo's view of it
CUDA = {
    "is_available": constant(True),
    "is_initialized": constant(True),
    "_lazy_init": constant(None),
    "device_count": constant(1),
    "current_device": constant(0),
    "set_device": constant(None),
    "exchange_device": constant(0),
    "maybe_exchange_device": constant(0),
    "_exchange_device": constant(0),
    "_maybe_exchange_device": constant(0),
    "get_device_properties": constant(H100),
    "get_device_capability": constant((H100.major, H100.minor)),
    "get_device_name": constant(H100.name),
    "get_raw_stream": constant(0),
    "is_bf16_supported": constant(True),
    "is_current_stream_capturing": constant(False),
    "mem_get_info": constant((80 << 30, 80 << 30)),
    "memory_allocated": constant(0),
    "max_memory_allocated": constant(0),
    "get_rng_state": constant(torch.zeros(16, dtype=torch.uint8)),
    "set_rng_state": constant(None),
    "synchronize": lambda device=None: WAITS.append("device"),
    "Event": Event,
    "Stream": Stream,
    "stream": lambda stream: stream,
    "current_stream": constant(STREAM),
    "default_stream": constant(STREAM),
}


def install():
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
    if torch.cuda._is_compiled():  # a build for GPUs brings a guard for machines without one
        torch._C._ensureCUDADeviceGuardSet()
    else:
        CppCodeCache.load(GUARD.read_text())
    Stream.device = torch.device("cuda", 0)
    for name, value in CUDA.items():
        if hasattr(torch.cuda, name):
            setattr(torch.cuda, name, value)
        if hasattr(CudaInterface, name):
            setattr(CudaInterface, name, value if isinstance(value, type) else staticmethod(value))
    CudaInterface.Worker.get_device_properties = staticmethod(constant(H100))
    torch._C._cuda_getCurrentRawStream = constant(0)
    torch.Tensor.pin_memory = lambda self, device=None: torch.empty_like(self, device="cpu", pin_memory=True)
    torch.Tensor.record_stream = constant(None)
    torch.Tensor.numpy = numpy_of(torch.Tensor.numpy)
    torch.tensor = tensor_of(torch.tensor)
    torch.nn.Module.to = module_to
    F.scaled_dot_product_attention = attention


def numpy_of(real):
    """Tensor.numpy, which gives zeros for a fake tensor."""
    def numpy(self):
        if not isinstance(self, torch._subclasses.FakeTensor):
            return real(self)
        assert self.device.type == "cpu", "numpy() of a tensor on the device"
        return np.zeros(self.shape, str(self.dtype).removeprefix("torch."))
    return numpy


def tensor_of(real):
    """torch.tensor, which PyTorch does not dispatch: numbers of the host go to the device by a copy that blocks."""
    def tensor(data, *, dtype=None, device=None, **flags):
        made = real(data, dtype=dtype, **flags)
        return made if device is None else made.to(device)
    return tensor


def module_to(self, *target):
    """Module.to, which cannot change fake parameters in place: makes new ones."""
    for module in self.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = p if p is None else torch.nn.Parameter(p.detach().to(*target))
    return self


@torch._dynamo.assume_constant_result
def attention_backend():
    """cudnn or flash: the first that is enabled, in the order of priority; torch.nn.attention.sdpa_kernel sets both."""
    cuda = torch.backends.cuda
    known = {SDPBackend.CUDNN_ATTENTION: ("cudnn", cuda.cudnn_sdp_enabled()),
             SDPBackend.FLASH_ATTENTION: ("flash", cuda.flash_sdp_enabled())}
    order = [known[SDPBackend(number)] for number in torch._C._get_sdp_priority_order() if SDPBackend(number) in known]
    return next(name for name, enabled in order if enabled)


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """F.scaled_dot_product_attention, whose choice of a kernel PyTorch makes where it finds a device."""
    assert attn_mask is None and query.dtype in (torch.bfloat16, torch.float16), "no fused attention for this"
    if attention_backend() == "flash":
        op = torch.ops.aten._scaled_dot_product_flash_attention
        return op(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    op = torch.ops.aten._scaled_dot_product_cudnn_attention
    return op(query, key, value, None, True, dropout_p, is_causal, False, scale=scale)[0]
