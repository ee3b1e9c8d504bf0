"""Train the best language model that fits in 16,000,000 bytes: PyTorch (CUDA, on any number of GPUs; MPS; CPU).

    python train_gpt.py --help                                                      all settings
    torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=8 train_gpt.py    the official run, 8xH100

Its twin is train_gpt_mlx.py: same sections, same names. What touches no device is written once, in common/.
"""
import contextlib
import datetime
import functools
import math
import os
import shlex
import sys

if sys.platform == "win32":
    sys.stderr.write("error: Windows is not supported: use WSL\n")
    sys.exit(2)

try:
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.checkpoint import checkpoint
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"error: {missing}: `make install BACKEND=torch` or `pip install '.[torch]'` provides PyTorch\n")
    sys.exit(2)
import numpy as np

from common.batches import micro_batch_rows, rank_rows, step_parts
from common.calibration import collect
from common.kernels import use_kernels
from common.machine import host_memory, host_peak_memory, keep_freed_memory, least_seconds
from common.params import adapters, check_weights, layer_order, num_skips, param_table, rope_tables, training_bytes
from common.quantize import tensor_levels
from common.ranks import launched_rank, meeting
from common.run import main
from common.schedule import adam_lrs
from common.settings import Settings, UserError

# ----------------------------------------------------------------------------------------------------------------------
# Model. Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, G = H / K, D = C / H
# ----------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention with grouped queries, RMS-normed queries and keys, rotary positions, a gain per head."""

    def __init__(self, s, i):
        super().__init__()
        self.s, self.head_dim, self.xsa = s, s.model_dim // s.num_heads, i >= s.num_layers - s.xsa_layers
        self.c_q = nn.Linear(s.model_dim, s.model_dim, bias=False)
        self.c_k = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
        self.c_v = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
        self.q_gain = nn.Parameter(torch.empty(s.num_heads))
        self.proj = nn.Linear(s.model_dim, s.model_dim, bias=False)

    def forward(self, x, cos, sin):
        (B, T, C), H, K = x.shape, self.s.num_heads, self.s.num_kv_heads
        q, k, v = linear(x, self.c_q, self.c_k, self.c_v).view(B, T, -1, self.head_dim).split([H, K, K], dim=2)
        gain = self.q_gain.to(x.dtype).expand(B, T, H)[..., None]  # sums its gradient over D first, with other sums
        q = rotate(rms_norm(q, self.s) * gain, cos, sin)
        k = rotate(rms_norm(k, self.s), cos, sin)
        y = attend(*(heads.transpose(1, 2) for heads in (q, k, v))).transpose(1, 2)  # (B, T, H, D), as in memory
        if self.xsa:  # without its component along the token's own value (record of 2026-03-20)
            y = y.reshape(B, T, K, H // K, self.head_dim)
            v = rms_norm(v, self.s).unsqueeze(3)
            y = y - (y * v).mean(dim=-1, keepdim=True) * v
        return linear(y.reshape(B, T, C), self.proj)


class MLP(nn.Module):
    """relu^2 (Primer, arXiv:2109.08668), or leaky relu^2 (record of 2026-03-23)."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.fc = nn.Linear(s.model_dim, s.mlp_mult * s.model_dim, bias=False)
        self.proj = nn.Linear(s.mlp_mult * s.model_dim, s.model_dim, bias=False)

    def forward(self, x):
        if self.s.kernels == "triton" and not hasattr(self.fc, "seen"):
            return torch.ops.parity_golf.relu2_mlp(x, self.fc.weight.to(x.dtype), self.proj.weight.to(x.dtype))[0]
        return linear(F.leaky_relu(linear(x, self.fc), self.s.mlp_slope).square(), self.proj)


class Block(nn.Module):
    def __init__(self, s, i):
        super().__init__()
        self.s, self.parallel = s, i >= s.num_layers - s.parallel_layers
        self.norm_scale = (i + 1)**-0.5
        self.resid_mix = nn.Parameter(torch.empty(2, s.model_dim))
        self.attn, self.mlp = Attention(s, i), MLP(s)
        self.attn_scale = nn.Parameter(torch.empty(s.model_dim))
        self.mlp_scale = nn.Parameter(torch.empty(s.model_dim))

    def forward(self, x, x0, cos, sin):
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y = x + self.attn_scale.to(x.dtype) * self.attn(self.norm(x), cos, sin)
        return y + self.mlp_scale.to(x.dtype) * self.mlp(self.norm(x if self.parallel else y))

    def norm(self, x):
        x = rms_norm(x, self.s)
        return x * self.norm_scale if self.s.norm_scale else x


class GPT(nn.Module):
    """Outputs of the first half of the blocks (encoder) are added to inputs of the second (decoder), last first."""

    def __init__(self, s, dtype, device):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.tok_emb = nn.Embedding(s.vocab_size, s.model_dim)
        if s.bigram_rows:
            self.bigram = nn.Embedding(s.bigram_rows, s.bigram_dim)
            self.bigram_proj = nn.Linear(s.bigram_dim, s.model_dim, bias=False)
            self.bigram_scale = nn.Parameter(torch.empty(1))
        if s.smear_gate:
            self.smear_gate = nn.Parameter(torch.empty(s.model_dim))
        self.blocks = nn.ModuleList(Block(s, i) for i in range(s.num_layers))
        self.order, self.num_skips = tuple(layer_order(s)), num_skips(s)
        if self.num_skips:
            self.skip_weights = nn.Parameter(torch.empty(self.num_skips, s.model_dim))
        if not s.tie_embeddings:
            self.lm_head = nn.Linear(s.model_dim, s.vocab_size, bias=False)
        longest = max(s.train_seq_len, s.eval_seq_len)
        self.cos, self.sin = (torch.tensor(t, dtype=wide(dtype), device=device) for t in rope_tables(s, longest))

    def features(self, tokens_BT):
        """(B, T, C): the output of the last block."""
        cos, sin = (table[:tokens_BT.shape[1], None] for table in (self.cos, self.sin))  # (T, 1, D / 2)
        x, skips = self.embed(tokens_BT), []
        x0 = x.view_as(x)  # another tensor, or block 0 would need a graph of its own on a CPU
        for i, layer in enumerate(self.order):
            if i >= self.num_skips and skips:
                x = x + self.skip_weights[i - self.num_skips].to(x.dtype) * skips.pop()
            x = self.blocks[layer](x, x0, cos, sin)
            if i < self.num_skips:
                skips.append(x)
        return x

    def embed(self, tokens_BT):
        """(B, T, C): the input of the blocks. Bigrams and smear gate (record of 2026-03-19) mix no two documents."""
        s, x = self.s, self.tok_emb(tokens_BT).to(self.dtype)
        first = (tokens_BT == s.bos_id).index_fill(1, tokens_BT.new_zeros(1), True)  # in its document or its row
        if s.bigram_rows:
            pairs = (36313 * tokens_BT ^ 27191 * tokens_BT.roll(1, dims=1)) % (s.bigram_rows - 1)
            pairs = self.bigram(pairs.masked_fill(first, s.bigram_rows - 1)).to(x.dtype)
            x = x + self.bigram_scale.to(x.dtype) * linear(pairs, self.bigram_proj)
        x = rms_norm(x, s)
        if s.smear_gate:
            gate = torch.sigmoid(self.smear_gate).to(x.dtype) * ~first[..., None]
            x = x + gate * (x.roll(1, dims=1) - x)
        return x

    def logits(self, tokens_BT):
        """(B, T, V) in float32, float64 in reference mode."""
        return self.head_logits(self.features(tokens_BT))

    def head_logits(self, x):
        logits = linear(rms_norm(x, self.s), self.head()).to(wide(self.dtype))
        return self.s.logit_softcap * torch.tanh(logits / self.s.logit_softcap)

    def head(self):
        return self.tok_emb if self.s.tie_embeddings else self.lm_head

    def forward(self, tokens):
        """(B, T) nats; tokens (B, T + 1) are the inputs and, shifted by one, the targets."""
        tokens = tokens.long()
        x, targets = self.features(tokens[:, :-1]), tokens[:, 1:]
        if 0 < self.s.loss_chunk < targets.numel():
            return nats_in_chunks(self, x, targets)
        return self.nats(x, targets).view(targets.shape)

    def nats(self, x, targets):
        """(N,) nats of N targets (...) after features x (..., C)."""
        if self.s.kernels == "triton":
            x, head = rms_norm(x, self.s), self.head().weight.to(x.dtype)
            return torch.ops.parity_golf.head_nats(x, head, targets.flatten(), self.s.logit_softcap)[0]
        return F.cross_entropy(self.head_logits(x).flatten(0, -2), targets.flatten(), reduction="none")


def linear(x, *layers):
    """Outputs of all layers, joined: one product reads x once, in the compute dtype. The weights stay float32."""
    for layer in layers:
        if seen := getattr(layer, "seen", None):  # see input_products
            seen(x)
    weights = [layer.weight for layer in layers]
    return F.linear(x, (torch.cat(weights) if weights[1:] else weights[0]).to(x.dtype))


def rms_norm(x, s):
    return F.rms_norm(x, x.shape[-1:], eps=s.rms_norm_eps)  # accumulates in float32


def rotate(x, cos, sin):
    """Rotary embedding of x (B, T, heads, D): rotates the pairs (x[i], x[i + D/2]) by -angle."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)


# Fastest first on an H100. FlashAttention 3, where it is installed, comes before cuDNN's: see pick_device.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
SHORT = 512  # positions of the longest row for which plain products beat PyTorch's flash kernel on a CPU


def attend(q, k, v):
    """Causal attention (B, H, T, D); query head h uses kv head h // G."""
    H, T = q.shape[1:3]
    if q.device.type == "cpu" and T <= SHORT:  # a block of queries skips the keys that it cannot see
        size = max(128, T // 2)
        parts = zip(q.split(size, dim=2), range(size, T + size, size))
        return torch.cat([attend_last(rows, k[:, :, :end], v[:, :, :end]) for rows, end in parts], dim=2)
    if q.device.type == "mps":  # its kernel has no grouped queries
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    with sdpa_kernel(ATTENTION, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < H)


def attend_last(q, k, v):
    """The same for the last N of T positions: q (B, H, N, D). Queries of one kv head share a product."""
    B, H, N, D = q.shape
    K, T = k.shape[1:3]
    scores = (q.reshape(B, K, H // K * N, D) @ k.transpose(-2, -1)).view(B, H, N, T).to(wide(q.dtype)) * D**-0.5
    past = torch.ones(N, T, dtype=torch.bool).tril(T - N)
    weights = scores.masked_fill(~past, float("-inf")).softmax(dim=-1).to(q.dtype)
    return (weights.view(B, K, -1, T) @ v).view(B, H, N, D)


def wide(dtype):
    """The dtype of softcap, softmax and rotary tables: float64 in reference mode, else float32."""
    return torch.promote_types(dtype, torch.float32)


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers: Muon for the matrices, Adam for the rest
# ----------------------------------------------------------------------------------------------------------------------


def newton_schulz(g, steps, kernels="none"):
    """Roughly the nearest orthogonal matrix to each of g (n, rows, columns), by a quintic iteration (Keller Jordan,
    "Muon", 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    for _ in range(steps):
        if kernels == "triton":
            A = torch.ops.parity_golf.symmetric(x, 1.0, 0.0)
            B = torch.ops.parity_golf.symmetric(A, c, b)
        else:
            A = x @ x.transpose(1, 2)
            B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        x = torch.baddbmm(x, B, x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon:
    """Nesterov momentum, then Newton-Schulz, all matrices of one shape at once. Each rank has a share of every shape,
    sums its gradients over the ranks, keeps its momentum, and sends its updates to all, so that the weights of all
    ranks stay equal to the bit. A flat tensor holds a share (size) or all (world_size, size), shape after shape."""

    def __init__(self, params, s, dtype, rank, world_size):
        self.s, self.dtype, self.rank, self.world_size = s, dtype, rank, world_size
        self.groups = {}
        for name, p in params.items():
            self.groups.setdefault(p.shape, {})[name] = p
        self.shares = [(-(-len(group) // world_size), *shape) for shape, group in self.groups.items()]
        self.momentum = p.new_zeros(sum(map(math.prod, self.shares)))
        self.zeros = p.new_zeros(max(map(math.prod, self.groups)))  # where a share is not full
        self.weights = p.new_zeros(world_size, len(self.momentum))
        for name, row in self.by_name(self.weights).items():
            params[name].data = row.copy_(params[name].detach())  # so few kernels update all

    def by_shape(self, flat):
        """List of parts (..., share, rows, columns) of a flat tensor, in the order of self.groups."""
        parts = flat.split([math.prod(share) for share in self.shares], dim=-1)
        return [part.unflatten(-1, share) for part, share in zip(parts, self.shares)]

    def by_name(self, flat):
        """dict of the matrices in a flat tensor (world_size, size)."""
        parts = zip(self.groups.values(), self.by_shape(flat))
        return {name: row for group, part in parts for name, row in zip(group, (row for rank in part for row in rank))}

    def own_momentum(self):
        """dict of this rank's share of the momentum, which the steps update."""
        parts = zip(self.groups.values(), self.by_shape(self.momentum))
        return {name: row for group, part in parts for name, row in zip([*group][self.rank * len(part):], part)}

    def sum_gradients(self):
        """(size,): the gradients of this rank's share, summed over the ranks."""
        parts = []
        for rank in range(self.world_size):
            for group, (share, *shape) in zip(self.groups.values(), self.shares):
                grads = [p.grad.flatten() for p in group.values()][rank * share:(rank + 1) * share]
                parts += grads + [self.zeros[:math.prod(shape)]] * (share - len(grads))
        flat = torch.cat(parts)
        if self.world_size == 1:
            return flat
        full = flat.bfloat16() if self.s.reduce_dtype == "bfloat16" else flat
        own = full.new_empty(len(self.momentum))
        (getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor)(own, full)
        return own.to(flat.dtype)

    def gather(self, own):
        """((world_size, size) of the shares (size) of all ranks, the function that waits until it can be read)."""
        if self.world_size == 1:
            return own[None], lambda: None
        full = own.new_empty(self.world_size * len(own))
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the older name
        return full.view(self.world_size, -1), all_gather(full, own, async_op=True).wait

    def updates(self, grads, momentum, finite):
        """As of gather(). finite: bool tensor (); where it is False nothing changes, and the CPU need not wait to
        know."""
        grads, one = grads.where(finite, 0.0), finite.to(grads.dtype)
        self.momentum.mul_(one * momentum + (1 - one)).add_(grads)
        made = []
        for g in self.by_shape(grads.add_(self.momentum, alpha=momentum)):
            g.div_(g.norm(dim=(1, 2), keepdim=True) + 1e-7)
            made.append((newton_schulz(g.to(self.dtype), self.s.muon_backend_steps, self.s.kernels) * finite).flatten())
        return self.gather(torch.cat(made))

    def apply(self, updates, lr, finite):
        if self.s.weight_decay:
            self.weights.mul_(1 - lr * self.s.weight_decay * finite.to(self.weights.dtype))
        for (rows, columns), weights, update in zip(self.groups, self.by_shape(self.weights), self.by_shape(updates)):
            weights.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)


# ----------------------------------------------------------------------------------------------------------------------
# Trainer: what common/run.py drives
# ----------------------------------------------------------------------------------------------------------------------


class LossOnItsWay:
    """A loss that is being copied to the host. float() waits for its step, but not for one that was launched since."""

    def __init__(self, loss):
        self.value, self.copied = loss.to("cpu", non_blocking=True), torch.cuda.Event()
        self.copied.record()

    def __float__(self):
        self.copied.synchronize()
        return float(self.value)


class TorchTrainer:
    """One process of a run. Methods as in common/trainer.py, Trainer."""

    backend = "torch"
    settings_class = Settings

    def __init__(self, settings, weights):
        keep_freed_memory()
        self.s = s = settings
        self.device = pick_device(s)
        if self.device.type == "cpu" or s.deterministic:
            make_repeatable(self.device)
        self.rank, self.world_size, ranks = launched_rank(self.backend)
        if self.world_size > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            with meeting(ranks):
                dist.init_process_group(backend, timeout=datetime.timedelta(minutes=10))
        rank_rows(s, self.rank, self.world_size)  # raises where the ranks cannot share the rows
        self.dtype = pick_dtype(s, self.device)
        if s.kernels == "triton":
            use_kernels(s, self.device, self.dtype)
        self.model = GPT(s, self.dtype, self.device).to(self.device, wide(self.dtype))
        self.params = dict(self.model.named_parameters())
        self.forward, compiled = self.model, functools.partial(torch.compile, fullgraph=True, dynamic=False)
        if s.compile and self.device.type == "cuda":
            self.forward = compiled(self.model)
        elif s.compile and self.device.type == "cpu":  # in parts: one block's graph serves all, sooner than one of all
            torch._dynamo.config.recompile_limit = 256  # blocks with other options, and other shapes, have their own
            torch._inductor.config.cpp.vec_isa_ok = True  # as PyTorch found; Inductor would compile a test of each
            from torch.utils import cpp_extension
            cpp_extension.TORCH_LIB_PATH = shlex.quote(f"{torch.__path__[0]}/lib")  # may have spaces
            self.model.nats = compiled(self.model.nats)
            for block in self.model.blocks:
                block.forward = compiled(block.forward)
        self.make_optimizers()
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)  # whether all losses and gradients were
        self.load_state(weights)
        self.average = {name: p.detach().clone() for name, p in self.params.items()} if s.ema_decay else {}
        self.tensors |= {f"{name}.ema": mean for name, mean in self.average.items()}
        self.steps_ahead, self.running = int(self.device.type == "cuda"), None  # the loss of the step before, on CUDA

    def make_optimizers(self):
        """Muon, Adam, and self.tensors: all that a run needs to resume, by name, but for the momentum of other ranks.
        The optimizers update them in place."""
        s, params = self.s, self.params
        groups = {name: p.group for name, p in param_table(s).items()}
        matrices = {name: p for name, p in params.items() if groups[name] == "matrix"}
        self.muon = Muon(matrices, s, self.dtype, self.rank, self.world_size)
        self.adam = torch.optim.Adam(
            [{"params": [p for n, p in params.items() if groups[n] == group], "lr": lr, "base_lr": lr,
              "weight_decay": s.embed_weight_decay * (group == "embed")} for group, lr in adam_lrs(s).items()],
            betas=(s.beta1, s.beta2), eps=s.adam_eps, fused=self.device.type != "mps", decoupled_weight_decay=True)
        self.others = {name: p for name, p in params.items() if name not in matrices}
        self.tensors = params | {f"{name}.momentum": row for name, row in self.muon.own_momentum().items()}
        for name, p in self.others.items():
            step = torch.zeros((), device=self.device if self.device.type == "cuda" else "cpu")
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.adam.state[p] = {"step": step, **moments}
            self.tensors |= {f"{name}.{key}": moment for key, moment in moments.items()} | {"adam_step": step}

    # one optimizer step -----------------------------------------------------------------------------------------------

    def train_step(self, tokens, lr_scale, momentum, rounding=False):
        with self.rounded_weights() if rounding else contextlib.nullcontext():
            loss = self.backward(tokens)
        matrices, loss, norm = self.sum_gradients(loss)
        both = loss + norm
        self.finite &= both.abs() < float("inf")  # stays on the device: the CPU may be a step ahead
        loss = torch.where(self.finite, loss, both)
        if self.device.type == "mps" and not self.finite:  # Adam on MPS has no found_inf
            return loss
        if self.s.grad_clip_norm > 0:
            grads = [matrices, *(p.grad for p in self.others.values())]
            torch._foreach_mul_(grads, (self.s.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0))
        with torch.no_grad():
            updates, wait = self.muon.updates(matrices, momentum, self.finite)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        if self.device.type != "mps":
            self.adam.found_inf = (~self.finite).float()  # fused Adam skips the update where this is 1
        self.adam.step()
        wait()
        self.muon.apply(updates, self.s.matrix_lr * lr_scale, self.finite)
        if self.device.type != "cuda":
            return loss
        before, self.running = self.running, LossOnItsWay(loss)
        if before:
            before.copied.synchronize()  # so that the clock stays honest
        return self.running

    def backward(self, tokens, alone=False, parts=None):
        """Gradients of this rank's part of the global mean loss into .grad, and that part; alone: of the mean over this
        rank's rows. parts: rows of each pass; None: equal ones."""
        tokens, ranks = self.to_device(tokens), 1 if alone else self.world_size
        scale = 1.0 / (tokens[:, 1:].numel() * ranks)
        total = torch.zeros((), dtype=wide(self.dtype), device=self.device)
        for p in self.params.values():
            p.grad = None
        for rows in tokens.split(parts or micro_batch_rows(self.s, len(tokens), tokens.shape[1] - 1)):
            loss = self.forward(rows).sum() * scale
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def sum_gradients(self, loss):
        """Over the ranks: (Muon.sum_gradients(), loss, norm of all gradients). The gradients of the other parameters
        stay in .grad."""
        matrices, others = self.muon.sum_gradients(), self.others.values()
        squares = matrices.norm().square()
        flat = torch.cat([*(p.grad.flatten() for p in others), loss[None], squares[None]])
        if self.world_size > 1:
            dist.all_reduce(flat)
        *grads, loss, squares = flat.split([*(p.numel() for p in others), 1, 1])
        for p, grad in zip(others, grads):
            p.grad = grad.view_as(p)
        norm = (squares + flat[:-2].square().sum()).sqrt()
        return matrices, loss.squeeze(), norm.squeeze()

    def finite_alone(self, tokens):
        loss = self.backward(tokens, alone=True)
        return all(x.isfinite().all() for x in [loss, *(p.grad for p in self.params.values())])

    # scores and state -------------------------------------------------------------------------------------------------

    def token_nats(self, tokens):
        # On the CPU the graph for training serves: to compile one without gradients takes 10 s.
        with torch.set_grad_enabled(self.s.compile and self.device.type == "cpu"):
            return self.forward(self.to_device(tokens)).detach().cpu().numpy()

    @torch.no_grad()
    def input_products(self, tokens):
        def square(x):
            x = x.flatten(0, -2).to(wide(self.dtype))
            return x.T @ x

        matrices = self.params.keys() - self.others
        layers = {name: self.model.get_submodule(name.removesuffix(".weight")) for name in matrices}
        parts = self.to_device(tokens).long().split(micro_batch_rows(self.s, len(tokens), tokens.shape[1]))
        with torch.compiler.set_stance("force_eager"):
            return self.to_host(collect(layers, square, map(self.model.features, parts)))

    @torch.no_grad()
    def logits(self, tokens):
        with torch.compiler.set_stance("force_eager"):
            return self.model.logits(self.to_device(tokens).long()).cpu().numpy()

    def gradients(self, tokens):
        found = {"loss": self.backward(tokens)} | {name: p.grad for name, p in self.params.items()}
        if self.world_size > 1:
            for x in found.values():
                dist.all_reduce(x)
        found = self.to_host(found)
        return float(found.pop("loss")), found

    def weights(self, averaged=False):
        return self.to_host(self.average if averaged else self.params)

    def state(self):
        momentum, wait = self.muon.gather(self.muon.momentum)
        wait()
        momentum = {f"{name}.momentum": row for name, row in self.muon.by_name(momentum).items()}
        return self.to_host(self.tensors | momentum)

    @torch.no_grad()
    def load_state(self, state):
        rest = self.tensors.keys() - self.params | {f"{name}.momentum" for name in self.params}
        check_weights(self.s, {name: w for name, w in state.items() if name not in rest})
        for name in self.tensors.keys() & state.keys():
            self.tensors[name].copy_(torch.from_numpy(np.array(state[name])))
        for moments in self.adam.state.values():
            moments["step"].copy_(self.tensors["adam_step"])
        self.finite.fill_(True)
        self.before_sgd, self.adapters = None, {}

    def to_device(self, tokens):
        tokens = torch.from_numpy(np.array(tokens))
        if self.device.type == "cuda":
            return tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens.to(self.device)

    def to_host(self, tensors):
        """dict of numpy copies; a GPU sends them together, by way of pinned memory."""
        copies = {name: t.detach().to("cpu", non_blocking=True, copy=True) for name, t in tensors.items()}
        self.wait()
        return {name: t.numpy() for name, t in copies.items()}

    # ranks and device -------------------------------------------------------------------------------------------------

    def all_sum(self, array):
        if self.world_size == 1:
            return array
        total = torch.from_numpy(np.array(array))
        dist.all_reduce(total)
        return total.numpy()

    def one_line(self, compiled):
        number = int.from_bytes(os.urandom(3), "big")  # a constant that no cache has
        compiler = torch.compile if compiled else lambda f: f
        compiler(lambda x: x.sin() + number)(torch.ones(8, device=self.device))
        self.wait()

    def wait(self):
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def peak_memory(self):
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else host_peak_memory()

    def matmul_flops(self):
        n = 8192 if self.device.type == "cuda" else 1024
        x = torch.ones(n, n, dtype=self.dtype, device=self.device)
        return 2 * n**3 / least_seconds(lambda: x @ x, lambda _: self.wait())

    def memory(self):
        rows = micro_batch_rows(self.s, rank_rows(self.s, self.rank, self.world_size)[1])
        have = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else host_memory()
        score_rows = self.s.train_seq_len if self.device.type == "cpu" and self.s.train_seq_len <= SHORT else 0
        return have, training_bytes(self.s, rows, self.dtype.itemsize, score_rows)

    def describe(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        flash = ", FlashAttention 3" if ATTENTION[0] == SDPBackend.FLASH_ATTENTION else ""
        return f"{self.world_size} x {name}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}{flash}"

    def close(self):
        if dist.is_initialized():
            dist.barrier()  # or a rank that leaves first can abort in gloo's threads, and torchrun stops them all
            dist.destroy_process_group()

    # options, off by default: average, rounding, test-time training ---------------------------------------------------

    @torch.no_grad()
    def update_average(self, decay):
        """Move the average towards the weights by 1 - decay, while weights are updated."""
        change = torch._foreach_sub(list(self.params.values()), list(self.average.values()))
        torch._foreach_mul_(change, (1 - decay) * self.finite.to(change[0].dtype))
        torch._foreach_add_(list(self.average.values()), change)

    @contextlib.contextmanager
    def rounded_weights(self):
        """Inside, the weights are those that the model file would hold. Their gradients count as those of the weights
        themselves (straight-through estimator, arXiv:1308.3432). Not compiled: Inductor would leave out the rounding to
        float16."""
        levels = tensor_levels(self.s)
        own = {name: self.params[name].detach().clone() for name in levels}
        with torch.no_grad():
            for name, w in own.items():
                self.params[name].copy_(round_rows(w.float(), levels[name]))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, w in own.items():
                    self.params[name].copy_(w)

    def sgd_step(self, tokens, lr):
        params = list(self.params.values())
        if self.before_sgd is None:
            self.before_sgd = {name: p.detach().clone() for name, p in self.params.items()}
        self.backward(tokens, alone=True, parts=step_parts(self.s, len(tokens), tokens.shape[1] - 1))
        with torch.no_grad():
            if not self.s.ttt_rank:
                return torch._foreach_add_(params, [p.grad for p in params], alpha=-lr)
            self.adapters = self.adapters or {name: [torch.from_numpy(part).to(params[0]) for part in pair]
                                              for name, pair in adapters(self.s).items()}
            for name, (a, b) in self.adapters.items():
                p = self.params[name]
                a_grad, b_grad = b.T @ p.grad, p.grad @ a.T
                a.sub_(a_grad, alpha=lr)
                b.sub_(b_grad, alpha=lr)
                torch.addmm(self.before_sgd[name], b, a, out=p)

    @torch.no_grad()
    def undo_sgd(self):
        self.adapters = {}
        if self.before_sgd:
            torch._foreach_copy_(list(self.params.values()), list(self.before_sgd.values()))


def round_rows(w, levels):
    """float32 (rows, columns) as common/quantize.py stores and reads it."""
    if levels == "fp16":
        return w.half().float()
    number = w.new_full((), levels)  # CUDA multiplies by the reciprocal of a Python number; a copy of it would wait
    step = (w.abs().amax(dim=1, keepdim=True) / number).half().float()
    return torch.where(step > 0, w / step, 0.0).round().clamp(-round(levels), round(levels)) * step


def nats_in_chunks(model, x, targets):
    """(B, T) nats, LOSS_CHUNK positions at a time: the backward pass computes their logits again."""
    size = model.s.loss_chunk
    chunks = zip(x.flatten(0, 1).split(size), targets.flatten().split(size))
    nats = [checkpoint(model.nats, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(nats).view(targets.shape)


# ----------------------------------------------------------------------------------------------------------------------
# Device and start
# ----------------------------------------------------------------------------------------------------------------------


def pick_device(s):
    if s.device != "cpu" and s.compute_dtype != "float64":
        if torch.cuda.is_available():
            number, count = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
            if number >= count:
                raise UserError(f"LOCAL_RANK={number}, but PyTorch sees {count} GPUs here: start {count} ranks")
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
            if torch.cuda.get_device_capability() == (9, 0) and not s.deterministic:
                with contextlib.suppress(ImportError, AttributeError, RuntimeError, ValueError, OSError):  # none
                    torch.nn.attention.activate_flash_attention_impl("FA3")
                    ATTENTION.sort(key=lambda kernel: kernel != SDPBackend.FLASH_ATTENTION)
            return device
        if torch.backends.mps.is_available():
            return torch.device("mps")
    if s.device == "gpu":
        raise UserError("DEVICE=gpu, but PyTorch sees no GPU here: use DEVICE=cpu, or a build of PyTorch for your GPU")
    return torch.device("cpu")


def pick_dtype(s, device):
    if s.compute_dtype != "auto":
        return getattr(torch, s.compute_dtype)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        native = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    if not native and device.type != "cpu" and not device.index:  # once per machine
        print("warning: this GPU computes no bfloat16, so the run computes in float32, more slowly", file=sys.stderr)
    return torch.bfloat16 if native else torch.float32


def make_repeatable(device):
    """Sum in one order, so that equal runs give equal bytes: the embedding's gradient on the CPU, on CUDA the backward
    pass of attention too, which obeys only where what cannot obey is an error. On the CPU it is a warning."""
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False
    if device.type == "cuda":
        torch._inductor.config.deterministic = True  # else it chooses kernels by their time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "^NVLS")  # switches that add


if __name__ == "__main__":
    sys.exit(main(TorchTrainer, __file__))
