"""The ladder holds, and each defect planted in one side makes it fail at the right rung: `python -m pytest tests/test_parity.py`."""
import dataclasses
import json
import sys
import types

import numpy as np
import pytest

from common import artifact, batches, bpb, params, quantize, schedule
from parity import ladder, portable
from parity.__main__ import main
from parity.problem import DTYPES, RUNGS, first_rows, full_weights, make_problem, observe
from tests.conftest import BACKENDS, ROOT, TINY, trainer_class

SIZE = {name: value for name, value in TINY.items() if name not in ("iterations", "warmup_steps", "val_loss_every", "compile", "device")}


@pytest.fixture(scope="session")
def task(data_path):
    return make_problem(data_path, 6, **SIZE | {"num_layers": 4})


def show(task, trainer, dtype="float64"):
    return observe(trainer, task, dtype, compile=False, device="cpu")


@pytest.fixture(scope="session")
def shown(task):
    return {(backend, dtype): show(task, trainer_class(backend), dtype) for backend in BACKENDS for dtype in DTYPES}


def failing(rows):
    return [row.rung for row in rows if not row.passed]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rung_holds(dtype, shown):
    rows = ladder.climb(dtype, shown["torch", dtype], shown["mlx", dtype])
    assert [row.rung for row in rows if row.rung != "logits as float32"] == list(RUNGS)
    assert ("logits as float32" in [row.rung for row in rows]) == (dtype == "float64")
    assert failing(rows) == [], ladder.table(rows, ("torch", "mlx"))


@pytest.mark.parametrize("device", [pytest.param("torch", marks=pytest.mark.cuda), pytest.param("mlx", marks=pytest.mark.metal)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_rung_holds_between_the_gpu_and_both_cpu_backends(device, dtype, compiled, shown, task):
    gpu = observe(trainer_class(device), task, dtype, compile=compiled, device="gpu")
    for backend in BACKENDS:
        rows = ladder.climb(dtype, gpu, shown[backend, dtype])
        assert failing(rows) == [], ladder.table(rows, (f"{device} on the GPU", f"{backend} on the CPU"))


def test_bounds_are_at_most_four_times_what_was_measured():
    for rung, (_, bounds) in ladder.BOUNDS.items():
        assert set(bounds) == set(DTYPES), rung
        assert all(measured < bound <= 4 * measured for bound, measured in bounds.values()), rung


def test_logits_that_round_apart_are_excused_at_a_rounding_border_only():
    border = 1 + 2.0**-24  # midway between two float32 neighbours
    a = np.array([[[0.5, border - 1e-15]]])
    row = ladder.rounded_logits(a, np.array([[[0.5, border + 1e-15]]]))
    assert row.passed and row.worst == 0 and "1 on a rounding border" in row.where
    row = ladder.rounded_logits(a, np.array([[[0.5, border + 2.0**-23]]]))
    assert not row.passed and row.worst == 0.5 and row.where == "logits[0, 0, 1]"


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_are_the_model_that_is_defined(backend, dtype, shown, task):
    row = ladder.against_definition(dtype, task.settings, full_weights(task.settings), first_rows(task), shown[backend, dtype])
    assert row.passed, row


def mutant(backend, old, new):
    """The trainer class of a backend whose source has one text replaced."""
    text = (ROOT / BACKENDS[backend]).read_text()
    assert old in text
    module = types.ModuleType(f"mutant_{backend}")
    sys.modules[module.__name__] = module  # dataclasses look it up
    exec(compile(text.replace(old, new), module.__name__, "exec"), module.__dict__)
    return module.MlxTrainer if backend == "mlx" else module.TorchTrainer


MUTANTS = [
    # (backend, source, defect, first rung that must fail)
    ("torch", "a * cos + b * sin, b * cos - a * sin", "a * cos - b * sin, b * cos + a * sin", "logits"),  # rotary sign
    ("mlx", "a * cos + b * sin, b * cos - a * sin", "a * cos - b * sin, b * cos + a * sin", "logits"),
    ("torch", "eps=s.rms_norm_eps", "eps=1e-5", "logits"),
    ("mlx", "keepdims=True) + s.rms_norm_eps)", "keepdims=True) + 1e-5)", "logits"),
    ("torch", "return self.s.logit_softcap * torch.tanh(logits / self.s.logit_softcap)", "return logits", "logits"),
    ("torch", "self.skip_weights[i - self.num_skips]", "self.skip_weights[self.num_skips * 2 - 1 - i]", "logits"),
    ("mlx", "skips.pop()", "skips.pop(0)", "logits"),
    ("torch", "* self.q_gain.to(x.dtype)[:, None, None]", "* (0 * self.q_gain + 1).to(x.dtype)[:, None, None]", "logits"),
    ("mlx", "rows = q[:, :, first:last].reshape(B, K, G * (last - first), D)",  # kv heads repeated in the wrong order
     "rows = q.reshape(B, G, K, T, D).swapaxes(1, 2)[:, :, :, first:last].reshape(B, K, G * (last - first), D)", "logits"),
    ("mlx", "mix[1] * x0", "mix[1] * x", "logits"),
    ("mlx", "mx.arange(last) <= mx.arange(first, last)[:, None]", "mx.arange(last) <= mx.arange(first, last)[:, None] + 1", "logits"),
    ("torch", "torch.relu(linear(x, self.fc)).square()", "torch.relu(linear(x, self.fc))", "logits"),
    ("mlx", "(tokens[:, 1:].size * self.world_size)", "(tokens.size * self.world_size)", "loss"),
    ("torch", "logits = linear(rms_norm(x, self.s), head)",  # the head's gradient does not reach the tied embedding
     "logits = F.linear(rms_norm(x, self.s), head.weight.detach().to(x.dtype))", "gradients"),
    ("torch", "return x.transpose(1, 2) if tall else x", "return x.transpose(1, 2) if tall or x.shape[1] == x.shape[2] else x", "one step"),
    ("mlx", "g = g + momentum * buffer", "g = buffer", "one step"),
    ("mlx", "lr * max(1, rows / columns) ** 0.5 * u", "lr * u", "one step"),
    ("mlx", "s.beta2 * state", "s.beta1 * state", "training losses"),  # the first step starts from zero
    ("torch", "betas=(s.beta1, s.beta2), eps=s.adam_eps", "betas=(s.beta1, s.beta2), eps=1e-6", "one step"),
]


@pytest.mark.parametrize("backend, old, new, rung", MUTANTS, ids=[f"{m[0]}: {m[2][:40]}" for m in MUTANTS])
def test_a_defect_in_a_trainer_fails_at_its_rung(backend, old, new, rung, shown, task):
    rows = ladder.climb("float64", shown["mlx" if backend == "torch" else "torch", "float64"], show(task, mutant(backend, old, new)))
    assert failing(rows)[0] == rung
    assert f"first failing rung: {rung}" in ladder.table(rows, ("a", "b"))


def late_rounding(weight):
    """q against the scale before it is rounded."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8), scale.astype(np.float16)


def reading_order(settings, stored, whole=artifact.pack_payload):
    """The same tensors, the last two of equal size and kind swapped in the file."""
    payload = whole(settings, stored)
    size = int.from_bytes(payload[:8], "little")
    head = json.loads(payload[8:8 + size])
    a, b = "blocks.0.attn_scale", "blocks.0.mlp_scale"
    (a0, a1), (b0, b1) = head[a]["data_offsets"], head[b]["data_offsets"]
    body = bytearray(payload[8 + size:])
    body[a0:a1], body[b0:b1] = body[b0:b1], body[a0:a1]
    head[a]["data_offsets"], head[b]["data_offsets"] = [b0, b1], [a0, a1]
    text = json.dumps(head, separators=(",", ":")).encode().ljust(size)
    return payload[:8] + text + bytes(body)


COMMON_DEFECTS = [
    (params, "initial_weights", lambda s, make=params.initial_weights: make(dataclasses.replace(s, seed=s.seed + 1)), "initial weights"),
    (batches, "step_rows", lambda *a, make=batches.step_rows: np.roll(make(*a), 1, axis=1), "batches"),
    (batches, "rank_rows", lambda s, rank, ranks, make=batches.rank_rows: (max(0, make(s, rank, ranks)[0] - 1), make(s, rank, ranks)[1]), "batches"),
    (bpb, "count_bytes", lambda *a, make=bpb.count_bytes: make(*a) + 1, "bytes and windows"),
    (bpb, "eval_windows", lambda n, length, make=bpb.eval_windows: make(n, length)[:-1], "bytes and windows"),
    (schedule, "muon_momentum", lambda s, step, make=schedule.muon_momentum: make(s, step + 1), "training losses"),
    (bpb, "bits_per_byte", lambda nats, count: nats / count, "validation"),
    (quantize, "quantize_rows", late_rounding, "quantized payload"),
    (artifact, "pack_payload", reading_order, "compressed bytes"),
]


@pytest.mark.parametrize("module, name, defect, rung", COMMON_DEFECTS, ids=[d[1] for d in COMMON_DEFECTS])
def test_a_defect_on_one_side_of_common_fails_at_its_rung(module, name, defect, rung, shown, task, monkeypatch):
    monkeypatch.setattr(module, name, defect)
    theirs = show(task, trainer_class("mlx"))
    monkeypatch.undo()
    assert failing(ladder.climb("float64", shown["torch", "float64"], theirs))[0] == rung


# one file for two machines -----------------------------------------------------------------------------------------------


@pytest.fixture
def fixture_file(task, shown, tmp_path):
    portable.write_fixture(tmp_path / "f", task, shown["mlx", "float32"], "mlx", "float32", "cpu")
    return tmp_path / "f"


def test_a_file_compares_as_the_live_side_does(fixture_file, shown, capsys):
    _, theirs, _ = portable.read_fixture(fixture_file)
    live, filed = (ladder.climb("float32", shown["torch", "float32"], side) for side in (shown["mlx", "float32"], theirs))
    assert [dataclasses.astuple(row) for row in live] == [dataclasses.astuple(row) for row in filed]
    assert main(["compare", str(fixture_file), "--backend", "torch", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "mlx (file) against torch (here), float32, 6 steps" in text and "FAILED" not in text


def test_a_damaged_file_gives_a_message_and_no_verdict(fixture_file, capsys):
    data = fixture_file.read_bytes()
    random = np.random.Generator(np.random.Philox(1))
    cuts = [data[:n] for n in (0, 7, 100, len(data) // 2, len(data) - 1)] + [data + b"x"]
    flips = [data[:i] + bytes([data[i] ^ 1 << int(random.integers(8))]) + data[i + 1:] for i in random.integers(0, len(data), 40).tolist()]
    for damaged in cuts + flips:
        fixture_file.write_bytes(damaged)
        assert main(["compare", str(fixture_file), "--backend", "mlx", "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    fixture_file.unlink()
    assert main(["compare", str(fixture_file), "--backend", "mlx"]) == 2


def test_a_file_of_other_settings_or_without_a_tensor_is_named(task, shown, tmp_path, capsys):
    side = shown["mlx", "float32"]
    portable.write_fixture(tmp_path / "f", task, {rung: values for rung, values in side.items() if rung != "gradients"}, "mlx", "float32", "cpu")
    assert main(["compare", str(tmp_path / "f"), "--backend", "mlx"]) == 2
    assert "gradients" in capsys.readouterr().err
    less = side | {"gradients": {name: g for name, g in side["gradients"].items() if name != "skip_weights"}}
    portable.write_fixture(tmp_path / "g", task, less, "mlx", "float32", "cpu")
    assert main(["compare", str(tmp_path / "g"), "--backend", "mlx", "--device", "cpu"]) == 1
    assert "skip_weights is only on one side" in capsys.readouterr().out
    other = dataclasses.replace(task, settings=dataclasses.replace(task.settings, qk_gain_init=2.0))
    portable.write_fixture(tmp_path / "h", other, side, "mlx", "float32", "cpu")
    assert main(["compare", str(tmp_path / "h"), "--backend", "mlx", "--device", "cpu"]) == 1
    assert "first failing rung: initial weights" in capsys.readouterr().out


def test_a_device_that_is_not_here(fixture_file, capsys):
    assert main(["compare", str(fixture_file), "--backend", "mlx", "--device", "gpu"]) == 2
    assert "DEVICE=gpu" in capsys.readouterr().err
