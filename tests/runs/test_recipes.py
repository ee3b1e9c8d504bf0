"""Recipes, and GPTQ's calibration in a run: `python -m pytest tests/runs/test_recipes.py`."""
import dataclasses
import types

import numpy as np
import pytest

from common.calibration import calibrate
from common.dataset import open_data
from common.params import param_table
from common.preflight import artifact_row
from common.readlog import parse_log
from common.recipes import RECIPES
from common.settings import Settings, UserError, as_text, load_settings, parse_settings
from parity.options import option_settings
from parity.problem import full_weights, ladder_settings
from tests.conftest import BACKENDS, ROOT, TINY, environment, run_script, tiny_settings, trainer_class


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_it_says_and_any_setting_can_be_given(name):
    s = load_settings(Settings, [], {"RECIPE": name}, print)
    assert vars(s) == vars(Settings(**RECIPES[name], recipe=name))
    other = load_settings(Settings, ["--num-layers=12"], {"RECIPE": name, "ROPE_DIMS": "8"}, print)
    assert vars(other) == vars(s) | {"num_layers": 12, "rope_dims": 8}
    assert load_settings(Settings, [f"--recipe={name}"], {"RECIPE": "laptop"}, print) == s
    for key, value in RECIPES[name].items():  # no setting that changes nothing
        assert as_text(value) != as_text(getattr(Settings(), key)), key


def test_a_recipe_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="RECIPE=moderne is not one of baseline, laptop, modern; did you mean modern?"):
        load_settings(Settings, [], {"RECIPE": "moderne"}, print)
    with pytest.raises(UserError, match="modern$"):
        load_settings(Settings, [], {"RECIPE": "x"}, print)


def test_the_ladder_climbs_with_the_model_of_a_recipe():
    s = ladder_settings(["--recipe=laptop"])
    assert {name: getattr(s, name) for name in ("model_dim", "bigram_rows", "mlp_slope")} == {
        name: RECIPES["laptop"][name] for name in ("model_dim", "bigram_rows", "mlp_slope")}
    assert s.train_batch_tokens == 2048 and not s.compile and s.max_wallclock_seconds == 0


@pytest.mark.parametrize("vocab_size", [1024, 4096, 8192])
def test_the_modern_recipe_fits_the_budget(vocab_size):
    """By the estimate of --preflight, with the levels that fill it."""
    s = Settings(**RECIPES["modern"], vocab_size=vocab_size)
    _, text, problem = artifact_row(s, 65_000)
    assert not problem and " levels" in text, text


def test_a_resumed_run_keeps_what_replaced_a_value_of_its_recipe():
    first = load_settings(Settings, ["--num-layers=6"], {"RECIPE": "laptop"}, print)
    stored = {name: as_text(value) for name, value in vars(first).items()}  # as of settings.json
    assert parse_settings(Settings, stored | {"recipe": "laptop"}) == first


# calibration ----------------------------------------------------------------------------------------------------------


def first_inputs(s, weights, tokens):
    """(tokens, columns): what queries, keys and values of the first block are made of."""
    def norm(x):
        return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + s.rms_norm_eps)

    x = norm(weights["tok_emb.weight"][tokens].astype(np.float64))
    mix = weights["blocks.0.resid_mix"].astype(np.float64)
    return norm((mix[0] + mix[1]) * x).reshape(-1, s.model_dim)


def test_products_are_those_of_the_inputs(documents):
    """Those of the first attention are computed here, those of an MLP are normed, and of all the backends agree."""
    found = {}
    for backend in BACKENDS:
        s = tiny_settings(backend, documents, compute_dtype="float64", gptq_tokens=500, micro_batch_tokens=64)
        weights, data = full_weights(s), open_data(s)
        trainer = trainer_class(backend)(s, weights)
        before = trainer.token_nats(data.train.read(0, 66).reshape(2, 33))
        found[backend] = calibrate(trainer, s, data.train)
        assert (trainer.token_nats(data.train.read(0, 66).reshape(2, 33)) == before).all()
        tokens = data.train.read(0, 15 * 32).reshape(15, 32)
        assert found[backend].keys() == {name for name, p in param_table(s).items() if p.group == "matrix"}
        x = first_inputs(s, weights, tokens)
        for name in ("c_q", "c_k", "c_v"):
            np.testing.assert_allclose(found[backend][f"blocks.0.attn.{name}.weight"], x.T @ x, rtol=1e-9, atol=1e-9)
        assert abs(found[backend]["blocks.2.mlp.fc.weight"].trace() / tokens.size / s.model_dim - 1) < 1e-5
    for name, product in found["torch"].items():
        np.testing.assert_allclose(found["mlx"][name], product, rtol=1e-9, atol=1e-9 * product.max(), err_msg=name)


def test_every_rank_needs_a_row(documents):
    s = tiny_settings("torch", documents, gptq_tokens=95)
    with pytest.raises(UserError, match="GPTQ_TOKENS=95 is 2 rows of TRAIN_SEQ_LEN=32 for 3 ranks: use 96 or more"):
        calibrate(types.SimpleNamespace(world_size=3), s, open_data(s).train)


def test_the_average_is_calibrated_where_it_is_exported(backend, documents):
    s = tiny_settings(backend, documents, compute_dtype="float64", gptq_tokens=64, ema_decay=0.9)
    data, kind = open_data(s), trainer_class(backend)
    trainer = kind(s, full_weights(s))
    trainer.train_step(data.train.read(0, 8 * 33).reshape(8, 33), 1.0, 0.9)
    trainer.update_average(0.9)
    weights = trainer.weights()
    found = calibrate(trainer, s, data.train)
    assert all((weights[name] == w).all() for name, w in trainer.weights().items())
    plain = dataclasses.replace(s, ema_decay=0.0)
    for averaged in (True, False):
        own = kind(plain, full_weights(s))
        own.load_state(trainer.weights(averaged=averaged))
        name = "blocks.1.mlp.fc.weight"
        assert np.allclose(calibrate(own, plain, data.train)[name], found[name], rtol=1e-9) == averaged


@pytest.mark.slow
def test_calibration_is_part_of_the_training_time(backend, tmp_path, documents):
    """The run stops early enough for it, and does not begin where it would leave no time to train."""
    env = environment(documents, max_wallclock_seconds=3, iterations=10**6, gptq_tokens=7936, quant_levels=7,
                      micro_batch_tokens=32, train_log_every=1, loss_chunk=0)
    done = run_script([ROOT / BACKENDS[backend]], tmp_path, env)
    assert done.returncode == 0, done.stderr
    lines = parse_log(next(tmp_path.glob("runs/*/train.log")).read_text())
    found = dict(lines)
    steps = [values["ms"] for kind, values in lines if kind == "step"]
    seconds = found["calibration"]["seconds"]
    assert found["calibration"]["tokens"] == 7936 and seconds >= 0.1
    assert steps[-1] + 1e3 * seconds - 100 <= found["val"]["ms"]
    assert steps[-1] + 0.5e3 * seconds <= 3000  # on a busy machine it may take twice the time that was reserved
    done = run_script([ROOT / BACKENDS[backend], "--max-wallclock-seconds=0.01"], tmp_path, env)
    assert done.returncode == 2 and "GPTQ_TOKENS=7936" in done.stderr and "MAX_WALLCLOCK_SECONDS=0.01" in done.stderr


@pytest.mark.slow
def test_gptq_rounds_what_the_run_writes(backend, tmp_path, documents):
    """The same weights, other codes, and less error of the outputs on the tokens that it was calibrated on."""
    changes = option_settings(Settings(**TINY), ["GPTQ"]) | {"quant_levels": "matrix=3", "iterations": 20}
    scores = {}
    for tokens in (0, 4096):
        folder = tmp_path / str(tokens)
        folder.mkdir()
        env = environment(documents, **changes | {"gptq_tokens": tokens})
        done = run_script([ROOT / BACKENDS[backend]], folder, env)
        assert done.returncode == 0, done.stderr
        lines = dict(parse_log(next(folder.glob("runs/*/train.log")).read_text()))
        assert ("calibration" in lines) == bool(tokens)
        scores[tokens] = lines["val"]["val_loss"], lines["final"]["val_loss"]
    (before, plain), (same, rounded) = scores.values()
    assert before == same and rounded != plain
    assert rounded - before < plain - before
