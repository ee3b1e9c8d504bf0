"""The model's definition: forward pass and loss in plain numpy float64, to read and to check both backends against.

Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, D = C / H. Matrices are (outputs,
inputs).
"""
import numpy as np

from common.params import layer_order


def reference_logits(s, weights, tokens):
    """float64 (B, T, V) of int tokens (B, T); s: Settings, weights: dict under the names of common/params.py."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    order = layer_order(s)
    encoder = len(order) // 2
    skips = []
    x = x0 = embed(tokens, w, s)
    for i, layer in enumerate(order):
        if i >= encoder and skips:  # the decoder half takes the encoder's outputs, last first
            x = x + w["skip_weights"][i - encoder] * skips.pop()
        block = f"blocks.{layer}."
        part = {name.removeprefix(block): value for name, value in w.items() if name.startswith(block)}
        scale = (layer + 1)**-0.5 if s.norm_scale else 1
        x = part["resid_mix"][0] * x + part["resid_mix"][1] * x0
        y = x + part["attn_scale"] * attention(scale * norm(x, s), part, s, layer >= s.num_layers - s.xsa_layers)
        mlp_input = x if layer >= s.num_layers - s.parallel_layers else y
        x = y + part["mlp_scale"] * mlp(scale * norm(mlp_input, s), part, s)
        if i < encoder:
            skips.append(x)
    head = w["tok_emb.weight"] if s.tie_embeddings else w["lm_head.weight"]
    return s.logit_softcap * np.tanh(norm(x, s) @ head.T / s.logit_softcap)


def reference_nats(s, weights, tokens):
    """float64 (B, T): -log p of tokens[:, 1:] given what is before; tokens (B, T + 1)."""
    logits = reference_logits(s, weights, tokens[:, :-1])
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return np.log(np.exp(logits).sum(axis=-1)) - chosen


def embed(tokens, w, s):
    """The input of the blocks. The first token of a row or a document gets nothing of what is before it."""
    x = w["tok_emb.weight"][tokens]
    before = np.roll(tokens, 1, axis=1)
    first = tokens == s.bos_id
    first[:, 0] = True
    if s.bigram_rows:
        rows = (36313 * tokens.astype(np.int64) ^ 27191 * before.astype(np.int64)) % (s.bigram_rows - 1)
        rows[first] = s.bigram_rows - 1
        x = x + w["bigram_scale"] * (w["bigram.weight"][rows] @ w["bigram_proj.weight"].T)
    x = norm(x, s)
    if s.smear_gate:
        gate = ~first[..., None] / (1 + np.exp(-w["smear_gate"]))
        x = (1 - gate) * x + gate * np.roll(x, 1, axis=1)
    return x


def norm(x, s):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + s.rms_norm_eps)


def mlp(x, w, s):
    hidden = x @ w["mlp.fc.weight"].T
    hidden = np.where(hidden > 0, hidden, s.mlp_slope * hidden) ** 2
    return hidden @ w["mlp.proj.weight"].T


def attention(x, w, s, exclusive):
    """exclusive: the output loses its part along the token's own value (XSA)."""
    B, T, C = x.shape
    D = C // s.num_heads

    def heads(name):
        return (x @ w[name].T).reshape(B, T, -1, D).transpose(0, 2, 1, 3)  # (B, heads, T, D)

    q = rotate(norm(heads("attn.c_q.weight"), s), s) * w["attn.q_gain"][:, None, None]
    k, v = rotate(norm(heads("attn.c_k.weight"), s), s), heads("attn.c_v.weight")
    # query head h uses kv head h // (H / K)
    k, v = (np.repeat(y, s.num_heads // s.num_kv_heads, axis=1) for y in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(D)
    scores[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y = scores / scores.sum(axis=-1, keepdims=True) @ v
    if exclusive:
        v = norm(v, s)
        y = y - (y * v).mean(axis=-1, keepdims=True) * v
    return y.transpose(0, 2, 1, 3).reshape(B, T, C) @ w["attn.proj.weight"].T


def rotate(x, s):
    """Rotary positions: rotates the pair (x[i], x[i + D/2]) by -position / base^(2i / n) where 2i < n = ROPE_DIMS."""
    T, D = x.shape[-2:]
    i, n = np.arange(D // 2), s.rope_dims or D
    angle = np.arange(T)[:, None] * np.where(2 * i < n, s.rope_base ** (-2 * i / n), 0)
    a, b = x[..., :D // 2], x[..., D // 2:]
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=-1)
