"""Every kind of tampering in tampering.py is caught where its table says, and what it says is not caught is not.

Run: `python -m pytest tests/records/test_tampering.py`.
"""
import base64
import codecs
import hashlib
import json
import os
import re
import shutil
import signal

import pytest

from common.finish import MODEL_FILE
from records.__main__ import main
from records.checks import PLACEHOLDER
from records.folder import open_folder
from records.plausible import check_plausible
from records.show import as_text
from records.trainer_log import check_trainer_logs
from records.verdict import status_of
from records.verify import verify_folder
from tests import faults
from tests.conftest import tiered
from tests.records import tampering
from tests.records.made_challenge import early_log, late_log, make_challenge_record
from tests.records.made_records import FINEWEB, make_record
from tests.records.spoil import append, edit, field, write
from tests.records.tampering import KINDS

BEFORE, SCORES = (1.2246, 1.2250, 1.2243), (1.2101, 1.2094, 1.2098)


def real_record(folder, data_path):
    """The record folder of three real runs; the model file of a run that is not its main one lies beside the track."""
    runs = [
        faults.Run("torch", folder / f"run{seed}", data_path, seed=seed, iterations=60, train_log_every=5,
                   val_loss_every=20, run_id=f"r{seed}")
        for seed in (1, 2, 3)
    ]
    for seed, run in enumerate(runs, 1):
        assert run.wait() == [0], run.text()
        run.path = run.folder / "runs" / f"r{seed}"
    words = ["--track", "non-record", "--name", "real", "--author", "A", "--github-id", "a", "--date", "2026-05-02"]
    main(["pack", *(str(run.path) for run in runs), *words, "--records", str(folder / "records")])
    [path] = folder.glob("records/track_non_record_16mb/*")
    readme = path / "README.md"
    readme.write_text(readme.read_text().replace(PLACEHOLDER, "Written"))
    main_log = open_folder(path).logs[0]
    other = next(run for seed, run in enumerate(runs, 1) if seed != main_log.seed)
    shutil.copyfile(other.path / MODEL_FILE, folder / "records" / "other_seed.model")
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory, data_path):
    """name -> path of each honest folder, in a tree of its own."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("run", "capped", "challenge", "late")}
    made = {"run": real_record(folders["run"], data_path)}
    make_record(folders["capped"], BEFORE, "10min", "Before", "2026-05-01", FINEWEB)
    made["capped"] = make_record(folders["capped"], SCORES, "10min", "Better", "2026-05-02", FINEWEB)
    for name, log in (("challenge", early_log), ("late", late_log)):
        make_challenge_record(folders[name], BEFORE, "before", "2026-05-01", log)
        made[name] = make_challenge_record(folders[name], SCORES, "better", "2026-05-02", log)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "capped", "challenge", "late"])
def test_an_honest_folder_passes(honest, name, data_path):
    result = verify_folder(honest[name], smoke=name != "late", data=data_path if name == "run" else None)
    found = {check: findings for check, findings in result.items() if status_of(findings) in ("WARN", "FAIL")}
    assert not found, as_text(honest[name], result)


HONEST_RUNS = {  # what people set, in runs of a few steps
    "average and low levels": {"ema_decay": 0.9, "quant_levels": "embed=fp16,matrix=7"},
    "sliding windows": {"eval_stride": 8, "eval_seq_len": 64},
    "test-time training": {"ttt_lr": 0.5, "ttt_chunk": "100"},
    "odd intervals": {"val_loss_every": 7, "train_log_every": 3, "iterations": 40},
    "less than ten steps": {"iterations": 3, "val_loss_every": 1},
    "no step at all": {"iterations": 0},
    "the time limit": {"max_wallclock_seconds": 0.3, "iterations": 100_000, "train_log_every": 50},
    "shared layers, untied": {"loop_layers": "1-1", "tie_embeddings": 0},
}


def doubts(run):
    """What verify says of the log of a run beyond its settings: findings of plausible.py and trainer_log.py."""
    folder = open_folder(run.path)
    assert folder.logs[0].score()
    return [*check_plausible(folder), *check_trainer_logs(folder)]


@pytest.mark.parametrize("changes", tiered(HONEST_RUNS.values(), 8), ids=HONEST_RUNS)
def test_honest_runs_raise_no_doubt(backend, changes, tmp_path, data_path):
    run = faults.Run(backend, tmp_path, data_path, **changes)
    assert run.wait() == [0], run.text()
    assert not doubts(run)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_and_one_of_two_ranks_raise_no_doubt(backend, tmp_path, data_path):
    settings = {"iterations": 400, "val_loss_every": 50, "train_log_every": 20}
    run = faults.Run(backend, tmp_path / "one", data_path, **settings)
    run.until_step(40)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    run.wait()
    resumed = faults.Run(backend, tmp_path / "one", data_path, resume="runs/r", **settings)
    assert resumed.wait() == [0], resumed.text()
    assert "resume: step:" in (run.path / "train.log").read_text()
    both = faults.Run(backend, tmp_path / "two", data_path, world_size=2)
    assert both.wait() == [0, 0], both.text()
    assert [*doubts(resumed), *doubts(both)] == []


def test_two_runs_in_one_file_and_the_names_of_ranks_raise_no_doubt(tmp_path, data_path):
    first = faults.Run("torch", tmp_path / "one", data_path, seed=1, val_loss_every=4)
    second = faults.Run("torch", tmp_path / "two", data_path, seed=2, train_log_every=3)
    assert first.wait() == second.wait() == [0]
    texts = [(run.path / "train.log").read_text() for run in (first, second)]
    (first.path / "train.log").write_text("".join(f"[rank0]:{line}\n" for line in "".join(texts).splitlines()))
    assert not doubts(first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.folder}: {kind.what}")
def test_a_kind_of_tampering_is_caught_where_the_table_says(honest, tmp_path, data_path, kind):
    path = honest[kind.folder]
    shutil.copytree(path.parents[1], tmp_path / "records", symlinks=True)
    folder = tmp_path / "records" / path.parent.name / path.name
    kind.spoil(folder)
    result = verify_folder(folder, smoke=kind.level == "smoke", data=data_path if kind.level == "data" else None)
    if kind.level == "no":
        quiet = [name for name, findings in result.items() if status_of(findings) in ("WARN", "FAIL")]
        assert not quiet, as_text(folder, result)
    else:
        texts = [f"{f.observed} {f.expected}" for f in result[kind.check] if f.status == kind.status]
        assert any(kind.words in text for text in texts), as_text(folder, result)


def test_the_table_is_long_and_few_kinds_are_not_caught():
    rows = [(kind.folder, kind.what) for kind in KINDS]
    assert len(set(rows)) == len(rows) >= 60
    assert len([kind for kind in KINDS if kind.level == "no"]) <= 5
    assert len(re.findall("\n", tampering.table())) == len(KINDS)


def rewritten(change):
    """Changes the bytes of submission.json."""
    return lambda folder: write("submission.json", change((folder / "submission.json").read_bytes()))(folder)


DIGESTS = "".join(f"{hashlib.sha256(bytes([i])).hexdigest()}  shard_{i:06d}.bin\n" for i in range(100))
PROSE = " ".join(f"Trial {i} moved the score by {i % 7 / 1000:.4f} at a rate of {i}e-4." for i in range(2000))
PICTURE = base64.encodebytes(tampering.png(tampering.NOISE)).decode()
CURVE = " ".join(f"{x},{7 - x / 80:.4f}" for x in range(400))
INNOCENT = {  # what people add to an honest folder
    "digests of shards": append("README.md", DIGESTS),
    "a long README": append("README.md", PROSE),
    "text in another script": append("README.md", "Обучение малой модели языка, 小さな言語モデルの学習。" * 200),
    "links and a table": append("README.md", "| [run](https://example.org/a/b/c?d=e) | 1.2101 | 1.2094 |\n" * 200),
    "a picture": write("curve.png", tampering.png(b"\0\0")),
    "a picture in a drawing": write("curve.svg", tampering.SVG % f'<image href="data:image/png;base64,{PICTURE}"/>'),
    "a picture in a notebook": write("curve.ipynb", json.dumps({"outputs": [{"data": {"image/png": PICTURE}}]})),
    "a drawing of a curve": write("curve.svg", tampering.SVG % f'<polyline points="{CURVE}"/>'),
    "the score of the record before": edit("README.md", (r"\Z", "\nBefore: val_bpb 1.0500 with 8xH100.\n")),
    "hashes of packages": append("requirements.txt", f"numpy==2.4.6 --hash=sha256:{'ab' * 32}\n# see https://pypi.org\n"),
    "a score with few digits": field(seed_scores=[1.21, 1.2094, 1.21]),
    "a whole number with a point": rewritten(lambda data: re.sub(rb'("bytes_total": \d+)', rb"\1.0", data)),
    "a byte-order mark": rewritten(lambda data: codecs.BOM_UTF8 + data),
    "another name of the hardware": field(hardware="8 x NVIDIA H100"),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", INNOCENT.values(), ids=INNOCENT)
def test_what_people_add_to_an_honest_folder_raises_no_doubt(honest, tmp_path, spoil):
    shutil.copytree(honest["challenge"].parents[1], tmp_path / "records")
    folder = tmp_path / "records" / honest["challenge"].parent.name / honest["challenge"].name
    spoil(folder)
    result = verify_folder(folder)
    assert not [name for name, found in result.items() if status_of(found) in ("WARN", "FAIL")], as_text(folder, result)
