"""How far the kernels of common/kernels.py are from what train_gpt.py computes without them.

    TRITON_INTERPRET=1 python -m tests.device.kernel_errors cpu    in Triton's interpreter
    python -m tests.device.kernel_errors cuda                      on a GPU

Prints JSON: a list of (name, error, bound), errors relative to the norm. Not in bfloat16 in the interpreter, which
multiplies that wrongly (Triton 3.7.1).
"""
import dataclasses
import json
import sys

import torch

import train_gpt
from common.kernels import load_kernels
from common.params import initial_weights
from common.settings import Settings

WAYS = "none", "triton"
# a few units in the last place: 2^-23 is 1.2e-7, 2^-10 is 9.8e-4, 2^-7 is 7.8e-3
BOUNDS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float16, torch.bfloat16)}
SMALL = Settings(num_layers=2, model_dim=64, num_heads=2, mlp_mult=3, num_kv_heads=2, train_seq_len=35)


def errors(name, dtype, computed):
    """Rows for two dicts of tensors by part: without the kernels and with them."""
    for part, one in computed[0].items():
        other = computed[1][part]
        assert other.dtype == one.dtype and other.shape == one.shape, (name, part)
        error = (other.double() - one.double()).norm() / one.double().norm()
        yield f"{name}, {str(dtype).removeprefix('torch.')}, {part}", float(error), BOUNDS[dtype]


def with_gradients(module, output, inputs):
    """dict of an output, and of the gradients of a sum of it, weighted at random, for inputs and parameters."""
    torch.manual_seed(2)
    output.backward(torch.rand_like(output))
    parts = {name: p for name, p in module.named_parameters() if p.grad is not None} | inputs
    return {"output": output.detach()} | {name: x.grad for name, x in parts.items()}


def mlp_rows(dtype):
    """100 rows, not a multiple of the block; 1 row; and widths for both sizes of blocks."""
    for rows, dim in ((100, 64), (1, 64), (130, 128)):
        computed = []
        for kernels in WAYS:
            torch.manual_seed(1)
            s = dataclasses.replace(SMALL, kernels=kernels, model_dim=dim, mlp_mult=2)
            module, x = train_gpt.MLP(s), torch.randn(1, rows, dim, dtype=dtype, requires_grad=True)
            computed.append(with_gradients(module, module(x), {"x": x}))
        yield from errors(f"mlp of {rows} rows", dtype, computed)


def nats_rows(dtype):
    for vocabulary, tied, size in ((260, True, 1), (1000, False, 1), (1024, True, 200), (4096, True, 1)):
        computed = []
        for kernels in WAYS:
            torch.manual_seed(1)
            s = dataclasses.replace(SMALL, kernels=kernels, vocab_size=vocabulary, tie_embeddings=tied)
            model, x = train_gpt.GPT(s, dtype, None), torch.randn(2, 3, 64, dtype=dtype, requires_grad=True)
            model.head().weight.data.normal_(0, size)  # 200: all logits are at the cap
            computed.append(with_gradients(model, model.nats(x, torch.randint(vocabulary, (2, 3))), {"x": x}))
            if size > 1:  # at the cap gradients are 0, or rounding
                computed[-1] = {"output": computed[-1]["output"]}
        yield from errors(f"nats of {vocabulary} tokens, weights of {size}", dtype, computed)


def matrix_rows(dtype):
    steps = 3 if dtype == torch.float32 else 1  # each step multiplies the errors of the one before
    for shape in ((2, 64, 192), (1, 192, 64), (1, 128, 128), (1, 192, 256), (1, 320, 256)):
        torch.manual_seed(1)
        g = torch.randn(shape)
        g = (g / g.norm(dim=(1, 2), keepdim=True)).to(dtype)
        computed = [{"orthogonal": train_gpt.newton_schulz(g, steps, kernels)} for kernels in WAYS]
        yield from errors(f"matrices {shape}", dtype, computed)


def model_rows(chunk):
    computed = []
    for kernels in WAYS:
        torch.manual_seed(1)
        s = dataclasses.replace(SMALL, kernels=kernels, vocab_size=300, loss_chunk=chunk)
        model = train_gpt.GPT(s, torch.float32, None)
        model.load_state_dict({name: torch.from_numpy(w) + 0.02 * torch.randn(w.shape)
                               for name, w in initial_weights(s).items()})
        computed.append(with_gradients(model, model(torch.randint(300, (3, 36))), {}))
    yield from errors(f"model, LOSS_CHUNK={chunk}", torch.float32, computed)


def not_finite(dtype):
    """(name, 0 or 1, 0.5): 1 where a NaN among the inputs is lost."""
    x, w = torch.ones(4, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
    x[1, 2] = torch.nan
    nats, _ = torch.ops.parity_golf.head_nats(x, w, torch.zeros(4, dtype=torch.long), 30.0)
    yield "a NaN in nats", float(nats.isnan().tolist() != [False, True, False, False]), 0.5
    y, _ = torch.ops.parity_golf.relu2_mlp(x, w, w)
    yield "a NaN in the mlp", float(y.isnan().all(dim=1).tolist() != [False, True, False, False]), 0.5


def main(device):
    torch.set_default_device(device)
    load_kernels()
    rows = [*model_rows(0), *model_rows(32)] if torch.float32 in DTYPES[device] else []
    for dtype in DTYPES[device]:
        rows += [*mlp_rows(dtype), *nats_rows(dtype), *matrix_rows(dtype), *not_finite(dtype)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
