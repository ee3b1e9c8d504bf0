"""REPORT_TO: `python -m pytest tests/runs/test_report_to.py`."""
import json
import struct
import threading
from importlib import metadata

import pytest

from common import report
from common.folder import RunFolder
from common.readlog import parse_log
from common.report import Report
from common.settings import Settings, UserError
from tests.conftest import BACKENDS, ROOT, environment, run_script


def curves_of(log):
    """dict name of a curve -> list of (step, value), as a log has them."""
    curves, step = {}, 0
    for kind, values in parse_log(log):
        step = values.get("step", step)
        for name, field in report.CURVES.get(kind, {}).items():
            rounded = 0.51 if isinstance(values[field], int) or field == "rate" else 6e-5
            curves.setdefault(name, []).append((step, pytest.approx(values[field], abs=rounded, rel=1e-7)))
    return curves


def tensorboard_curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder)).Reload()
    names = [name for name in found.Tags()["scalars"] if not name.startswith("_")]
    return found, {name: [(event.step, event.value) for event in found.Scalars(name)] for name in names}


def wandb_records(file):
    """The records of an offline run: a LevelDB log, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 < len(data):
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7:at + 7 + size]
        at += 7 + size
        at += -at % 32768 if -at % 32768 < 7 else 0
        if kind in (1, 4):  # a record that is whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def wandb_curves(folder):
    """(dict of the settings, curves)"""
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    records, curves = [*wandb_records(file)], {}
    for record in records:
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
            curves.setdefault(name, []).append((int(row["_step"]), row[name]))
    config = {item.key: json.loads(item.value_json) for record in records for item in record.run.config.update}
    return config, curves


@pytest.mark.slow
@pytest.mark.parametrize("backend, tools", [("torch", "tensorboard, wandb"), ("mlx", "tensorboard")])
def test_a_run_reports_what_its_log_says(tmp_path, data_path, backend, tools):
    env = environment(data_path, run_id="a", report_to=tools, iterations=14, val_loss_every=5)
    done = run_script([ROOT / BACKENDS[backend]], tmp_path, env | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    folder = tmp_path / "runs/a"
    expected = curves_of((folder / "train.log").read_text())
    assert {name: len(points) for name, points in expected.items()} == {
        "train_loss": 10, "tokens_per_second": 10, "val_loss": 4, "val_bpb": 4,
        "total_bytes": 1, "final_val_loss": 1, "final_val_bpb": 1}
    found, curves = tensorboard_curves(folder)
    assert curves == expected
    [text] = found.Tensors("settings")
    stored = json.loads(text.tensor_proto.string_val[0].decode().strip("`").removeprefix("json"))
    assert stored["report_to"] == tools and stored["iterations"] == 14
    assert "_hparams_/session_start_info" in found.summary_metadata
    if "wandb" in tools:
        config, curves = wandb_curves(folder)
        assert curves == expected and config.items() >= stored.items()


def test_a_resumed_run_goes_on_with_its_curves(tmp_path):
    """What a stopped run reported after its last checkpoint is not shown twice."""
    for done, last in ((0, 8), (4, 11)):
        made = Report(Settings(report_to="tensorboard"), tmp_path, print)
        if done:
            made.put("resume", {"step": done})
        for step in range(done + 1, last + 1):
            made.put("step", {"step": step, "train_loss": float(step), "rate": 1.0})
        made.close()
    assert tensorboard_curves(tmp_path)[1]["train_loss"] == [(step, step) for step in range(1, 12)]


def refuse(*_):
    raise OSError("no room")


@pytest.mark.parametrize("tool", [refuse, lambda *_: (refuse, print), lambda *_: (lambda *_: None, refuse),
                                  lambda *_: (lambda *_: exit(3), print)], ids=["start", "log", "end", "exit"])
def test_a_tool_that_fails_is_warned_of_once(tmp_path, monkeypatch, tool):
    got, warnings = [], []
    monkeypatch.setattr(report, "STARTS", {
        "wandb": tool, "tensorboard": lambda *_: (lambda *line: got.append(line), lambda: got.append("end"))})
    made = Report(Settings(report_to="wandb,tensorboard"), tmp_path, warnings.append)
    for step in (1, 2):
        made.put("val", {"step": step, "val_loss": 2.0, "val_bpb": 1.0})
        made.put("memory", {"mib": 3})
    made.put("total", {"bytes": 5})
    made.close()
    scores = {"val_loss": 2.0, "val_bpb": 1.0}
    assert got == [(scores, 1), (scores, 2), ({"total_bytes": 5}, 2), "end"]
    assert len(warnings) == 1 and warnings[0].startswith("warning: nothing more is reported to wandb: ")


def test_a_tool_that_hangs_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "STARTS", {"wandb": lambda *_: (lambda *_: threading.Event().wait(), None)})
    monkeypatch.setattr(report, "LAST_WAIT", 0.05)
    warnings = []
    made = Report(Settings(report_to="wandb"), tmp_path, warnings.append)
    for step in range(3):
        made.put("step", {"step": step, "train_loss": 1.0, "rate": 1.0})
    made.close()
    assert warnings == ["warning: wandb did not take all in 0 s"]


def test_a_tool_that_is_not_installed_is_an_error_before_the_run(tmp_path, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match="REPORT_TO names trackio, .* `pip install trackio`") as error:
        RunFolder(tmp_path / "a", Settings(report_to="trackio"))
    assert error.value.status == "bad_settings" and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text, says", [("tensorbord", ": tensorbord is not one of tensorboard, wandb, trackio"),
                                        ("wandb,", ": nothing is not one of")])
def test_a_tool_of_another_name_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        Settings(report_to=text)
