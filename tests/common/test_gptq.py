"""Hessian-aware rounding and QUANT_CLIP: `python -m pytest tests/common/test_gptq.py`."""
import dataclasses
import functools
import math

import numpy as np
import pytest

from common.artifact import encode_model, pack_payload, read_model
from common.fit import LOOSE, encode_within
from common.gptq import factor
from common.params import param_table
from common.preflight import artifact_bytes
from common.quantize import dequantize_rows, quantize_rows, row_rms, store_matrix
from common.settings import Settings, group_levels, setting_conflicts
from tests.conftest import tiered

SMALL = Settings(vocab_size=200, num_layers=3, model_dim=64, num_heads=2, num_kv_heads=1, train_seq_len=16,
                 quant_levels="matrix=7,embed=31")


def inputs(seed, tokens, columns):
    """(tokens, columns) that are strongly correlated and of unequal size, as those of a trained model."""
    random = np.random.Generator(np.random.Philox(seed))
    mix = random.standard_normal((columns, columns)) * 0.7 ** np.arange(columns)[:, None]
    x = random.standard_normal((tokens, columns)) @ mix + 0.1 * random.standard_normal((tokens, columns))
    return x * np.exp(random.standard_normal(columns))


def normal(seed, *shape):
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape).astype(np.float32)


@functools.cache
def model(settings=SMALL):
    """(weights, products)."""
    table, weights, products = param_table(settings), {}, {}
    for i, (name, p) in enumerate(table.items()):
        weights[name] = normal([1, i], *p.shape)
        if p.group == "matrix":
            x = inputs([2, i], 400, p.shape[1])
            products[name] = x.T @ x
    return weights, products


def output_error(weight, rounded, products):
    e = (weight - rounded).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", e, products, e))


def as_the_paper_says(weight, products, levels, clip=0.0):
    """Codes by algorithm 1 of the paper, a column at a time, with the whole inverse: what is left of it after a column
    is eliminated, instead of its Cholesky factor."""
    scale = quantize_rows(weight, levels, clip)[1].astype(np.float64)
    columns, top = weight.shape[1], round(levels)
    order = sorted(range(columns), key=lambda k: -products[k, k])
    damped = products + 0.01 * np.mean(products.diagonal()) * np.eye(columns)
    inverse = np.linalg.inv(damped[order][:, order])
    left, codes = weight[:, order].astype(np.float64), np.zeros(weight.shape, int)
    for k in range(columns):
        q = np.divide(left[:, k], scale, out=np.zeros(len(scale)), where=scale > 0)
        codes[:, order[k]] = q = np.clip(np.rint(q), -top, top)
        left -= np.outer((left[:, k] - q * scale) / inverse[k, k], inverse[k])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return codes


@pytest.mark.parametrize("rows, columns, levels, clip", [
    (1, 1, 7, 0.0), (3, 2, 2, 0.0), (1, 37, 15, 0.0), (40, 128, 7, 0.0), (24, 129, 31, 0.0), (33, 300, 5.4, 0.0),
    (33, 300, 300, 0.0), (24, 129, 31, 9.0), (24, 129, 7, 2.0)])
def test_it_is_the_algorithm_of_the_paper(rows, columns, levels, clip):
    weight, x = normal(3, rows, columns), inputs(4, 500, columns)
    products = x.T @ x
    q, scale = quantize_rows(weight, levels, clip, factor(products))
    plain, same = quantize_rows(weight, levels, clip)
    assert (q.dtype, q.shape, scale.tobytes()) == (plain.dtype, weight.shape, same.tobytes())
    expected = as_the_paper_says(weight, products, levels, clip)
    assert np.count_nonzero(q != expected) <= 1e-4 * q.size  # where a value is a half, but for rounding errors
    assert np.abs(q.astype(int)).max() <= round(levels)
    if columns > 2:
        assert (q != plain).any()


@pytest.mark.parametrize("levels, clip, most", [(31, 0.0, 0.25), (7, 0.0, 0.25), (7, 4.0, 0.25), (2, 0.0, 0.4)])
def test_outputs_have_less_error_than_by_plain_rounding(levels, clip, most):
    weight, x = normal(5, 48, 200), inputs(6, 1000, 200)
    products = x.T @ x
    plain = output_error(weight, dequantize_rows(*quantize_rows(weight, levels, clip)), products)
    ours = output_error(weight, dequantize_rows(*quantize_rows(weight, levels, clip, factor(products))), products)
    assert ours < most * plain


@pytest.mark.parametrize("products", [
    np.diag(np.arange(150.0)[::-1]), np.zeros((150, 150)), np.full((150, 150), np.nan)], ids=["diagonal", "0", "nan"])
def test_without_correlations_it_is_plain_rounding(products):
    weight = normal(7, 20, 150)
    weight[3] = 0
    for a, b in zip(quantize_rows(weight, 15, 0.0, factor(products)), quantize_rows(weight, 15), strict=True):
        assert a.tobytes() == b.tobytes()


def test_dead_inputs_are_rounded_plainly_and_disturb_nothing():
    weight, x = normal(8, 16, 140), inputs(9, 500, 140)
    weight[5] = 0
    dead = [0, 17, 139]
    x[:, dead] = 0
    q, scale = quantize_rows(weight, 15, 0.0, factor(x.T @ x))
    assert q[:, dead].tolist() == quantize_rows(weight, 15)[0][:, dead].tolist() and scale[5] == 0 and not q[5].any()
    weight[:, dead] /= 2  # below the largest of their rows
    kept = [k for k in range(140) if k not in dead]
    changed = quantize_rows(weight, 15, 0.0, factor(x.T @ x))[0]
    same = scale == quantize_rows(weight, 15)[1]
    assert same.sum() > 8 and (changed[same][:, kept] == q[same][:, kept]).all()


@pytest.mark.parametrize("spoil", [0.03, 3.0, 1e6])
def test_what_is_not_positive_definite_is_damped_more(spoil):
    x = inputs(10, 20, 60)
    products = x.T @ x
    value, vector = np.linalg.eigh(products)
    value[0] = -spoil * products.diagonal().mean()
    products = vector * value @ vector.T
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(products + 0.01 * products.diagonal().mean() * np.eye(60))
    order, spread = factor(products)
    assert np.isfinite(spread).all() and sorted(order) == [*range(60)]
    assert np.abs(quantize_rows(normal(11, 4, 60), 7, 0.0, (order, spread))[0]).max() <= 7


def test_columns_come_by_falling_diagonal_and_noise_does_not_change_that():
    x = inputs(12, 90, 40)
    x[:, 7] = x[::-1, 3]  # equal diagonals, but for the order of the sum
    products = x.T @ x
    order = factor(products)[0]
    assert (np.diff(np.float32(products.diagonal()[order])) <= 0).all()
    for noise in (1e-13, -1e-13):
        noisy = products.copy()
        noisy[7, 7] *= 1 + noise
        assert (factor(noisy)[0] == order).all()


def test_rows_that_are_too_small_for_a_step_get_zeros():
    weight, x = normal(13, 4, 30), inputs(14, 90, 30)
    weight[1:3] = [[0], [1e-9]] * np.ones((2, 30))
    q, scale = quantize_rows(weight, 7, 0.0, factor(x.T @ x))
    assert scale[1:3].tolist() == [0, 0] and not q[1:3].any() and q[[0, 3]].any()


@pytest.mark.parametrize("levels", [7, 31, 127, 300])
def test_a_clipped_step_is_k_root_mean_squares(levels):
    weight = normal(15, 5, 3000) * np.float32([[1e-3], [1], [1], [40], [0]])
    weight[2, 5] = 1000
    rms = np.sqrt(np.square(weight.astype(np.float64)).mean(axis=1))
    assert row_rms(weight) == pytest.approx(rms, rel=1e-6)
    q, scale = quantize_rows(weight, levels, 2.5)
    assert scale.astype(np.float64) == pytest.approx(2.5 * rms / levels, rel=2**-10, abs=2**-25)
    step = scale.astype(np.float32)[:, None]
    exact = np.rint(np.divide(weight, step, out=np.zeros_like(weight), where=step > 0))
    assert q.tolist() == np.clip(exact, -levels, levels).tolist() and (np.abs(exact) > levels).any()
    assert q[2, 5] == levels


def test_the_root_mean_square_does_not_depend_on_the_order_of_the_sum():
    weight = normal(16, 50, 1000)
    shuffled = weight[:, np.random.Generator(np.random.Philox(17)).permutation(1000)]
    assert row_rms(weight).tobytes() == row_rms(shuffled).tobytes() == (row_rms(weight * 2.0**-90) * 2.0**90).tobytes()
    for row, found in zip(weight, row_rms(weight).tolist()):
        _, e = math.frexp(np.abs(row).max())
        assert found == math.sqrt(sum(round(math.ldexp(w, 20 - e)) ** 2 for w in row) / 1000) * 2.0**(e - 20)


def test_only_matrices_are_clipped():
    weights, _ = model()
    settings = dataclasses.replace(SMALL, quant_clip=2.0)
    _, levels, stored, _ = read_model(encode_model(settings, weights)[0])
    for name, p in param_table(SMALL).items():
        if p.group in levels:
            clip = 2.0 if p.group == "matrix" else 0.0
            expected = store_matrix(name, weights[name], levels[p.group], clip)
            assert all(stored[key].tobytes() == tensor.tobytes() for key, tensor in expected.items())
    name = "blocks.1.mlp.fc.weight"
    assert not (stored[name] == store_matrix(name, weights[name], 7)[name]).all()


@pytest.mark.parametrize("levels", ["2", "127"])
def test_a_step_is_a_finite_float16_whatever_the_clip(levels):
    settings = dataclasses.replace(SMALL, quant_clip=1000.0, quant_levels=levels)
    large = np.full((64, 64), 7.9e6 * int(levels) / 127, np.float32)
    back = read_model(encode_model(settings, model()[0] | {"blocks.0.attn.c_q.weight": large})[0])[3]
    assert np.abs(back["blocks.0.attn.c_q.weight"] - large).max() <= 65504 / 2


@pytest.mark.parametrize("clip", [0.0, 4.0])
@pytest.mark.parametrize("levels", tiered(["matrix=7,embed=31", "matrix=auto,embed=fp16", "auto", "fp16"], 2))
def test_the_file_comes_back_and_fits(levels, clip):
    weights, products = model()
    settings = dataclasses.replace(SMALL, quant_levels=levels, quant_clip=clip)
    tried = []
    budget = int(0.75 * len(encode_model(dataclasses.replace(settings, quant_levels="31"), weights)[0]))
    arguments = settings, weights, budget, lambda kind, **values: tried.append(values), products
    file, payload = encode_within(*arguments)
    assert encode_within(*arguments)[0] == file
    found, levels, stored, rounded = read_model(file)
    assert pack_payload(found, stored, levels) == payload
    if tried:
        assert budget * (1 - 2 * LOOSE) <= len(file) == tried[-1]["bytes"] <= budget
    plain, _ = encode_model(settings, weights, levels)
    worse = read_model(plain)[3]
    for name, p in param_table(SMALL).items():
        if p.group != "matrix" or levels["matrix"] == "fp16":
            assert rounded[name].tobytes() == worse[name].tobytes()
        else:
            ours, theirs = (output_error(weights[name], w[name], products[name]) for w in (rounded, worse))
            assert ours < 0.5 * theirs
    assert (file == plain) == (levels["matrix"] == "fp16")


@pytest.mark.parametrize("clip", [0.0, 12.85])
def test_the_estimate_of_the_bytes_knows_the_clip(clip):
    settings = dataclasses.replace(SMALL, quant_clip=clip, quant_levels="matrix=31,embed=127")
    file, _ = encode_model(settings, model()[0])
    assert artifact_bytes(settings, group_levels(settings)) == pytest.approx(len(file), rel=0.05)


def test_clipped_steps_and_rounding_in_training_exclude_each_other():
    clipped = dataclasses.replace(SMALL, quant_clip=12.85)
    assert setting_conflicts(clipped) == []
    wrong, = setting_conflicts(dataclasses.replace(clipped, qat_start=0.5))
    assert "QUANT_CLIP=12.85" in wrong and "QAT_START=0.5" in wrong and "use 0 or QAT_START=1" in wrong
