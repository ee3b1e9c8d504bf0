"""As many levels as fit the budget: `python -m pytest tests/common/test_fit.py`."""
import dataclasses

import numpy as np
import pytest

from common.artifact import encode_model, read_model
from common.fit import LOOSE, PASSES, encode_within, fit_levels, search_levels
from common.params import param_table
from common.settings import Settings, UserError

SMALL = Settings(vocab_size=200, num_layers=3, model_dim=64, num_heads=2, num_kv_heads=1, train_seq_len=16,
                 quant_levels="auto")


def normal(settings):
    random = np.random.Generator(np.random.Philox(1))
    return {name: random.standard_normal(p.shape).astype(np.float32) for name, p in param_table(settings).items()}


WEIGHTS = normal(SMALL)
PLAIN = len(encode_model(dataclasses.replace(SMALL, quant_levels="127"), WEIGHTS)[0])


@pytest.mark.parametrize("times", [0.52, 0.6, 0.8, 0.98, 1.1, 1.5, 2, 3])
def test_the_file_fits_the_budget_and_little_is_left(times):
    budget, lines = int(PLAIN / times), []
    model, _ = encode_within(SMALL, WEIGHTS, budget, lambda kind, **values: lines.append((kind, values)))
    assert budget * (1 - 2 * LOOSE) <= len(model) <= budget
    assert model == encode_within(SMALL, WEIGHTS, budget, lambda *_, **__: None)[0]
    levels = read_model(model)[1]
    assert levels["matrix"] == levels["embed"] and (levels["matrix"] < 127) == (times > 1)
    assert {kind for kind, _ in lines} == {"quant"} and 1 <= len(lines) <= PASSES
    assert lines[-1][1]["levels"] == f"matrix={levels['matrix']},embed={levels['embed']}"
    assert lines[-1][1]["bytes"] == len(model)


def test_more_bytes_have_less_error():
    tried = fit_levels(SMALL, WEIGHTS, PLAIN // 2)[1]
    assert len(tried) > 1
    by_size = sorted(tried, key=lambda point: point[1])
    assert [point[2] for point in by_size] == sorted((point[2] for point in tried), reverse=True)


def test_only_auto_groups_change():
    s = dataclasses.replace(SMALL, quant_levels="matrix=auto,embed=fp16")
    levels, _ = fit_levels(s, WEIGHTS, PLAIN)
    assert levels["embed"] == "fp16" and 2 < levels["matrix"] < 127
    assert PLAIN * (1 - 2 * LOOSE) <= len(encode_model(s, WEIGHTS, levels)[0]) <= PLAIN


def test_a_small_model_gets_the_most_levels():
    levels, tried = fit_levels(SMALL, WEIGHTS, 10 * PLAIN)
    assert levels == {"matrix": 32767, "embed": 32767} and tried[-1][2] < 1e-4
    assert read_model(encode_model(SMALL, WEIGHTS, levels)[0])[1] == levels


def test_the_error_for_a_model_too_large_at_2_levels_says_what_would_fit():
    least = len(encode_model(SMALL, WEIGHTS, {"matrix": 2, "embed": 2})[0])
    assert fit_levels(SMALL, WEIGHTS, least)[0]["matrix"] == pytest.approx(2, rel=0.05)
    words = f"at 2 levels the model has {least:,} bytes, 3,000 more than .* NUM_LAYERS=2 would fit"
    with pytest.raises(UserError, match=words) as error:
        fit_levels(SMALL, WEIGHTS, least - 3000)
    assert error.value.status == "over_budget"
    with pytest.raises(UserError, match="smaller MODEL_DIM"):
        fit_levels(SMALL, WEIGHTS, 3000)


@pytest.mark.parametrize("size", [
    lambda x: 1e5 + 4e4 * np.log2(x) ** 1.5, lambda x: 1e4 + 50 * x**0.5,
    lambda x: 1e5 + 4e4 * np.log2(x), lambda x: 1e4 * (1 + x // 64)])
def test_the_search_finds_what_there_is(size):
    for aim in (2, 3, 30, 130, 3000, 32767):
        found = search_levels(size, size(aim), 1e4)
        assert size(found) <= size(aim) and size(1.02 * found) >= size(aim) * (1 - LOOSE)
    assert search_levels(size, size(2) - 1, 1e4) is None


def test_fixed_levels_are_not_searched():
    s = dataclasses.replace(SMALL, quant_levels="15")
    assert encode_within(s, WEIGHTS, 10, None)[0] == encode_model(s, WEIGHTS)[0]
