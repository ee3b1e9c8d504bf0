"""What the device check measures with MLX on Metal: `python -m tests.device.on_mlx PART [--rehearse]`."""
import os
import platform
import sys
import time

import train_gpt_mlx
from common.params import flops_per_token, initial_weights
from common.settings import UserError
from tests.device import part
from tests.device.part import row
from train_gpt_mlx import MlxSettings, MlxTrainer, mx


def wait():
    mx.synchronize()


def ms_of(call, options, count=20):
    """Median milliseconds of one call that returns arrays, until they are computed."""
    return part.wall_ms(lambda: mx.eval(call()), wait, 1 if options.rehearse else count)[0]


def machine(options):
    """Device and versions. Raises UserError where there is no device."""
    print(f"MLX {mx.__version__}, python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    if options.rehearse:
        print("rehearsal on the CPU")
        return
    if not mx.is_available(mx.gpu):
        raise UserError(f"MLX {mx.__version__} sees no GPU: on a Mac install Python and MLX for arm64, elsewhere a "
                        "build of MLX for your GPU")
    print(", ".join(f"{name} {value}" for name, value in mx.device_info().items()))


def ceilings(options):
    """How fast the device multiplies, and how fast it copies."""
    device(options)
    n, size = (256, 1 << 20) if options.rehearse else (4096, 1 << 28)
    for dtype in (mx.bfloat16, mx.float32):
        a, b = (mx.random.normal((n, n)).astype(dtype) for _ in range(2))
        mx.eval(a, b)
        ms = ms_of(lambda a=a, b=b: a @ b, options)
        row(f"matmul {n}, {str(dtype).removeprefix('mlx.core.')}", ms=ms, TFLOPs=2 * n**3 / ms / 1e9)
    x = mx.zeros(size // 4, dtype=mx.float32)
    mx.eval(x)
    ms = ms_of(lambda: x + 1, options)
    row(f"read and write of {size >> 20} MiB", ms=ms, TBs=2 * size / ms / 1e9)


def device(options):
    mx.set_default_device(mx.cpu if options.rehearse else mx.gpu)


def attention(options):
    """MLX's kernel and the trainer's at the model's shapes, from both layouts in memory."""
    device(options)
    s = part.step_settings(MlxSettings, options)
    rows, T, D = s.train_batch_tokens // s.train_seq_len, s.train_seq_len, s.model_dim // s.num_heads
    for layout in ("(B, T, H, D)", "(B, H, T, D)"):
        heads = [heads_first(layout, mx.random.normal((rows, T, number, D)).astype(mx.bfloat16))
                 for number in (s.num_heads, s.num_kv_heads, s.num_kv_heads)]
        mx.eval(heads)
        for name, attend in {"kernel": kernel, "trainer's": train_gpt_mlx.attend}.items():
            forward, both = attention_ms(attend, heads, options)
            row(f"attention, {name}, {layout}", forward_ms=forward, backward_ms=both - forward)


def attention_ms(attend, heads, options):
    """(milliseconds forward, forward and backward); heads: q, k, v."""
    gradient = mx.grad(lambda q, k, v: attend(q, k, v).sum(), argnums=(0, 1, 2))
    return ms_of(lambda: attend(*heads), options), ms_of(lambda: gradient(*heads), options)


def heads_first(layout, x):
    """(B, H, T, D) that lies in memory as `layout` says; x (B, T, H, D)."""
    x = x.transpose(0, 2, 1, 3)
    return x if layout == "(B, T, H, D)" else mx.contiguous(x)


def kernel(q, k, v):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")


def step(options):
    """A step of the default model on one micro-batch: time by part, memory."""
    s, start = part.step_settings(MlxSettings, options), time.perf_counter()
    trainer, tokens = MlxTrainer(s, initial_weights(s)), part.step_tokens(s)
    loss = float(trainer.train_step(tokens, 1.0, 0.95))
    row("first step, with compilation", seconds=time.perf_counter() - start)
    part.check_first_loss(loss, s)
    ms = {
        "scores alone": ms_of(lambda: mx.array(trainer.token_nats(tokens)), options, 5),
        "loss and gradients": ms_of(lambda: trainer.backward(tokens, trainer.params), options, 5),
        "step": ms_of(lambda: trainer.train_step(tokens, 0.1, 0.95), options, 10),
    }
    for name, each in ms.items():
        row(name, wall_ms=each)
    rate = s.train_batch_tokens / ms["step"] * 1e3
    row("step", tokens_per_s=rate, model_TFLOPs=rate * flops_per_token(s) / 1e12)
    part.check_memory(trainer)


PARTS = {"machine": machine, "ceilings": ceilings, "attention": attention, "step": step}

if __name__ == "__main__":
    sys.exit(part.main(PARTS))
