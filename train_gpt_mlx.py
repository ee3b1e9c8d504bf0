"""Train the best language model that fits in 16,000,000 bytes: MLX (Metal on a Mac, CUDA, CPU).

    python train_gpt_mlx.py --help                              all settings
    mlx.launch -n 2 --backend ring -- python train_gpt_mlx.py   two processes

Its twin is train_gpt.py: same sections, same names. What touches no device is written once, in common/.
"""
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import sys

if sys.platform == "win32":
    sys.stderr.write("error: Windows is not supported: use WSL\n")
    sys.exit(2)

from common.openblas import load_openblas

flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_LAZY)  # so that OpenBLAS can still take the place of MLX's BLAS
try:
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten, tree_unflatten
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"error: {missing}: `make install BACKEND=mlx` or `pip install '.[mlx]'` provides MLX\n")
    sys.exit(2)
sys.setdlopenflags(flags)
import numpy as np

from common.batches import micro_batch_rows, rank_rows, step_parts
from common.calibration import collect
from common.machine import host_memory, host_peak_memory, keep_freed_memory, least_seconds
from common.params import adapters, check_weights, layer_order, num_skips, param_table, rope_tables, training_bytes
from common.quantize import tensor_levels
from common.ranks import launched_rank, meeting
from common.run import main
from common.schedule import adam_lrs
from common.settings import Settings, UserError


@dataclasses.dataclass(frozen=True)
class MlxSettings(Settings):
    micro_batch_tokens: int = dataclasses.field(  # for a Mac with 16 GB
        default=8192, metadata=Settings.__dataclass_fields__["micro_batch_tokens"].metadata)


# ----------------------------------------------------------------------------------------------------------------------
# Model. Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, G = H / K, D = C / H
# ----------------------------------------------------------------------------------------------------------------------

LONG = 1024  # positions of the longest row whose scores are all kept


class Attention(nn.Module):
    """Causal self-attention with grouped queries, RMS-normed queries and keys, rotary positions, a gain per head."""

    def __init__(self, s, i):
        super().__init__()
        self.s, self.head_dim, self.xsa = s, s.model_dim // s.num_heads, i >= s.num_layers - s.xsa_layers
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
        q = rotate(rms_norm(q, self.s) * self.q_gain.astype(x.dtype)[:, None, None], cos, sin)
        k = rotate(rms_norm(k, self.s), cos, sin)
        y = attend(q, k, v)
        if self.xsa:  # without its component along the token's own value (record of 2026-03-20)
            y = y.reshape(B, v.shape[1], -1, T, self.head_dim)
            v = mx.expand_dims(rms_norm(v, self.s), 2)
            y = (y - mx.mean(y * v, axis=-1, keepdims=True) * v).reshape(q.shape)
        return linear(y.transpose(0, 2, 1, 3).reshape(B, T, C), self.proj)


class MLP(nn.Module):
    """relu^2 (Primer, arXiv:2109.08668), or leaky relu^2 (record of 2026-03-23)."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.fc = nn.Linear(s.model_dim, s.mlp_mult * s.model_dim, bias=False)
        self.proj = nn.Linear(s.mlp_mult * s.model_dim, s.model_dim, bias=False)

    def __call__(self, x):
        x = linear(x, self.fc)
        return linear(mx.square(mx.maximum(x, self.s.mlp_slope * x)), self.proj)


class Block(nn.Module):
    def __init__(self, s, i):
        super().__init__()
        self.s, self.parallel = s, i >= s.num_layers - s.parallel_layers
        self.norm_scale = (i + 1)**-0.5
        self.resid_mix = mx.zeros((2, s.model_dim))
        self.attn, self.mlp = Attention(s, i), MLP(s)
        self.attn_scale = mx.zeros(s.model_dim)
        self.mlp_scale = mx.zeros(s.model_dim)

    def __call__(self, x, x0, cos, sin):
        mix = self.resid_mix.astype(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y = x + self.attn_scale.astype(x.dtype) * self.attn(self.norm(x), cos, sin)
        return y + self.mlp_scale.astype(x.dtype) * self.mlp(self.norm(x if self.parallel else y))

    def norm(self, x):
        x = rms_norm(x, self.s)
        return x * self.norm_scale if self.s.norm_scale else x


class GPT(nn.Module):
    """Outputs of the first half of the blocks (encoder) are added to inputs of the second (decoder), last first."""

    def __init__(self, s, dtype):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.tok_emb = nn.Embedding(s.vocab_size, s.model_dim)
        if s.bigram_rows:
            self.bigram = nn.Embedding(s.bigram_rows, s.bigram_dim)
            self.bigram_proj = nn.Linear(s.bigram_dim, s.model_dim, bias=False)
            self.bigram_scale = mx.zeros(1)
        if s.smear_gate:
            self.smear_gate = mx.zeros(s.model_dim)
        self.blocks = [Block(s, i) for i in range(s.num_layers)]
        self.order, self.num_skips = tuple(layer_order(s)), num_skips(s)
        if self.num_skips:
            self.skip_weights = mx.zeros((self.num_skips, s.model_dim))
        if not s.tie_embeddings:
            self.lm_head = nn.Linear(s.model_dim, s.vocab_size, bias=False)
        longest = max(s.train_seq_len, s.eval_seq_len)
        # MLX takes an array under a plain name for a parameter
        self._cos, self._sin = (mx.array(t, dtype=wide(dtype)) for t in rope_tables(s, longest))

    def features(self, tokens_BT):
        """(B, T, C): the output of the last block."""
        cos, sin = self._cos[:tokens_BT.shape[1]], self._sin[:tokens_BT.shape[1]]
        x = x0 = self.embed(tokens_BT)
        skips = []
        for i, layer in enumerate(self.order):
            if i >= self.num_skips and skips:
                x = x + self.skip_weights[i - self.num_skips].astype(x.dtype) * skips.pop()
            x = self.blocks[layer](x, x0, cos, sin)
            if i < self.num_skips:
                skips.append(x)
        return x

    def embed(self, tokens_BT):
        """(B, T, C): the input of the blocks. Bigrams and smear gate (record of 2026-03-19) mix no two documents."""
        s, x = self.s, self.look_up(self.tok_emb.weight, tokens_BT)
        first = (tokens_BT == s.bos_id) | (mx.arange(tokens_BT.shape[1]) == 0)  # in its document or its row
        if s.bigram_rows:
            pairs = mx.array(36313, mx.uint32) * tokens_BT ^ mx.array(27191, mx.uint32) * mx.roll(tokens_BT, 1, axis=1)
            pairs = mx.where(first, s.bigram_rows - 1, pairs % (s.bigram_rows - 1))
            pairs = self.look_up(self.bigram.weight, pairs)
            x = x + self.bigram_scale.astype(x.dtype) * linear(pairs, self.bigram_proj)
        x = rms_norm(x, s)
        if s.smear_gate:
            gate = (1 / (1 + exp(-self.smear_gate))).astype(x.dtype) * ~first[..., None]
            x = x + gate * (mx.roll(x, 1, axis=1) - x)
        return x

    def look_up(self, w, ids):
        if self.s.deterministic:  # on Metal the gradient of a lookup is summed in any order, that of a product is not
            return ((ids[..., None] == mx.arange(len(w))).astype(w.dtype) @ w).astype(self.dtype)
        return w[ids].astype(self.dtype)

    def logits(self, tokens_BT):
        """(B, T, V) in float32, float64 in reference mode."""
        return self.head_logits(self.features(tokens_BT), self.head())

    def head(self):  # passed on as an argument: in_turn() gives gradients of its arguments only
        return (self.tok_emb if self.s.tie_embeddings else self.lm_head).weight

    def head_logits(self, x, weight):
        logits = (rms_norm(x, self.s) @ weight.astype(x.dtype).T).astype(wide(self.dtype))
        return self.s.logit_softcap * tanh(logits / self.s.logit_softcap)

    def __call__(self, tokens):
        """(B, T) nats; tokens (B, T + 1) are the inputs and, shifted by one, the targets."""
        x, targets = self.features(tokens[:, :-1]), tokens[:, 1:]
        if 0 < self.s.loss_chunk < targets.size:
            return nats_in_chunks(self, x, targets)
        return self.nats(x, self.head(), targets).squeeze(-1)

    def nats(self, x, weight, targets):
        """(..., 1) nats of targets (...) after features x (..., C); weight: of the head."""
        logits = self.head_logits(x, weight)
        # with a softcap of at most 80 the sum cannot overflow
        top = 0 if self.s.logit_softcap <= 80 else mx.stop_gradient(mx.max(logits, axis=-1, keepdims=True))
        total = mx.log(mx.sum(exp(logits - top), axis=-1, keepdims=True)) + top
        return total - mx.take_along_axis(logits, targets[..., None], axis=-1)


def linear(x, layer):
    """The weights stay float32; the product is in the compute dtype."""
    if seen := getattr(layer, "seen", None):  # see input_products
        seen(x)
    return x @ layer.weight.astype(x.dtype).T


def rms_norm(x, s):
    if x.dtype == mx.float64:  # the fused kernel computes float64 in float32
        return x * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + s.rms_norm_eps)
    return mx.fast.rms_norm(x, None, s.rms_norm_eps)  # accumulates in float32


def rotate(x, cos, sin):
    """Rotary embedding of x (B, heads, T, D): rotates the pairs (x[i], x[i + D/2]) by -angle."""
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

    # On the CPU the exponentials cost most: a block of queries skips the keys that it cannot see.
    block = max(64, min(T, LONG) // 4)
    if T > LONG:  # on Metal too, whose fused kernel keeps all scores for the backward pass
        return in_turn(part, block, q, k, v)
    return mx.concatenate([part(first, q[:, :, first:first + block], k, v) for first in range(0, T, block)], axis=2)


def attend_last(q, k, v):
    """The same for the last N of T positions: q (B, H, N, D). Queries of one kv head share a product."""
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


@mx.custom_function
def tanh(x):
    return mx.tanh(x)


@tanh.vjp
def tanh_vjp(_, cotangent, y):  # MLX's own gradient computes a cosh as well
    return cotangent * (1 - mx.square(y))


def wide(dtype):
    """The dtype of softcap, softmax and rotary tables: float64 in reference mode, else float32."""
    return mx.float64 if dtype == mx.float64 else mx.float32


def exp(x):
    """e^x. On the CPU mx.exp computes float64 in float32, and takes 2.5 times as long."""
    if mx.default_device() == mx.gpu:
        return mx.exp(x)
    return mx.power(mx.array(math.e, dtype=x.dtype), x)


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers: Muon for the matrices, Adam for the rest
# ----------------------------------------------------------------------------------------------------------------------


def newton_schulz(g, steps):
    """Roughly the nearest orthogonal matrix to each of g (n, rows, columns), by a quintic iteration (Keller Jordan,
    "Muon", 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.swapaxes(1, 2) if tall else g
    for _ in range(steps):
        A = x @ x.swapaxes(1, 2)
        B = b * A + c * (A @ A)
        x = a * x + B @ x
    return x.swapaxes(1, 2) if tall else x


class Muon:
    """Nesterov momentum, then Newton-Schulz, all matrices of one shape at once. Every rank computes all updates, a few
    percent of a step, and so stays bit-identical."""

    def __init__(self, params, dtype, s, streams):
        self.dtype, self.s, self.streams = dtype, s, streams
        self.groups = {}
        for name, p in params.items():
            self.groups.setdefault(p.shape, []).append(name)
        zeros = {name: mx.zeros_like(p) for name, p in params.items()}
        self.momentum = {f"{shape}": mx.stack([zeros[name] for name in names]) for shape, names in self.groups.items()}

    def step(self, params, grads, state, lr, momentum):
        """New params and state, a dict of each shape's momentum (n, rows, columns)."""
        params, state = dict(params), dict(state)
        for shape, names in self.groups.items():
            g = mx.stack([grads[name] for name in names])
            buffer = state[f"{shape}"] = state[f"{shape}"] * momentum + g
            g = g + momentum * buffer
            g = g / (mx.sqrt(mx.sum(mx.square(g), axis=(1, 2), keepdims=True)) + 1e-7)
            update = mx.concatenate(side_by_side(
                self.streams, lambda part: newton_schulz(part, self.s.muon_backend_steps), g.astype(self.dtype)))
            update = update.astype(buffer.dtype)
            rows, columns = shape
            for name, u in zip(names, update):
                w = params[name] * (1 - lr * self.s.weight_decay) if self.s.weight_decay else params[name]
                params[name] = w - lr * max(1, rows / columns) ** 0.5 * u
        return params, state


class Adam:
    """Kingma and Ba, arXiv:1412.6980, with torch's order of operations."""

    def __init__(self, params, lrs, decay, s):
        self.lrs, self.decay, self.s = lrs, decay, s
        self.moments = {f"{name}.{key}": mx.zeros_like(p) for name, p in params.items()
                        for key in ("exp_avg", "exp_avg_sq")}

    def step(self, params, grads, state, lr_scale, correction1, correction2):
        """New params and state; corrections: 1 - beta1^t and sqrt(1 - beta2^t)."""
        params, state, s = dict(params), dict(state), self.s
        for name, lr in self.lrs.items():
            g = grads[name]
            m = state[f"{name}.exp_avg"] = s.beta1 * state[f"{name}.exp_avg"] + (1 - s.beta1) * g
            v = state[f"{name}.exp_avg_sq"] = s.beta2 * state[f"{name}.exp_avg_sq"] + (1 - s.beta2) * mx.square(g)
            w = params[name] * (1 - lr * lr_scale * s.embed_weight_decay) if name in self.decay else params[name]
            params[name] = w - lr * lr_scale / correction1 * m / (mx.sqrt(v) / correction2 + s.adam_eps)
        return params, state


# ----------------------------------------------------------------------------------------------------------------------
# Trainer: what common/run.py drives
# ----------------------------------------------------------------------------------------------------------------------


class MlxTrainer:
    """One process of a run. Methods as in common/trainer.py, Trainer."""

    backend = "mlx"
    settings_class = MlxSettings
    steps_ahead = 0

    def __init__(self, settings, weights):
        keep_freed_memory()
        self.s = s = settings
        if s.kernels != "none":
            raise UserError(f"KERNELS={s.kernels} is for train_gpt.py on CUDA: use KERNELS=none")
        mx.set_default_device(pick_device(s))
        rank, _, ranks = launched_rank(self.backend)
        with meeting(ranks) if ranks else contextlib.nullcontext():
            self.world = mx.distributed.init()
            if rank not in (0, self.world.rank()):
                raise RuntimeError("MLX finds none")
        self.rank, self.world_size = self.world.rank(), self.world.size()
        rank_rows(s, self.rank, self.world_size)  # raises where the ranks cannot share the rows
        self.streams = pick_streams(self.world_size)
        self.dtype = pick_dtype(s)
        self.model = GPT(s, self.dtype)
        check_weights(s, dict(tree_flatten(self.model.parameters())))  # the table names the parameters of the model
        check_weights(s, weights)
        self.params = self.to_device(weights)
        self.finite, self.before_sgd = True, None
        self.make_optimizers()
        self.average = dict(self.params) if s.ema_decay else {}
        compiled = mx.compile if s.compile else lambda f: f
        self.forward = compiled(self.forward_with)
        self.loss_and_grads = compiled(mx.value_and_grad(self.loss_with))
        self.update = compiled(self.update_with)

    def make_optimizers(self):
        s, groups = self.s, {name: p.group for name, p in param_table(self.s).items()}
        matrices = {name: p for name, p in self.params.items() if groups[name] == "matrix"}
        others = {name: p for name, p in self.params.items() if groups[name] != "matrix"}
        self.muon = Muon(matrices, self.dtype, s, self.streams)
        decay = [name for name in others if groups[name] == "embed" and s.embed_weight_decay]
        self.adam = Adam(others, {name: adam_lrs(s)[groups[name]] for name in others}, decay, s)
        self.adam_step = 0

    def forward_with(self, params, tokens):
        self.model.update(tree_unflatten(list(params.items())))
        return self.model(tokens)

    def loss_with(self, params, tokens, scale):
        return self.forward_with(params, tokens).sum(axis=-1).sum() * scale  # by rows: float32 keeps two more digits

    # one optimizer step -----------------------------------------------------------------------------------------------

    def train_step(self, tokens, lr_scale, momentum, rounding=False):
        loss, grads = self.backward(tokens, self.rounded_weights() if rounding else self.params)
        norm = mx.sqrt(sum(mx.sum(mx.square(g)) for g in grads.values()))
        self.finite = self.finite and math.isfinite((loss + norm).item())
        if not self.finite:
            return loss + norm
        self.adam_step += 1
        corrections = 1 - self.s.beta1**self.adam_step, (1 - self.s.beta2**self.adam_step) ** 0.5
        numbers = map(self.scalar, (lr_scale, momentum, *corrections))
        self.params, self.muon.momentum, self.adam.moments = self.update(
            self.params, grads, norm, self.muon.momentum, self.adam.moments, *numbers)
        mx.eval(loss, self.params, self.muon.momentum, self.adam.moments)
        return loss

    def update_with(self, params, grads, norm, momenta, moments, lr_scale, momentum, correction1, correction2):
        if self.s.grad_clip_norm > 0:
            clip = mx.minimum(self.s.grad_clip_norm / (norm + 1e-6), 1.0)
            grads = {name: g * clip for name, g in grads.items()}
        params, momenta = self.muon.step(params, grads, momenta, self.s.matrix_lr * lr_scale, momentum)
        params, moments = self.adam.step(params, grads, moments, lr_scale, correction1, correction2)
        return params, momenta, moments

    def backward(self, tokens, params, alone=False, parts=None):
        """(loss, gradients) of the global mean loss; alone: of the mean over this rank's rows. parts: rows of each
        pass; None: equal ones."""
        ranks = 1 if alone else self.world_size
        scale = self.scalar(1 / (tokens[:, 1:].size * ranks))
        rows = micro_batch_rows(self.s, len(tokens), tokens.shape[1] - 1)
        parts = parts or [rows] * (len(tokens) // rows)
        loss, grads = None, {}
        for rows, end in zip(parts, itertools.accumulate(parts)):
            for part, more in side_by_side(
                    self.streams, lambda micro: self.loss_and_grads(params, mx.array(micro), scale),
                    tokens[end - rows:end]):
                loss = part if loss is None else loss + part
                grads = {name: g + grads[name] if grads else g for name, g in more.items()}
            if len(parts) > 1:
                mx.eval(loss, grads)  # or all would be in memory at once
        if ranks > 1:
            full, short = {"loss": loss} | grads, {}
            if self.s.reduce_dtype == "bfloat16":
                short = {name: full.pop(name) for group in self.muon.groups.values() for name in group}
            summed = self.summed(full, loss.dtype) | (self.summed(short, mx.bfloat16) if short else {})
            loss, grads = summed["loss"], {name: summed[name] for name in grads}
        return loss, grads

    def summed(self, parts, dtype):
        """dict of the sums over the ranks: in one message, as each costs a round trip."""
        flat = mx.concatenate([part.reshape(-1) for part in parts.values()]).astype(dtype)
        flat = mx.distributed.all_sum(flat, group=self.world)
        ends = list(itertools.accumulate(part.size for part in parts.values()))
        sums = zip(parts.items(), mx.split(flat, ends[:-1]))
        return {name: part.reshape(like.shape).astype(like.dtype) for (name, like), part in sums}

    def finite_alone(self, tokens):
        loss, grads = self.backward(tokens, self.params, alone=True)
        return all(mx.isfinite(x).all().item() for x in [loss, *grads.values()])

    # scores and state -------------------------------------------------------------------------------------------------

    def token_nats(self, tokens):
        parts = side_by_side(self.streams, lambda rows: self.forward(self.params, mx.array(rows)), tokens)
        mx.eval(parts)
        return np.concatenate(parts)

    def input_products(self, tokens):
        def square(x):
            x = x.reshape(-1, x.shape[-1]).astype(wide(self.dtype))
            product = x.T @ x
            mx.eval(product)  # or all passes would be in memory at once
            return product

        self.model.update(tree_unflatten(list(self.params.items())))
        modules = dict(self.model.named_modules())
        layers = {name: modules[name.removesuffix(".weight")] for name in self.params.keys() - self.adam.lrs}
        parts = np.split(tokens, len(tokens) // micro_batch_rows(self.s, len(tokens), tokens.shape[1]))
        found = collect(layers, square, map(self.model.features, map(mx.array, parts)))
        return {name: np.array(x) for name, x in found.items()}

    def logits(self, tokens):
        self.model.update(tree_unflatten(list(self.params.items())))
        return np.array(self.model.logits(mx.array(tokens)))

    def gradients(self, tokens):
        loss, grads = self.backward(tokens, self.params)
        return float(loss), {name: np.array(g) for name, g in grads.items()}

    def weights(self, averaged=False):
        return {name: np.array(p) for name, p in (self.average if averaged else self.params).items()}

    def optimizer_tensors(self):
        """dict of what optimizers and average keep, without adam_step."""
        tensors = self.adam.moments | {f"{name}.ema": mean for name, mean in self.average.items()}
        for shape, names in self.muon.groups.items():
            tensors |= {f"{name}.momentum": row for name, row in zip(names, self.muon.momentum[f"{shape}"])}
        return tensors

    def state(self):
        tensors = self.params | self.optimizer_tensors() | {"adam_step": np.float32(self.adam_step)}
        return {name: np.array(x) for name, x in tensors.items()}

    def load_state(self, state):
        rest = self.optimizer_tensors().keys() | {"adam_step"}
        check_weights(self.s, {name: w for name, w in state.items() if name not in rest})
        self.finite, self.before_sgd = True, None
        own = self.to_device(state)
        self.params = {name: own[name] for name in self.params}
        if rest <= own.keys():
            self.adam.moments = {name: own[name] for name in self.adam.moments}
            self.average = {name: own[f"{name}.ema"] for name in self.average}
            for shape, names in self.muon.groups.items():
                self.muon.momentum[f"{shape}"] = mx.stack([own[f"{name}.momentum"] for name in names])
            self.adam_step = int(state["adam_step"])

    def to_device(self, arrays):
        return {name: mx.array(array, dtype=wide(self.dtype)) for name, array in arrays.items()}

    def scalar(self, value):
        return mx.array(value, dtype=wide(self.dtype))

    # ranks and device -------------------------------------------------------------------------------------------------

    def all_sum(self, array):
        if self.world_size == 1:
            return array
        with mx.stream(mx.cpu):  # a GPU has no float64
            own = mx.array(array, dtype=getattr(mx, str(array.dtype)))
            return np.array(mx.distributed.all_sum(own, group=self.world))

    def one_line(self, compiled):
        number = int.from_bytes(os.urandom(3), "big")  # a constant that no cache has
        compiler = mx.compile if compiled else lambda f: f
        mx.eval(compiler(lambda x: x.sin() + number)(mx.ones(8)))

    def wait(self):
        mx.synchronize()

    def peak_memory(self):
        return mx.get_peak_memory() if mx.default_device() == mx.gpu else host_peak_memory()

    def matmul_flops(self):
        n = 4096 if mx.default_device() == mx.gpu else 1024
        x = mx.ones((n, n), dtype=self.dtype)
        mx.eval(x)
        return 2 * n**3 / least_seconds(lambda: side_by_side(self.streams, lambda rows: rows @ x, x), mx.eval)

    def memory(self):
        rows = micro_batch_rows(self.s, rank_rows(self.s, self.rank, self.world_size)[1])
        have, score_rows = host_memory(), self.s.train_seq_len
        if mx.default_device() == mx.gpu:
            have, score_rows = mx.device_info().get("max_recommended_working_set_size", have), 0
        if self.s.train_seq_len > LONG:
            score_rows = LONG // 4
        gradients = (min(rows, len(self.streams)) - 1) * sum(p.nbytes for p in self.params.values())
        return have, training_bytes(self.s, rows, self.dtype.size, score_rows) + gradients

    def describe(self):
        if mx.default_device() == mx.gpu:
            name = mx.device_info().get("device_name", "gpu")
        else:
            name = f"cpu ({'OpenBLAS' if load_openblas() else 'built-in BLAS'})"
        return f"{self.world_size} x {name}, {str(self.dtype).removeprefix('mlx.core.')}, mlx {mx.__version__}"

    def close(self):
        pass

    # options, off by default: average, rounding, test-time training ---------------------------------------------------

    def update_average(self, decay):
        """Move the average towards the weights by 1 - decay, while weights are updated."""
        if self.finite:
            share = self.scalar(1 - decay)
            self.average = {name: mean + (self.params[name] - mean) * share for name, mean in self.average.items()}
            mx.eval(self.average)

    def rounded_weights(self):
        """The weights that the model file would hold. Their gradients count as those of the weights themselves
        (straight-through estimator, arXiv:1308.3432)."""
        rounded = {name: round_rows(self.params[name].astype(mx.float32), levels)
                   for name, levels in tensor_levels(self.s).items()}
        return self.params | {name: w.astype(wide(self.dtype)) for name, w in rounded.items()}

    def sgd_step(self, tokens, lr):
        if self.before_sgd is None:
            self.before_sgd = self.params  # arrays do not change in place
            self.adapters = {name: (*map(mx.array, pair),) for name, pair in adapters(self.s).items()}
        parts = step_parts(self.s, len(tokens), tokens.shape[1] - 1)
        _, grads = self.backward(tokens, self.params, alone=True, parts=parts)
        lr = self.scalar(lr)
        if self.s.ttt_rank:
            self.adapters = {name: (a - lr * (b.T @ grads[name]), b - lr * (grads[name] @ a.T))
                             for name, (a, b) in self.adapters.items()}
            self.params = self.params | {name: self.before_sgd[name] + b @ a for name, (a, b) in self.adapters.items()}
        else:
            self.params = {name: p - lr * grads[name] for name, p in self.params.items()}
        mx.eval(self.params, self.adapters)

    def undo_sgd(self):
        if self.before_sgd:
            self.params, self.before_sgd = self.before_sgd, None


def round_rows(w, levels):
    """float32 (rows, columns) as common/quantize.py stores and reads it."""
    if levels == "fp16":
        return w.astype(mx.float16).astype(mx.float32)
    step = (mx.max(mx.abs(w), axis=1, keepdims=True) / levels).astype(mx.float16).astype(mx.float32)
    return mx.clip(mx.round(mx.where(step > 0, w / step, 0.0)), -round(levels), round(levels)) * step


def nats_in_chunks(model, x, targets):
    """(B, T) nats, LOSS_CHUNK positions at a time: the backward pass computes their logits again."""
    flat = targets.reshape(-1)

    def nats(first, x, weight):
        return model.nats(x, weight, flat[first:first + len(x)])

    return in_turn(nats, model.s.loss_chunk, x.reshape(-1, x.shape[-1]), model.head()).reshape(targets.shape)


def in_turn(f, size, x, *others):
    """f(first, x[..., first:first + size, :], *others) for every first, joined along that axis: the backward pass
    computes each again. One waits for another, or MLX would have up to 20 in memory (as with mx.checkpoint)."""
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
            call = functools.partial(f, first)
            _, (grad, *more) = mx.vjp(call, [part, *others], [ahead])
            grads.append(grad)
            totals = [total + one for total, one in zip(totals, more)]
        return mx.concatenate(grads, axis=-2), *totals

    return whole(x, *others)


# ----------------------------------------------------------------------------------------------------------------------
# Device and start
# ----------------------------------------------------------------------------------------------------------------------


def pick_device(s):
    gpu = mx.is_available(mx.gpu)
    if s.device == "gpu" and not gpu:
        raise UserError("DEVICE=gpu, but MLX sees no GPU here: use DEVICE=cpu, or a build of MLX for your GPU")
    if gpu and s.device != "cpu" and s.compute_dtype != "float64":
        return mx.gpu
    if not load_openblas() and sys.platform == "linux":
        print("warning: no OpenBLAS could be loaded, so matrix products will be 50 times slower: install g++ (for the "
              "package scipy-openblas32), or the system package libopenblas0", file=sys.stderr)
    return mx.cpu


def pick_streams(world_size):
    """Streams to share the work: on a CPU one for each core, as most of MLX's kernels use one."""
    if mx.default_device() == mx.gpu or not load_openblas():
        return [mx.default_stream(mx.default_device())]
    return [mx.new_stream(mx.cpu) for _ in range(max(1, load_openblas() // world_size))]


def side_by_side(streams, f, x):
    """[f(part of x)]: x (N, ...) is cut along its first axis, one part for each stream."""
    parts = min(len(x), len(streams))
    out = []
    for i, stream in enumerate(streams[:parts]):
        with mx.stream(stream):
            out.append(f(x[i * len(x) // parts:(i + 1) * len(x) // parts]))
    return out


def pick_dtype(s):
    if s.compute_dtype != "auto":
        return getattr(mx, s.compute_dtype)
    return mx.bfloat16 if mx.default_device() == mx.gpu else mx.float32


if __name__ == "__main__":
    sys.exit(main(MlxTrainer, __file__))
