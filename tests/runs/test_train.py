"""Whole runs of both trainers at a tiny size: `python -m pytest tests/runs/test_train.py`."""
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import common.finish
import common.loop
from common.artifact import decode_model, read_model
from common.batches import TokenStream, step_rows
from common.bpb import evaluate
from common.bundle import bundle, bundle_source
from common.data.folder import write_shard
from common.dataset import open_data
from common.loop import Run, warm_up
from common.params import initial_weights
from common.ranks import Interrupt, RankWatch
from common.readlog import parse_log
from common.run import main
from common.settings import Settings
from common.shards import open_shard
from tests import faults
from tests.conftest import BACKENDS, ROOT, TINY, environment, run_script, tiered, tiny_settings, trainer_class


def trained(folder):
    """(dict kind -> list of values, model bytes) of the one run under a folder."""
    [path] = (folder / "runs").iterdir()
    lines = {}
    for kind, values in parse_log((path / "train.log").read_text()):
        lines.setdefault(kind, []).append(values)
    return lines, (path / "model.int8.zlib").read_bytes()


def train_alone(backend, folder, data_path, script=None, launch=(), **changes):
    """A run in a process of its own, in an empty folder."""
    folder.mkdir()
    done = run_script([*launch, script or ROOT / BACKENDS[backend]], folder, environment(data_path, **changes))
    assert done.returncode == 0, done.stderr
    return *trained(folder), done


@pytest.fixture
def in_folder(tmp_path, monkeypatch, data_path):
    """Calls a trainer's main in this process with flags, in an empty folder and without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) & {name.upper() for name in Settings.__dataclass_fields__}:
        monkeypatch.delenv(name)

    def call(backend, **changes):
        values = TINY | {"data_path": data_path} | changes
        flags = ["--preflight"] * bool(values.pop("preflight", False))
        flags += [
            f"--{name.replace('_', '-')}={int(value) if isinstance(value, bool) else value}"
            for name, value in values.items()
        ]
        monkeypatch.setattr(sys, "argv", [BACKENDS[backend], *flags])
        return main(trainer_class(backend), ROOT / BACKENDS[backend])

    return call


# a run
# -----------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_accounts_for_itself(backend, tmp_path, data_path):
    lines, model, done = train_alone(backend, tmp_path / "a", data_path, iterations=60, val_loss_every=30,
                                     checkpoint_every="0")
    [path] = (tmp_path / "a" / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {
        "train.log",
        "settings.json",
        "status.json",
        "model.int8.zlib",
        BACKENDS[backend],
    }
    # every line of the log is known, and once but for steps and validations
    text = (path / "train.log").read_text()
    assert len(parse_log(text)) == len(text.splitlines())
    assert {kind for kind, found in lines.items() if len(found) > 1} == {"step", "val"}
    assert {
        "run",
        "versions",
        "command",
        "settings",
        "data",
        "tokenizer",
        "code",
        "params",
        "memory",
        "throughput",
    } < set(lines)
    assert [v["step"] for v in lines["val"]] == [0, 30, 60]
    assert abs(lines["val"][0]["val_loss"] - np.log(260)) < 0.1
    # learnt: below the entropy of single bytes
    counts = np.bincount(open_shard(data_path / "text_val_000000.bin"))
    share = counts[counts > 0] / counts.sum()
    [final] = lines["final_exact"]
    assert final["val_bpb"] < -0.9 * (share * np.log2(share)).sum()
    # bytes: literal sizes of what was written
    code = (path / BACKENDS[backend]).read_bytes()
    assert code == bundle(ROOT / BACKENDS[backend])
    assert lines["code_size"][0]["bytes"] == len(code) and lines["model"][0]["bytes"] == len(model)
    assert lines["total"][0]["bytes"] == len(code) + len(model)
    assert lines["code"][0]["bytes"] == len(code)
    assert lines["code"][0]["sha256"] == hashlib.sha256(bundle_source(ROOT / BACKENDS[backend]).encode()).hexdigest()
    assert lines["model"][0]["sha256"] == hashlib.sha256(model).hexdigest()
    assert lines["scored"] == [{"tokens": 1499, "bytes": 1499, "partial": ""}]
    assert json.loads((path / "status.json").read_text()) == {
        "status": "finished", "reason": "all steps were made", "hint": "", "step": 60}
    assert json.loads((path / "settings.json").read_text())["backend"] == backend
    assert f"{final['val_bpb']:.4f}" in done.stdout.splitlines()[-3]  # the summary for people
    # the score is that of the written file
    settings, weights = decode_model(model)
    assert settings.model_dim == 32
    settings = tiny_settings(backend, data_path)
    data = open_data(settings)
    score = evaluate(trainer_class(backend)(settings, weights), settings, data.val, data.tokenizer, data.val_tokens)
    assert abs(score[0] - final["val_loss"]) < 1e-5 and abs(score[1] - final["val_bpb"]) < 1e-5


@pytest.mark.slow
def test_the_manifest_supplies_tokenizer_and_vocabulary(backend, tmp_path, data_path):
    """What is not set comes from the data folder: the same run as with VOCAB_SIZE=260 (and TOKENIZER_PATH=bytes)."""
    given = train_alone(backend, tmp_path / "given", data_path, iterations=2, tokenizer_path="bytes")
    supplied = train_alone(backend, tmp_path / "supplied", data_path, iterations=2, vocab_size=0)
    assert given[1] == supplied[1] and decode_model(supplied[1])[0].vocab_size == 260


@pytest.mark.parametrize("backend", tiered(["mlx", "torch"], 2))
def test_twice_and_from_the_bundle_the_same_bytes(backend, tmp_path, data_path):
    """In the normal dtype: from the repository twice, and from the bundle as the only file of a folder."""
    (tmp_path / "bundle").mkdir()
    alone = tmp_path / "bundle" / BACKENDS[backend]
    alone.write_bytes(bundle(ROOT / BACKENDS[backend]))
    first, second, bundled = (train_alone(backend, tmp_path / name, data_path, script) for name, script in
                              (("first", None), ("second", None), ("bundled", alone)))
    assert first[1] == second[1] == bundled[1]
    timed = {"run", "preflight", "checkpoint", "command", "warmup", "params", "memory", "throughput", "final"}
    exact = [
        [
            (kind, {k: v for k, v in values.items() if k not in ("ms", "avg", "rate", "seconds")})
            for kind, found in lines.items()
            if kind not in timed
            for values in found
        ]
        for lines, *_ in (first, bundled)
    ]
    assert exact[0] == exact[1]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_one_artifact_in_reference_mode(tied, tmp_path, data_path):
    """200 steps: torch and MLX, compiled or not, 1 to 8 ranks, any micro-batch, with warm-up or without, tied or
    untied. At the default learning rates so small a model learns its text by heart and magnifies a difference in the
    last digit a hundred thousand times."""
    calm = {"matrix_lr": 0.01, "tied_embed_lr": 0.01, "embed_lr": 0.05, "scalar_lr": 0.01}
    launchers = {
        "torch": ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2"],
        "mlx": [sysconfig.get_path("scripts") + "/mlx.launch", "-n", "2", "--backend", "ring", "--", sys.executable],
    }
    ways = [("torch", 1, {}), ("mlx", 1, {}), ("torch", 8, {"micro_batch_tokens": 64})]
    if tied:
        ways += [
            ("torch", 4, {"micro_batch_tokens": 64}),
            ("torch", 1, {"compile": 1}),
            ("torch", 1, {"micro_batch_tokens": 128, "warmup_steps": 1}),
            ("mlx", 1, {"compile": 1, "micro_batch_tokens": 32}),
        ]
        ways += [(backend, launch, {"micro_batch_tokens": 64}) for backend, launch in launchers.items()]
    else:
        ways.append(("mlx", 2, {"micro_batch_tokens": 64}))
    models = {}
    for i, (backend, how, changes) in enumerate(ways):
        values = (
            {"compute_dtype": "float64", "iterations": 200, "tie_embeddings": tied, "checkpoint_every": "60s"}
            | calm
            | changes
        )
        if how in launchers.values():
            models[f"{backend} {i}"] = train_alone(backend, tmp_path / str(i), data_path, launch=how, **values)[1]
        else:
            run = faults.Run(backend, tmp_path / str(i), data_path, None, how, **values)
            assert run.wait(200) == [0] * how, run.text()
            models[f"{backend} {i}"] = run.model()
    digests = {way: hashlib.sha256(model).hexdigest() for way, model in models.items()}
    assert set(digests.values()) == {digests["torch 0"]}, digests


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_embeddings": False},
        {"num_layers": 1},
        {"num_layers": 2, "num_kv_heads": 4},
        {"grad_clip_norm": 0.1},
        {"logit_softcap": 100.0},
        {"train_seq_len": 128, "train_batch_tokens": 256},
    ],
)
def test_twins_agree_in_reference_mode(changes, data_path):
    stream = TokenStream([open_shard(data_path / "text_train_000000.bin")])
    seen = {}
    for backend in BACKENDS:
        s = tiny_settings(backend, data_path, compute_dtype="float64", **changes)
        trainer = trainer_class(backend)(s, initial_weights(s))
        for step in range(3):  # the projections are zero at first
            trainer.train_step(step_rows(stream, s, step), 0.5, 0.9)
        tokens = step_rows(stream, s, 3)
        loss, grads = trainer.gradients(tokens)
        seen[backend] = (
            {"loss": loss, "logits": trainer.logits(tokens[:, :-1]), "nats": trainer.token_nats(tokens)}
            | grads
            | {f"w {k}": v for k, v in trainer.state().items()}
        )
    assert set(seen["torch"]) == set(seen["mlx"])
    for name, value in seen["torch"].items():
        assert np.shape(value) == np.shape(seen["mlx"][name])
        np.testing.assert_allclose(value, seen["mlx"][name], rtol=1e-7, atol=1e-9, err_msg=name)
    assert abs(seen["torch"]["nats"].mean() - seen["torch"]["loss"]) < 1e-9


@pytest.mark.parametrize("backend", tiered(["mlx", "torch"], 2))  # PyTorch calls a C++ compiler
def test_compiled_step_agrees_with_the_plain_one(backend, data_path):
    losses = {}
    for compiled in (False, True):
        s = tiny_settings(backend, data_path, compile=compiled, micro_batch_tokens=128)
        trainer, stream = trainer_class(backend)(s, initial_weights(s)), open_data(s).train
        losses[compiled] = [float(trainer.train_step(step_rows(stream, s, step), 1.0, 0.9)) for step in range(6)]
    assert losses[True][-1] < losses[True][0] - 0.5
    np.testing.assert_allclose(losses[True], losses[False], rtol=0.02)


def test_warm_up_leaves_no_trace(backend, tmp_path, data_path):
    s = tiny_settings(backend, data_path, warmup_steps=3, tie_embeddings=False)
    data = open_data(s)
    trainer = trainer_class(backend)(s, initial_weights(s))
    trainer.train_step(step_rows(data.train, s, 5), 1.0, 0.9)
    before = trainer.state()
    warm_up(Run(s, data, trainer, None, None, RankWatch(tmp_path, 0, 1, 60), Interrupt()))
    after = trainer.state()
    assert set(before) == set(after) and len(before) > 60
    assert all(np.array_equal(before[name], after[name]) for name in before)


class Clock:
    """Every look at it takes a second."""

    def __init__(self):
        self.seconds = itertools.count()

    def perf_counter(self):
        return float(next(self.seconds))


def test_the_cap_is_kept_and_validation_is_not_training(backend, in_folder, monkeypatch, tmp_path, data_path):
    monkeypatch.setattr(common.loop, "time", Clock())
    assert in_folder(backend, run_id="now", max_wallclock_seconds=8, val_loss_every=2, iterations=1000) == 0
    lines, _ = trained(tmp_path)
    [stop] = lines["stop"]
    # training ends before the cap, with less than two steps to spare (a step takes 1.5 s by this clock, and so may one
    # more)
    assert 5000 <= stop["ms"] <= 8000
    assert [v["ms"] for v in lines["step"]] == sorted({v["ms"] for v in lines["step"]})
    assert json.loads((tmp_path / "runs" / "now" / "status.json").read_text())["status"] == "capped"


@pytest.mark.slow
def test_a_partial_validation_says_so_wherever_it_shows(backend, in_folder, capsys, tmp_path):
    assert in_folder(backend, val_tokens_limit=100) == 0
    lines, _ = trained(tmp_path)
    label = " partial:100/1500"
    assert [v["partial"] for kind in ("val", "final", "final_exact", "scored") for v in lines[kind]] == [label] * 4
    assert lines["scored"][0]["tokens"] == 99
    assert label in [line for line in capsys.readouterr().out.splitlines() if line.startswith("  final")][0]


# what goes wrong
# -------------------------------------------------------------------------------------------------------


def copy_data(data_path, folder):
    return Path(shutil.copytree(data_path, folder / "copy"))


def cut_shard(folder):
    path = folder / "text_train_000001.bin"
    path.write_bytes(path.read_bytes()[:-10])


def rewrite(folder, number, value):
    """One of the header's three numbers: magic, version, count."""
    path = folder / "text_train_000001.bin"
    data = bytearray(path.read_bytes())
    data[4 * number:4 * number + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(data)


def damaged(number, value):
    return lambda folder: rewrite(folder, number, value)


def cut_to(size):
    def cut(folder):
        path = folder / "text_train_000001.bin"
        path.write_bytes(path.read_bytes()[:size])
    return cut


def foreign_shard(folder):
    (folder / "text_val_000000.bin").write_bytes(b"PK\3\4" + bytes(4000))


def high_id(folder):
    write_shard(folder / "text_train_000000.bin", [5] * 100 + [260] + [5] * 500)


def short_validation(folder):
    write_shard(folder / "text_val_000000.bin", [5] * 32)


def other_tokenizer(folder):
    (folder / "manifest.json").write_text('{"tokenizer": {"file": "bytes", "sha256": "00"}}')


def broken_manifest(folder):
    (folder / "manifest.json").write_text("{")


def lost_shard(folder):
    shards = [{"file": path.name} for path in sorted(folder.glob("*_train_*.bin"))]
    manifest = json.loads((folder / "manifest.json").read_text()) | {"splits": {"train": {"shards": shards}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "text_train_000000.bin").unlink()


def no_manifest(folder):
    (folder / "manifest.json").unlink()


def no_shards(folder):
    for path in folder.glob("*_train_*"):
        path.unlink()


@pytest.mark.parametrize(
    "damage, says",
    [
        (cut_shard, ["text_train_000001.bin", "truncated"]),
        (foreign_shard, ["text_val_000000.bin", "magic"]),
        (high_id, ["text_train_000000.bin", "token 100", "260"]),
        (short_validation, ["32 tokens", "TRAIN_SEQ_LEN=32"]),
        (other_tokenizer, ["not the one", "TOKENIZER_PATH"]),
        (broken_manifest, ["manifest.json"]),
        (no_manifest, ["set TOKENIZER_PATH"]),
        (no_shards, ["python -m common.data pydoc", "python -m common.data fineweb"]),
        (lost_shard, ["text_train_000000.bin is missing", "1 of 2 shards"]),
        (cut_to(500), ["text_train_000001.bin", "500 bytes"]),
        (cut_to(-1), ["truncated"]),
        (damaged(0, 7), ["magic 7"]),
        (damaged(1, 2), ["version 2"]),
        (damaged(2, -5), ["-5 tokens"]),
        (damaged(2, 0), ["0 tokens"]),
        (damaged(2, 5001), ["truncated"]),
        (damaged(2, 4999), ["too long"]),
    ],
)
def test_bad_data_is_named(damage, says, backend, in_folder, capsys, tmp_path, data_path):
    folder = copy_data(data_path, tmp_path)
    damage(folder)
    assert in_folder(backend, data_path=folder) == 2
    check_message(capsys, says, "bad_data")


def check_message(capsys, says, status=None):
    seen = capsys.readouterr()
    text = seen.err
    [last] = [values for kind, values in parse_log(seen.out) if kind == "status"]
    assert status in (None, last["status"])
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text
    assert [word for word in says if word not in text] == []


@pytest.mark.parametrize("changes, says", [
    ({"vocab_size": 512}, ["VOCAB_SIZE=512", "260 ids"]),
    ({"tokenizer_path": "nowhere.model"}, ["nowhere.model"]),
    ({"device": "gpu"}, ["DEVICE=gpu", "DEVICE=cpu"]),
    ({"iteration": 5}, ["--iteration", "--iterations"]),
    ({"num_heads": 3, "train_batch_tokens": 100, "seed": "x"}, ["NUM_HEADS=3", "TRAIN_BATCH_TOKENS=100", "SEED=x"]),
    ({"run_id": "a/b"}, ["RUN_ID=a/b"])])
def test_bad_settings_are_named_before_anything_is_written(changes, says, backend, in_folder, capsys, tmp_path):
    assert in_folder(backend, **changes) == 2
    check_message(capsys, says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes, says", [
    ({"matrix_lr": "fast"}, ["MATRIX_LR=fast"]), ({"checkpoint_every": "often"}, ["CHECKPOINT_EVERY=often", "60s"]),
    ({"resume": "runs/none"}, ["RESUME=runs/none", "auto"])])
def test_bad_settings_have_that_status(changes, says, backend, in_folder, capsys, tmp_path):
    assert in_folder(backend, **changes) == 2
    check_message(capsys, says, "bad_settings")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_not_overwritten(backend, in_folder, capsys, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "train.log").write_text("dear")
    assert in_folder(backend, run_id="first") == 2
    check_message(capsys, ["runs/first", "RUN_ID"])
    assert (tmp_path / "runs" / "first" / "train.log").read_text() == "dear"


def test_a_full_disk_is_found_before_training(backend, in_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1 << 20))
    assert in_folder(backend) == 2
    check_message(capsys, ["1 MiB", "free some space"])
    assert list(tmp_path.iterdir()) == []


def test_over_the_cap_the_file_is_kept(backend, in_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(common.finish, "BUDGET_BYTES", 60_000)
    assert in_folder(backend) == 2
    lines, model = trained(tmp_path)
    total = lines["total"][0]["bytes"]
    check_message(capsys, [f"{total:,} bytes", f"{total - 59_999:,} too many", "model.int8.zlib"])
    assert decode_model(model)[0].model_dim == 32
    assert lines["status"][0]["status"] == "over_budget"


@pytest.mark.slow
def test_levels_that_fit_the_budget(backend, in_folder, capsys, monkeypatch, tmp_path):
    """A run over the cap goes on with QUANT_LEVELS=auto from its last checkpoint: the file is the one that was
    fitted."""
    code = len(bundle(ROOT / BACKENDS[backend]))
    monkeypatch.setattr(common.finish, "BUDGET_BYTES", code + 20_000)
    assert in_folder(backend, run_id="r") == 2
    assert in_folder(backend, resume=str(tmp_path / "runs" / "r"), quant_levels="auto") == 0
    lines, model = trained(tmp_path)
    chosen = lines["quant"][-1]
    assert 19_900 < chosen["bytes"] == len(model) < 20_000 and 0 < chosen["error"] < 0.2
    levels = read_model(model)[1]
    assert chosen["levels"] == f"matrix={levels['matrix']},embed={levels['embed']}" and 2 < levels["matrix"] < 127
    monkeypatch.setattr(common.finish, "BUDGET_BYTES", code + 5000)
    capsys.readouterr()
    assert in_folder(backend, run_id="s", quant_levels="auto") == 2
    check_message(capsys, ["at 2 levels the model has", "4,999"], "over_budget")


def test_a_loss_that_is_not_finite_stops_the_run(backend, in_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer_class(backend), "train_step", lambda *_: float("nan"))
    assert in_folder(backend, warmup_steps=0) == 2
    check_message(capsys, ["nan at step 1", "MATRIX_LR"])
    [path] = (tmp_path / "runs").iterdir()
    assert json.loads((path / "status.json").read_text())["status"] == "nonfinite"
    assert not (path / "model.int8.zlib").exists() and "final" not in (path / "train.log").read_text()


def test_preflight_says_what_a_run_would_meet_and_writes_nothing(backend, in_folder, capsys, tmp_path, data_path):
    assert in_folder(backend, preflight=True, max_wallclock_seconds=50, iterations=10**9) == 0
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines()]
    assert names == [
        "settings",
        "device",
        "model",
        "data",
        "folder",
        "memory",
        "step",
        "run",
        "artifact",
        "keeps",
        "all",
    ]
    assert (
        "12,000 tokens for training, 1,500 for validation" in text and "VOCAB_SIZE=260" in text and "cap: 50 s" in text
    )
    code = len(bundle(ROOT / BACKENDS[backend]))
    assert f"code {code:,} of 16,000,000" in text and list(tmp_path.iterdir()) == []
    assert in_folder(backend, preflight=True, vocab_size=300) == 2
    check_message(capsys, ["VOCAB_SIZE=300", "260 ids"], "bad_data")
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "notes").write_text("mine")
    assert in_folder(backend, preflight=True, run_id="r", vocab_size=300) == 2
    check_message(capsys, ["runs/r is there already", "VOCAB_SIZE=300"], "bad_data")  # all at once


def test_run_and_preflight_warn_of_what_makes_the_score_too_good(in_folder, capsys, tmp_path, data_path):
    data = shutil.copytree(data_path, tmp_path.parent / f"{tmp_path.name}.data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"] = {"val": {"bytes": 1500, "text_bytes": 1300, "shards": []}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    for preflight, begin in ((True, "warning   "), (False, "warning: ")):
        assert in_folder("torch", preflight=preflight, data_path=data, iterations=1) == 0
        shown = capsys.readouterr()
        expected = f"{begin}{data}/manifest.json counts 1500 bytes of validation, but its text has 1300"
        assert sum(line.startswith(expected) for line in (shown.out + shown.err).splitlines()) == 1


def test_the_forecast_of_the_artifact_is_that_of_the_published_baseline():
    """15,815,847 bytes (model of the naive baseline, 8xH100): its weights spread as normal ones do."""
    from common.preflight import artifact_bytes
    from common.settings import Settings, group_levels
    s = Settings(vocab_size=1024)
    assert abs(artifact_bytes(s, group_levels(s)) - 15_815_847) < 50_000


def test_an_interrupt_is_told_without_a_traceback(backend, in_folder, capsys, monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(trainer_class(backend), "train_step", stop)
    assert in_folder(backend) == 2
    check_message(capsys, ["interrupted"])
    [path] = (tmp_path / "runs").iterdir()
    assert json.loads((path / "status.json").read_text())["status"] == "interrupted"


def test_a_backend_that_is_not_installed(backend, tmp_path, data_path):
    (tmp_path / f"{backend}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{backend}'\")")
    done = run_script(
        [
            "-c",
            f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(1, {str(ROOT)!r}); "
            f"runpy.run_path({str(ROOT / BACKENDS[backend])!r}, run_name='__main__')",
        ],
        tmp_path,
        environment(data_path),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"make install BACKEND={backend}" in done.stderr and f".[{backend}]" in done.stderr


@pytest.mark.slow
def test_ranks_that_cannot_share_the_rows(tmp_path, data_path):
    done = run_script(
        ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=3",
         ROOT / "train_gpt.py"],
        tmp_path,
        environment(data_path),
    )
    assert done.returncode != 0 and done.stderr.count("error: TRAIN_BATCH_TOKENS=256 is 8 rows") == 1


def test_help_lists_every_setting(backend, in_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    kind = trainer_class(backend).settings_class
    assert main(trainer_class(backend), BACKENDS[backend]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} " in text for name in kind.__dataclass_fields__)


@pytest.mark.parametrize("flag", tiered(["--help", "--source"], 2))
def test_a_closed_pipe_is_quiet(flag, backend, data_path):
    """`| head` reads what it wants, and no error follows."""
    command = f"'{sys.executable}' {BACKENDS[backend]} {flag} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment(data_path), capture_output=True, text=True,
                          check=False)
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_a_source_that_is_not_one_program_is_refused_in_one_line(backend, tmp_path, data_path):
    shutil.copytree(ROOT / "common", tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / BACKENDS[backend]
    text = (ROOT / script.name).read_text()
    script.write_text(text.replace("from common.run import main", "from common.run import main as main"))
    done = run_script([script, "--source"], tmp_path, environment(data_path))
    assert done.returncode == 2 and "only top-level `from common.module import name`" in done.stderr
    assert "Traceback" not in done.stderr
