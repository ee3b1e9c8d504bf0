"""Train the best language model that fits in 16,000,000 bytes: MLX (Metal on a Mac; CUDA or CPU elsewhere).

    python train_gpt_mlx.py --help                              all settings
    mlx.launch -n 2 --backend ring -- python train_gpt_mlx.py   two processes, or hosts

Its twin is train_gpt.py: same sections, same names. Everything that touches no device (data, schedule, initial weights,
artifact, the run itself) is written once, in common/.
"""
import contextlib
import ctypes
import dataclasses
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time

# MLX calls cblas_sgemm; in the wheel of OpenBLAS it is scipy_cblas_sgemm
OPENBLAS_NAMES = """
#define GEMM(name, real) \\
  void scipy_##name(int, int, int, int, int, int, real, const real*, int, const real*, int, real, real*, int); \\
  void name(int o, int s, int t, int m, int n, int k, real x, const real* a, int i, const real* b, int j, real y, real* c, int l) \\
  { scipy_##name(o, s, t, m, n, k, x, a, i, b, j, y, c, l); }
extern "C" { GEMM(cblas_sgemm, float) GEMM(cblas_dgemm, double) }
"""


def load_openblas():
    """On Linux the wheel of MLX links the reference BLAS (1 to 4 GFLOP/s on 2 cores). A library of the same names that is loaded
    globally before it takes its place: OpenBLAS, under the plain names by a few lines for the compiler that mx.compile needs too
    (70 to 200 GFLOP/s). Returns its function that sets the number of threads, or None where there is no OpenBLAS."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ImportError, subprocess.SubprocessError), tempfile.TemporaryDirectory() as folder:
            import scipy_openblas32
            path = f"{scipy_openblas32.get_lib_dir()}/{scipy_openblas32.get_library(fullname=True)}"
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-xc++", "-", "-o", f"{folder}/names.so"], input=OPENBLAS_NAMES.encode(),
                           check=True, capture_output=True)
            ctypes.CDLL(f"{folder}/names.so", mode=ctypes.RTLD_GLOBAL)
            return library.scipy_openblas_set_num_threads
        with contextlib.suppress(OSError):
            return ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL).openblas_set_num_threads  # the system's
    return None


OPENBLAS = load_openblas()  # before MLX
try:
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten, tree_unflatten
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"error: {missing}: `make install BACKEND=mlx` or `pip install '.[mlx]'` provides MLX", file=sys.stderr)
    sys.exit(2)
import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.params import check_weights, layer_order, num_skips, param_table, rope_tables, training_bytes
from common.quantize import tensor_levels
from common.run import host_memory, host_peak_memory, main
from common.settings import Settings, UserError, with_default


@dataclasses.dataclass(frozen=True)
class MlxSettings(Settings):
    micro_batch_tokens: int = with_default("micro_batch_tokens", 8192)  # for a Mac with 16 GB


# ------------------------------------------------------------------------------
# Model. Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, G = H / K, D = C / H
# ------------------------------------------------------------------------------

LONG = 1024  # positions of the longest row whose scores are all kept for the backward pass


class Attention(nn.Module):
    """Causal self-attention with grouped queries, RMS-normed queries and keys, rotary positions and a gain per head."""

    def __init__(self, s):
        super().__init__()
        self.s, self.head_dim = s, s.model_dim // s.num_heads
        self.c_q = nn.Linear(s.model_dim, s.model_dim, bias=False)
        self.c_k = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
        self.c_v = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
        self.q_gain = mx.zeros(s.num_heads)
        self.proj = nn.Linear(s.model_dim, s.model_dim, bias=False)

    def __call__(self, x, cos, sin):
        B, T, C = x.shape
        q = linear(x, self.c_q).reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3)  # (B, H, T, D)
        k = linear(x, self.c_k).reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3)  # (B, K, T, D)
        v = linear(x, self.c_v).reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3)
        q = rotate(rms_norm(q, self.s), cos, sin) * self.q_gain.astype(x.dtype)[:, None, None]
        k = rotate(rms_norm(k, self.s), cos, sin)
        return linear(attend(q, k, v).transpose(0, 2, 1, 3).reshape(B, T, C), self.proj)


class MLP(nn.Module):
    """relu^2 (Primer, arXiv:2109.08668)."""

    def __init__(self, s):
        super().__init__()
        self.fc = nn.Linear(s.model_dim, s.mlp_mult * s.model_dim, bias=False)
        self.proj = nn.Linear(s.mlp_mult * s.model_dim, s.model_dim, bias=False)

    def __call__(self, x):
        return linear(mx.square(mx.maximum(linear(x, self.fc), 0)), self.proj)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.resid_mix = mx.zeros((2, s.model_dim))
        self.attn, self.mlp = Attention(s), MLP(s)
        self.attn_scale = mx.zeros(s.model_dim)
        self.mlp_scale = mx.zeros(s.model_dim)

    def __call__(self, x, x0, cos, sin):
        mix = self.resid_mix.astype(x.dtype)
        x = mix[0] * x + mix[1] * x0
        x = x + self.attn_scale.astype(x.dtype) * self.attn(rms_norm(x, self.s), cos, sin)
        return x + self.mlp_scale.astype(x.dtype) * self.mlp(rms_norm(x, self.s))


class GPT(nn.Module):
    """Token embedding, an encoder half whose outputs are added, last first, to the decoder half's inputs, and a head."""

    def __init__(self, s, dtype):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.tok_emb = nn.Embedding(s.vocab_size, s.model_dim)
        self.blocks = [Block(s) for _ in range(s.num_layers)]
        self.order, self.num_skips = tuple(layer_order(s)), num_skips(s)
        if self.num_skips:
            self.skip_weights = mx.zeros((self.num_skips, s.model_dim))
        if not s.tie_embeddings:
            self.lm_head = nn.Linear(s.model_dim, s.vocab_size, bias=False)
        longest = max(s.train_seq_len, s.eval_seq_len)
        self._cos, self._sin = (mx.array(t, dtype=wide(dtype)) for t in rope_tables(s, longest))

    def features(self, tokens_BT):
        """(B, T, C): what the last block gives."""
        cos, sin = self._cos[:tokens_BT.shape[1]], self._sin[:tokens_BT.shape[1]]
        x = x0 = rms_norm(self.tok_emb(tokens_BT).astype(self.dtype), self.s)
        skips = []
        for i, layer in enumerate(self.order):
            if i >= self.num_skips and skips:
                x = x + self.skip_weights[i - self.num_skips].astype(x.dtype) * skips.pop()
            x = self.blocks[layer](x, x0, cos, sin)
            if i < self.num_skips:
                skips.append(x)
        return x

    def logits(self, tokens_BT):
        """(B, T, V) in float32, float64 in reference mode."""
        return self.head_logits(self.features(tokens_BT), self.head())

    def head(self):
        return (self.tok_emb if self.s.tie_embeddings else self.lm_head).weight

    def head_logits(self, x, weight):
        logits = (rms_norm(x, self.s) @ weight.astype(x.dtype).T).astype(wide(self.dtype))
        return self.s.logit_softcap * mx.tanh(logits / self.s.logit_softcap)

    def __call__(self, tokens):
        """(B, T) nats of each target: tokens (B, T + 1) hold the inputs and, moved by one, the targets."""
        x, targets = self.features(tokens[:, :-1]), tokens[:, 1:]
        if not 0 < self.s.loss_chunk < targets.size:
            return self.nats(x, self.head(), targets).squeeze(-1)
        x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
        nats = in_turn(lambda first, x, weight: self.nats(x, weight, targets[first:first + len(x)]), self.s.loss_chunk, x, self.head())
        return nats.reshape(len(tokens), -1)

    def nats(self, x, weight, targets):
        """(..., 1) nats of the targets (...) after what the last block gives (..., C)."""
        logits = self.head_logits(x, weight)
        # the softcap bounds the logits, so that the sum of their exponentials cannot overflow below a cap of 80
        top = 0 if self.s.logit_softcap <= 80 else mx.stop_gradient(mx.max(logits, axis=-1, keepdims=True))
        total = mx.log(mx.sum(exp(logits - top), axis=-1, keepdims=True)) + top
        return total - mx.take_along_axis(logits, targets[..., None], axis=-1)


def linear(x, layer):
    """The weights stay in float32; the product is in the compute dtype."""
    return x @ layer.weight.astype(x.dtype).T


def rms_norm(x, s):
    if x.dtype == mx.float64:  # the fused kernel computes float64 in float32
        return x * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + s.rms_norm_eps)
    return mx.fast.rms_norm(x, None, s.rms_norm_eps)  # accumulates in float32


def rotate(x, cos, sin):
    """Rotary embedding of x (B, heads, T, D): the two halves of a head are the pairs; turns by -angle."""
    a, b = mx.split(x.astype(cos.dtype), 2, axis=-1)
    return mx.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1).astype(x.dtype)


def attend(q, k, v):
    """Causal attention (B, H, T, D); query head h uses kv head h // G."""
    T, on_gpu = q.shape[2], mx.default_device() == mx.gpu
    if on_gpu and T <= LONG:
        return attend_last(q, k, v)

    def part(first, rows, k, v):
        last = first + rows.shape[2]
        return attend_last(rows, k[:, :, :last], v[:, :, :last])

    # On the CPU exponentials are what costs: a block of queries leaves out the keys that all of it cannot see
    block = max(64, min(T, LONG) // 4)
    if T > LONG:  # on Metal too: for training its kernel is replaced by one that keeps all scores
        return in_turn(part, block, q, k, v)
    return mx.concatenate([part(first, q[:, :, first:first + block], k, v) for first in range(0, T, block)], axis=2)


def attend_last(q, k, v):
    """The same for the last N of the T positions: q (B, H, N, D). The queries of one kv head share a product."""
    if mx.default_device() == mx.gpu:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1]**-0.5, mask="causal")
    B, H, N, D = q.shape
    K, T = k.shape[1:3]
    rows = q.reshape(B, K, H // K * N, D)
    scores = (rows @ k.swapaxes(-2, -1)).reshape(B, K, H // K, N, T).astype(wide(q.dtype)) * D**-0.5
    past = mx.arange(T) <= mx.arange(T - N, T)[:, None]
    scores = mx.where(past, scores, -float("inf"))
    weights = exp(scores - mx.stop_gradient(mx.max(scores, axis=-1, keepdims=True)))
    weights = (weights / mx.sum(weights, axis=-1, keepdims=True)).astype(q.dtype)
    return (weights.reshape(B, K, -1, T) @ v).reshape(B, H, N, D)


def in_turn(f, size, x, *others):
    """f(first, x[..., first:first + size, :], *others) for every first, joined along that axis, in the memory of a few calls: each is
    computed again in the backward pass, and waits for the one before, or MLX would evaluate up to 20 side by side (as it does with
    mx.checkpoint)."""
    cuts = [(first, min(first + size, x.shape[-2])) for first in range(0, x.shape[-2], size)]

    @mx.custom_function
    def whole(x, *others):
        out = []
        for first, last in cuts:
            out.append(f(first, *mx.depends([x[..., first:last, :]], out[-1:]), *others))
        return mx.concatenate(out, axis=-2)

    @whole.vjp
    def gradient(primals, cotangent, _):
        x, *others = primals
        grads, totals = [], [mx.zeros_like(y) for y in others]
        for first, last in cuts:
            part, ahead = mx.depends([x[..., first:last, :], cotangent[..., first:last, :]], totals + grads[-1:])
            _, (grad, *more) = mx.vjp(lambda *arrays, first=first: f(first, *arrays), [part, *others], [ahead])
            grads.append(grad)
            totals = [total + one for total, one in zip(totals, more)]
        return mx.concatenate(grads, axis=-2), *totals

    return whole(x, *others)


def wide(dtype):
    """float64 in reference mode, else float32: softcap, softmax and the rotary tables."""
    return mx.float64 if dtype == mx.float64 else mx.float32


def exp(x):
    """e^x. On the CPU mx.exp gives float64 only float32's precision, and takes 2.5 times as long as mx.power."""
    if mx.default_device() == mx.gpu:
        return mx.exp(x)
    return mx.power(mx.array(math.e, dtype=x.dtype), x)


# ------------------------------------------------------------------------------
# Optimizers: Muon for the matrices, Adam for the rest
# ------------------------------------------------------------------------------


def newton_schulz(g, steps):
    """Roughly the nearest orthogonal matrix of each of (n, rows, columns): a quintic iteration that pulls every singular
    value towards 1 (Keller Jordan, "Muon", 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.swapaxes(1, 2) if tall else g
    for _ in range(steps):
        A = x @ x.swapaxes(1, 2)
        B = b * A + c * (A @ A)
        x = a * x + B @ x
    return x.swapaxes(1, 2) if tall else x


def round_rows(w, levels):
    """float32 (rows, columns) as quantize.py stores and reads it."""
    if levels == "fp16":
        return w.astype(mx.float16).astype(mx.float32)
    step = (mx.max(mx.abs(w), axis=1, keepdims=True) / levels).astype(mx.float16).astype(mx.float32)
    return mx.clip(mx.round(mx.where(step > 0, w / step, 0.0)), -round(levels), round(levels)) * step


class Muon:
    """Nesterov momentum, then Newton-Schulz, all matrices of one shape in one batched product. Every rank computes every
    update: a few percent of a step, and the weights of all ranks stay equal to the bit."""

    def __init__(self, params, dtype, steps):
        self.dtype, self.steps = dtype, steps
        self.groups = {}
        for name, p in params.items():
            self.groups.setdefault(p.shape, []).append(name)
        self.momentum = {f"{shape}": mx.zeros((len(names), *shape), dtype=params[names[0]].dtype) for shape, names in self.groups.items()}

    def step(self, params, grads, state, lr, momentum):
        """New params and state; state maps each shape to the momentum (n, rows, columns) of its matrices."""
        params, state = dict(params), dict(state)
        for (rows, columns), names in self.groups.items():
            g = mx.stack([grads[name] for name in names])
            buffer = state[f"{rows, columns}"] = state[f"{rows, columns}"] * momentum + g
            g = g + momentum * buffer
            g = g / (mx.sqrt(mx.sum(mx.square(g), axis=(1, 2), keepdims=True)) + 1e-7)
            update = newton_schulz(g.astype(self.dtype), self.steps).astype(buffer.dtype)
            for name, u in zip(names, update):
                params[name] = params[name] - lr * max(1, rows / columns) ** 0.5 * u
        return params, state


class Adam:
    """Kingma and Ba, arXiv:1412.6980, with torch's order of operations."""

    def __init__(self, params, lrs, s):
        self.lrs, self.s = lrs, s
        self.moments = {f"{name}.{key}": mx.zeros_like(p) for name, p in params.items() for key in ("exp_avg", "exp_avg_sq")}

    def step(self, params, grads, state, lr_scale, correction1, correction2):
        """New params and state; the corrections are 1 - beta1^t and sqrt(1 - beta2^t)."""
        params, state, s = dict(params), dict(state), self.s
        for name, lr in self.lrs.items():
            g = grads[name]
            m = state[f"{name}.exp_avg"] = s.beta1 * state[f"{name}.exp_avg"] + (1 - s.beta1) * g
            v = state[f"{name}.exp_avg_sq"] = s.beta2 * state[f"{name}.exp_avg_sq"] + (1 - s.beta2) * mx.square(g)
            params[name] = params[name] - lr * lr_scale / correction1 * m / (mx.sqrt(v) / correction2 + s.adam_eps)
        return params, state


# ------------------------------------------------------------------------------
# Trainer: what common/run.py drives
# ------------------------------------------------------------------------------


class MlxTrainer:
    """The model, its optimizers and one process of a distributed run. See common/run.py, Trainer."""

    backend = "mlx"
    settings_class = MlxSettings
    steps_ahead = 0

    def __init__(self, settings, weights):
        check_weights(settings, weights)
        self.s = s = settings
        mx.set_default_device(pick_device(s))
        self.world = mx.distributed.init()
        self.rank, self.world_size = self.world.rank(), self.world.size()
        rank_rows(s, self.rank, self.world_size)
        if OPENBLAS and self.world_size > 1:  # or the processes of one machine fight for its cores
            OPENBLAS(max(1, os.cpu_count() // self.world_size))
        self.dtype = pick_dtype(s)
        self.model = GPT(s, self.dtype)
        self.groups = {name: p.group for name, p in param_table(s).items()}
        self.load_weights(weights)
        check_weights(s, dict(tree_flatten(self.model.parameters())))  # the model and the table name the same parameters
        lrs = {"embed": s.tied_embed_lr if s.tie_embeddings else s.embed_lr, "head": s.head_lr, "scalar": s.scalar_lr}
        matrices = {n: p for n, p in self.params.items() if self.groups[n] == "matrix"}
        others = {n: p for n, p in self.params.items() if self.groups[n] != "matrix"}
        self.muon = Muon(matrices, self.dtype, s.muon_backend_steps)
        self.adam = Adam(others, {n: lrs[self.groups[n]] for n in others}, s)
        self.adam_step = 0
        self.average_weights = dict(self.params) if s.ema_decay else {}
        self.rounding, self.levels = False, tensor_levels(s) if s.qat_start < 1 else {}
        compiled = mx.compile if s.compile else lambda f: f
        self.forward = compiled(self.forward_with)
        self.loss_and_grads = compiled(mx.value_and_grad(self.loss_with))
        self.update = compiled(self.update_with)

    def forward_with(self, params, tokens):
        self.model.update(tree_unflatten(list(params.items())))
        return self.model(tokens)

    def loss_with(self, params, tokens, scale):
        return self.forward_with(params, tokens).sum(axis=-1).sum() * scale  # in two steps: float32 keeps two more digits

    def scalar(self, value):
        return mx.array(value, dtype=wide(self.dtype))

    # one optimizer step ------------------------------------------------------------

    def train_step(self, tokens, lr_scale, momentum):
        """One update from this rank's rows (rows, train_seq_len + 1); the mean nats of the global batch (0-dim array). None is
        made where loss or gradient is not finite."""
        loss, grads = self.backward(tokens)
        norm = mx.sqrt(sum(mx.sum(mx.square(g)) for g in grads.values()))
        if not math.isfinite((loss + norm).item()):
            return loss + norm
        self.adam_step += 1
        corrections = 1 - self.s.beta1**self.adam_step, (1 - self.s.beta2**self.adam_step) ** 0.5
        self.params, self.muon.momentum, self.adam.moments = self.update(
            self.params, grads, norm, self.muon.momentum, self.adam.moments, *map(self.scalar, (lr_scale, momentum, *corrections)))
        mx.eval(loss, self.params, self.muon.momentum, self.adam.moments)
        return loss

    def update_with(self, params, grads, norm, momenta, moments, lr_scale, momentum, correction1, correction2):
        if self.s.grad_clip_norm > 0:
            cut = mx.minimum(self.s.grad_clip_norm / (norm + 1e-6), 1.0)
            grads = {name: g * cut for name, g in grads.items()}
        params, momenta = self.muon.step(params, grads, momenta, self.s.matrix_lr * lr_scale, momentum)
        params, moments = self.adam.step(params, grads, moments, lr_scale, correction1, correction2)
        return params, momenta, moments

    def backward(self, tokens, alone=False):
        """(loss, gradients) of the global mean loss; alone: of the mean over this rank's rows."""
        ranks = 1 if alone else self.world_size
        scale = self.scalar(1.0 / (tokens[:, 1:].size * ranks))
        params = self.rounded_weights() if self.rounding else self.params
        rows = micro_batch_rows(self.s, len(tokens), tokens.shape[1] - 1)
        total = None
        for first in range(0, len(tokens), rows):
            part = self.loss_and_grads(params, mx.array(tokens[first:first + rows]), scale)
            if total is not None:
                part = part[0] + total[0], {name: g + total[1][name] for name, g in part[1].items()}
            total = part
            if len(tokens) > rows:
                mx.eval(total)  # or all micro-batches would be held at once
        loss, grads = total
        if self.world_size > 1 and not alone:
            # one message: on a network each one costs a round trip
            parts = [loss, *grads.values()]
            flat = mx.distributed.all_sum(mx.concatenate([part.reshape(-1) for part in parts]), group=self.world)
            ends = list(itertools.accumulate(part.size for part in parts))
            loss, *summed = (part.reshape(like.shape) for part, like in zip(mx.split(flat, ends[:-1]), parts))
            grads = dict(zip(grads, summed))
        return loss, grads

    def rounded_weights(self):
        """The weights that the model file would hold: gradients there are taken for those of the weights themselves (the straight-through
        estimator, Bengio et al., arXiv:1308.3432)."""
        return self.params | {name: round_rows(self.params[name].astype(mx.float32), levels).astype(wide(self.dtype))
                              for name, levels in self.levels.items()}

    def finite_alone(self, tokens):
        loss, grads = self.backward(tokens, alone=True)
        return all(mx.isfinite(x).all().item() for x in [loss, *grads.values()])

    def sgd_step(self, tokens, lr):
        """Plain SGD on the mean nats of rows (rows, T + 1): every parameter moves by -lr times its gradient, on this rank alone."""
        _, grads = self.backward(tokens, alone=True)
        self.params = {name: p - self.scalar(lr) * grads[name] for name, p in self.params.items()}
        mx.eval(self.params)

    # what else a run asks for ------------------------------------------------------

    def token_nats(self, tokens):
        """float (B, T) nats of each target of tokens (B, T + 1)."""
        return np.array(self.forward(self.params, mx.array(tokens)))

    def logits(self, tokens):
        """(B, T, V) of tokens (B, T)."""
        self.model.update(tree_unflatten(list(self.params.items())))
        return np.array(self.model.logits(mx.array(tokens)))

    def gradients(self, tokens):
        """(loss, dict of gradients) of the global mean loss."""
        loss, grads = self.backward(tokens)
        return float(loss), {name: np.array(g) for name, g in grads.items()}

    def weights(self):
        return {name: np.array(p) for name, p in self.params.items()}

    def load_weights(self, weights):
        check_weights(self.s, weights)
        self.params = {name: mx.array(weights[name], dtype=wide(self.dtype)) for name in self.groups}

    def snapshot(self):
        return self.params  # nothing is changed in place

    def restore(self, snapshot):
        self.params = snapshot

    def update_average(self, decay):
        """Moves the average towards the weights by 1 - decay of the way."""
        share = self.scalar(1 - decay)
        self.average_weights = {name: mean + (self.params[name] - mean) * share for name, mean in self.average_weights.items()}
        mx.eval(self.average_weights)

    def average(self):
        return {name: np.array(p) for name, p in self.average_weights.items()}

    def optimizer_state(self):
        """dict of arrays: NAME.momentum, NAME.exp_avg, NAME.exp_avg_sq, NAME.ema where weights are averaged, and adam_step, the number of
        updates made."""
        state = {f"{name}.momentum": np.array(row) for shape, names in self.muon.groups.items()
                 for name, row in zip(names, self.muon.momentum[f"{shape}"])}
        state |= {f"{name}.ema": p for name, p in self.average().items()}
        return state | {name: np.array(p) for name, p in self.adam.moments.items()} | {"adam_step": np.float32(self.adam_step)}

    def load_optimizer_state(self, state):
        for shape, names in self.muon.groups.items():
            momentum = np.stack([state[f"{name}.momentum"] for name in names])
            self.muon.momentum[f"{shape}"] = mx.array(momentum, dtype=wide(self.dtype))
        self.adam.moments = {name: mx.array(state[name], dtype=wide(self.dtype)) for name in self.adam.moments}
        self.average_weights = {name: mx.array(state[f"{name}.ema"], dtype=wide(self.dtype)) for name in self.average_weights}
        self.adam_step = int(state["adam_step"])

    def all_sum(self, array):
        """Sum of a numpy array over the processes."""
        if self.world_size == 1:
            return array
        with mx.stream(mx.cpu):  # a GPU knows no float64
            return np.array(mx.distributed.all_sum(mx.array(array, dtype=getattr(mx, str(array.dtype))), group=self.world))

    def wait(self):
        """Until the device has done all that was asked of it."""
        mx.synchronize()

    def peak_memory(self):
        """Bytes: of MLX's allocator on a GPU, else of the process."""
        return mx.get_peak_memory() if mx.default_device() == mx.gpu else host_peak_memory()

    def matmul_flops(self):
        """Floating-point operations per second of a square product in the compute dtype: the best of five."""
        n = 4096 if mx.default_device() == mx.gpu else 1024
        x = mx.ones((n, n), dtype=self.dtype)
        best = float("inf")
        for _ in range(6):
            mx.eval(x)
            start = time.perf_counter()
            mx.eval(x @ x)
            best = min(best, time.perf_counter() - start)
        return 2 * n**3 / best

    def memory(self):
        """Bytes that Metal recommends as the limit, or that the machine has, and that training will take, roughly."""
        rows = micro_batch_rows(self.s, rank_rows(self.s, self.rank, self.world_size)[1])
        on_gpu = mx.default_device() == mx.gpu
        have = mx.device_info().get("max_recommended_working_set_size", host_memory()) if on_gpu else host_memory()
        score_rows = LONG // 4 if self.s.train_seq_len > LONG else 0 if on_gpu else self.s.train_seq_len
        return have, training_bytes(self.s, rows, self.dtype.size, score_rows)

    def describe(self):
        on_gpu = mx.default_device() == mx.gpu
        name = mx.device_info().get("device_name", "gpu") if on_gpu else f"cpu ({'OpenBLAS' if OPENBLAS else 'built-in BLAS'})"
        return f"{self.world_size} x {name}, {str(self.dtype).removeprefix('mlx.core.')}, mlx {mx.__version__}"

    def close(self):
        pass


def pick_device(s):
    gpu = mx.is_available(mx.gpu)
    if s.device == "gpu" and not gpu:
        raise UserError("DEVICE=gpu, but MLX sees none here: use DEVICE=cpu, or a build of MLX for your GPU")
    if s.device == "cpu" or s.compute_dtype == "float64" or not gpu:
        if sys.platform == "linux" and not OPENBLAS:
            print("warning: no OpenBLAS could be loaded, matrix products will be 50 times slower: install g++ (for the package "
                  "scipy-openblas32), or the system package libopenblas0", file=sys.stderr)
        return mx.cpu
    return mx.gpu


def pick_dtype(s):
    if s.compute_dtype != "auto":
        return getattr(mx, s.compute_dtype)
    return mx.bfloat16 if mx.default_device() == mx.gpu else mx.float32


if __name__ == "__main__":
    sys.exit(main(MlxTrainer, __file__))
