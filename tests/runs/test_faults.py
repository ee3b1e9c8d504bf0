"""One process, and what can happen to it, its disk and its data: `python -m pytest tests/runs/test_faults.py`."""
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from common.batches import step_rows
from common.checkpoint import checkpoints
from common.data.folder import write_shard
from common.dataset import open_data
from common.params import initial_weights
from common.readlog import parse_log
from tests.conftest import DEVICES, tiered, tiny_settings, trainer_class
from tests.faults import Run, ended, flip_bit, keeps_weights, small_disk


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data_path):
    """A folder with a run of each backend that was interrupted after step 13 or so; tests copy it."""
    made = {}

    def copy(backend, folder):
        if backend not in made:
            run = Run(backend, tmp_path_factory.mktemp("stopped"), data_path, ("slow",))
            run.until(lambda: len([*run.path.glob("*.checkpoint")]) == 2)
            os.kill(run.ranks[0].pid, signal.SIGTERM)
            ended(run, "interrupted", "interrupted by a signal after step")
            made[backend] = run
        shutil.copytree(made[backend].folder, folder)
        return made[backend].status()["step"]
    return copy


def resume(backend, folder, data, fault=None, **changes):
    return Run(backend, folder, data, fault, **{"resume": "runs/r", "run_id": ""} | changes)


def refused(run, *words):
    """Asserts that a run was not begun: one message, and nothing in the folder is changed."""
    assert (
        run.wait() == [2]
        and [word for word in words if word not in run.text()] == []
        and "status=bad_settings" in run.text()
    ), run.text()


def state(folder):
    """Names and bytes of the checkpoints and the model of a run."""
    return {
        path.name: path.read_bytes() for path in [*folder.glob("runs/r/*.checkpoint"), *folder.glob("runs/r/*.zlib")]
    }


# interrupted and resumed
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", tiered(["float32", "float64"], 2))
def test_resumed_it_is_the_run_that_was_not_interrupted(dtype, backend, tmp_path, data_path, whole):
    """F08: the same artifact to the byte, in the reference mode and in the normal one; SIGINT here. Interrupt to exit
    in seconds."""
    run = Run(backend, tmp_path / "a", data_path, ("slow",), compute_dtype=dtype, checkpoint_every="0.01s")
    run.until_step(7)
    start = time.monotonic()
    os.kill(run.ranks[0].pid, signal.SIGINT)
    said = ended(run, "interrupted", "after step")
    assert time.monotonic() - start < 10
    assert (
        checkpoints(run.path)[0].name == f"step-{said['step']:08}.checkpoint"
        and said["hint"] == "continue with --resume runs/r"
    )
    again = Run(backend, tmp_path / "a", data_path, run_id="", resume="auto", compute_dtype=dtype)
    assert again.wait() == [0], again.text()
    assert again.model() == whole(backend, compute_dtype=dtype)
    assert {path.name for path in run.path.iterdir()} == {
        "train.log",
        "settings.json",
        "status.json",
        "model.int8.zlib",
        "train_gpt.py" if backend == "torch" else "train_gpt_mlx.py",
    }
    text = (run.path / "train.log").read_text()
    assert len(parse_log(text)) == len(text.splitlines())
    assert [v["status"] for v in run.lines("status")] == ["interrupted", "finished"]
    # there is nothing to continue now, and auto begins anew
    third = resume(backend, tmp_path / "a", data_path, compute_dtype=dtype)
    assert third.wait() == [2] and "has ended (finished)" in third.text() and run.status()["status"] == "finished"


def test_a_second_signal_stops_at_once(backend, tmp_path, data_path):
    """F09: within a step that never ends by itself, and without a checkpoint; the earlier ones stay."""
    run = Run(backend, tmp_path / "a", data_path, ("slow_from", 8, 1000))
    run.until((run.folder / "slow").exists)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(run.ranks[0].pid, signal.SIGTERM)  # sent twice, as launchers do: that is one
    time.sleep(1)
    assert run.ranks[0].is_alive()
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    ended(run, "interrupted", "interrupted by a signal")
    assert [path.name for path in checkpoints(run.path)] == ["step-00000005.checkpoint"]


@pytest.mark.slow
def test_an_interrupt_in_validation_keeps_the_step_before_it(backend, tmp_path, data_path, whole):
    run = Run(backend, tmp_path / "a", data_path, ("slow_validation", 1000), val_loss_every=7, checkpoint_every="0")
    run.until((run.folder / "slow").exists)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    ended(run, "interrupted")
    assert [path.name for path in checkpoints(run.path)] == ["step-00000007.checkpoint"]
    again = resume(backend, tmp_path / "a", data_path)
    assert again.wait() == [0], again.text()
    assert again.model() == whole(backend)


def test_an_interrupt_in_the_final_evaluation_keeps_the_training(backend, tmp_path, data_path, whole):
    run = Run(backend, tmp_path / "a", data_path, ("slow_final_evaluation", 20))
    run.until((run.folder / "slow").exists)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    assert ended(run, "interrupted")["step"] == run.lines("val")[-1]["step"]
    again = resume(backend, tmp_path / "a", data_path)
    assert again.wait() == [0] and again.model() == whole(backend), again.text()
    assert len(run.lines("final_exact")) == 1


@pytest.mark.slow
def test_time_spent_before_counts_against_the_cap(backend, tmp_path, data_path):
    """F20 too: the cap is honoured, by real time."""
    changes = {"max_wallclock_seconds": 6, "iterations": 100_000, "checkpoint_every": "0"}
    run = Run(backend, tmp_path / "a", data_path, ("slow",), **changes)
    run.until_step(3)
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    step = ended(run, "interrupted")["step"]
    again = resume(backend, tmp_path / "a", data_path, ("slow",), **changes)
    assert again.wait() == [0], again.text()
    assert again.status()["status"] == "capped"
    [resumed], [stop] = run.lines("resume"), run.lines("stop")
    assert resumed["step"] == step and resumed["ms"] >= 150  # three steps that sleep 50 ms
    # two more steps had no room: it ended as early as a run of both parts together should, not of the second alone
    assert resumed["ms"] <= stop["ms"] <= 6000 and stop["step"] >= step
    assert stop["ms"] + 2.01 * stop["ms"] / stop["step"] >= 6000


# another run, another data
# ----------------------------------------------------------------------------------------------


def test_what_is_another_run_is_refused(backend, tmp_path, data_path, stopped):
    """F17: other settings, data, tokenizer; nothing of the run changes. Settings that are not given are those of the
    run."""
    stopped(backend, tmp_path / "a")
    kept = state(tmp_path / "a")
    other = shutil.copytree(data_path, tmp_path / "data")
    write_shard(other / "text_train_000001.bin", [7] * 5000)
    for changes, data, says in [
        ({"matrix_lr": 0.5, "seed": 3}, data_path, ["MATRIX_LR is 0.5, there 0.04", "SEED is 3, there 1337"]),
        ({}, other, ["data is "]),
    ]:
        run = resume(backend, tmp_path / "a", data, **changes)
        refused(run, "it is of another run", *says)
        assert state(tmp_path / "a") == kept
    (other / "text_train_000001.bin").write_bytes((data_path / "text_train_000001.bin").read_bytes())
    (other / "manifest.json").write_text(json.dumps({"tokenizer": {"file": "bytes", "sha256": "00"}}))
    run = resume(backend, tmp_path / "a", other)
    assert run.wait() == [2] and "is not the one of the shards" in run.text() and state(tmp_path / "a") == kept


def test_a_run_without_a_checkpoint_is_not_another_one_either(backend, tmp_path, data_path):
    run = Run(backend, tmp_path / "a", data_path, ("slow_from", 3, 1000), checkpoint_every="0")
    run.until((run.folder / "slow").exists)
    run.ranks[0].kill()
    run.wait()
    assert not checkpoints(run.path)
    refused(resume(backend, tmp_path / "a", data_path, seed=3), "runs/r: it is of another run: SEED is 3, there 1337")
    assert resume(backend, tmp_path / "a", data_path).wait() == [0]


def test_a_resumed_run_has_the_settings_of_the_run(backend, tmp_path, data_path, stopped, whole):
    """Only where it is told; the code must be the same too."""
    stopped(backend, tmp_path / "a")
    run = Run(backend, tmp_path / "a", data_path, ("only_resume",))
    assert run.wait() == [0], run.text()
    assert run.model() == whole(backend)
    stopped(backend, tmp_path / "b")
    run = resume(backend, tmp_path / "b", data_path, ("other_code",))
    refused(run, "code is ", "the code in its folder")


def test_what_may_change_can_be_changed_where_the_run_goes_on(backend, tmp_path, data_path, stopped, whole):
    """A setting is judged together with those of the run, not with the defaults; and a refusal leaves the run as it
    was."""
    stopped(backend, tmp_path / "a")
    kept = (tmp_path / "a" / "runs" / "r" / "status.json").read_text()
    refused(Run(backend, tmp_path / "a", data_path, ("only_resume", "SEED=3")), "SEED is 3, there 1337")
    assert (tmp_path / "a" / "runs" / "r" / "status.json").read_text() == kept
    run = Run(
        backend, tmp_path / "a", data_path, ("only_resume", "MICRO_BATCH_TOKENS=64")
    )  # less than a row of the default length
    assert run.wait() == [0], run.text()
    assert run.model() == whole(backend)


def test_a_run_of_the_other_backend_is_named(tmp_path, data_path, stopped):
    stopped("mlx", tmp_path / "a")
    (tmp_path / "a" / "runs" / "latest").symlink_to("nowhere")
    run = resume("torch", tmp_path / "a", data_path)
    assert run.wait() == [2] and "runs/r is a run of the mlx trainer" in run.text()
    run = resume("torch", tmp_path / "a", data_path, resume="auto")  # which looks for its own
    assert run.wait() == [0] and len([*(tmp_path / "a" / "runs").iterdir()]) == 3, run.text()


def test_a_folder_in_which_nothing_was_begun_is_used(backend, tmp_path, data_path):
    """As a run leaves it that is killed just then."""
    (tmp_path / "a" / "runs" / "r").mkdir(parents=True)
    (tmp_path / "a" / "runs" / "r" / "train.log").touch()
    run = Run(backend, tmp_path / "a", data_path, resume="auto")
    assert run.wait() == [0], run.text()


def test_nobody_reads_what_it_prints(backend, tmp_path, data_path):
    run = Run(backend, tmp_path / "a", data_path, ("closed_stdout",))
    assert run.wait() == [0] and run.status()["status"] == "finished" and not checkpoints(run.path)


def test_a_signal_that_was_ignored_stays_ignored(backend, tmp_path, data_path):
    """nohup."""
    run = Run(backend, tmp_path / "a", data_path, ("nohup",))
    run.until_step(3)
    os.kill(run.ranks[0].pid, signal.SIGHUP)
    assert run.wait() == [0], run.text()


def test_two_runs_cannot_write_one_folder(backend, tmp_path, data_path, stopped, whole):
    """F19."""
    stopped(backend, tmp_path / "a")
    first = resume(backend, tmp_path / "a", data_path, ("slow",))
    first.until(lambda: first.lines("resume"))
    for changes, says in [({"resume": "runs/r", "run_id": ""}, "is in use by another run"), ({}, "is there already")]:
        second = Run(backend, tmp_path / "a", data_path, **changes)
        assert second.wait() == [2] and says in second.text()
    assert first.wait() == [0] and first.model() == whole(backend) and first.status()["status"] == "finished"


def test_a_shard_that_is_changed_while_it_is_used(backend, tmp_path, data_path):
    """F16: cut short in place (a memory map would end the process), or replaced by another file."""
    for how in ("overwrite_shard", "replace_shard"):
        data = shutil.copytree(data_path, tmp_path / how)
        fault = (
            "acts_at",
            8,
            how,
            data / "text_train_000000.bin",
            1100 if how == "overwrite_shard" else data / "text_val_000000.bin",
        )
        run = Run(backend, tmp_path / f"{how} run", data, fault)
        ended(run, "bad_data", "text_train_000000.bin: changed while it is used, seen at token 2048 (byte 5120)")
        assert run.status()["step"] == 8 and [path.name for path in checkpoints(run.path)] == [
            "step-00000005.checkpoint"
        ]


# what is not finite
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_what_is_not_finite_changes_no_weight(what, backend, tmp_path, data_path):
    """F06, F07."""
    run = Run(backend, tmp_path / "a", data_path, ("keeps_weights", 0, 8, what), grad_clip_norm=1)
    ended(run, "nonfinite", f"{what} at step 8 (rank 0, tokens 1792 to 2048 of the train stream)")
    seen = np.load(run.folder / "rank0.npz")
    assert seen["same"].all() and len(seen["same"]) > 60 and not seen["finite"]
    assert [path.name for path in checkpoints(run.path)] == ["step-00000005.checkpoint"] and not (
        run.path / "model.int8.zlib"
    ).exists()


@pytest.mark.parametrize("backend, device", DEVICES)
@pytest.mark.parametrize("what", ["nan", "inf"])
def test_the_steps_after_it_change_nothing_either(what, backend, device, tmp_path, monkeypatch, data_path):
    """On a GPU the CPU may ask for them before it knows."""
    monkeypatch.chdir(tmp_path)
    s = tiny_settings(backend, data_path, device=device)
    trainer = keeps_weights(trainer_class(backend), 0, 0, 3, what)(s, initial_weights(s))
    for step in range(5):
        trainer.train_step(step_rows(open_data(s).train, s, step), 1.0, 0.9)
    assert trainer.made == 5 and all(trainer.same) and not trainer.seen


# the disk
# ---------------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_grow(backend, tmp_path, data_path, whole):
    """F11 by RLIMIT_FSIZE: no checkpoint can be written; training goes on, says so each time, and ends as it would
    have."""
    run = Run(backend, tmp_path / "a", data_path, ("small_files", 300_000))
    assert run.wait() == [0], run.text()
    assert run.model() == whole(backend) and run.status()["status"] == "finished"
    assert [v["step"] for v in run.lines("checkpoint_failed")] == [5, 10, 15, 20, 24] and not run.lines("checkpoint")
    assert "File too large" in run.lines("checkpoint_failed")[0]["reason"] and not [*run.path.glob(".*")]


def test_a_full_disk(backend, tmp_path, data_path, whole):
    """F11 on a file system of 1.3 MB, where it can be had: the third checkpoint does not fit beside the two that are
    kept, then not even the model does. Else RLIMIT_FSIZE again. What was there stays loadable, and with room the run
    goes on."""
    with small_disk(tmp_path / "disk", 1_340_000) as disk:
        if disk is None:  # not root
            run = Run(backend, tmp_path / "a", data_path, ("small_later", 12, 20_000))
        else:
            run = Run(backend, disk / "a", data_path, ("fills_disk", 12))
        said = ended(run, "disk_full", "is the disk full")
        assert said["step"] == 24 and not run.lines("final")
        assert [v["step"] for v in run.lines("checkpoint")] == [5, 10] and [
            v["step"] for v in run.lines("checkpoint_failed")
        ] == [15, 20, 24]
        assert [path.name for path in checkpoints(run.path)] == ["step-00000010.checkpoint", "step-00000005.checkpoint"]
        assert not (run.path / "model.int8.zlib").exists() and not [*run.path.glob(".*")]
        (run.folder / "fill").unlink(missing_ok=True)
        shutil.copytree(run.folder, tmp_path / "room")
    again = resume(backend, tmp_path / "room", data_path)
    assert again.wait() == [0], again.text()
    assert again.lines("resume")[-1]["step"] == 10 and again.model() == whole(backend)


def test_a_disk_without_room_is_found_before_step_0(backend, tmp_path, data_path):
    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        fault = () if disk else ("little_space",)
        run = Run(backend, disk / "a" if disk else tmp_path / "a", data_path, fault)
        assert run.wait() == [2] and "status=disk_full reason=" in run.text() and "free some space" in run.text()
        assert not run.path.exists()


def test_a_folder_that_cannot_be_written(backend, tmp_path, data_path):
    """F12: found before step 0, and nothing is left behind. Permissions do not keep root out: for root it is a
    read-only disk, or /sys."""
    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        folder = disk or (Path("/sys") if os.geteuid() == 0 else tmp_path / "disk")
        os.system(f"mount -o remount,ro '{disk}'") if disk else os.geteuid() and folder.chmod(0o555)
        run = Run(backend, folder, data_path, ("much_space",))
        assert run.wait() == [2], run.text()
        assert "error: runs/r cannot be written: " in run.text() and "status=failed reason=runs/r" in run.text()
        assert "Traceback" not in run.text() and not run.path.exists()
    assert os.geteuid() == 0 or not folder.chmod(0o755)


def test_a_flipped_bit_and_a_torn_log_line(backend, tmp_path, data_path, stopped, whole):
    """F14: the checkpoint before is used and the reason logged; a log that ends within a line is mended."""
    step = stopped(backend, tmp_path / "a")
    path = tmp_path / "a" / "runs" / "r"
    flip_bit(checkpoints(path)[0], 8 * 3000 + 5)
    with open(path / "train.log", "ab") as file:
        file.write(b"step:13/24 train_lo")
    run = resume(backend, tmp_path / "a", data_path)
    assert run.wait() == [0], run.text()
    assert run.model() == whole(backend) and run.lines("resume")[0]["step"] < step
    assert [v["reason"].split(" ", 1)[1] for v in run.lines("checkpoint_damaged")] == ["is damaged or cut short"]
    text = (path / "train.log").read_text().splitlines()
    assert len(parse_log("\n".join(text))) == len(text) - 1


def test_a_changed_code_in_the_written_file_gives_no_score(backend, tmp_path, data_path):
    """F21: the file is as well formed as before."""
    run = Run(backend, tmp_path / "a", data_path, ("changes_code",))
    ended(run, "failed", "model.int8.zlib does not read back as it was written", "no score")
    assert (
        not run.lines("final")
        and not run.lines("final_exact")
        and not run.lines("scored")
        and "  final " not in run.text()
    )
