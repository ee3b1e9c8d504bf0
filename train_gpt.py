"""Train the best language model that fits in 16,000,000 bytes: PyTorch (CUDA with DDP, MPS, CPU).

    python train_gpt.py --help                                                      all settings
    torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=8 train_gpt.py    the official run, 8xH100

Its twin is train_gpt_mlx.py: same sections, same names. What touches no device is written once, in common/.
"""
import contextlib
import datetime
import os
import sys
import time

if sys.platform == "win32":
    sys.stderr.write("error: Windows is not supported: use WSL\n")
    sys.exit(2)

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
    sys.stderr.write(f"error: {missing}: `make install BACKEND=torch` or `pip install '.[torch]'` provides PyTorch\n")
    sys.exit(2)
import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.machine import host_memory, host_peak_memory, keep_freed_memory
from common.params import check_weights, layer_order, num_skips, param_table, rope_tables, training_bytes
from common.quantize import tensor_levels
from common.ranks import launched_rank, meeting
from common.run import main
from common.schedule import adam_lrs
from common.settings import Settings, UserError

# ----------------------------------------------------------------------------------------------------------------------
# Model. Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, G = H / K, D = C / H
# ----------------------------------------------------------------------------------------------------------------------


SHORT = 512  # positions of the longest row for which plain products beat PyTorch's flash kernel on a CPU


class Attention(nn.Module):
    """Causal self-attention with grouped queries, RMS-normed queries and keys, rotary positions, a gain per head."""

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
        self.s = s
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
    """Outputs of the first half of the blocks (encoder) are added to inputs of the second (decoder), last first."""

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
        """(B, T, C): the output of the last block."""
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
        """(B, T) nats; tokens (B, T + 1) are the inputs and, shifted by one, the targets."""
        tokens = tokens.long()
        x, targets = self.features(tokens[:, :-1]), tokens[:, 1:]
        if 0 < self.s.loss_chunk < targets.numel():
            return nats_in_chunks(self, x, targets)
        return self.nats(x, targets).view(targets.shape)

    def nats(self, x, targets):
        """(N,) nats of N targets (...) after features x (..., C)."""
        return F.cross_entropy(self.head_logits(x).flatten(0, -2), targets.flatten(), reduction="none")


def linear(x, layer):
    """The weights stay float32; the product is in the compute dtype."""
    return F.linear(x, layer.weight.to(x.dtype))


def rms_norm(x, s):
    return F.rms_norm(x, x.shape[-1:], eps=s.rms_norm_eps)  # accumulates in float32


def rotate(x, cos, sin):
    """Rotary embedding of x (B, heads, T, D): rotates the pairs (x[i], x[i + D/2]) by -angle."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)


def attend(q, k, v):
    """Causal attention (B, H, T, D); query head h uses kv head h // G."""
    H, T = q.shape[1:3]
    if q.device.type == "cpu" and T <= SHORT:  # a block of queries skips the keys that it cannot see
        last, out = 0, []
        for rows in q.split(max(64, T // 4), dim=2):
            last += rows.shape[2]
            out.append(attend_last(rows, k[:, :, :last], v[:, :, :last]))
        return torch.cat(out, dim=2)
    if q.device.type == "mps":  # its kernel has no grouped queries
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
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


def newton_schulz(g, steps):
    """Roughly the nearest orthogonal matrix to each of g (n, rows, columns), by a quintic iteration (Keller Jordan,
    "Muon", 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    for _ in range(steps):
        A = x @ x.transpose(1, 2)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        x = torch.baddbmm(x, B, x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon:
    """Nesterov momentum, then Newton-Schulz, all matrices of one shape at once. Every rank computes all updates, a few
    percent of a step, and so stays bit-identical."""

    def __init__(self, params, dtype, steps):
        self.dtype, self.steps = dtype, steps
        self.groups = {}
        for name, p in params.items():
            self.groups.setdefault(p.shape, {})[name] = p
        self.momentum = {
            shape: torch.stack([torch.zeros_like(p) for p in group.values()]) for shape, group in self.groups.items()
        }

    def step(self, lr, momentum, finite):
        """finite: bool tensor (); where it is False nothing changes, and the CPU need not wait to know."""
        for shape, group in self.groups.items():
            g = torch.stack([p.grad for p in group.values()]).where(finite, 0.0)
            one = finite.to(g.dtype)
            buffer = self.momentum[shape].mul_(one * momentum + (1 - one)).add_(g)
            g.add_(buffer, alpha=momentum)
            g /= g.norm(dim=(1, 2), keepdim=True) + 1e-7
            update = newton_schulz(g.to(self.dtype), self.steps).to(buffer.dtype) * finite
            rows, columns = shape
            torch._foreach_add_(list(group.values()), list(update.unbind()), alpha=-lr * max(1, rows / columns) ** 0.5)


# ----------------------------------------------------------------------------------------------------------------------
# Trainer: what common/run.py drives
# ----------------------------------------------------------------------------------------------------------------------


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
        master = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.model = GPT(s, self.dtype, self.device).to(self.device, master)
        self.params = dict(self.model.named_parameters())
        self.forward = self.compiled_model()
        self.make_optimizers()
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)  # whether all losses and gradients were
        self.load_state(weights)
        self.average = {name: p.detach().clone() for name, p in self.params.items()} if s.ema_decay else {}
        self.tensors |= {f"{name}.ema": mean for name, mean in self.average.items()}
        self.steps_ahead = int(self.device.type == "cuda")
        self.running = None  # event at the end of the step before, on CUDA

    def compiled_model(self):
        model, compiled = self.model, self.s.compile and self.device.type != "mps"  # Inductor on MPS is a prototype
        if compiled:
            model = torch.compile(model, fullgraph=True, dynamic=False)
        if self.world_size == 1:
            return model
        if compiled and self.s.loss_chunk:
            torch._dynamo.config.optimize_ddp = False  # older versions cannot split a graph with checkpoints in it
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def make_optimizers(self):
        """Muon, Adam, and self.tensors: all that a run needs to resume, by name. The optimizers update them in
        place."""
        s, params = self.s, self.params
        groups = {name: p.group for name, p in param_table(s).items()}
        self.muon = Muon({n: p for n, p in params.items() if groups[n] == "matrix"}, self.dtype, s.muon_backend_steps)
        self.adam = torch.optim.Adam(
            [{"params": [p for n, p in params.items() if groups[n] == group], "lr": lr, "base_lr": lr}
             for group, lr in adam_lrs(s).items()],
            betas=(s.beta1, s.beta2), eps=s.adam_eps, fused=self.device.type != "mps")
        self.tensors = dict(params)
        for shape, group in self.muon.groups.items():
            self.tensors |= {f"{name}.momentum": row for name, row in zip(group, self.muon.momentum[shape])}
        for name, p in params.items():
            if groups[name] != "matrix":
                step = torch.zeros((), device=self.device if self.device.type == "cuda" else "cpu")
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.adam.state[p] = {"step": step, **moments}
                self.tensors |= {f"{name}.{key}": moment for key, moment in moments.items()} | {"adam_step": step}

    # one optimizer step -----------------------------------------------------------------------------------------------

    def train_step(self, tokens, lr_scale, momentum, rounding=False):
        with self.rounded_weights() if rounding else contextlib.nullcontext():
            loss = self.backward(tokens)
        norm = nn.utils.get_total_norm([p.grad for p in self.params.values()])
        self.finite &= torch.isfinite(loss + norm)  # stays on the device: the CPU may be a step ahead
        if self.device.type == "mps" and not self.finite:  # Adam on MPS has no found_inf
            return loss + norm
        if self.s.grad_clip_norm > 0:
            nn.utils.clip_grads_with_norm_(self.params.values(), self.s.grad_clip_norm, norm)
        with torch.no_grad():
            self.muon.step(self.s.matrix_lr * lr_scale, momentum, self.finite)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        if self.device.type != "mps":
            self.adam.found_inf = (~self.finite).float()  # fused Adam skips the update where this is 1
        self.adam.step()
        if self.device.type == "cuda":  # wait for the step before, so that the clock stays honest
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
        for i, rows in enumerate(micro):
            reduced = self.world_size > 1 and not alone and i == len(micro) - 1
            with contextlib.nullcontext() if reduced or self.world_size == 1 else self.forward.no_sync():
                loss = self.forward(rows).sum() * scale
                (loss * ranks).backward()  # DDP averages over the ranks
            total += loss.detach()
        if self.world_size > 1 and not alone:
            dist.all_reduce(total)
        return total

    def finite_alone(self, tokens):
        loss = self.backward(tokens, alone=True)
        return all(x.isfinite().all() for x in [loss, *(p.grad for p in self.params.values())])

    # scores and state -------------------------------------------------------------------------------------------------

    def token_nats(self, tokens):
        model = self.forward.module if self.world_size > 1 else self.forward
        # On the CPU the graph for training serves: to compile one without gradients takes 10 s.
        with torch.set_grad_enabled(self.s.compile and self.device.type == "cpu"):
            return model(self.to_device(tokens)).detach().cpu().numpy()

    @torch.no_grad()
    def logits(self, tokens):
        return self.model.logits(self.to_device(tokens).long()).cpu().numpy()

    def gradients(self, tokens):
        loss = float(self.backward(tokens))
        return loss, {name: p.grad.cpu().numpy().copy() for name, p in self.params.items()}

    def weights(self, averaged=False):
        return self.to_host(self.average if averaged else self.params)

    def state(self):
        return self.to_host(self.tensors)

    @torch.no_grad()
    def load_state(self, state):
        check_weights(self.s, {name: w for name, w in state.items() if name in self.params or name not in self.tensors})
        for name, array in state.items():
            self.tensors[name].copy_(torch.from_numpy(np.array(array)))
        for moments in self.adam.state.values():
            moments["step"].copy_(self.tensors["adam_step"])
        self.finite.fill_(True)
        self.before_sgd = None

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
        number = time.time() % 1  # a constant that no cache has
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
        best = float("inf")
        for _ in range(6):
            self.wait()
            start = time.perf_counter()
            x @ x
            self.wait()
            best = min(best, time.perf_counter() - start)
        return 2 * n**3 / best

    def memory(self):
        rows = micro_batch_rows(self.s, rank_rows(self.s, self.rank, self.world_size)[1])
        have = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else host_memory()
        score_rows = self.s.train_seq_len if self.device.type == "cpu" and self.s.train_seq_len <= SHORT else 0
        return have, training_bytes(self.s, rows, self.dtype.itemsize, score_rows)

    def describe(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        return f"{self.world_size} x {name}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}"

    def close(self):
        if dist.is_initialized():
            dist.barrier()  # or a rank that leaves first can abort in gloo's threads, and torchrun stops them all
            self.forward = None
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
            self.before_sgd = [p.detach().clone() for p in params]
        self.backward(tokens, alone=True)
        with torch.no_grad():
            torch._foreach_add_(params, [p.grad for p in params], alpha=-lr)

    @torch.no_grad()
    def undo_sgd(self):
        if self.before_sgd:
            torch._foreach_copy_(list(self.params.values()), self.before_sgd)


def round_rows(w, levels):
    """float32 (rows, columns) as common/quantize.py stores and reads it."""
    if levels == "fp16":
        return w.half().float()
    number = torch.tensor(float(levels), device=w.device)  # CUDA multiplies by the reciprocal of a Python number
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
            return device
        if torch.backends.mps.is_available():
            return torch.device("mps")
    if s.device == "gpu":
        raise UserError("DEVICE=gpu, but PyTorch sees no GPU here: use DEVICE=cpu, or a build of PyTorch for your GPU")
    return torch.device("cpu")


def pick_dtype(s, device):
    if s.compute_dtype != "auto":
        return getattr(torch, s.compute_dtype)
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def make_repeatable(device):
    """Sum in one order, so that equal runs give equal bytes: the embedding's gradient on the CPU, on CUDA the backward
    pass of attention too. What PyTorch cannot do so, it warns of."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if device.type == "cuda":
        torch._inductor.config.deterministic = True  # else it chooses kernels by their time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "^NVLS")  # switches that add


if __name__ == "__main__":
    sys.exit(main(TorchTrainer, __file__))
