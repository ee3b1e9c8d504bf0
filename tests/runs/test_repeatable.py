"""Equal runs give equal bytes on the CPU, compiled or not, with more than one thread, as users run them.

Run: `python -m pytest tests/runs/test_repeatable.py`.
"""
import dataclasses
import os
import signal

import numpy as np
import pytest

from common.params import initial_weights
from tests.conftest import BACKENDS, DEVICES, GPUS, ROOT, environment, run_script, tiny_settings, trainer_class
from tests.faults import Run, ended

# large enough that the threads share sums, in two micro-batches
THREADS = {
    "num_layers": 2, "model_dim": 64, "train_seq_len": 64, "train_batch_tokens": 2048, "micro_batch_tokens": 1024,
    "iterations": 16, "warmup_steps": 1, "checkpoint_every": "0", "compile": True,
    "omp_num_threads": 2, "openblas_num_threads": 2,
}


@pytest.mark.parametrize("dtype, compiled", [("float32", False), *(
    pytest.param(dtype, True, marks=pytest.mark.slow) for dtype in ("float32", "bfloat16"))])
def test_twice_and_resumed_the_same_bytes_with_two_threads(dtype, compiled, backend, tmp_path, data_path):
    settings = THREADS | {"compute_dtype": dtype, "compile": compiled}
    models = []
    for name in ("once", "twice"):
        run = Run(backend, tmp_path / name, data_path, **settings)
        assert run.wait(180) == [0], run.text()
        models.append(run.model())
    stopped = Run(backend, tmp_path / "stopped", data_path, ("slow", 0.2), **settings)
    stopped.until_step(3)
    os.kill(stopped.ranks[0].pid, signal.SIGTERM)
    assert ended(stopped, "interrupted")["step"] < settings["iterations"]
    again = Run(backend, tmp_path / "stopped", data_path, run_id="", resume="runs/r", **settings)
    assert again.wait(180) == [0], again.text()
    assert models[0] == models[1] == again.model()


@pytest.mark.parametrize("backend", GPUS)
def test_on_a_gpu_with_deterministic_the_same_bytes(backend, tmp_path, data_path):
    env = environment(data_path, **THREADS | {"device": "gpu", "deterministic": True, "compute_dtype": "bfloat16"})
    models = []
    for name in ("once", "twice"):
        done = run_script([ROOT / BACKENDS[backend], "--run-id", name], tmp_path, env)
        assert done.returncode == 0, done.stdout + done.stderr
        models.append((tmp_path / "runs" / name / "model.int8.zlib").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("backend, device", DEVICES)
def test_a_state_that_is_taken_over_goes_on_the_same(backend, device, data_path):
    """To the bit, with an average, in the dtype of the device."""
    s = tiny_settings(backend, data_path, device=device, deterministic=True, ema_decay=0.9, qat_start=0.5)
    tokens = np.random.Generator(np.random.Philox(4)).integers(0, 260, (8, 33)).astype(np.int32)

    def steps(trainer):
        for rounding in (False, True, True):
            trainer.train_step(tokens, 1.0, 0.9, rounding)
            trainer.update_average(0.9)
        return trainer.state()

    first, second = (trainer_class(backend)(s, initial_weights(s)) for _ in range(2))
    second.load_state(steps(first))
    ends = steps(first), steps(second)
    assert ends[0].keys() == ends[1].keys() and all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_deterministic_is_another_way_to_the_same_gradients(backend, data_path):
    """On Metal it replaces the lookup of the embedding; here both ways can be compared."""
    found = []
    for deterministic in (False, True):
        s = tiny_settings(backend, data_path, compute_dtype="float64", deterministic=deterministic)
        trainer = trainer_class(backend)(s, initial_weights(dataclasses.replace(s, vocab_size=260)))
        tokens = np.random.Generator(np.random.Philox(3)).integers(0, 260, (8, 33)).astype(np.int32)
        found.append(trainer.gradients(tokens))
    (loss, grads), (other_loss, others) = found
    assert abs(loss - other_loss) < 1e-12
    for name, grad in grads.items():
        np.testing.assert_allclose(others[name], grad, rtol=0, atol=1e-12)
