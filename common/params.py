"""The parameter table: name -> shape, initial value, optimizer group. Both models must match it.

Initial values come from numpy's Philox generator keyed by (seed, crc32 of the name): the same on every backend, and a
new tensor does not change the others.
"""
import dataclasses
import math
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Param:
    """init: zeros, ones, uniform (+-1/sqrt(fan_in)), normal (with std), gain, mix, gate or small. group: matrix
    (updated by Muon), embed, head or scalar (by Adam). All but scalar are rounded when stored."""
    shape: tuple
    init: str = "ones"
    group: str = "scalar"
    std: float = 0.0


def param_table(s):
    """dict[str, Param] in reading order."""
    dim, kv_dim = s.model_dim, s.model_dim // s.num_heads * s.num_kv_heads
    std = s.tied_embed_init_std if s.tie_embeddings else 1.0
    block = {
        "resid_mix": Param((2, dim), "mix"),
        "attn.c_q.weight": Param((dim, dim), "uniform", "matrix"),
        "attn.c_k.weight": Param((kv_dim, dim), "uniform", "matrix"),
        "attn.c_v.weight": Param((kv_dim, dim), "uniform", "matrix"),
        "attn.q_gain": Param((s.num_heads,), "gain"),
        "attn.proj.weight": Param((dim, dim), "zeros", "matrix"),
        "attn_scale": Param((dim,)),
        "mlp.fc.weight": Param((s.mlp_mult * dim, dim), "uniform", "matrix"),
        "mlp.proj.weight": Param((dim, s.mlp_mult * dim), "zeros", "matrix"),
        "mlp_scale": Param((dim,)),
    }
    table = {"tok_emb.weight": Param((s.vocab_size, dim), "normal", "embed", std)}
    if s.bigram_rows:
        table |= {
            "bigram.weight": Param((s.bigram_rows, s.bigram_dim), "zeros", "embed"),
            "bigram_proj.weight": Param((dim, s.bigram_dim), "uniform", "matrix"),
            "bigram_scale": Param((1,), "small"),
        }
    if s.smear_gate:
        table["smear_gate"] = Param((dim,), "gate")
    table |= {f"blocks.{i}.{name}": p for i in range(s.num_layers) for name, p in block.items()}
    if num_skips(s):
        table["skip_weights"] = Param((num_skips(s), dim))
    if not s.tie_embeddings:
        table["lm_head.weight"] = Param((s.vocab_size, dim), "zeros", "head")
    return table


def layer_order(s):
    """list[int]: the blocks as they are applied: four with LOOP_LAYERS=1-2 and LOOP_COUNT=2 give 0, 1, 2, 1, 2, 3 (as
    in the Universal Transformer, arXiv:1807.03819)."""
    order = list(range(s.num_layers))
    if not s.loop_layers:
        return order
    end = s.loop_layers.last + 1
    return order[:end] + order[s.loop_layers.first:end] * (s.loop_count - 1) + order[end:]


def num_skips(s):
    """Number of blocks in the encoder, the first half of the order."""
    return len(layer_order(s)) // 2


def initial_weights(s):
    """dict[str, float32 array] under the canonical names."""
    weights = {}
    for name, p in param_table(s).items():
        random = generator(s, name)
        if p.init == "uniform":
            value = uniform(random, p.shape)
        elif p.init == "normal":
            value = p.std * random.standard_normal(p.shape)
        else:  # mix: x, not x0
            value = np.full(p.shape, {"zeros": 0, "ones": 1, "gain": s.qk_gain_init, "mix": [[1], [0]],
                                      "gate": -3, "small": 0.05}[p.init])
        weights[name] = value.astype(np.float32)
    return weights


def generator(s, name):
    return np.random.Generator(np.random.Philox(key=[s.seed, zlib.crc32(name.encode())]))


def uniform(random, shape):
    return (2.0 * random.random(shape) - 1.0) / np.sqrt(shape[1])


def adapters(s):
    """dict of (A (rank, columns), B (rows, rank)), float32, of each matrix that test-time training replaces by W + B A
    (LoRA, arXiv:2106.09685). B is zero."""
    found, rank = {}, s.ttt_rank
    for name, p in param_table(s).items():
        if p.group == "matrix" and rank:
            rows, columns = p.shape
            a = uniform(generator(s, f"{name}.adapter"), (rank, columns))
            found[name] = a.astype(np.float32), np.zeros((rows, rank), np.float32)
    return found


def rope_tables(s, length):
    """(cos, sin), float64 (length, head_dim / 2), of position * base^(-2i / n) (RoFormer, eq. 15) for the pairs
    (i, i + head_dim / 2) with i < n / 2, n the dimensions that turn. Other angles are 0 (record of 2026-03-21)."""
    half = s.model_dim // s.num_heads // 2
    turned = s.rope_dims // 2 or half
    angles = np.outer(np.arange(length), s.rope_base ** (-np.arange(half) / turned))
    angles[:, turned:] = 0
    return np.cos(angles), np.sin(angles)


def check_weights(s, weights):
    """Raises ValueError naming tensors that are missing, unknown or of another shape."""
    expected = {name: p.shape for name, p in param_table(s).items()}
    check_tensors(expected, {name: w.shape for name, w in weights.items()})


def check_tensors(expected, found):
    """Raises ValueError naming every difference of two dicts."""
    wrong = [f"tensor {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none of that name')}"
             for name in expected | found if found.get(name) != expected.get(name)]
    if wrong:
        raise ValueError("; ".join(wrong))


def count_params(s):
    return sum(math.prod(p.shape) for p in param_table(s).values())


def flops_per_token(s):
    """Floating-point operations of training on one token, forward and backward: 6 per weight of every matrix product,
    and 6 * layers * length * width for causal attention (half of PaLM's, appendix B). With the head, without the
    embedding look-up and recomputation. A block counts each time it is applied."""
    sizes = {name: math.prod(p.shape) for name, p in param_table(s).items() if p.group == "matrix"}
    once = sizes.pop("bigram_proj.weight", 0) + s.model_dim * s.vocab_size
    block = sum(sizes.values()) // s.num_layers
    return 6 * (len(layer_order(s)) * (block + s.model_dim * s.train_seq_len) + once)


def training_bytes(s, rows, itemsize, score_rows=0):
    """Bytes of device memory that a run takes, roughly: weights, gradients, moments, average and copies; and what the
    backward pass keeps of one micro-batch of `rows` rows, or of one longer window, in a dtype of `itemsize` bytes.
    score_rows: queries per row whose attention scores are in memory at once: all in every layer (plain attention),
    some in one layer (blocks), or 0 (fused)."""
    width = max(4, itemsize)
    positions = max(rows * s.train_seq_len, s.eval_seq_len)
    layers = len(layer_order(s))
    copies = 5 + (s.ema_decay > 0) + (s.qat_start < 1)
    kept = layers * positions * s.model_dim * (12 + 3 * s.mlp_mult) * itemsize
    # 12 and 8 below are measured, with MLX on a CPU
    per_score = layers * (2 * width + itemsize) if score_rows == s.train_seq_len else 12 * width
    scores = positions * score_rows * s.num_heads * per_score
    logits = min(3 * positions, 8 * (s.loss_chunk or positions)) * s.vocab_size * width
    return copies * width * count_params(s) + kept + scores + logits
