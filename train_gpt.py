"""Train the best language model that fits in 16,000,000 bytes: PyTorch (CUDA with DDP, MPS, CPU).

    python train_gpt.py --help                                  all settings
    torchrun --standalone --nproc_per_node=8 train_gpt.py       the official run, 8xH100

Its twin is train_gpt_mlx.py: same sections, same names. Everything that touches no device (data, schedule, initial weights,
artifact, the run itself) is written once, in common/.
"""
import contextlib
import datetime
import os
import sys
import time

try:
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.checkpoint import checkpoint
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"error: {missing}: `make install BACKEND=torch` or `pip install '.[torch]'` provides PyTorch", file=sys.stderr)
    sys.exit(2)
import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.params import check_weights, layer_order, num_skips, param_table, rope_tables, training_bytes
from common.quantize import tensor_levels
from common.run import host_memory, host_peak_memory, main
from common.settings import Settings, UserError

# ------------------------------------------------------------------------------
# Model. Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, G = H / K, D = C / H
# ------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention with grouped queries, RMS-normed queries and keys, rotary positions and a gain per head."""

    def __init__(self, s):
        super().__init__()
        self.s, self.head_dim = s, s.model_dim // s.num_heads
        self.c_q = nn.Linear(s.model_dim, s.model_dim, bias=False)
        self.c_k = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
        self.c_v = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
        self.q_gain = nn.Parameter(torch.empty(s.num_heads))
        self.proj = nn.Linear(s.model_dim, s.model_dim, bias=False)

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        q = linear(x, self.c_q).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = linear(x, self.c_k).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = linear(x, self.c_v).view(B, T, -1, self.head_dim).transpose(1, 2)
        q = rotate(rms_norm(q, self.s), cos, sin) * self.q_gain.to(x.dtype)[:, None, None]
        k = rotate(rms_norm(k, self.s), cos, sin)
        return linear(attend(q, k, v).transpose(1, 2).reshape(B, T, C), self.proj)


class MLP(nn.Module):
    """relu^2 (Primer, arXiv:2109.08668)."""

    def __init__(self, s):
        super().__init__()
        self.fc = nn.Linear(s.model_dim, s.mlp_mult * s.model_dim, bias=False)
        self.proj = nn.Linear(s.mlp_mult * s.model_dim, s.model_dim, bias=False)

    def forward(self, x):
        return linear(torch.relu(linear(x, self.fc)).square(), self.proj)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.resid_mix = nn.Parameter(torch.empty(2, s.model_dim))
        self.attn, self.mlp = Attention(s), MLP(s)
        self.attn_scale = nn.Parameter(torch.empty(s.model_dim))
        self.mlp_scale = nn.Parameter(torch.empty(s.model_dim))

    def forward(self, x, x0, cos, sin):
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        x = x + self.attn_scale.to(x.dtype) * self.attn(rms_norm(x, self.s), cos, sin)
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x, self.s))


class GPT(nn.Module):
    """Token embedding, an encoder half whose outputs are added, last first, to the decoder half's inputs, and a head."""

    def __init__(self, s, dtype, device):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.tok_emb = nn.Embedding(s.vocab_size, s.model_dim)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.num_layers))
        self.order, self.num_skips = tuple(layer_order(s)), num_skips(s)
        if self.num_skips:
            self.skip_weights = nn.Parameter(torch.empty(self.num_skips, s.model_dim))
        if not s.tie_embeddings:
            self.lm_head = nn.Linear(s.model_dim, s.vocab_size, bias=False)
        longest = max(s.train_seq_len, s.eval_seq_len)
        self.cos, self.sin = (torch.tensor(t, dtype=wide(dtype), device=device) for t in rope_tables(s, longest))

    def features(self, tokens_BT):
        """(B, T, C): what the last block gives."""
        cos, sin = self.cos[:tokens_BT.shape[1]], self.sin[:tokens_BT.shape[1]]
        x = x0 = rms_norm(self.tok_emb(tokens_BT).to(self.dtype), self.s)
        skips = []
        for i, layer in enumerate(self.order):
            if i >= self.num_skips and skips:
                x = x + self.skip_weights[i - self.num_skips].to(x.dtype) * skips.pop()
            x = self.blocks[layer](x, x0, cos, sin)
            if i < self.num_skips:
                skips.append(x)
        return x

    def logits(self, tokens_BT):
        """(B, T, V) in float32, float64 in reference mode."""
        return self.head_logits(self.features(tokens_BT))

    def head_logits(self, x):
        head = self.tok_emb if self.s.tie_embeddings else self.lm_head
        logits = linear(rms_norm(x, self.s), head).to(wide(self.dtype))
        return self.s.logit_softcap * torch.tanh(logits / self.s.logit_softcap)

    def forward(self, tokens):
        """(B, T) nats of each target: tokens (B, T + 1) hold the inputs and, moved by one, the targets."""
        tokens = tokens.long()
        x, targets = self.features(tokens[:, :-1]), tokens[:, 1:]
        if not 0 < self.s.loss_chunk < targets.numel():
            return self.nats(x, targets).view(len(tokens), -1)
        chunks = zip(x.flatten(0, 1).split(self.s.loss_chunk), targets.flatten().split(self.s.loss_chunk))
        nats = [checkpoint(self.nats, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]  # again in the backward pass
        return torch.cat(nats).view(len(tokens), -1)

    def nats(self, x, targets):
        """(N,) nats of the N targets (...) after what the last block gives (..., C)."""
        return F.cross_entropy(self.head_logits(x).flatten(0, -2), targets.flatten(), reduction="none")


def linear(x, layer):
    """The weights stay in float32; the product is in the compute dtype."""
    return F.linear(x, layer.weight.to(x.dtype))


def rms_norm(x, s):
    return F.rms_norm(x, x.shape[-1:], eps=s.rms_norm_eps)  # accumulates in float32


def rotate(x, cos, sin):
    """Rotary embedding of x (B, heads, T, D): the two halves of a head are the pairs; turns by -angle."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)


def attend(q, k, v):
    """Causal attention (B, H, T, D); query head h uses kv head h // G."""
    B, H, T, D = q.shape
    if q.device.type == "cpu" and T <= 512:
        # plain products beat the CPU's flash kernel at short lengths; the queries of one kv head share a product
        q = q.view(B, -1, H // k.shape[1] * T, D)  # (B, K, G * T, D)
        scores = (q @ k.transpose(-2, -1)).view(B, -1, T, T).to(wide(q.dtype)) * D**-0.5
        past = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
        weights = scores.masked_fill(~past, float("-inf")).softmax(dim=-1).to(q.dtype)
        return (weights.view(B, -1, H // k.shape[1] * T, T) @ v).view(B, H, T, D)
    if q.device.type == "mps":  # which knows no grouped queries
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < H)


def wide(dtype):
    """float64 in reference mode, else float32: softcap, softmax and the rotary tables."""
    return torch.promote_types(dtype, torch.float32)


# ------------------------------------------------------------------------------
# Optimizers: Muon for the matrices, Adam for the rest
# ------------------------------------------------------------------------------


def newton_schulz(g, steps):
    """Roughly the nearest orthogonal matrix of each of (n, rows, columns): a quintic iteration that pulls every singular
    value towards 1 (Keller Jordan, "Muon", 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    for _ in range(steps):
        A = x @ x.transpose(1, 2)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        x = torch.baddbmm(x, B, x, beta=a)
    return x.transpose(1, 2) if tall else x


def round_rows(w, levels):
    """float32 (rows, columns) as quantize.py stores and reads it."""
    if levels == "fp16":
        return w.half().float()
    number = torch.tensor(float(levels), device=w.device)  # CUDA multiplies by the reciprocal of a number of Python
    step = (w.abs().amax(dim=1, keepdim=True) / number).half().float()
    return torch.where(step > 0, w / step, 0.0).round().clamp(-round(levels), round(levels)) * step


class Muon:
    """Nesterov momentum, then Newton-Schulz, all matrices of one shape in one batched product. Every rank computes every
    update: a few percent of a step, and the weights of all ranks stay equal to the bit."""

    def __init__(self, params, dtype, steps):
        self.dtype, self.steps = dtype, steps
        self.groups = {}
        for name, p in params.items():
            self.groups.setdefault(p.shape, {})[name] = p
        self.momentum = {shape: torch.zeros(len(group), *shape, dtype=p.dtype, device=p.device) for shape, group in self.groups.items()}

    def step(self, lr, momentum, finite):
        """finite: bool tensor (); where False nothing changes, without a wait for the device to know."""
        for (rows, columns), group in self.groups.items():
            g = torch.stack([p.grad for p in group.values()]).where(finite, 0.0)
            one = finite.to(g.dtype)
            buffer = self.momentum[rows, columns].mul_(one * momentum + (1 - one)).add_(g)
            g.add_(buffer, alpha=momentum)
            g /= g.norm(dim=(1, 2), keepdim=True) + 1e-7
            update = newton_schulz(g.to(self.dtype), self.steps).to(buffer.dtype) * finite
            torch._foreach_add_(list(group.values()), list(update.unbind()), alpha=-lr * max(1, rows / columns) ** 0.5)


# ------------------------------------------------------------------------------
# Trainer: what common/run.py drives
# ------------------------------------------------------------------------------


class TorchTrainer:
    """The model, its optimizers and one process of a distributed run. See common/run.py, Trainer."""

    backend = "torch"
    settings_class = Settings

    def __init__(self, settings, weights):
        check_weights(settings, weights)
        self.s = s = settings
        self.device = pick_device(s)
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                                    timeout=datetime.timedelta(minutes=10))
        rank_rows(s, self.rank, self.world_size)
        self.dtype = pick_dtype(s, self.device)
        self.model = GPT(s, self.dtype, self.device).to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32)
        self.params = dict(self.model.named_parameters())
        self.groups = {name: p.group for name, p in param_table(s).items()}
        self.load_weights(weights)
        compiled = s.compile and self.device.type != "mps"  # Inductor on MPS is a prototype
        self.forward = torch.compile(self.model, fullgraph=True, dynamic=False) if compiled else self.model
        if self.world_size > 1:
            if compiled and s.loss_chunk:
                torch._dynamo.config.optimize_ddp = False  # older versions cannot cut a graph with checkpoints in it
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
        self.muon = Muon({n: p for n, p in self.params.items() if self.groups[n] == "matrix"}, self.dtype, s.muon_backend_steps)
        lrs = {"embed": s.tied_embed_lr if s.tie_embeddings else s.embed_lr, "head": s.head_lr, "scalar": s.scalar_lr}
        self.adam = torch.optim.Adam(
            [{"params": [p for n, p in self.params.items() if self.groups[n] == group], "lr": lr, "base_lr": lr}
             for group, lr in lrs.items() if group in self.groups.values()],
            betas=(s.beta1, s.beta2), eps=s.adam_eps, fused=self.device.type != "mps")
        for name in self.adam_names():
            p = self.params[name]
            self.adam.state[p] = {"step": torch.zeros((), device=self.device if self.device.type == "cuda" else "cpu"),
                                  "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self.average_weights = {n: p.detach().clone() for n, p in self.params.items()} if s.ema_decay else {}
        self.rounding, self.levels = False, tensor_levels(s) if s.qat_start < 1 else {}
        self.running = None  # event at the end of the step before, on CUDA
        self.steps_ahead = int(self.device.type == "cuda")

    # one optimizer step ------------------------------------------------------------

    def train_step(self, tokens, lr_scale, momentum):
        """One update from this rank's rows (rows, train_seq_len + 1); the mean nats of the global batch (0-dim tensor). From the first
        loss or gradient on that is not finite none is made; a GPU finds that out while the CPU is a step ahead."""
        loss = self.backward(tokens)
        norm = nn.utils.get_total_norm([p.grad for p in self.params.values()])
        self.finite &= torch.isfinite(loss + norm)
        if self.device.type == "mps" and not self.finite:  # its Adam knows no found_inf
            return loss + norm
        if self.s.grad_clip_norm > 0:
            nn.utils.clip_grads_with_norm_(self.params.values(), self.s.grad_clip_norm, norm)
        with torch.no_grad():
            self.muon.step(self.s.matrix_lr * lr_scale, momentum, self.finite)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        if self.device.type != "mps":
            self.adam.found_inf = (~self.finite).float()
        self.adam.step()
        if self.device.type == "cuda":  # the CPU waits for the step before: the clock stays honest
            if self.running is not None:
                self.running.synchronize()
            self.running = torch.cuda.Event()
            self.running.record()
        return torch.where(self.finite, loss, loss + norm)

    def backward(self, tokens, alone=False):
        """Gradients of the global mean loss into .grad, and that loss; alone: of the mean over this rank's rows."""
        tokens, ranks = self.to_device(tokens), 1 if alone else self.world_size
        micro = tokens.split(micro_batch_rows(self.s, len(tokens), tokens.shape[1] - 1))
        scale = 1.0 / (tokens[:, 1:].numel() * ranks)
        total = torch.zeros((), dtype=wide(self.dtype), device=self.device)
        for p in self.params.values():
            p.grad = None
        with self.rounded_weights() if self.rounding else contextlib.nullcontext():
            for i, rows in enumerate(micro):
                last = i == len(micro) - 1 and not alone
                with contextlib.nullcontext() if last or self.world_size == 1 else self.forward.no_sync():
                    loss = self.forward(rows).sum() * scale
                    (loss * ranks).backward()  # DDP averages over the ranks
                total += loss.detach()
        if self.world_size > 1 and not alone:
            dist.all_reduce(total)
        return total

    @contextlib.contextmanager
    def rounded_weights(self):
        """Inside, the weights are those that the model file would hold: gradients there are taken for those of the weights themselves (the
        straight-through estimator, Bengio et al., arXiv:1308.3432). Not compiled: Inductor leaves out the rounding to float16."""
        own = {name: self.params[name].detach().clone() for name in self.levels}
        with torch.no_grad():
            for name, levels in self.levels.items():
                self.params[name].copy_(round_rows(own[name].float(), levels))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, w in own.items():
                    self.params[name].copy_(w)

    def finite_alone(self, tokens):
        loss = self.backward(tokens, alone=True)
        return all(x.isfinite().all() for x in [loss, *(p.grad for p in self.params.values())])

    def sgd_step(self, tokens, lr):
        """Plain SGD on the mean nats of rows (rows, T + 1): every parameter moves by -lr times its gradient, on this rank alone."""
        self.backward(tokens, alone=True)
        with torch.no_grad():
            torch._foreach_add_(list(self.params.values()), [p.grad for p in self.params.values()], alpha=-lr)

    def to_device(self, tokens):
        tokens = torch.from_numpy(np.array(tokens))
        if self.device.type == "cuda":
            return tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens.to(self.device)

    # what else a run asks for ------------------------------------------------------

    def token_nats(self, tokens):
        """float (B, T) nats of each target of tokens (B, T + 1)."""
        model = self.forward.module if self.world_size > 1 else self.forward
        # a CPU takes 10 s to compile a second graph without gradients: there the one for training serves
        with torch.set_grad_enabled(self.s.compile and self.device.type == "cpu"):
            return model(self.to_device(tokens)).detach().cpu().numpy()

    @torch.no_grad()
    def logits(self, tokens):
        """(B, T, V) of tokens (B, T)."""
        return self.model.logits(self.to_device(tokens).long()).cpu().numpy()

    def gradients(self, tokens):
        """(loss, dict of gradients) of the global mean loss."""
        loss = float(self.backward(tokens))
        return loss, {name: p.grad.cpu().numpy().copy() for name, p in self.params.items()}

    def to_host(self, tensors):
        """dict of numpy copies; a GPU sends them together, by way of pinned memory."""
        copies = {name: t.detach().to("cpu", non_blocking=True, copy=True) for name, t in tensors.items()}
        self.wait()
        return {name: t.numpy() for name, t in copies.items()}

    def weights(self):
        return self.to_host(self.params)

    @torch.no_grad()
    def load_weights(self, weights):
        check_weights(self.s, weights)
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        for name, p in self.params.items():
            p.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))

    def snapshot(self):
        return [p.detach().clone() for p in self.params.values()]

    @torch.no_grad()
    def restore(self, snapshot):
        torch._foreach_copy_(list(self.params.values()), snapshot)

    @torch.no_grad()
    def update_average(self, decay):
        """Moves the average towards the weights by 1 - decay of the way; not where nothing is updated any more."""
        change = torch._foreach_sub(list(self.params.values()), list(self.average_weights.values()))
        torch._foreach_mul_(change, (1 - decay) * self.finite.to(change[0].dtype))
        torch._foreach_add_(list(self.average_weights.values()), change)

    def average(self):
        return self.to_host(self.average_weights)

    def adam_names(self):
        return [name for name in self.params if self.groups[name] != "matrix"]

    def optimizer_state(self):
        """dict of arrays: NAME.momentum, NAME.exp_avg, NAME.exp_avg_sq, NAME.ema where weights are averaged, and adam_step, the number of
        updates made."""
        state = {f"{name}.momentum": row for shape, group in self.muon.groups.items()
                 for name, row in zip(group, self.muon.momentum[shape])}
        for name in self.adam_names():
            moments = self.adam.state[self.params[name]]
            state |= {f"{name}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq")} | {"adam_step": moments["step"]}
        return self.to_host(state | {f"{name}.ema": p for name, p in self.average_weights.items()})

    @torch.no_grad()
    def load_optimizer_state(self, state):
        for shape, group in self.muon.groups.items():
            self.muon.momentum[shape].copy_(torch.from_numpy(np.stack([state[f"{name}.momentum"] for name in group])))
        for name in self.adam_names():
            moments = self.adam.state[self.params[name]]
            for key in ("exp_avg", "exp_avg_sq"):
                moments[key].copy_(torch.from_numpy(np.ascontiguousarray(state[f"{name}.{key}"])))
            moments["step"].fill_(float(state["adam_step"]))
        for name, p in self.average_weights.items():
            p.copy_(torch.from_numpy(np.ascontiguousarray(state[f"{name}.ema"])))

    def all_sum(self, array):
        """Sum of a numpy array over the ranks."""
        if self.world_size == 1:
            return array
        total = torch.from_numpy(np.array(array))
        dist.all_reduce(total)
        return total.numpy()

    def wait(self):
        """Until the device has done all that was asked of it."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def peak_memory(self):
        """Bytes: of the CUDA allocator on this rank, else of the process."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else host_peak_memory()

    def matmul_flops(self):
        """Floating-point operations per second of a square product in the compute dtype: the best of five."""
        n = 8192 if self.device.type == "cuda" else 1024
        x = torch.ones(n, n, dtype=self.dtype, device=self.device)
        best = float("inf")
        for _ in range(6):
            self.wait()
            start = time.perf_counter()
            x @ x
            self.wait()
            best = min(best, time.perf_counter() - start)
        return 2 * n**3 / best

    def memory(self):
        """Bytes that are free on the GPU, or that the machine has, and that training will take, roughly."""
        rows = micro_batch_rows(self.s, rank_rows(self.s, self.rank, self.world_size)[1])
        have = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else host_memory()
        score_rows = self.s.train_seq_len if self.device.type == "cpu" and self.s.train_seq_len <= 512 else 0
        return have, training_bytes(self.s, rows, self.dtype.itemsize, score_rows)

    def describe(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        return f"{self.world_size} x {name}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}"

    def close(self):
        if dist.is_initialized():
            dist.barrier()  # a rank that leaves first can abort in gloo's threads, and torchrun then stops them all
            self.forward = None
            dist.destroy_process_group()


def pick_device(s):
    if s.device != "cpu" and s.compute_dtype != "float64":
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
            return device
        if torch.backends.mps.is_available():
            return torch.device("mps")
    if s.device == "gpu":
        raise UserError("DEVICE=gpu, but PyTorch sees none here: use DEVICE=cpu, or a build of PyTorch for your GPU")
    return torch.device("cpu")


def pick_dtype(s, device):
    if s.compute_dtype != "auto":
        return getattr(torch, s.compute_dtype)
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


if __name__ == "__main__":
    sys.exit(main(TorchTrainer, __file__))
