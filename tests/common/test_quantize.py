"""int8 rows with float16 scales: `python -m pytest tests/common/test_quantize.py`."""
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.params import param_table
from common.quantize import (
    dequantize_rows,
    dequantize_weights,
    load_matrix,
    quantize_rows,
    quantize_weights,
    relative_error,
    store_matrix,
    unstorable,
)
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
    cut = 127 * 2.0**-25  # a float16 scale below 6e-5 is a multiple of 2**-24, so 127 * scale may be below the weight
    assert (error <= step / 2 * (1 + 1e-6) + (cut if magnitude < -9 else 0)).all()


@pytest.mark.parametrize("top", [2e-3, 5e-3, 0.04, 1.0, 1000.0])
def test_no_floor_under_the_scale(top):
    """Fresh and small weights have an error of at most 0.4 % of their range, as large ones do."""
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


@pytest.mark.parametrize("levels", [2, 2.7, 5, 15, 18.342, 127, 127.4])
def test_the_rule_at_any_levels(levels):
    """step = float16(max / L), q = clip(rint(w / step), -rint(L), rint(L)), row by row in Python's own arithmetic."""
    weight = matrix(4, 6, 40)
    q, scale = quantize_rows(weight, levels)
    assert q.dtype == np.int8 and scale.dtype == np.float16 and np.abs(q).max() == round(levels)
    for row, codes, step in zip(weight, q, scale.astype(np.float32)):
        assert step == np.float16(np.abs(row).max() / np.float32(levels))
        assert codes.tolist() == [max(-round(levels), min(round(levels), round(float(w / step)))) for w in row]


@pytest.mark.parametrize("levels", [128, 255, 256, 1000.5, 32767])
def test_wide_codes_are_split_in_two_and_come_back(levels):
    weight = matrix(5, 6, 4000)
    weight[0, :2] = -1, 1  # both ends
    weight[1] *= 1e-4  # steps of 1e-6 or less, where float16 is coarse
    stored = store_matrix("w", weight, levels)
    kinds = {name: str(tensor.dtype) for name, tensor in stored.items()}
    assert kinds == {"w": "int8", "w.low": "uint8", "w.scale": "float16"}
    q, scale = quantize_rows(weight, levels)
    for row, step in zip(weight, scale):
        exact = np.abs(row).max() / np.float32(levels)
        assert np.nextafter(step, np.float16(0)) < exact <= step
    assert 0.999 * levels < np.abs(q.astype(np.int32)).max() <= round(levels) and stored["w"].max() > 60
    back = load_matrix("w", stored, levels)
    assert back.tobytes() == dequantize_rows(q, scale).tobytes()
    assert (np.abs(back - weight) <= 0.5 * scale.astype(np.float32)[:, None] + 1e-7 * np.abs(weight)).all()


def test_low_bits_are_packed_and_rows_padded_with_zeros():
    q = np.array([[-300, -1, 0, 1, 300], [511, 256, 255, -256, -511]])  # 2 low bits each
    stored = store_matrix("w", q.astype(np.float32), 511)
    stored["w.scale"][:] = 1
    assert stored["w"][1].tolist() == [127, 64, 63, -64, -128]  # the row whose step is 1
    assert "".join(f"{byte:08b}" for byte in stored["w.low"][1]) == "1100110001" + 6 * "0"
    assert load_matrix("w", stored, 511)[1].tolist() == q[1].tolist()
    stored["w.low"][0, -1] |= 1
    with pytest.raises(ValueError, match="w.low does not end in zeros"):
        load_matrix("w", stored, 511)


def test_groups_have_their_own_levels():
    weights = trained()
    for text, limits in (("matrix=5,embed=fp16,head=31", {"matrix": 5, "head": 31}),
                         ("7", {"matrix": 7, "embed": 7, "head": 7})):
        s = dataclasses.replace(TINY, quant_levels=text)
        stored = quantize_weights(s, weights)
        back = dequantize_weights(s, stored)
        for name, p in param_table(TINY).items():
            if p.group in limits:
                assert np.abs(stored[name]).max() == limits[p.group]
                assert np.abs(back[name] - weights[name]).max() <= 0.51 / limits[p.group]
            elif p.group == "embed":
                assert back[name].tobytes() == weights[name].astype(np.float16).astype(np.float32).tobytes()
                assert name + ".scale" not in stored
            else:
                assert back[name].tobytes() == weights[name].tobytes()


@pytest.mark.parametrize("text, largest", [
    ("127", 8e6), ("2", 8e6 / 127 * 2), ("fp16", 8e6 / 127), ("auto", 8e6 / 127 * 2),
])
def test_a_weight_whose_scale_is_not_a_float16_is_refused(text, largest):
    s, weights = dataclasses.replace(TINY, quant_levels=text), trained()
    weights["tok_emb.weight"][0, 0] = largest * 1.01
    assert unstorable(s, weights) == "tok_emb.weight"
    weights["tok_emb.weight"][0, 0] = largest * 0.99
    assert unstorable(s, weights) is None
    if text != "auto":
        dequantize_weights(s, quantize_weights(s, weights))


@pytest.mark.parametrize("levels, name, value", [
    (5, "tok_emb.weight", 6), (5, "tok_emb.weight", -6), (127, "tok_emb.weight", -128), (300, "tok_emb.weight", 80),
])
def test_codes_beyond_the_levels_are_refused(levels, name, value):
    groups = dict.fromkeys(("matrix", "embed", "head"), levels)
    stored = quantize_weights(TINY, trained(), groups)
    dequantize_weights(TINY, stored, groups)
    stored[name][0, 0] = value
    with pytest.raises(ValueError, match=f"tensor {name} holds a code"):
        dequantize_weights(TINY, stored, groups)


def test_relative_error():
    weights = trained()
    assert relative_error(TINY, weights, weights) == 0
    assert relative_error(TINY, weights, {name: 0.75 * w for name, w in weights.items()}) == pytest.approx(0.25)
