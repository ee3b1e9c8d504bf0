"""Two ranks of one run, of which one dies, fails, hangs or is interrupted.

Run: `python -m pytest tests/runs/test_ranks.py`.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from common.readlog import parse_log
from tests.conftest import ROOT, environment, tiered
from tests.faults import Run, ended, flip_bit, free_ports, settings


def continued(run, backend, data_path, model, world_size, **changes):
    """Resumes a run and asserts that it ends as if nothing had happened, with a log that can be read to the last
    line."""
    again = Run(backend, run.folder, data_path, None, world_size, **{"resume": "runs/r", "run_id": ""} | changes)
    assert again.wait() == [0] * world_size, again.text()
    assert again.model() == model
    assert again.status() == {"status": "finished", "reason": "all steps were made", "hint": "", "step": 24}
    assert not [*run.path.glob("*.checkpoint")] and not [*run.path.glob("rank*")] and not [*run.path.glob(".*")]
    text = (run.path / "train.log").read_text()
    assert len(parse_log(text)) == len(text.splitlines())
    assert run.lines("step")[-1]["step"] <= 24 and len(run.lines("final_exact")) == 1
    return again


def steps_kept(run):
    return sorted(int(path.stem.removeprefix("step-")) for path in run.path.glob("*.checkpoint"))


STEPS = """
import sys
import numpy as np
from common.batches import rank_rows
from common.params import initial_weights
from tests.conftest import TINY, trainer_class
kind = trainer_class(sys.argv[1])
for changes in ({}, {"grad_clip_norm": 0.5}, {"compute_dtype": "float32"}, {"compute_dtype": "bfloat16"},
                {"reduce_dtype": "bfloat16"}):
    s = kind.settings_class(**TINY | {"compute_dtype": "float64", "num_layers": 4, "train_batch_tokens": 288} | changes)
    trainer, random = kind(s, initial_weights(s)), np.random.default_rng(0)
    first, rows = rank_rows(s, trainer.rank, trainer.world_size)
    for _ in range(20):
        tokens = random.integers(0, s.vocab_size, (9, s.train_seq_len + 1)).astype(np.int32)
        trainer.train_step(tokens[first:first + rows], 1.0, 0.9)
    state = trainer.state()
    trainer.load_state(state)
    again = trainer.state()
    assert all(np.array_equal(again[name], state[name]) for name in state)
    np.savez(f"{sys.argv[2]}-{'-'.join(changes)}{changes.get('compute_dtype', '')}-{trainer.rank}.npz", **state)
"""


@pytest.mark.slow
def test_weights_and_momentum_of_all_ranks_are_equal_to_the_bit(backend, tmp_path, data_path):
    """After 20 steps of 3 ranks, which share the matrices of every shape unevenly. In float64 they are those of one
    rank, up to rounding; gradients that were summed in bfloat16 are near."""
    for ranks in (1, 3):
        ports = free_ports(ranks)
        (tmp_path / "hosts").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        started = []
        for rank in range(ranks):
            env = environment(data_path) | {"PYTHONPATH": str(ROOT)}
            if ranks > 1 and backend == "torch":
                env |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(ports[0])}
            elif ranks > 1:
                env |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(tmp_path / "hosts")}
            started.append(subprocess.Popen([sys.executable, "-c", STEPS, backend, str(ranks)], cwd=tmp_path, env=env))
        assert [process.wait(120) for process in started] == [0] * ranks
    files = sorted(tmp_path.glob("3-*-0.npz"))
    assert len(files) == 5
    for file in files:
        name, first = file.stem.removeprefix("3").removesuffix("0"), np.load(file)
        for rank in range(1, 3):
            other = np.load(tmp_path / f"3{name}{rank}.npz")
            assert all(np.array_equal(first[key], other[key]) for key in first), (file, rank)
        alone, bound = np.load(tmp_path / f"1{name}0.npz"), 0.1 if "reduce" in name else 1e-12
        if "float" not in name:
            worst = max(np.abs(first[key] - alone[key]).max() for key in first)
            assert worst < bound and (worst > 1e-9) == ("reduce" in name), (file, worst)


def test_a_killed_rank_is_named_and_the_run_goes_on(backend, tmp_path, data_path, whole):
    """F01 kill -9, then resume; F14 flipped bit: the checkpoint before is used; F17 another world size."""
    run = Run(backend, tmp_path / "a", data_path, ("dies", 1, 13, -9), 2)
    said = ended(run, "rank_lost", "rank 1 (process ", "died in step 13", codes=[2, -9])
    assert said["hint"] == "continue with --resume runs/r" and said["step"] == 12
    assert steps_kept(run) == [5, 10] and not (run.path / "model.int8.zlib").exists()
    for name in ("one rank", "damaged"):
        shutil.copytree(run.folder, tmp_path / name)
    continued(run, backend, data_path, whole(backend), 2)
    assert [v["step"] for v in run.lines("resume")] == [10]
    run.folder, run.path = tmp_path / "one rank", tmp_path / "one rank" / "runs" / "r"
    continued(run, backend, data_path, whole(backend), 1)
    run.folder, run.path = tmp_path / "damaged", tmp_path / "damaged" / "runs" / "r"
    flip_bit(run.path / "step-00000010.checkpoint", 8 * 5000 + 3)
    continued(run, backend, data_path, whole(backend), 2)
    assert [v["step"] for v in run.lines("resume")] == [5]
    assert run.lines("checkpoint_damaged") == [{"reason": "runs/r/step-00000010.checkpoint is damaged or cut short"}]
    assert (run.path / "step-00000010.damaged").exists()


def test_the_death_of_rank_0_is_told_by_the_next(backend, tmp_path, data_path):
    run = Run(backend, tmp_path / "a", data_path, ("dies", 0, 13, -9), 2)
    ended(run, "rank_lost", "rank 0 (process ", "died in step 13", codes=[-9, 2])


def test_a_rank_that_raises(backend, tmp_path, data_path):
    """F02: its traceback is shown, and the reason is its own, not that of the rank that waited for it."""
    run = Run(backend, tmp_path / "a", data_path, ("raises", 1, 8), 2)
    ended(run, "rank_lost", "rank 1 (process ", "ZeroDivisionError: a defect of this rank", codes=[2, 1])
    assert run.text().count("Traceback") == 1 and steps_kept(run) == [5]


@pytest.mark.parametrize(
    "fault, words",
    tiered([
        (("stops", 1, 8), ["rank 1 (process ", "hangs in step 8", "no heartbeat"]),
        (("sleeps_in_data", 1, 8), ["rank 1 hangs in step 8"]),
        (("stops", 0, 8), ["rank 0 (process ", "hangs in step 8"]),
    ], 3),
)
def test_a_rank_that_hangs(fault, words, backend, tmp_path, data_path):
    """F03: it is named after RANK_TIMEOUT, and killed, as the launcher would wait for it."""
    start = time.monotonic()
    run = Run(backend, tmp_path / "a", data_path, fault, 2, rank_timeout=2)
    ended(run, "timeout", *words, codes=[-9, 2] if fault[1] == 0 else [2, -9])
    assert time.monotonic() - start < 40
    assert steps_kept(run) == [5] or (
        fault[1] == 0 and not steps_kept(run)
    )  # rank 0 may be stopped while it still writes


@pytest.mark.slow
@pytest.mark.parametrize("fault, words, changes", [
    (("slow_validation", 1000, 1), "rank 1 hangs in the validation after step 7",
     {"val_loss_every": 7, "rank_timeout": 1, "micro_batch_tokens": 64}),
    (("slow_warm_up", 1), "no rank makes progress in the warm-up", {"warmup_steps": 3})])
def test_a_rank_that_hangs_where_no_step_is_made(fault, words, changes, backend, tmp_path, data_path):
    run = Run(backend, tmp_path / "a", data_path, fault, 2, **changes)
    ended(run, "timeout", words, codes=[2, -9] if "rank 1" in words else [2, 2])


@pytest.mark.slow
def test_ranks_that_wait_for_each_other_are_all_named(backend, tmp_path, data_path):
    """One sleeps in its step, the other waits for its gradients: neither can be told from the other."""
    run = Run(backend, tmp_path / "a", data_path, ("hangs_in_step", 1, 8), 2, rank_timeout=1)
    ended(run, "timeout", "no rank makes progress in step 8", "one of them hangs")
    assert steps_kept(run) == [5]


def test_ranks_that_do_not_see_one_folder_do_not_go_on_together(backend, tmp_path, data_path):
    """On two machines without a shared disk only rank 0 has a checkpoint."""
    run = Run(backend, tmp_path / "a", data_path, ("own_folder",), 2, iterations=3000)
    path = tmp_path / "a" / "machine0" / "runs" / "r"
    run.until(lambda: [*path.glob("*.checkpoint")])
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    assert run.wait() == [2, 2], run.text()
    kept = (path / "status.json").read_text()
    again = Run(backend, tmp_path / "a", data_path, ("own_folder",), 2, iterations=3000, resume="auto")
    assert again.wait() == [2, 2] and "do not make the same step of the same run" in again.text()
    assert (path / "status.json").read_text() == kept


def test_a_rank_without_data_says_so(tmp_path, data_path):
    """The others wait for it; torchrun would stop them."""
    run = Run("torch", tmp_path / "a", data_path, ("no_data", 1), 2)
    run.ranks[1].join(60)
    assert run.ranks[1].exitcode == 2 and "error: rank 1: /nowhere" in run.text()
    run.ranks[0].kill()


@pytest.mark.slow
def test_a_rank_of_an_earlier_run_that_still_lives(backend, tmp_path, data_path):
    """Its launcher and rank 0 are gone, it hangs: a resumed run does not wait for it, nor share the folder with it."""
    run = Run(backend, tmp_path / "a", data_path, ("stops", 1, 8), 2, rank_timeout=1000)
    run.until(lambda: steps_kept(run) == [5] and run.lines("step")[-1]["step"] == 7)
    os.kill(run.ranks[0].pid, signal.SIGKILL)
    again = Run(backend, tmp_path / "a", data_path, None, 2, resume="runs/r", run_id="")
    ended(again, "failed", "another rank cannot go on")
    assert "rank 1 of an earlier run in runs/r is still running" in again.text() and steps_kept(run) == [5]
    os.kill(run.ranks[1].pid, signal.SIGKILL)
    run.ranks[1].join()


def test_a_rank_that_leaves_with_0(backend, tmp_path, data_path):
    """F04."""
    run = Run(backend, tmp_path / "a", data_path, ("dies", 1, 8, 0), 2)
    ended(run, "rank_lost", "rank 1 (process ", "died in step 8", codes=[2, 0])


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_what_is_not_finite_on_one_rank_changes_no_weight_on_any(what, backend, tmp_path, data_path):
    """F06 a loss, F07 a gradient while every loss is finite; both name the rank, the step and the place in the data."""
    run = Run(backend, tmp_path / "a", data_path, ("keeps_weights", 1, 8, what), 2)
    # step 8 starts at token 7 * 256; rank 1 has its second half
    ended(run, "nonfinite", f"{what} at step 8 (rank 1, tokens 1920 to 2048 of the train stream)", "MATRIX_LR")
    for rank in range(2):
        seen = np.load(run.folder / f"rank{rank}.npz")
        assert seen["same"].all() and len(seen["same"]) > 60 and not seen["finite"]


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_a_loss_that_is_looked_at_a_step_late_changes_no_weight_either(what, tmp_path, data_path):
    """As on a GPU: the step behind is made, but the weights stay."""
    run = Run("torch", tmp_path / "a", data_path, ("keeps_weights", 1, 13, what, 1), 2)
    # only the first pass of step 13 is poisoned: when its rows are looked at again, each rank is fine alone, and both
    # are named
    ended(
        run,
        "nonfinite",
        f"{what} at step 13 (rank 0, tokens 3072 to 3200 of the train stream; rank 1, tokens 3200 to 3328",
        "MATRIX_LR",
    )
    assert run.status()["step"] == 12
    for rank in range(2):
        seen = np.load(run.folder / f"rank{rank}.npz")
        assert seen["same"].all() and len(seen["same"]) > 120 and seen["steps"] == 1 and not seen["finite"]


@pytest.mark.parametrize("number", tiered([signal.SIGTERM, signal.SIGINT], 2))
def test_a_signal_to_one_rank_stops_all_at_one_step(number, backend, tmp_path, data_path, whole):
    """F08: a checkpoint of that step is written, and the run ends in seconds; resumed, it is as if it had not
    stopped."""
    run = Run(backend, tmp_path / "a", data_path, ("slow",), 2, checkpoint_every="0")
    run.until_step(3)
    start = time.monotonic()
    os.kill(run.ranks[1].pid, number)
    assert run.wait() == [2, 2]
    assert time.monotonic() - start < 20  # seconds; this machine may be busy
    said = ended(run, "interrupted", f"after step {run.status()['step']}")
    assert steps_kept(run) == [said["step"]] and 3 <= said["step"] < 24
    continued(run, backend, data_path, whole(backend), 2)


@pytest.mark.slow
def test_a_signal_in_a_validation_of_two_ranks(backend, tmp_path, data_path, whole):
    """It has no place where both could stop, and ends with the checkpoint that was written before it."""
    run = Run(backend, tmp_path / "a", data_path, ("slow_validation", 1000), 2, checkpoint_every="0", val_loss_every=7)
    run.until((run.folder / "slow").exists)
    for process in run.ranks:  # the launcher's Ctrl-C
        os.kill(process.pid, signal.SIGINT)
    ended(run, "interrupted")
    assert steps_kept(run) == [7]
    continued(run, backend, data_path, whole(backend), 2)


def torchrun(folder, env, *flags, out="rank0.out"):
    flags = flags or ("--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2")
    command = ["-m", "torch.distributed.run", *flags, str(ROOT / "train_gpt.py")]
    with open(folder / out, "w") as out:
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_under_torchrun(tmp_path, data_path):
    """The same where the ranks are torchrun's: it stops the others when one dies (F01), and hands on a signal (F08)."""
    # step 500 and more: there is time
    env = environment(data_path) | settings(data_path, iterations=100_000, checkpoint_every="50")
    run = Run.__new__(Run)
    run.folder, run.path, run.out = tmp_path, tmp_path / "runs" / "r", tmp_path
    launcher = torchrun(tmp_path, env)
    run.ranks = []
    wait_for(run, launcher, 60)
    pid = int(re.search(rb'"pid": (\d+)', (run.path / "rank1").read_bytes())[1])
    os.kill(pid, signal.SIGKILL)
    assert launcher.wait(60) == 1
    assert run.status()["status"] == "rank_lost" and f"rank 1 (process {pid}" in run.status()["reason"], run.text()
    kept = steps_kept(run)
    assert len(kept) == 2 and kept[1] - kept[0] == 50
    launcher = torchrun(tmp_path, env | {"RESUME": "auto"})
    wait_for(run, launcher, kept[1] + 1)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    said = run.status()
    assert said["status"] == "interrupted" and said["reason"] == f"interrupted by a signal after step {said['step']}", (
        run.text()
    )
    assert steps_kept(run)[-1] == said["step"] > kept[1]


@pytest.mark.slow
def test_under_torchrun_on_two_nodes(tmp_path, data_path):
    """Two agents, here on one machine: one folder, whose name rank 0 gives; each checkpoint is written once; the watch
    reports a rank of the other node."""
    env = environment(data_path) | settings(data_path, compute_dtype="float32", iterations=100_000, run_id="",
                                            checkpoint_every="20")
    [port] = free_ports(1)
    nodes = [torchrun(tmp_path, env, "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1",
                      "--master_addr=127.0.0.1", f"--master_port={port}", out=f"rank{node}.out") for node in range(2)]
    run = Run.__new__(Run)
    run.folder, run.out, run.path, run.ranks = tmp_path, tmp_path, tmp_path, []
    end = time.monotonic() + 90
    while len([*tmp_path.glob("runs/*/step-*")]) < 2:
        assert time.monotonic() < end and all(node.poll() is None for node in nodes), run.text()
        time.sleep(0.05)
    [run.path] = (tmp_path / "runs").iterdir()
    pid = int(re.search(rb'"pid": (\d+)', (run.path / "rank1").read_bytes())[1])
    os.kill(pid, signal.SIGKILL)
    assert [node.wait(60) for node in nodes] == [1, 1], run.text()
    assert run.status()["status"] == "rank_lost" and f"rank 1 (process {pid}" in run.status()["reason"], run.text()
    written = [v["step"] for v in run.lines("checkpoint")]
    assert written and written == sorted({*written}) and len(steps_kept(run)) == 2


def wait_for(run, launcher, step):
    """Until a checkpoint is past a step."""
    end = time.monotonic() + 90
    while max(steps_kept(run), default=0) <= step:
        assert time.monotonic() < end and launcher.poll() is None, run.text()
        time.sleep(0.05)
