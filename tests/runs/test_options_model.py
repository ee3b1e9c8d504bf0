"""Loops of blocks and long rows, which are off by default: `python -m pytest tests/runs/test_options_model.py`."""
import dataclasses
import json
import zlib

import numpy as np
import pytest

from common import artifact
from common.bpb import evaluate
from common.dataset import open_data
from common.params import (
    count_params,
    flops_per_token,
    initial_weights,
    layer_order,
    num_skips,
    param_table,
    training_bytes,
)
from common.readlog import parse_log
from common.settings import Settings, UserError, load_settings, model_settings, settings_of
from parity import portable
from parity.ladder import against_definition, climb
from parity.options import OPTIONS, option_settings
from parity.problem import first_rows, full_weights, make_problem
from parity.reference import reference_logits, reference_nats
from parity.rungs import observe
from tests.conftest import BACKENDS, ROOT, TINY, environment, run_script, tiny_settings, trainer_class

LOOP = {"num_layers": 4, "loop_count": 3} | option_settings(Settings(num_layers=4), ["loops"])
# see test_one_artifact_in_reference_mode
CALM = {"matrix_lr": 0.01, "tied_embed_lr": 0.01, "embed_lr": 0.05, "scalar_lr": 0.01}


# loops of blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop, count, order", [
    ("", 2, [0, 1, 2, 3]),
    ("1-2", 2, [0, 1, 2, 1, 2, 3]),
    ("0-3", 2, [0, 1, 2, 3, 0, 1, 2, 3]),
    ("3-3", 4, [0, 1, 2, 3, 3, 3, 3]),
    ("0-0", 2, [0, 0, 1, 2, 3]),
])
def test_the_range_is_repeated_as_a_whole(loop, count, order):
    s = Settings(num_layers=4, loop_layers=loop, loop_count=count)
    assert layer_order(s) == order and num_skips(s) == len(order) // 2


def test_parameters_count_once_and_work_as_often_as_it_is_done():
    plain, looped = Settings(vocab_size=1024), Settings(vocab_size=1024, loop_layers="3-5")
    assert {name for name, p in param_table(looped).items() if param_table(plain).get(name) != p} == {"skip_weights"}
    assert count_params(looped) - count_params(plain) == 2 * 512  # skips of 12 applications, not of 9
    head = 6 * 512 * 1024
    assert 9 * (flops_per_token(looped) - head) == 12 * (flops_per_token(plain) - head)
    kept = [training_bytes(s, 1, 2) - 20 * count_params(s) - 12 * 1024 * 1024 for s in (plain, looped)]
    assert 9 * kept[1] == 12 * kept[0] > 0


def test_a_window_that_is_longer_than_a_micro_batch_needs_more_memory():
    need = [training_bytes(Settings(vocab_size=1024, eval_seq_len=length), 2, 2) for length in (0, 2048, 4096)]
    assert need[0] == need[1] < need[2] - 9 * 2048 * 512 * 2


@pytest.mark.parametrize("values, words", [
    ({"loop_layers": "3"}, "LOOP_LAYERS=3 is not a range of blocks: write the first and the last, as in 3-5"),
    ({"loop_layers": "03-5"}, "LOOP_LAYERS=03-5 is not a range"),
    ({"loop_layers": "3\n-5"}, r"LOOP_LAYERS='3\n-5' is not a range"),
    ({"loop_layers": "a-b"}, "LOOP_LAYERS=a-b is not a range"),
    ({"loop_layers": "-1-2"}, "LOOP_LAYERS=-1-2 is not a range"),
    ({"loop_layers": "5-3"}, "LOOP_LAYERS=5-3 is reversed: write the first block and then the last, 3-5"),
    ({"loop_layers": "3-9"}, "LOOP_LAYERS=3-9 is outside the model: NUM_LAYERS=9 has blocks 0-8"),
    ({"loop_count": 3}, "LOOP_COUNT=3 has no effect without LOOP_LAYERS"),
])
def test_a_bad_range_is_named(values, words):
    with pytest.raises(UserError) as error:
        load_settings(Settings, [f"--{name}={value}" for name, value in values.items()], {}, print)
    assert str(error.value).startswith(words)


def header(settings):
    payload = artifact.encode_model(settings, initial_weights(settings))[1]
    head = json.loads(payload[8:8 + int.from_bytes(payload[:8], "little")])
    return json.loads(head["__metadata__"]["parity_golf"])["settings"]


def test_the_artifact_names_loops_only_where_there_are_some():
    plain = Settings(**TINY)
    assert not header(plain).keys() & {"loop_layers", "loop_count"}
    looped = dataclasses.replace(plain, loop_layers="1-2")
    assert header(looped) == header(plain) | {"loop_layers": "1-2"}
    thrice = dataclasses.replace(looped, loop_count=3)
    assert header(thrice) == header(plain) | {"loop_layers": "1-2", "loop_count": 3}
    for s in (plain, looped, thrice):
        read, _ = artifact.decode_model(artifact.encode_model(s, initial_weights(s))[0])
        assert model_settings(read) == model_settings(s)
        assert (read.loop_layers, read.loop_count) == (s.loop_layers, s.loop_count)


@pytest.mark.parametrize("old, new, words", [
    (':"1-1"', ':"1-0"', "LOOP_LAYERS=1-0 is reversed"),
    (':"1-1"', ":11", "LOOP_LAYERS=11 is not a range"),
    (':"1-1"', ':"1-9"', "outside the model"),
    (':"1-1"', ':["1-1"]', "is not a range"),
    ('"loop_layers":"1-1"', '"loop_count":2,"loop_layers":"1-1"', "canonical"),
    (':"1-1"', ':""', "canonical"),
    ('"loop_layers":"1-1"', '"loop_count":17,"loop_layers":"1-1"', "LOOP_COUNT=17 is not a whole number from 2"),
])
def test_a_loop_in_the_header_is_canonical_or_refused(old, new, words):
    s = Settings(**TINY | {"num_layers": 2, "loop_layers": "1-1"})  # one skip, with the loop and without
    payload = artifact.encode_model(s, initial_weights(s))[1]
    size = int.from_bytes(payload[:8], "little")
    text = payload[8:8 + size].decode().rstrip()
    quote = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
    assert text.count(quote[0]) == 1
    text = text.replace(*quote)
    text += " " * (-len(text) % 8)
    with pytest.raises(UserError, match=words):
        artifact.decode_model(zlib.compress(len(text).to_bytes(8, "little") + text.encode() + payload[8 + size:]))


def test_looped_twins_are_the_model_that_is_defined(data_path):
    task = make_problem(Settings(**TINY | LOOP | {"iterations": 3, "data_path": str(data_path)}))
    shown = {name: observe(trainer_class(name), task, "float64").shown for name in BACKENDS}
    assert all(row.passed for row in climb("float64", shown["torch"], shown["mlx"], ("torch", "mlx")))
    weights, rows = full_weights(task.settings), first_rows(task)
    for name in BACKENDS:
        row = against_definition("float64", task.settings, weights, rows, shown[name], name)
        assert row.passed, row
    plain = dataclasses.replace(task.settings, loop_layers="", loop_count=2)
    weights["skip_weights"] = weights["skip_weights"][:num_skips(plain)]
    assert not against_definition("float64", plain, weights, rows, shown["torch"], "torch").passed


MODEL = {name: option_settings(Settings(**TINY), [name]) for name in OPTIONS}
MODEL = {name: values for name, values in MODEL.items() if values.keys() <= settings_of("model").keys()}
MODEL["together"] = option_settings(Settings(**TINY), [*MODEL])


@pytest.mark.parametrize("name", MODEL)
def test_a_model_with_options_is_the_one_that_is_defined(name, backend, documents):
    """Logits and nats of rows with borders of documents in them; without the options they would be others."""
    plain = dataclasses.replace(tiny_settings(backend, documents, compute_dtype="float64"), bos_id=-1)
    s = dataclasses.replace(plain, **MODEL[name])
    weights, rows = full_weights(s), open_data(s).train.read(0, 16 * 33).reshape(16, 33)
    assert (rows[:, 1:] == 1).any()
    trainer = trainer_class(backend)(s, weights)
    logits = reference_logits(s, weights, rows[:, :-1])
    assert np.abs(trainer.logits(rows[:, :-1]) - logits).max() < 1e-12
    assert np.abs(trainer.token_nats(rows) - reference_nats(s, weights, rows)).max() < 1e-12
    kept = {key: weights[key] for key in param_table(plain) if weights[key].shape == param_table(plain)[key].shape}
    assert np.abs(reference_logits(plain, full_weights(plain) | kept, rows[:, :-1]) - logits).max() > 1e-3


def test_a_file_of_parity_from_before_loops_is_read(data_path, tmp_path, monkeypatch, capsys):
    task = make_problem(Settings(**TINY | {"iterations": 1, "data_path": str(data_path)}))
    shown, device, _ = observe(trainer_class("torch"), task, "float64")
    old = Settings(**vars(task.settings))
    for name in ("loop_layers", "loop_count", "loss_chunk"):
        del old.__dict__[name]
    portable.write_fixture(tmp_path / "old", dataclasses.replace(task, settings=old), shown, "torch", "float64", device)
    problem, _, _ = portable.read_fixture(tmp_path / "old")
    assert problem.settings == task.settings and "does not have loop_layers" in capsys.readouterr().err


def run(backend, folder, data_path, **changes):
    """(lines of the log, model bytes) of a whole run at the tiny size."""
    folder.mkdir()
    done = run_script([ROOT / BACKENDS[backend]], folder, environment(data_path, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = (folder / "runs").iterdir()
    return dict(parse_log((path / "train.log").read_text())), (path / "model.int8.zlib").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "loop_layers": "0-3", "loop_count": 2}])
def test_one_artifact_with_loops_and_chunks(changes, tmp_path, data_path):
    """In reference mode: both backends, compiled or not, with chunks of several sizes (the last is short) and without.
    """
    ways = [
        ("torch", {}),
        ("mlx", {}),
        ("torch", {"loss_chunk": 100}),
        ("mlx", {"loss_chunk": 100}),
        ("mlx", {"loss_chunk": 48, "compile": 1}),
    ]
    models = []
    for i, (backend, own) in enumerate(ways):
        values = {"compute_dtype": "float64", "iterations": 40} | CALM | LOOP | changes | own
        models.append(run(backend, tmp_path / str(i), data_path, **values)[1])
    assert len(set(models)) == 1, [len(model) for model in models]
    read, _ = artifact.decode_model(models[0])
    assert read.loop_layers == (LOOP | changes)["loop_layers"]


# long rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_give_the_same_numbers(backend, dtype, data_path):
    seen = {}
    for chunk in (0, 7, 96, 256):
        s = tiny_settings(backend, data_path, compute_dtype=dtype, loss_chunk=chunk)
        trainer, data = trainer_class(backend)(s, full_weights(s)), open_data(s)
        rows = np.random.default_rng(1).integers(0, 260, (8, s.train_seq_len + 1)).astype(np.int32)
        _, grads = trainer.gradients(rows)
        val_loss = evaluate(trainer, s, data.val, data.tokenizer, 999)[0]
        seen[chunk] = {"nats": trainer.token_nats(rows), "val": val_loss} | grads
    atol = 3e-6 if dtype == "float32" else 0.02
    for chunk in (7, 96, 256):
        for name, value in seen[0].items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(seen[chunk][name] / scale, value / scale, atol=atol, err_msg=name)


@pytest.mark.slow
def test_chunks_can_be_compiled(backend, data_path):
    """The compiled step with a short last chunk: the same losses, in reference mode."""
    losses = []
    for compiled, chunk in ((False, 0), (True, 100)):
        s = tiny_settings(backend, data_path, num_layers=1, loop_layers="0-0", compute_dtype="float64",
                          compile=compiled, loss_chunk=chunk, **CALM)
        trainer = trainer_class(backend)(s, full_weights(s))
        rows = np.random.default_rng(1).integers(0, 260, (8, s.train_seq_len + 1)).astype(np.int32)
        losses.append([float(trainer.train_step(rows, 1.0, 0.9)) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_twins_agree_on_long_rows_in_reference_mode(data_path):
    """2,048 positions: blocks of queries on MLX, the fused kernel on torch, chunks on one side only. Three steps."""
    size = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "train_seq_len": 2048,
            "train_batch_tokens": 4096, "micro_batch_tokens": 4096, "compute_dtype": "float64"}
    seen = {}
    for name, chunk in (("torch", 0), ("mlx", 1000), ("mlx", 0), ("torch", 1000)):
        s = tiny_settings(name, data_path, **size | CALM, loss_chunk=chunk)
        trainer = trainer_class(name)(s, full_weights(s))
        rows = np.random.default_rng(1).integers(0, 260, (2, 2049)).astype(np.int32)
        logits = trainer.logits(rows[:, :-1]).astype(np.float32)
        nats = trainer.token_nats(rows)
        for _ in range(3):
            trainer.train_step(rows, 1.0, 0.9)
        model = artifact.encode_model(s, {n: w.astype(np.float32) for n, w in trainer.weights().items()})[0]
        seen[name, chunk] = logits, nats, model
    first = seen["torch", 0]
    for logits, nats, model in seen.values():
        assert (logits != first[0]).mean() < 1e-5  # but for a rounding border
        np.testing.assert_allclose(nats, first[1], rtol=0, atol=1e-13)
        assert model == first[2]


LONG_ROW = """
import re, resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from tests.conftest import trainer_class
from common.params import initial_weights

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
    text = open("/proc/self/status").read()  # ru_maxrss begins with the parent's
    return int(re.search(r"VmHWM:\\s*(\\d+)", text)[1]) >> 10

kind = trainer_class(sys.argv[2])
s = kind.settings_class(vocab_size=4096, num_layers=1, model_dim=16, num_heads=1, num_kv_heads=1, train_seq_len=16384,
                        train_batch_tokens=16384, micro_batch_tokens=16384, loss_chunk=int(sys.argv[3]),
                        compute_dtype="float32", device="cpu", compile=False)
trainer = kind(s, initial_weights(s))
rows = np.random.default_rng(1).integers(0, 4096, (1, 16385)).astype(np.int32)
trainer.token_nats(rows[:, :65])
before = peak()
nats = trainer.token_nats(rows).mean()
loss = float(trainer.train_step(rows, 1.0, 0.9))
print(peak() - before, nats, loss)
"""


@pytest.mark.slow
def test_a_row_of_16384_fits(backend, tmp_path):
    """Evaluation and a training step. All logits have 256 MiB and all scores 1024 MiB, in each of several copies."""
    # glibc then gives back what is freed: the peak is what was in use
    env = environment(tmp_path, malloc_mmap_threshold_=1 << 20)
    done = run_script(["-c", LONG_ROW, ROOT, backend, 256], tmp_path, env)
    assert done.returncode == 0, done.stderr[-3000:]
    mib, nats, loss = map(float, done.stdout.split())
    assert nats == pytest.approx(np.log(4096), abs=0.1) and loss == pytest.approx(nats, abs=1e-4)
    assert 0 < mib < 256
