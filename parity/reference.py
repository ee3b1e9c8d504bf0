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
    x = x0 = norm(w["tok_emb.weight"][tokens], s)
    for i, layer in enumerate(order):
        if i >= encoder and skips:  # the decoder half takes the encoder's outputs, last first
            x = x + w["skip_weights"][i - encoder] * skips.pop()
        block = f"blocks.{layer}."
        part = {name.removeprefix(block): value for name, value in w.items() if name.startswith(block)}
        x = part["resid_mix"][0] * x + part["resid_mix"][1] * x0
        x = x + part["attn_scale"] * attention(norm(x, s), part, s)
        x = x + part["mlp_scale"] * mlp(norm(x, s), part, s)
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


def norm(x, s):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + s.rms_norm_eps)


def mlp(x, w, s):
    hidden = x @ w["mlp.fc.weight"].T
    hidden = np.maximum(hidden, 0) ** 2
    return hidden @ w["mlp.proj.weight"].T


def attention(x, w, s):
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
    return y.transpose(0, 2, 1, 3).reshape(B, T, C) @ w["attn.proj.weight"].T


def rotate(x, s):
    """Rotary positions: rotates the pair (x[i], x[i + D/2]) by -position / base^(2i / D)."""
    T, D = x.shape[-2:]
    angle = np.arange(T)[:, None] * s.rope_base ** (-np.arange(0, D, 2) / D)
    a, b = x[..., :D // 2], x[..., D // 2:]
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=-1)
