"""int8 rows with float16 scales: `python -m pytest tests/test_quantize.py`."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.params import param_table
from common.quantize import dequantize_rows, dequantize_weights, quantize_rows, quantize_weights
from common.settings import Settings

TINY = Settings(vocab_size=11, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1, tie_embeddings=False)
MATRICES = [name for name, p in param_table(TINY).items() if p.group != "scalar"]


def matrix(seed, rows=16, columns=96, top=1.0):
    random = np.random.Generator(np.random.Philox(seed))
    return (top * (2 * random.random((rows, columns)) - 1)).astype(np.float32)


def trained():
    table = enumerate(param_table(TINY).items())
    return {name: matrix([1, i], 1, int(np.prod(p.shape))).reshape(p.shape) for i, (name, p) in table}


@settings(deadline=None, database=None, derandomize=True)
@given(st.integers(0, 999), st.floats(-21, 22))
def test_error_is_at_most_half_a_step(seed, magnitude):
    weight = matrix(seed, 4, 20, 2.0**magnitude)
    q, scale = quantize_rows(weight)
    assert q.dtype == np.int8 and scale.dtype == np.float16 and q.shape == weight.shape and scale.shape == (4,)
    assert q.min() >= -127
    step = scale.astype(np.float64)[:, None]
    error = np.abs(weight - q * step)
    cut = 127 * 2.0**-25  # a float16 scale below 6e-5 is a multiple of 2**-24: q * scale may end before the weight does
    assert (error <= step / 2 * (1 + 1e-6) + (cut if magnitude < -9 else 0)).all()


@pytest.mark.parametrize("top", [2e-3, 5e-3, 0.04, 1.0, 1000.0])
def test_no_floor_under_the_scale(top):
    """Fresh and small weights keep a relative error of 0.4 % of their range, as large ones do."""
    weight = matrix(2, top=top)
    error = weight - dequantize_rows(*quantize_rows(weight))
    assert 0.0015 < np.abs(error).mean() / top < 0.0025  # a quarter of a step of 1 / 127


def test_q_is_computed_against_the_scale_as_stored():
    q, scale = quantize_rows(np.float32([[127 * 1.0004, 50.51]]))
    assert scale.tolist() == [1] and q.tolist() == [[127, 51]]  # 50.51 / 1.0004 would go down


def test_zero_rows_and_single_values():
    weight = np.float32([[0, 0, 0], [0, -3, 0], [1e-9, 0, 0]])
    q, scale = quantize_rows(weight)
    assert scale[[0, 2]].tolist() == [0, 0] and q.tolist() == [[0, 0, 0], [0, -127, 0], [0, 0, 0]]
    back = dequantize_rows(q, scale)
    assert back.dtype == np.float32 and back[1, 1] == pytest.approx(-3, rel=2**-11) and np.count_nonzero(back) == 1


@pytest.mark.parametrize("top", [0.01, 1.0, 5e4])
def test_a_second_quantization_changes_nothing(top):
    first = quantize_rows(matrix(3, top=top))
    second = quantize_rows(dequantize_rows(*first))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_what_is_stored():
    weights = trained()
    stored = quantize_weights(TINY, weights)
    assert set(stored) == {*weights, *(name + ".scale" for name in MATRICES)}
    assert "lm_head.weight" in MATRICES and "tok_emb.weight" in MATRICES and len(MATRICES) == 14
    for name, weight in weights.items():
        if name in MATRICES:
            assert (stored[name].dtype, stored[name + ".scale"].dtype) == (np.int8, np.float16)
        else:
            assert stored[name].dtype == np.float32 and stored[name].tobytes() == weight.tobytes()


def test_round_trip():
    weights = trained()
    back = dequantize_weights(TINY, quantize_weights(TINY, weights))
    assert [*back] == [*weights]
    for name, weight in weights.items():
        assert back[name].dtype == np.float32 and back[name].shape == weight.shape
        assert np.abs(back[name] - weight).max() <= (0.5 / 126.9 if name in MATRICES else 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 9e6])
@pytest.mark.parametrize("name", ["tok_emb.weight", "blocks.1.attn_scale", "blocks.0.mlp.fc.weight"])
def test_what_cannot_be_stored_is_refused(name, value):
    weights = trained()
    weights[name].flat[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds a value that is not finite"):
        quantize_weights(TINY, weights)
    weights[name].flat[-1] = 7.9e6
    dequantize_weights(TINY, quantize_weights(TINY, weights))


@pytest.mark.parametrize("name, change, words", [
    ("tok_emb.weight", None, "missing"),
    ("tok_emb.weight.scale", None, "missing"),
    ("blocks.0.attn_scale", None, "missing"),
    ("extra", np.zeros(3, np.int8), "none of that name"),
    ("blocks.0.attn_scale.scale", np.zeros(1, np.float16), "none of that name"),
    ("tok_emb.weight", np.zeros((8, 11), np.int8), "(8, 11)"),
    ("tok_emb.weight", np.zeros((11, 8), np.float32), "float32"),
    ("tok_emb.weight", np.zeros((11, 8), np.uint8), "uint8"),
    ("tok_emb.weight.scale", np.zeros((11, 1), np.float16), "(11, 1)"),
    ("tok_emb.weight.scale", np.zeros(11, np.float32), "float32"),
    ("skip_weights", np.zeros((1, 8), np.float64), "float64"),
    ("skip_weights", np.zeros((1, 8), ">f4"), ">f4"),
    ("tok_emb.weight.scale", np.full(11, np.inf, np.float16), "not finite"),
    ("skip_weights", np.full((1, 8), np.nan, np.float32), "not finite"),
])
@pytest.mark.filterwarnings("ignore:invalid value")  # 0 * infinity
def test_tensors_that_do_not_fit_are_refused(name, change, words):
    stored = quantize_weights(TINY, trained())
    stored.pop(name, None)
    if change is not None:
        stored[name] = change
    with pytest.raises(ValueError) as error:
        dequantize_weights(TINY, stored)
    assert name.removesuffix(".scale") in str(error.value) and words in str(error.value)
