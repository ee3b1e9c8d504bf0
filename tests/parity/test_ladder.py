"""The ladder holds, and each defect planted in one side makes it fail at the right rung.

`python -m pytest tests/parity/test_ladder.py`
"""
import dataclasses
import importlib.util
import json
import re
import sys
import types

import numpy as np
import pytest

import parity.options
import parity.problem
from common import artifact, batches, bpb, params, quantize, schedule
from common.settings import Settings, setting
from parity import ladder, portable
from parity.__main__ import main
from parity.options import OPTIONS
from parity.problem import DTYPES, first_rows, full_weights, make_problem
from parity.rungs import RUNGS, observe
from parity.trainers import trainer_in
from tests.conftest import BACKENDS, GPUS, ROOT, TINY, tiered, trainer_class


@pytest.fixture(scope="session")
def task(data_path):
    return make_problem(Settings(**TINY | {"num_layers": 4, "iterations": 6, "data_path": str(data_path)}))


def show(task, trainer, dtype="float64"):
    return observe(trainer, task, dtype).shown


def climb(dtype, first, second):
    return ladder.climb(dtype, first, second, ("torch", "mlx"))


@pytest.fixture(scope="session")
def shown(task):
    """What a backend shows on the CPU, by backend and dtype; each is made once."""
    class Shown(dict):
        def __missing__(self, key):
            backend, dtype = key
            return self.setdefault(key, show(task, trainer_class(backend), dtype))
    return Shown()


def failing(rows):
    return [row.rung for row in rows if not row.passed]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rung_holds(dtype, shown):
    rows = climb(dtype, shown["torch", dtype], shown["mlx", dtype])
    assert [row.rung for row in rows if row.rung != "logits as float32"] == list(RUNGS)
    assert ("logits as float32" in [row.rung for row in rows]) == (dtype == "float64")
    assert failing(rows) == [], ladder.table(rows)


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_rung_holds_between_the_gpu_and_the_cpu(device, dtype, compiled, shown, task):
    """With the same framework, and with the other one where it is installed."""
    gpu, name, _ = observe(trainer_class(device), task, dtype, compile=compiled, device="gpu")
    for backend in {device} | {name for name in BACKENDS if importlib.util.find_spec(name)}:
        rows = ladder.climb(dtype, gpu, shown[backend, dtype], (name, f"{backend} on the CPU"))
        assert failing(rows) == [], ladder.table(rows)


def test_bounds_are_at_most_four_times_what_was_measured():
    for rung, (_, bounds) in ladder.BOUNDS.items():
        assert set(bounds) == set(DTYPES), rung
        assert all(measured < bound <= 4 * measured for bound, measured in bounds.values()), rung


def test_logits_that_round_apart_are_excused_at_a_rounding_border_only():
    border = 1 + 2.0**-24  # midway between two float32 neighbours
    a = np.array([[[0.5, border - 1e-15]]])
    row = ladder.rounded_logits(a, np.array([[[0.5, border + 1e-15]]]), ("a", "b"))
    assert row.passed and row.worst == 0 and "1 on a rounding border" in row.where
    row = ladder.rounded_logits(a, np.array([[[0.5, border + 2.0**-23]]]), ("a", "b"))
    assert not row.passed and row.worst == 0.5 and row.where == "logits[0, 0, 1]"


def test_logits_near_zero_need_not_round_alike():
    """float32 is finer there than the bound of the logits."""
    near = np.array([[[0.5, -3.0485509648925644e-09]]])
    row = ladder.rounded_logits(near, np.array([[[0.5, -3.048550374452737e-09]]]), ("a", "b"))
    assert row.passed and row.worst == 0 and row.where.startswith("1 near 0: -3.0485509648925644e-09 / ")
    row = ladder.rounded_logits(np.array([[[0.5, 3e-6]]]), np.array([[[0.5, 3.000003e-6]]]), ("a", "b"))
    assert not row.passed and row.where == "logits[0, 0, 1]"


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_are_the_model_that_is_defined(backend, dtype, shown, task):
    row = ladder.against_definition(dtype, task.settings, full_weights(task.settings), first_rows(task),
                                    shown[backend, dtype], backend)
    assert row.passed, row


def test_the_side_that_leaves_the_definition_is_named(shown, task):
    right = shown["torch", "float64"]
    wrong = right | {"logits": {"logits": -right["logits"]["logits"]}}
    weights = full_weights(task.settings)
    row = ladder.against_definition("float64", task.settings, weights, first_rows(task), wrong, "torch")
    assert row.rung == "definition: torch" and row.sides == ("definition", "torch")
    assert float(row.first) == pytest.approx(-float(row.second))


@pytest.mark.parametrize("value, says", [
    (np.full((2, 3), np.nan), "nan"),
    (np.ones((2, 3), np.complex64), "complex64"),
    (np.ones((0, 3)), "(0, 3)"),
    (np.ones((3, 2)), "(3, 2)"),
    (np.ones((2, 3), bool), "bool"),
])
@pytest.mark.parametrize("rung", ["initial weights", "logits", "one step"])
def test_what_cannot_be_compared_fails(rung, value, says):
    for second in (value, np.ones((2, 3))):
        row = ladder.compare(rung, "float64", {"x": value}, {"x": second}, ("a", "b"))
        same_kind = second is value and says in ("(3, 2)", "bool")
        assert row.passed == same_kind and (row.worst is None) == (not same_kind)
        assert same_kind or says in row.first


def test_a_tensor_on_one_side_only_fails():
    row = ladder.compare("gradients", "float64", {"x": np.ones(3), "y": np.ones(3)}, {"x": np.ones(3)}, ("a", "b"))
    assert (row.passed, row.where, row.first, row.second) == (False, "y", "there", "absent")
    assert not ladder.compare("gradients", "float64", {}, {}, ("a", "b")).passed


def mutant(backend, old, new):
    """The trainer class of a backend whose source has one text replaced."""
    text = (ROOT / BACKENDS[backend]).read_text()
    assert old in text
    module = types.ModuleType(f"mutant_{backend}")
    sys.modules[module.__name__] = module  # dataclasses look it up
    exec(compile(text.replace(old, new), module.__name__, "exec"), module.__dict__)
    return trainer_in(module, module.__name__)


MUTANTS = [
    # (backend, source, defect, first rung that must fail)
    ("torch", "a * cos + b * sin, b * cos - a * sin", "a * cos - b * sin, b * cos + a * sin", "logits"),  # rotary sign
    ("mlx", "a * cos + b * sin, b * cos - a * sin", "a * cos - b * sin, b * cos + a * sin", "logits"),
    ("torch", "eps=s.rms_norm_eps", "eps=1e-5", "logits"),
    ("mlx", "keepdims=True) + s.rms_norm_eps)", "keepdims=True) + 1e-5)", "logits"),
    ("torch", "return self.s.logit_softcap * torch.tanh(logits / self.s.logit_softcap)", "return logits", "logits"),
    ("torch", "self.skip_weights[i - self.num_skips]", "self.skip_weights[self.num_skips * 2 - 1 - i]", "logits"),
    ("mlx", "skips.pop()", "skips.pop(0)", "logits"),
    ("torch", "gain = self.q_gain.to(x.dtype)", "gain = (0 * self.q_gain + 1).to(x.dtype)",
     "logits"),
    ("mlx", "rows = q.reshape(B, K, H // K * N, D)",  # kv heads repeated in the wrong order
     "rows = q.reshape(B, H // K, K, N, D).swapaxes(1, 2).reshape(B, K, H // K * N, D)", "logits"),
    ("mlx", "mix[1] * x0", "mix[1] * x", "logits"),
    ("mlx", "mx.arange(T) <= mx.arange(T - N, T)[:, None]", "mx.arange(T) <= mx.arange(T - N, T)[:, None] + 1",
     "logits"),
    ("torch", "self.s.mlp_slope).square()", "self.s.mlp_slope)", "logits"),
    ("mlx", "(tokens[:, 1:].size * ranks)", "(tokens.size * ranks)", "loss"),
    ("torch", "logits = linear(rms_norm(x, self.s), self.head())",  # no gradient of the head in the tied embedding
     "logits = F.linear(rms_norm(x, self.s), self.head().weight.detach().to(x.dtype))", "gradients"),
    ("torch", "return x.transpose(1, 2) if tall else x",
     "return x.transpose(1, 2) if tall or x.shape[1] == x.shape[2] else x", "one step"),
    ("mlx", "g = g + momentum * buffer", "g = buffer", "one step"),
    ("mlx", "lr * max(1, rows / columns) ** 0.5 * u", "lr * u", "one step"),
    ("mlx", "s.beta2 * state", "s.beta1 * state", "one step"),
    ("torch", "betas=(s.beta1, s.beta2), eps=s.adam_eps", "betas=(s.beta1, s.beta2), eps=1e-6", "one step"),
    # rounds in steps that the file does not have
    ("torch", ".half().float()\n    return", ".float()\n    return", "options"),
    ("torch", "_foreach_mul_(change, (1 - decay)", "_foreach_mul_(change, (0.99 - decay)", "options"),
    ("torch", "tuple(layer_order(s))", "tuple(sorted(layer_order(s)))", "options"),
    ("torch", "[p.grad for p in params], alpha=-lr)", "[p.grad for p in params], alpha=-1.01 * lr)", "options"),
    ("torch", "b.sub_(b_grad, alpha=lr)", "b.sub_(b_grad, alpha=1.1 * lr)", "options"),
    ("mlx", "self.s.mlp_slope * x", "0.9 * self.s.mlp_slope * x", "options"),
    ("mlx", "(i + 1)**-0.5", "(i + 2)**-0.5", "options"),
    ("torch", "(y * v).mean(dim=-1, keepdim=True) * v", "(y * v).mean(dim=-1, keepdim=True)", "options"),
    ("torch", "x if self.parallel else y", "y", "options"),
    ("mlx", "gate * (mx.roll(x, 1, axis=1) - x)", "gate * (mx.roll(x, 1, axis=1) + x)", "options"),
    ("mlx", "mx.array(36313, mx.uint32)", "mx.array(36312, mx.uint32)", "options"),
    ("torch", "new_zeros(1), True", "new_zeros(1), False", "options"),  # the first of a row takes from the last
    ("torch", "1 - lr * self.s.weight_decay", "1 - lr**2 * self.s.weight_decay", "options"),
    ("mlx", "1 - lr * lr_scale * s.embed_weight_decay", "1 - lr * s.embed_weight_decay", "options"),
]


@pytest.mark.parametrize("backend, old, new, rung", tiered(MUTANTS, 6), ids=[f"{m[0]}: {m[2][:40]}" for m in MUTANTS])
def test_a_defect_in_a_trainer_fails_at_its_rung(backend, old, new, rung, shown, task):
    other = {"torch": "mlx", "mlx": "torch"}[backend]
    rows = climb("float64", shown[other, "float64"], show(task, mutant(backend, old, new)))
    assert failing(rows)[0] == rung
    assert f"first failing rung: {rung}" in ladder.table(rows)


def late_rounding(weight, levels, *_):
    """q against the scale before it is rounded."""
    scale = np.abs(weight).max(axis=1) / np.float32(levels)
    return np.clip(np.rint(weight / scale[:, None]), -levels, levels).astype(np.int8), scale.astype(np.float16)


def reading_order(settings, stored, levels, whole=artifact.pack_payload):
    """The same tensors, the last two of equal size and kind swapped in the file."""
    payload = whole(settings, stored, levels)
    size = int.from_bytes(payload[:8], "little")
    head = json.loads(payload[8:8 + size])
    a, b = "blocks.0.attn_scale", "blocks.0.mlp_scale"
    (a0, a1), (b0, b1) = head[a]["data_offsets"], head[b]["data_offsets"]
    body = bytearray(payload[8 + size:])
    body[a0:a1], body[b0:b1] = body[b0:b1], body[a0:a1]
    head[a]["data_offsets"], head[b]["data_offsets"] = [b0, b1], [a0, a1]
    text = json.dumps(head, separators=(",", ":")).encode().ljust(size)
    return payload[:8] + text + bytes(body)


def earlier_rows(settings, rank, ranks, whole=batches.rank_rows):
    """One row before those of the rank."""
    first, rows = whole(settings, rank, ranks)
    return max(0, first - 1), rows


def other_seed(settings, whole=params.initial_weights):
    return whole(dataclasses.replace(settings, seed=settings.seed + 1))


COMMON_DEFECTS = [
    (params, "initial_weights", other_seed, "initial weights"),
    (batches, "step_rows", lambda *a, make=batches.step_rows: np.roll(make(*a), 1, axis=1), "batches"),
    (batches, "rank_rows", earlier_rows, "batches"),
    (bpb, "count_bytes", lambda *a, make=bpb.count_bytes: make(*a) + 1, "bytes and windows"),
    (bpb, "eval_windows", lambda *a, make=bpb.eval_windows: make(*a)[:-1], "bytes and windows"),
    (schedule, "muon_momentum", lambda s, step, make=schedule.muon_momentum: make(s, step + 1), "training losses"),
    (bpb, "bits_per_byte", lambda nats, count: nats / count, "validation"),
    (quantize, "quantize_rows", late_rounding, "quantized payload"),
    (artifact, "pack_payload", reading_order, "compressed bytes"),
]


@pytest.mark.parametrize("module, name, defect, rung", tiered(COMMON_DEFECTS, 4), ids=[d[1] for d in COMMON_DEFECTS])
def test_a_defect_on_one_side_of_common_fails_at_its_rung(module, name, defect, rung, shown, task, monkeypatch):
    monkeypatch.setattr(module, name, defect)
    theirs = show(task, trainer_class("mlx"))
    monkeypatch.undo()
    assert failing(climb("float64", shown["torch", "float64"], theirs))[0] == rung


# the epsilon of MLX's fused kernel, which reference mode does not use
FUSED = ("mlx", "mx.fast.rms_norm(x, None, s.rms_norm_eps)", "mx.fast.rms_norm(x, None, 1e-2)", "logits")


def test_a_defect_outside_of_reference_mode_fails_at_its_rung(shown, task):
    backend, old, new, rung = FUSED
    rows = climb("float32", shown["torch", "float32"], show(task, mutant(backend, old, new), "float32"))
    assert failing(rows)[0] == rung


OF_OPTIMIZERS = [m[:3] for m in MUTANTS if m[3] == "one step" and "eps" not in m[1]]


@pytest.mark.parametrize("backend, old, new", tiered(OF_OPTIMIZERS, 4), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizer_defects_fail_in_every_dtype(backend, old, new, dtype, shown, task):
    other = {"torch": "mlx", "mlx": "torch"}[backend]
    rows = climb(dtype, shown[other, dtype], show(task, mutant(backend, old, new), dtype))
    if dtype == "bfloat16" and "beta2" in old:
        assert failing(rows) == []  # 5 % of a second moment: less than what bfloat16 differs by
    else:
        assert failing(rows)[0] == "one step", ladder.table(rows)


# the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_ladder_of_the_command_holds(capsys, monkeypatch):
    """On the embedded corpus, at the ladder's own size, in reference mode."""
    monkeypatch.chdir(ROOT)
    assert main(["--dtype", "float64", "--steps", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert found["ladder"] == "torch against mlx, float64, CPU, 5 steps"
    assert [row["rung"] for row in found["rungs"] if row["passed"]] == [
        *list(RUNGS)[:4], "logits as float32", *list(RUNGS)[4:], "definition: torch", "definition: mlx"]


@pytest.mark.parametrize("arguments, says", [
    (["--steps", "0"], "0 is less than 1"),
    (["export", "f"], "--backend"),
    (["compare", "f", "--backend", "mlx", "--num-layers", "3"], "unrecognized arguments"),
    (["curves", "--seeds", "2"], "2 is less than 3"),
])
def test_arguments_that_make_no_sense(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("arguments, says", [
    (["--data", "nowhere"], "python -m common.data pydoc"),
    (["--untied", "export", "--backend", "mlx", "f"], "export is not a setting"),
    (["--num-layer", "3"], "--num-layer is not a setting; did you mean --num-layers?"),
    (["export", "--num-layers=x", "--backend", "mlx", "f"], "NUM_LAYERS=x is not a whole number from 1 to 256"),
    (["--loop-layers", "3-5"], "LOOP_LAYERS=3-5 is outside the model: NUM_LAYERS=4 has blocks 0-3"),
    (["--train-batch-tokens", "1024"], "TRAIN_BATCH_TOKENS=1024 must be a multiple of 8 rows of TRAIN_SEQ_LEN=256"),
    (["--iterations", "0"], "ITERATIONS=0 leaves nothing to train"),
    (["export", "--backend", "mlx", "/nowhere/f"], "/nowhere is not a folder"),
    (["compare", "nowhere", "--backend", "mlx"], "nowhere: No such file"),
    (["curves", "-o", "f.txt"], "f.txt cannot be written"),
])
def test_what_cannot_be_tried_is_reported_before_any_work(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["mlx", "torch"])
def test_a_missing_backend_is_reported(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, BACKENDS[missing].removesuffix(".py"), None)
    assert main([]) == 2
    assert f"make install BACKEND={missing}" in capsys.readouterr().err


@pytest.mark.slow
def test_curves_state_the_difference(tmp_path, data_path, monkeypatch, capsys):
    for kind in ("SIZE", "DEFAULTS"):
        whole = getattr(parity.problem, kind)
        monkeypatch.setattr(parity.problem, kind, whole | {name: TINY[name] for name in TINY.keys() & whole.keys()})
    monkeypatch.setattr(parity.problem, "BATCH", TINY["train_batch_tokens"])
    assert main(["curves", "--data", str(data_path), "--steps", "3", "-o", str(tmp_path / "c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    scores = [[float(x) for x in re.findall(r" (\d+\.\d{4})", line)] for line in lines if line.startswith("seed ")]
    assert len(scores) == 3 and all(abs(torch - mlx) < 0.05 for torch, mlx in scores)
    assert "on average over 3 seeds" in text and (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


# one file for two machines --------------------------------------------------------------------------------------------


@pytest.fixture
def fixture_file(task, shown, tmp_path):
    portable.write_fixture(tmp_path / "f", task, shown["mlx", "float32"], "mlx", "float32", "here")
    return tmp_path / "f"


def test_a_file_compares_as_the_live_side_does(fixture_file, shown, capsys):
    _, theirs, _ = portable.read_fixture(fixture_file)
    live, filed = (climb("float32", shown["torch", "float32"], side) for side in (shown["mlx", "float32"], theirs))
    assert [dataclasses.astuple(row) for row in live] == [dataclasses.astuple(row) for row in filed]
    assert main(["compare", str(fixture_file), "--backend", "torch", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("file: here, python ") and "mlx (file) against torch (here), float32, 6 steps" in text
    assert "FAILED" not in text and "left out" not in text


@pytest.mark.parametrize("factor, says", [
    (0.5, ["every rung that has a bound is at 50% of its bound or less"]),
    (2.0, ["loss: 8e-06 is beyond the bound 4e-06 (CPUs: 1.4e-06)", "float32 in parity/ladder.py would be (2.8e-05, "]),
])
def test_what_a_gpu_shows_is_proposed_for_the_bounds(factor, says):
    """An exact rung has no bound to propose, nor has one without a difference."""
    exact = ladder.compare("batches", "float32", {"x": np.zeros(2)}, {"x": np.ones(2)}, ("a", "b"))
    bound = ladder.BOUNDS["loss"][1]["float32"][0]
    loss = ladder.compare("loss", "float32", {"x": np.zeros(2)}, {"x": np.full(2, factor * bound)}, ("a", "b"))
    equal = ladder.compare("logits", "float32", {"x": np.ones(2)}, {"x": np.ones(2)}, ("a", "b"))
    text = ladder.unmeasured([exact, loss, equal], "float32")
    assert text.startswith("The bounds were measured on CPUs only.") and all(words in text for words in says)
    [(rung, (proposed, measured))] = ladder.entries([exact, loss, equal], "float32").items()
    assert rung == "loss" and measured < proposed <= 4 * measured


@pytest.mark.slow
def test_compare_says_that_the_bounds_are_of_cpus_where_a_side_is_not(task, shown, tmp_path, capsys):
    for device, says in {"1 x NVIDIA H100, float32": 1, "1 x mps, float32": 1, "2 x cpu, float32": 0}.items():
        portable.write_fixture(tmp_path / "f", task, shown["mlx", "float32"], "mlx", "float32", device)
        assert main(["compare", str(tmp_path / "f"), "--backend", "torch", "--device", "cpu"]) == 0
        assert capsys.readouterr().out.count("measured on CPUs only") == says


@pytest.mark.slow
def test_an_older_file_with_other_options_compares_in_every_other_rung(task, shown, tmp_path, monkeypatch, capsys):
    older = OPTIONS | {"average": {"ema_decay": 0.5}}
    monkeypatch.setattr(parity.options, "OPTIONS", older)
    portable.write_fixture(tmp_path / "f", task, show(task, trainer_class("mlx")), "mlx", "float64", "there")
    monkeypatch.undo()
    assert main(["compare", str(tmp_path / "f"), "--backend", "torch", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == {"options": "the file was written with other options"}
    assert {row["rung"] for row in found["rungs"]} == {*RUNGS, "logits as float32"} - {"options"}


def refused(capsys, path, says=""):
    assert main(["compare", str(path), "--backend", "mlx", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and says in err


@pytest.mark.slow
def test_a_damaged_file_gives_a_message_and_no_verdict(fixture_file, capsys):
    data = fixture_file.read_bytes()
    random = np.random.Generator(np.random.Philox(1))
    cuts = [data[:n] for n in (0, 7, 100, len(data) // 2, len(data) - 1)] + [data + b"x"]
    size = 8 + int.from_bytes(data[:8], "little")
    words = b'steps\\": ', b'seed\\": \\"', b'matrix_lr\\": \\"0.', b'dtype\\": \\"flo'
    places = [data.index(word) + len(word) for word in words]
    places += random.integers(0, size, 200).tolist() + random.integers(size, len(data), 20).tolist()
    flips = [data[:i] + bytes([data[i] ^ 1 << int(random.integers(8))]) + data[i + 1:] for i in places]
    for damaged in cuts + flips:
        fixture_file.write_bytes(damaged)
        refused(capsys, fixture_file)
    fixture_file.unlink()
    refused(capsys, fixture_file)


def changed_settings(task, **changes):
    return dataclasses.replace(task, settings=dataclasses.replace(task.settings, **changes))


def changed_table(task, **changes):
    return dataclasses.replace(task, table=dataclasses.replace(task.table, **changes))


@pytest.mark.parametrize("change, says", [
    (lambda t: changed_settings(t, mlp_mult=64, model_dim=16384), "a problem of this size"),
    (lambda t: changed_settings(t, num_layers=10_000), "NUM_LAYERS=10000"),
    (lambda t: changed_settings(t, train_seq_len=1 << 16, train_batch_tokens=1 << 19, micro_batch_tokens=1 << 19),
     "a problem of this size"),
    (lambda t: changed_settings(t, eval_seq_len=1 << 20), "a problem of this size"),
    (lambda t: changed_settings(t, train_batch_tokens=96), "8 rows"),
    (lambda t: changed_settings(t, rms_norm_eps=0.0), "RMS_NORM_EPS"),
    (lambda t: changed_settings(t, num_kv_heads=3), "NUM_KV_HEADS=3"),
    (lambda t: dataclasses.replace(t, steps=10_001), "a problem of this size"),
    (lambda t: dataclasses.replace(t, steps=6.5), "a problem of this size"),
    (lambda t: dataclasses.replace(t, steps=float("inf")), "a problem of this size"),
    (lambda t: dataclasses.replace(t, val=t.val + np.uint16(300)), "tokens do not fit"),
    (lambda t: dataclasses.replace(t, val=t.val[:5]), "tokens do not fit"),
    (lambda t: dataclasses.replace(t, train=t.train.astype(np.float32)), "tokens do not fit"),
    (lambda t: changed_table(t, byte_counts=t.table.byte_counts * np.nan), "byte table"),
    (lambda t: changed_table(t, byte_counts=t.table.byte_counts * 0), "byte table"),
    (lambda t: changed_table(t, boundary=t.table.boundary[:9]), "byte table"),
    (lambda t: changed_table(t, bos_id=260), "BOS 260 is not in its vocabulary"),
])
def test_a_hostile_problem_is_refused(change, says, task, shown, tmp_path, capsys):
    portable.write_fixture(tmp_path / "f", change(task), shown["mlx", "float32"], "mlx", "float32", "here")
    refused(capsys, tmp_path / "f", says)


def test_a_file_that_lacks_something_or_is_of_another_version(task, shown, tmp_path, capsys, monkeypatch):
    side = shown["mlx", "float32"]
    less = side | {"gradients": {name: g for name, g in side["gradients"].items() if name != "skip_weights"}}
    cases = {
        "lacks 'gradients": {rung: values for rung, values in side.items() if rung != "gradients"},
        "lacks 'gradients/skip_weights'": less,
        "unknown here, 'new/x'": side | {"new": {"x": np.ones(1)}},
    }
    for says, wrong in cases.items():
        portable.write_fixture(tmp_path / "f", task, wrong, "mlx", "float32", "here")
        refused(capsys, tmp_path / "f", says)
    portable.write_fixture(tmp_path / "f", task, side, "mlx", "float16", "here")
    refused(capsys, tmp_path / "f", "float16")
    monkeypatch.setattr(portable, "FIXTURE_FORMAT", 2)
    portable.write_fixture(tmp_path / "f", task, side, "mlx", "float32", "here")
    monkeypatch.undo()
    refused(capsys, tmp_path / "f", "format 2")


def test_a_file_of_other_settings_fails_and_its_text_cannot_control_a_terminal(task, shown, tmp_path, capsys):
    other, machine = changed_settings(task, qk_gain_init=2.0), "\x1b[2J\nok \ud800"
    portable.write_fixture(tmp_path / "f", other, shown["mlx", "float32"], "mlx", "float32", machine)
    assert main(["compare", str(tmp_path / "f"), "--backend", "mlx", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "first failing rung: initial weights" in out and r"file: \x1b[2J\nok \ud800" in out and "\x1b" not in out


def test_a_file_of_last_year_takes_the_default_of_a_new_setting(fixture_file, monkeypatch, capsys):
    fields = dataclasses.fields(Settings)
    added = [("new_setting", int, setting(1, "new"))]
    newer = dataclasses.make_dataclass("Newer", added, bases=(Settings,), frozen=True)
    monkeypatch.setattr(portable, "Settings", newer)
    task, _, _ = portable.read_fixture(fixture_file)
    assert task.settings.new_setting == 1 and len(fields) + 1 == len(dataclasses.fields(task.settings))
    assert "does not have new_setting: its default is used" in capsys.readouterr().err


def test_a_device_that_is_not_here(fixture_file, capsys, monkeypatch):
    import mlx.core as mx
    monkeypatch.setattr(mx, "is_available", lambda device: False)
    assert main(["compare", str(fixture_file), "--backend", "mlx", "--device", "gpu"]) == 2
    assert "DEVICE=gpu" in capsys.readouterr().err
