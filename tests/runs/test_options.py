"""The options of a run, which are off by default, on both backends: `python -m pytest tests/runs/test_options.py`."""
import functools
import os
import signal

import numpy as np
import pytest

from common.params import initial_weights
from common.quantize import dequantize_rows, quantize_rows
from common.schedule import ema_decay
from common.settings import Settings, settings_of
from parity.options import OPTIONS, option_settings
from parity.problem import make_problem
from parity.rungs import Side
from tests.conftest import DEVICES, TINY, tiered, trainer_class
from tests.faults import Run, ended

IN_TRAINING = settings_of("model", "training", "memory").keys() | {"quant_levels"}  # the others: test_options_eval.py
CASES = {name: option_settings(Settings(**TINY), [name]) for name in OPTIONS if OPTIONS[name].keys() <= IN_TRAINING}
CASES |= {
    "all options": option_settings(Settings(**TINY)),
    "rounding to few levels": {"qat_start": 0.25, "quant_levels": "matrix=7,embed=fp16"},
    "levels that fit the budget": {"quant_levels": "auto"},
    "GPTQ of clipped rows": {"gptq_tokens": 256, "quant_clip": 6.0, "quant_levels": "matrix=15"},
}


@pytest.fixture(scope="module")
def trained(documents):
    """A function: (backend, changed settings) -> the model file after the steps of a tiny run in reference mode."""
    @functools.cache
    def model(backend, *changes):
        s = Settings(**TINY | {"data_path": str(documents)} | dict(changes))
        side = Side(trainer_class(backend), make_problem(s), "float64")
        return side.encode(side.trainer, side.s, side.trained[1])[0]
    return model


@pytest.mark.parametrize("name", tiered(CASES, 4))
def test_both_backends_train_the_same_model_with_it(name, trained):
    """In reference mode, to the byte. It is another model than without the option, unless that only saves memory."""
    changes = CASES[name]
    torch = trained("torch", *changes.items())
    assert torch == trained("mlx", *changes.items())
    assert (torch == trained("torch")) == (changes.keys() <= settings_of("memory").keys())


def test_whole_runs_with_all_options_make_the_same_model(whole):
    assert whole("torch", **CASES["all options"]) == whole("mlx", **CASES["all options"])


@pytest.mark.slow
def test_interrupted_and_resumed_with_two_ranks(backend, tmp_path, data_path, whole):
    """The average is part of a checkpoint, its validation leaves no trace in the weights, and each rank calibrates on
    its own rows."""
    changes = CASES["average"] | CASES["rounding in training"] | option_settings(Settings(**TINY), ["GPTQ"])
    run = Run(backend, tmp_path / "a", data_path, ("slow",), 2, val_loss_every=3, train_log_every=1, **changes)
    run.until_step(14)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    ended(run, "interrupted")
    again = Run(backend, tmp_path / "a", data_path, None, 2, resume="auto", run_id="", val_loss_every=3, **changes)
    assert again.wait() == [0, 0], again.text()
    assert run.model() == whole(backend, **changes)


def test_the_average_is_what_the_formula_says(backend):
    s = trainer_class(backend).settings_class(**TINY, compute_dtype="float64", ema_decay=0.9)
    trainer = trainer_class(backend)(s, initial_weights(s))
    mean, rows = trainer.weights(), np.arange(4 * (s.train_seq_len + 1)).reshape(4, -1) % s.vocab_size
    for step in range(3):
        trainer.train_step(rows, 1.0, 0.9)
        decay = ema_decay(s, step)
        trainer.update_average(decay)
        weights = trainer.weights()
        mean = {name: decay * mean[name] + (1 - decay) * weights[name] for name in mean}
    found = trainer.weights(averaged=True)
    assert max(np.abs(found[name] - mean[name]).max() for name in mean) < 1e-12
    assert max(np.abs(found[name] - weights[name]).max() for name in mean) > 1e-3


def test_the_decay_grows_to_the_one_that_is_set():
    s = Settings(ema_decay=0.99)
    assert [ema_decay(s, step) for step in (0, 10, 10_000)] == [0.1, 11 / 20, 0.99]


@pytest.mark.parametrize("backend, device", DEVICES)
@pytest.mark.parametrize("levels", [2, 7, 31, 127, "fp16"])
def test_training_rounds_as_the_model_file_does(levels, backend, device):
    """Bit for bit, with rows of zeros, rows whose scale is a subnormal float16 or 0, and values halfway between two
    codes."""
    random = np.random.Generator(np.random.Philox(0))
    weights = random.standard_normal((64, 96)).astype(np.float32)
    weights *= np.float32(10.0) ** random.integers(-7, 3, (64, 1)).astype(np.float32)
    weights[3] = 0
    weights[4] = np.arange(96) - 47.5 if levels == "fp16" else np.arange(96) % (2 * levels) - levels + 0.5
    weights[4, 0] = 2**-25 if levels == "fp16" else levels  # half of the smallest float16; a step of 1
    if backend == "torch":
        import torch

        from train_gpt import round_rows
        given = torch.from_numpy(weights).to("cuda" if device == "gpu" else "cpu")
        rounded = round_rows(given, levels).cpu().numpy()
    else:
        from train_gpt_mlx import mx, round_rows
        with mx.stream(getattr(mx, device)):
            rounded = np.array(round_rows(mx.array(weights), levels))
    if levels == "fp16":
        expected = weights.astype(np.float16).astype(np.float32)
    else:
        expected = dequantize_rows(*quantize_rows(weights, levels))
    assert np.array_equal(rounded, expected)


@pytest.mark.cuda
def test_rounding_copies_nothing_that_the_cpu_waits_for():
    import torch

    from train_gpt import round_rows
    weights = torch.ones(8, 8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        round_rows(weights, 31)
    finally:
        torch.cuda.set_sync_debug_mode("default")
