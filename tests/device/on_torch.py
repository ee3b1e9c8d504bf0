"""What the device check measures with PyTorch on CUDA: `python -m tests.device.on_torch PART [--rehearse]`."""
import itertools
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import train_gpt
from common.params import flops_per_token, initial_weights
from common.settings import UserError
from parity.ladder import BOUNDS
from tests.device import part
from tests.device.part import predicted, row

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
             "efficient": SDPBackend.EFFICIENT_ATTENTION}


class Several(int):
    """A number of ranks that computes like 1 and compares like more: one rank then takes the way of several."""

    def __gt__(self, other):
        return int(self) > other or other == 1

    def __eq__(self, other):
        return other != 1 and int(self) == other

    def __ne__(self, other):
        return not self == other

    __hash__ = int.__hash__


def device_of(options):
    return "cpu" if options.rehearse else "cuda"


def wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_ms(call, options, count=20, warm=3):
    """Median milliseconds of one call between events of the GPU; without one, by the wall clock."""
    if options.rehearse:
        return part.wall_ms(call, wait, 1)[0]
    for _ in range(warm):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    wait()
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(events))


def machine(options):
    """Device and versions. Raises UserError where there is no device."""
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, python {platform.python_version()}, "
          f"{platform.platform()}, {os.cpu_count()} CPUs")
    if options.rehearse:
        print("rehearsal on the CPU")
        return
    if not torch.cuda.is_available():
        raise UserError(f"PyTorch {torch.__version__} sees no CUDA device: install a build of PyTorch for your GPU "
                        "(https://pytorch.org), and see whether `nvidia-smi` lists it")
    p = torch.cuda.get_device_properties(0)
    print(f"{p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} SMs, {p.total_memory / 2**30:.1f} GiB, "
          f"cuDNN {torch.backends.cudnn.version()}, NCCL {torch.cuda.nccl.version()}")
    try:
        import triton
        print(f"triton {triton.__version__}")
    except ModuleNotFoundError as error:
        print(f"{error}: COMPILE=1 needs triton")
    if shutil.which("nvidia-smi"):
        asked = "driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
        subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], check=False)


def ceilings(options):
    """How fast the device multiplies, and how fast it copies."""
    n, size, device = (256, 1 << 20, "cpu") if options.rehearse else (8192, 1 << 30, "cuda")
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        ms = gpu_ms(lambda a=a, b=b: a @ b, options)
        row(f"matmul {n}, {str(dtype).removeprefix('torch.')}", ms=ms, TFLOPs=2 * n**3 / ms / 1e9)
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    ms = gpu_ms(lambda: y.copy_(x), options)
    row(f"copy of {size >> 20} MiB", ms=ms, TBs=2 * size / ms / 1e9)


def attention(options):
    """Each backend of F.scaled_dot_product_attention at the model's shapes, from both layouts in memory."""
    s, device = settings(options), device_of(options)
    rows, T, D = s.train_batch_tokens // s.train_seq_len, s.train_seq_len, s.model_dim // s.num_heads
    for layout in ("(B, T, H, D)", "(B, H, T, D)"):
        q, k, v = (heads_first(layout, torch.randn(rows, T, heads, D, device=device, dtype=torch.bfloat16))
                   for heads in (s.num_heads, s.num_kv_heads, s.num_kv_heads))
        for name, backend in ATTENTION.items():
            with sdpa_kernel([backend]):
                try:
                    forward, both, strides = attention_ms(q, k, v, options)
                except RuntimeError as error:
                    row(f"attention, {name}, {layout}", not_here=str(error).splitlines()[0][:90])
                else:
                    row(f"attention, {name}, {layout}", forward_ms=forward, backward_ms=both - forward, output=strides)


def heads_first(layout, x):
    """A leaf (B, H, T, D) that lies in memory as `layout` says; x (B, T, H, D)."""
    x = x.transpose(1, 2)
    return (x if layout == "(B, T, H, D)" else x.contiguous()).detach().requires_grad_()


def attention_ms(q, k, v, options):
    """(milliseconds forward, forward and backward, strides of the output)."""
    def attend():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < q.shape[1])

    y = attend()
    g = torch.randn_like(y)
    return (gpu_ms(attend, options), gpu_ms(lambda: torch.autograd.grad(attend(), (q, k, v), g), options),
            tuple(y.stride()))


def settings(options):
    """Of the step that is timed."""
    s = part.step_settings(train_gpt.Settings, options)
    return s if options.rehearse else part.fitting(s, torch.cuda.mem_get_info()[0])


def trainer_and_tokens(options):
    s = settings(options)
    return train_gpt.TorchTrainer(s, initial_weights(s)), part.step_tokens(s)


def step(options):
    """One rank's step of the official run: time, memory, kernels, synchronisations."""
    start = time.perf_counter()
    trainer, tokens = trainer_and_tokens(options)
    loss = float(trainer.train_step(tokens, 1.0, 0.95))
    row("first step, with compilation", seconds=time.perf_counter() - start)
    part.check_first_loss(loss, trainer.s)

    def call():
        trainer.train_step(tokens, 0.1, 0.95)

    ms = step_rows("step", call, trainer, options)
    part.check_memory(trainer)
    kernels = kernel_table(call, options)
    if not options.rehearse and trainer.s.train_batch_tokens == train_gpt.Settings().micro_batch_tokens:
        seen = {"launches": kernels, "peak": trainer.peak_memory(), "ms": ms}
        part.check_counts(torch.cuda.get_device_name(), seen)
    hidden_syncs(call, options)


def step_rows(name, call, trainer, options):
    """Prints the times of a step. Median milliseconds on the device."""
    ms = gpu_ms(call, options)
    whole, until_return = part.wall_ms(call, wait, 1 if options.rehearse else 10)
    rate = trainer.s.train_batch_tokens / ms * 1e3
    row(name, gpu_ms=ms, wall_ms=whole, host_ms=until_return, tokens_per_s=rate,
        model_TFLOPs=rate * flops_per_token(trainer.s) / 1e12)
    return ms


def kernel_table(call, options):
    """Prints the kernels of one call by their time. Their number."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not options.rehearse)
    with profile(activities=kinds) as found:
        call()
        wait()
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA
               and not getattr(event, "is_user_annotation", False)]
    if kernels:
        spans = [kernel.time_range for kernel in kernels]
        row("profile", kernels=len(kernels), busy_ms=sum(span.elapsed_us() for span in spans) / 1e3,
            span_ms=(max(span.end for span in spans) - min(span.start for span in spans)) / 1e3)
    order = "self_cpu_time_total" if options.rehearse else "self_cuda_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80))
    return len(kernels)


def hidden_syncs(call, options):
    """Nothing in a step may wait for the device, but for the event of the step before."""
    if options.rehearse:
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        seen = "none"
    except RuntimeError as error:
        seen = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    predicted("hidden synchronisations in a step", "none", seen, seen == "none")


def reduction(options):
    """The step with its reduction of gradients, over NCCL with one rank: the same losses as without it."""
    plain, tokens = trainer_and_tokens(options)
    losses = [float(plain.train_step(tokens, 0.1, 0.95)) for _ in range(3)]
    del plain
    train_gpt.launched_rank = lambda backend: (0, Several(1), "one rank that reduces")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    trainer, tokens = trainer_and_tokens(options)
    found = [float(trainer.train_step(tokens, 0.1, 0.95)) for _ in range(3)]
    worst = max(abs(a - b) for a, b in zip(losses, found))
    dtype = str(trainer.dtype).removeprefix("torch.")
    bound = BOUNDS["training losses"][1][dtype][0]
    predicted("one rank takes the way of several", "a process group", dist.is_initialized() and dist.get_backend(),
              dist.is_initialized())
    predicted("losses with one rank that reduces, against none", f"equal within {bound}", f"{worst:.2g}",
              worst <= bound)
    step_rows("step with reduction, one rank", lambda: trainer.train_step(tokens, 0.1, 0.95), trainer, options)
    trainer.close()


PARTS = {"machine": machine, "ceilings": ceilings, "attention": attention, "step": step, "reduction": reduction}

if __name__ == "__main__":
    sys.exit(part.main(PARTS))
