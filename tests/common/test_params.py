"""The parameter table and the initial weights: `python -m pytest tests/common/test_params.py`."""
import dataclasses
import hashlib

import numpy as np
import pytest

from common.params import (
    check_weights,
    count_params,
    flops_per_token,
    initial_weights,
    num_skips,
    param_table,
    rope_tables,
)
from common.settings import Settings

BASELINE = Settings(vocab_size=1024)
TINY = Settings(vocab_size=11, num_layers=3, model_dim=8, num_heads=2, num_kv_heads=1, mlp_mult=3, seed=5)
UNTIED = dataclasses.replace(TINY, tie_embeddings=False)
BLOCK = ["resid_mix", "attn.c_q.weight", "attn.c_k.weight", "attn.c_v.weight", "attn.q_gain", "attn.proj.weight",
         "attn_scale", "mlp.fc.weight", "mlp.proj.weight", "mlp_scale"]


def test_the_baseline():
    assert count_params(BASELINE) == 17_059_912
    assert flops_per_token(BASELINE) == 6 * 17_039_360 + 6 * 9 * 1024 * 512


def test_the_table_in_reading_order():
    table = param_table(UNTIED)
    blocks = [f"blocks.{i}.{name}" for i in range(3) for name in BLOCK]
    assert [*table] == ["tok_emb.weight", *blocks, "skip_weights", "lm_head.weight"]
    assert [*param_table(TINY)] == [*table][:-1]
    assert "skip_weights" not in param_table(Settings(num_layers=1))
    assert [num_skips(Settings(num_layers=n)) for n in (1, 2, 9, 10)] == [0, 1, 4, 5]


def test_shapes_and_groups():
    table = param_table(UNTIED)
    assert {name.removeprefix("blocks.2."): (p.shape, p.group) for name, p in table.items()
            if not name.startswith(("blocks.0.", "blocks.1."))} == {
        "tok_emb.weight": ((11, 8), "embed"), "resid_mix": ((2, 8), "scalar"), "attn.c_q.weight": ((8, 8), "matrix"),
        "attn.c_k.weight": ((4, 8), "matrix"), "attn.c_v.weight": ((4, 8), "matrix"), "attn.q_gain": ((2,), "scalar"),
        "attn.proj.weight": ((8, 8), "matrix"), "attn_scale": ((8,), "scalar"), "mlp.fc.weight": ((24, 8), "matrix"),
        "mlp.proj.weight": ((8, 24), "matrix"), "mlp_scale": ((8,), "scalar"), "skip_weights": ((1, 8), "scalar"),
        "lm_head.weight": ((11, 8), "head")}
    assert count_params(UNTIED) == sum(w.size for w in initial_weights(UNTIED).values())


@pytest.mark.parametrize("settings, digest", [
    (TINY, "3d74ffba41b691677c5afb49c81d0fa2337079d1e4d3c4dbafde009cc4f153c3"),
    (UNTIED, "305b8826b491ec2666090f639e027375ddd525804a5fb3bc9581507ecaa8d92d"),
])
def test_golden_initial_weights(settings, digest):
    """Runs start from these bytes on every machine and with every numpy version."""
    sha256 = hashlib.sha256()
    for name, weight in initial_weights(settings).items():
        assert weight.dtype == np.float32
        sha256.update(name.encode() + weight.astype("<f4").tobytes())
    assert sha256.hexdigest() == digest


def test_initial_values():
    weights = initial_weights(Settings(vocab_size=500, model_dim=64, num_layers=2, num_heads=2, num_kv_heads=1,
                                       qk_gain_init=2.5))
    for name in ("attn.c_q.weight", "attn.c_k.weight", "attn.c_v.weight", "mlp.fc.weight"):
        weight = weights[f"blocks.1.{name}"]
        assert 0.12 < np.abs(weight).max() <= 0.125  # 1 / sqrt(64), the fan-in of all four
        assert weight.std() == pytest.approx(0.125 / 3**0.5, rel=0.05) and abs(weight.mean()) < 0.01
    assert weights["tok_emb.weight"].std() == pytest.approx(0.005, rel=0.02)
    for name in ("attn.proj.weight", "mlp.proj.weight"):
        assert not weights[f"blocks.0.{name}"].any()
    assert (weights["blocks.0.attn.q_gain"] == 2.5).all()
    assert (weights["blocks.1.resid_mix"] == [[1.0], [0.0]]).all()
    for name in ("blocks.0.attn_scale", "blocks.0.mlp_scale", "skip_weights"):
        assert (weights[name] == 1).all()


def test_the_untied_head_starts_at_zero_and_the_embedding_wide():
    weights = initial_weights(dataclasses.replace(UNTIED, vocab_size=2000))
    assert not weights["lm_head.weight"].any()
    assert weights["tok_emb.weight"].std() == pytest.approx(1.0, rel=0.05)


def test_a_new_tensor_does_not_move_the_others():
    few = initial_weights(TINY)
    many = initial_weights(dataclasses.replace(UNTIED, num_layers=5))
    shared = [name for name in few if name.startswith("blocks.")]
    assert len(shared) == 30
    for name in shared:
        assert few[name].tobytes() == many[name].tobytes()


def test_every_random_tensor_has_its_own_values_and_follows_the_seed():
    values = [tuple(initial_weights(dataclasses.replace(TINY, seed=seed))[name].ravel()[:8].tolist())
              for seed in (0, 1, 5, 2**63 - 1)
              for name, p in param_table(TINY).items() if p.init in ("uniform", "normal")]
    assert len(set(values)) == len(values) == 4 * 13


@pytest.mark.parametrize("base", [10000.0, 7.0])
def test_rope_tables(base):
    """They agree with rotations by repeated complex multiplication."""
    cos, sin = rope_tables(dataclasses.replace(TINY, model_dim=24, rope_base=base), 40)
    assert cos.shape == sin.shape == (40, 6) and cos.dtype == sin.dtype == np.float64
    turn = np.array([np.exp(1j * base ** (-2 * i / 12)) for i in range(6)])
    expected = np.cumprod(np.vstack([np.ones(6), np.tile(turn, (39, 1))]), axis=0)
    assert np.abs(cos + 1j * sin - expected).max() < 1e-13


def test_check_weights_names_every_problem():
    weights = initial_weights(TINY)
    check_weights(TINY, weights)
    del weights["skip_weights"]
    weights |= {"tok_emb.weight": np.zeros((11, 9)), "blocks.0.attn_scale": np.zeros((8, 1)),
                "lm_head.weight": np.zeros(1)}
    with pytest.raises(ValueError) as error:
        check_weights(TINY, weights)
    for words in ("skip_weights is missing, expected (1, 8)", "lm_head.weight is (1,), expected none of that name",
                  "tok_emb.weight is (11, 9), expected (11, 8)", "blocks.0.attn_scale is (8, 1), expected (8,)"):
        assert words in str(error.value)
    assert str(error.value).count(";") == 3
