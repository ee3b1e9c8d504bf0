"""The checkpoint format and its writer: `python -m pytest tests/common/test_checkpoint.py`."""
import errno
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

import common.checkpoint
import common.folder
from common.checkpoint import Saver, checkpoints, decode_checkpoint, read_checkpoint, run_identity, write_checkpoint
from common.dataset import open_data
from common.files import write_file
from common.loop import Run
from common.params import initial_weights
from common.settings import UserError
from common.values import Interval
from tests.conftest import ROOT, tiny_settings, trainer_class

IDENTITY = {"SEED": 1337, "MATRIX_LR": 0.02, "TIE_EMBEDDINGS": True, "code": "ab" * 32}
ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([[1.5, -0.0]]),
    "adam_step": np.array(7, np.float32),
    "c": np.arange(8, dtype=np.float32).reshape(2, 4).T,
}
EXPECTED = {name: (array.shape, str(array.dtype)) for name, array in ARRAYS.items()}
GOLDEN = "27679bd857cdf82eaa5b76f4833648e4fb126a4b"


def decoded(data, identity=IDENTITY, expected=EXPECTED):
    return decode_checkpoint(io.BytesIO(data), identity, expected)


def with_digest(payload):
    return payload + hashlib.sha256(payload).digest()


@pytest.fixture
def data(tmp_path):
    return write_checkpoint(tmp_path, 120, 3.25, IDENTITY, ARRAYS).read_bytes()


# the format
# -------------------------------------------------------------------------------------------------------------


def test_the_format_as_described(data, tmp_path):
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000120.checkpoint"]
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    arrays = safetensors.numpy.load(data[:-32])  # the library reads it
    assert {*arrays} == {*ARRAYS}
    for name, array in ARRAYS.items():
        assert arrays[name].tobytes() == np.ascontiguousarray(array).tobytes() and arrays[name].shape == array.shape
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    assert size % 8 == 0 and [*header] == ["__metadata__", "a", "adam_step", "b", "c"]
    assert json.loads(header["__metadata__"]["parity_golf"]) == {
        "format": 1,
        "step": 120,
        "elapsed": 3.25,
        "identity": IDENTITY,
    }


def test_golden_bytes(data):
    assert hashlib.sha256(data).hexdigest()[:40] == GOLDEN


def test_what_is_read_is_what_was_written(data):
    step, elapsed, arrays = decoded(data)
    assert (step, elapsed) == (120, 3.25)
    assert all(arrays[name].tobytes() == np.ascontiguousarray(ARRAYS[name]).tobytes() for name in ARRAYS)


def test_no_flipped_bit_loads(data):
    """400 bits of one file: 0 silent loads. Overwritten in place or stored as they are, tensors would load with it."""
    for bit in random.Random(1).sample(range(8 * len(data)), 400):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="damaged"):
            decoded(bytes(changed))


def test_no_part_of_a_file_loads(data):
    for size in [*range(0, 80), *range(80, len(data), 7)]:
        with pytest.raises(ValueError, match="damaged"):
            decoded(data[:size])
    with pytest.raises(ValueError, match="damaged"):
        decoded(data + b"\0")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"format": 2}, "format 2"),
        ({"step": -1}, "no step"),
        ({"step": True}, "no step"),
        ({"elapsed": float("nan")}, "no step"),
        ({"elapsed": 1}, "no step"),
        ({"identity": []}, "no step"),
    ],
)
def test_a_whole_file_with_other_content_is_refused(change, says, data):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header["__metadata__"]["parity_golf"] = json.dumps(json.loads(header["__metadata__"]["parity_golf"]) | change)
    text = json.dumps(header).encode()
    with pytest.raises(ValueError, match=says):
        decoded(with_digest(len(text).to_bytes(8, "little") + text + data[8 + size:-32]))


def test_tensors_that_do_not_fit_are_refused(data):
    for expected in (
        EXPECTED | {"d": ((1,), "float32")},
        {**EXPECTED, "a": ((1, 3), "float64")},
        {**EXPECTED, "a": ((1, 2), "float32")},
    ):
        with pytest.raises(ValueError, match="tensor"):
            decoded(data, expected=expected)
    with pytest.raises(ValueError, match="larger"):
        decoded(with_digest(data[:-32] + bytes(1 << 21)))


def test_another_run_is_refused_with_every_difference(data):
    with pytest.raises(UserError, match=r"MATRIX_LR is 0.03, there 0.02; SEED is 1, there 1337") as error:
        decoded(data, IDENTITY | {"MATRIX_LR": 0.03, "SEED": 1})
    assert error.value.status == "bad_settings"


def test_the_identity_is_what_is_learned(data_path):
    """Settings of speed, memory and logging may change, and the place of the data, but not its content."""
    s = tiny_settings("torch", data_path)
    data = open_data(s)
    identity = run_identity(s, data, "code")
    free = {
        "micro_batch_tokens": 64,
        "compile": True,
        "deterministic": True,
        "kernels": "triton",
        "device": "gpu",
        "train_log_every": 3,
        "recipe": "laptop",
        "quant_clip": 6.0,
        "gptq_tokens": 64,
        "ttt_rank": 4,
        "run_id": "x",
        "report_to": "tensorboard",
        "sample_tokens": 9,
        "resume": "y",
        "rank_timeout": 3.0,
        "val_loss_every": 7,
        "val_tokens_limit": 5,
        "checkpoint_every": "3",
        "data_path": "elsewhere",
        "tokenizer_path": "x",
        "warmup_steps": 9,
        "eval_seq_len": 64,
        "eval_stride": 8,
        "ttt_lr": 0.1,
        "ttt_chunk": "64d",
        "quant_levels": "15",
        "loss_chunk": 64,
    }
    changed = type(s)(**vars(s) | free)
    assert run_identity(changed, data, "code") == identity
    fixed = {name for name in vars(s) if name not in free}
    assert {name.upper() for name in fixed} | {"code", "data", "tokenizer"} == {*identity}
    assert run_identity(s, data._replace(sha256="0"), "code") != identity != run_identity(s, data, "other")


# what is kept
# -----------------------------------------------------------------------------------------------------------


def test_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step, float(step), IDENTITY, ARRAYS)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000015.checkpoint", "step-00000010.checkpoint"]
    newest, told = checkpoints(tmp_path)[0], []
    assert read_checkpoint(tmp_path, IDENTITY, EXPECTED, told.append)[0] == 15 and not told
    newest.write_bytes(newest.read_bytes()[:-1])
    step, elapsed, _, damaged = read_checkpoint(tmp_path, IDENTITY, EXPECTED, told.append)
    assert (step, elapsed, damaged) == (10, 10.0, [newest]) and told == [f"{newest} is damaged or cut short"]
    checkpoints(tmp_path)[1].write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint that can be used"):
        read_checkpoint(tmp_path, IDENTITY, EXPECTED, told.append)
    assert read_checkpoint(tmp_path / "none", IDENTITY, EXPECTED, told.append) == (0, 0.0, {}, [])


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"old")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and [*tmp_path.iterdir()] == [tmp_path / "a"]


def test_file_then_folder_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: (calls.append("folder" if os.path.isdir(f"/dev/fd/{file}") else "file"), fsync(file))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_file(tmp_path / "a", b"new")
    assert calls == ["file", "rename", "folder"]


def test_writing_does_not_stop_training_and_a_failure_is_told(tmp_path, monkeypatch):
    told, go = [], threading.Event()
    write = common.checkpoint.write_file

    def slow(path, *parts):
        go.wait(30)
        if "00000020" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *parts)
    monkeypatch.setattr(common.checkpoint, "write_file", slow)
    saver = Saver(tmp_path, IDENTITY, Interval("10"), lambda kind, **values: told.append((kind, values)))
    assert not saver.due(9, 1.0) and saver.due(10, 1.0)
    saver.save(10, 1.0, ARRAYS)
    assert not checkpoints(tmp_path) and not saver.due(20, 2.0)  # while one is being written, no second one
    go.set()
    saver.collect()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010.checkpoint"] and saver.due(20, 2.0)
    saver.save(20, 2.0, ARRAYS)
    saver.collect()
    assert [kind for kind, _ in told] == ["checkpoint", "checkpoint_failed"] and "No space left" in told[1][1]["reason"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010.checkpoint"]
    saver.save(30, 3.0, ARRAYS)
    saver.collect()
    assert len(checkpoints(tmp_path)) == 2


def test_a_signal_while_the_state_is_copied_does_not_pass_for_a_save(tmp_path):
    class Interrupted:
        """A trainer as far as Run.save knows one."""

        world_size, copies = 1, 0

        def state(self):
            self.copies += 1
            if self.copies == 1:
                raise KeyboardInterrupt
            return ARRAYS

    saver = Saver(tmp_path, IDENTITY, Interval("0"), lambda kind, **values: None)
    run = Run(None, None, Interrupted(), None, saver, None, None, 3, 1.0)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    run.save()
    saver.collect()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003.checkpoint"]


def test_the_newest_is_the_one_of_the_latest_step(tmp_path):
    for step in (5, 99_999_999, 100_000_000):
        (tmp_path / f"step-{step:08}.checkpoint").touch()
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-100000000", "step-99999999", "step-00000005"]


def test_due_by_seconds(tmp_path):
    saver = Saver(tmp_path, IDENTITY, Interval("2.5s"), lambda *_, **__: None, step=7, elapsed=10.0)
    assert not saver.due(1000, 12.4) and saver.due(8, 12.5)
    assert not Saver(tmp_path, IDENTITY, Interval("0"), lambda *_, **__: None).due(10**6, 1e6)


# killed while saving
# ----------------------------------------------------------------------------------------------------

KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from common.checkpoint import checkpoints, read_checkpoint, write_checkpoint
folder, kills, arrays = Path(sys.argv[1]), int(sys.argv[2]), dict(np.load(sys.argv[3]))
expected = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
r, step, early, torn = random.Random(1), 0, 0, 0
write_checkpoint(folder, 0, 0.0, {}, arrays)
start = time.perf_counter()
write_checkpoint(folder, 1, 0.0, {}, arrays)
one = time.perf_counter() - start
for _ in range(kills):
    child = os.fork()
    if not child:
        while True:
            step += 1
            moved = {name: array + np.float32(step) for name, array in arrays.items()}
            write_checkpoint(folder, step + 1, float(step), {}, moved)
    time.sleep(r.random() * 4 * one)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += any(folder.glob(".*.tmp"))
    found, elapsed, back, damaged = read_checkpoint(folder, {}, expected, print)
    assert not damaged and len(checkpoints(folder)) >= 2, folder
    if found > 1:
        assert all(np.array_equal(back[name], arrays[name] + np.float32(found - 1)) for name in arrays)
    early += found == step + 1
    step = max(0, found - 1)
print(kills, torn, early)
"""


@pytest.mark.parametrize("count, least", [(10, 0), pytest.param(100, 31, marks=pytest.mark.slow)])
def test_kills_while_saving_leave_as_many_that_load(count, least, backend, tmp_path, data_path):
    """With the state of each backend's trainer: F10. What is killed is a process that only saves, again and again."""
    s = tiny_settings(backend, data_path, model_dim=128, num_layers=4)
    trainer = trainer_class(backend)(s, initial_weights(s))
    (tmp_path / backend).mkdir()
    np.savez(tmp_path / "state.npz", **trainer.state())
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / backend), str(count), str(tmp_path / "state.npz")],
        check=False,
        timeout=300,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    kills, torn, _ = map(int, done.stdout.split())
    assert kills == count and torn >= least  # most kills came in the middle of a write
