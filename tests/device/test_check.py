"""The check of a device, rehearsed from end to end: `python -m pytest tests/device/test_check.py`."""
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from common.settings import Settings
from tests.conftest import ROOT
from tests.device import check, part
from tests.device.check import Check, Done


def command(*arguments, cwd=ROOT, **changes):
    return subprocess.run([*map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes)


@pytest.mark.slow
def test_every_part_is_rehearsed_on_the_cpu(backend, tmp_path):
    """A setting in the environment changes nothing."""
    done = command(sys.executable, "-m", "tests.device.check", "--rehearse", "--backend", backend, cwd=tmp_path,
                   NUM_LAYERS="7")
    text = (tmp_path / "device_report.txt").read_text()
    assert done.returncode == 0, text
    verdicts = dict(re.findall(r"^([\w-]+) +(ok|left out) +\d+$", text, re.MULTILINE))
    left_out = {name for name, verdict in verdicts.items() if verdict == "left out"}
    assert set(verdicts) == {"machine", *check.TIMED, *check.PROOFS} and left_out == set(check.NOT_ON.get(backend, ()))
    held = {"torch": 9, "mlx": 7}[backend]
    assert text.count("\nheld: ") == held and f"what this repository predicts: {held} held, 0 differ" in text
    assert "train_loss" in text and "attention" in text and "first step" in text and "compressed bytes" in text
    assert str(ROOT) not in text and str(tmp_path) not in text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="the fake CUDA device needs triton, which is for Linux")
def test_the_parts_for_cuda_are_rehearsed_on_the_fake_device():
    done = command(sys.executable, "-m", "tests.device.on_fake")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("NVIDIA H100", "attention, cuDNN, (B, T, H, D)     forward_ms", "kernels 1, busy_ms 0.002",
                  "held: hidden synchronisations", "held: losses with one rank that reduces"):
        assert words in done.stdout


def test_without_a_device_the_remedy_is_named(backend, tmp_path):
    done = command(sys.executable, "-m", "tests.device.check", "--backend", backend, cwd=tmp_path,
                   CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no device to check"), done.stderr
    assert {"torch": "https://pytorch.org", "mlx": "build of MLX for your GPU"}[backend] in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A function that gives the Done of a part whose process runs this Python code."""
    def made(code, limit=20.0, seconds=600.0):
        (tmp_path / "tests/device").mkdir(parents=True)
        (tmp_path / "tests/device/on_torch.py").write_text(code)
        monkeypatch.setattr(check, "ROOT", tmp_path)
        (tmp_path / "work").mkdir()
        options = types.SimpleNamespace(limit=seconds, rehearse=True)
        return Check("torch", tmp_path / "work", options).part("step", limit)
    return made


@pytest.mark.parametrize("code, verdict", [
    ("print('fine')", "ok"), ("import sys; sys.exit(1)", "FAILED"), ("import sys; sys.exit(2)", "left out"),
    ("1 / 0", "FAILED"), ("import os; os.kill(os.getpid(), 9)", "FAILED")])
def test_the_verdict_of_a_part(code, verdict, parts):
    done = parts(code)
    assert done.verdict == verdict and ("ZeroDivisionError" in done.text) == (code == "1 / 0")


def test_a_part_that_hangs_is_ended_with_what_it_started(parts, tmp_path):
    child = "import subprocess; print(subprocess.Popen(['sleep', '100']).pid, flush=True); import time; time.sleep(100)"
    start = time.monotonic()
    done = parts(child, limit=2.0)
    assert done.verdict == "out of time" and time.monotonic() - start < 30
    for _ in range(100):  # until it is gone
        try:
            os.kill(int(done.text), 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.kill(int(done.text), signal.SIGKILL)
        raise AssertionError("what the part started still runs")


def test_a_part_for_which_no_time_is_left_is_not_started(parts):
    assert parts("print('started')", seconds=1.0).text == "no time was left for it"


def test_the_report_begins_with_what_did_not_hold(capsys, monkeypatch):
    monkeypatch.setattr(part, "verdicts", [])
    part.predicted("one", "1 ms", "2 ms", False)
    part.predicted("other", "none", "none", True)
    assert part.main({"x": lambda options: None}, ["x"]) == 1
    lines = capsys.readouterr().out
    text = check.report([Done("machine", "ok", 1, "a GPU"), Done("step", "FAILED", 2, "other line\n" + lines)], 3)
    head = text.partition("########")[0].splitlines()
    assert "a GPU" in head and "step             FAILED       2" in head
    assert head[-4:-1] == ["what this repository predicts: 1 held, 1 differ", "DIFFERS: one: 1 ms; seen: 2 ms",
                           "held: other: none; seen: none"]


def test_what_was_counted_for_an_h100_is_compared_on_an_h100(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(part, "verdicts", [])
    monkeypatch.setattr(part, "COSTS", tmp_path / "costs.json")
    case = {"launches": 100, "peak": 2 << 30, "ms": 10.0, "bytes": 5}
    part.COSTS.write_text(json.dumps({"torch": "2.13.0", "cases": {part.COUNTED: case}}))
    seen = {"launches": 114, "peak": 3 << 30, "ms": 11.4}
    part.check_counts("NVIDIA A10", seen)
    assert part.verdicts == [] and "not for NVIDIA A10" in capsys.readouterr().out
    part.check_counts("NVIDIA H100 80GB HBM3", seen)
    assert part.verdicts == [True, False, True]
    assert "peak memory of a step in GiB, as counted for an H100: 2, at most 1.1" in capsys.readouterr().out


def test_a_small_card_gets_a_smaller_batch():
    s = Settings(vocab_size=1024, train_batch_tokens=65536)
    assert part.fitting(s, 80 << 30) == s
    small = part.fitting(s, 6 << 30)
    assert small.train_batch_tokens == small.micro_batch_tokens == 32768
    assert part.fitting(s, 0).train_batch_tokens == 8192


def test_make_starts_it():
    for target in ("gpu-check", "device-check"):
        assert command("make", "--dry-run", target).stdout.endswith("-m tests.device.check\n")
