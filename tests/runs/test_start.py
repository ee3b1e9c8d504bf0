"""How a run starts: launchers, names, closed streams, compilers: `python -m pytest tests/runs/test_start.py`."""
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from common import folder
from common.folder import make_folder
from common.machine import compile_problem
from common.params import initial_weights
from common.ranks import LAUNCHED, launched_rank
from common.run import main
from common.settings import UserError, as_text
from tests.conftest import BACKENDS, ROOT, TINY, tiered, tiny_settings, trainer_class
from tests.faults import Run

TORCH = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


@pytest.fixture
def launched(monkeypatch):
    """Calls launched_rank with the variables of a launcher, and no others."""
    def call(backend, **variables):
        for name in LAUNCHED["torch"] + LAUNCHED["mlx"]:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return launched_rank(backend)
    return call


@pytest.fixture
def start(backend, monkeypatch, tmp_path, data_path, capsys, launched):
    """(exit code, what is printed) of a trainer's main in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in {name.upper() for name in TINY} & os.environ.keys():
        monkeypatch.delenv(name)
    launched("torch")

    def call(*flags):
        values = TINY | {"data_path": data_path}
        settings = [word for name, value in values.items() for word in ("--" + name, as_text(value))]
        monkeypatch.setattr(sys, "argv", [BACKENDS[backend], *settings, *flags])
        code = main(trainer_class(backend), ROOT / BACKENDS[backend])
        said = capsys.readouterr()
        return code, said.out + said.err
    return call


# launchers


@pytest.mark.parametrize("backend, variables", [
    ("torch", {"RANK": "3"}), ("torch", {"RANK": "x"}), ("torch", {"RANK": "-1"}), ("torch", {"WORLD_SIZE": "2"}),
    ("torch", {"RANK": "0", "WORLD_SIZE": "2"}), ("torch", TORCH | {"RANK": "2"}), ("torch", TORCH | {"RANK": ""}),
    ("torch", TORCH | {"MASTER_ADDR": " "}), ("torch", TORCH | {"WORLD_SIZE": "0"}), ("mlx", {"MLX_RANK": "3"}),
    ("mlx", {"MLX_RANK": "1.5", "MLX_HOSTFILE": "f"}), ("mlx", {"MLX_RANK": "1", "MLX_HOSTFILE": ""})])
def test_ranks_that_no_launcher_sets_are_bad_settings(backend, variables, launched):
    with pytest.raises(UserError, match="is not a rank of a run: .* unset these variables") as raised:
        launched(backend, **variables)
    assert raised.value.status == "bad_settings"


@pytest.mark.parametrize("backend, variables, found", [
    ("torch", {}, (0, 1)), ("torch", {"RANK": "0"}, (0, 1)), ("torch", {"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
    ("torch", TORCH, (1, 2)), ("torch", {"MLX_RANK": "3"}, (0, 1)), ("torch", {"WORLD_SIZE": "1"}, (0, 1)),
    ("mlx", {"RANK": "3"}, (0, 1)), ("mlx", {"MLX_RANK": "0"}, (0, 1)), ("mlx", {"MLX_RANK": " "}, (0, 1)),
    ("mlx", {"MLX_RANK": "3", "MLX_HOSTFILE": "f"}, (3, 1)), ("mlx", {"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}, (1, 2))])
def test_ranks_of_launchers_and_of_none(backend, variables, found, launched):
    assert launched(backend, **variables)[:2] == found
    assert not [name for name in LAUNCHED[backend] if os.environ.get(name) == ""]  # frameworks read them too


def test_a_rank_without_a_rank_0_says_so(backend, start, monkeypatch):
    """It trained to the end in silence: whoever is not rank 0 leaves speaking to it."""
    rank = LAUNCHED[backend][0]
    monkeypatch.setenv(rank, "3")
    code, text = start()
    assert code == 2 and f"error: '{rank}=3' is not a rank of a run" in text and "status=bad_settings" in text


DEAF = """
import ctypes
import common.ranks
common.ranks.MEETING = 0.1
with common.ranks.Interrupt(), common.ranks.meeting("MASTER_ADDR=there"):
    ctypes.PyDLL(None).sleep(60)  # keeps other threads and Python's handlers of signals waiting
"""


def test_a_rank_that_waits_for_others_says_so_and_hears_a_signal():
    """An old job left RANK=0 WORLD_SIZE=2 ..."""
    waiting = subprocess.Popen([sys.executable, "-c", DEAF], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr.readline().startswith("waiting for the other ranks: MASTER_ADDR=there: start all ranks")
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(10) == -signal.SIGTERM and waiting.stderr.read() == ""


def test_ranks_that_cannot_meet(backend, launched, monkeypatch, tmp_path, data_path):
    """Both trainers wait inside meeting(), which names what the launcher set."""
    monkeypatch.setattr("common.ranks.MEETING", 60)
    (tmp_path / "hosts.json").write_text('[["127.0.0.1:1"]]')
    if backend == "mlx":
        launched("mlx", MLX_RANK="3", MLX_HOSTFILE=str(tmp_path / "hosts.json"))
    else:
        launched("torch", **TORCH)

        def refuse(*given, **named):
            raise RuntimeError("no route\nmore")
        monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    with pytest.raises(UserError, match=".*RANK=.*: [^\n]*: start all ranks"):
        trainer_class(backend)(tiny_settings(backend, data_path), {})


@pytest.mark.parametrize("counts, flags, runs", [
    ("echo 8", "", "torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=8 train_gpt.py pydoc"),
    ("echo 1", "", "python train_gpt.py pydoc"),
    ("echo 0", "", "python train_gpt.py pydoc"),
    ("echo a driver error; echo of two lines; exit 9", "", ""),
    ("echo 8", "GPUS=2", "torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=2 train_gpt.py pydoc"),
    ("echo 8", "BACKEND=mlx", "python train_gpt_mlx.py pydoc")])
def test_make_starts_as_many_ranks_as_the_framework_sees(counts, flags, runs, tmp_path):
    """Not as many as nvidia-smi has lines: CUDA_VISIBLE_DEVICES counts, and a driver that fails."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho one; echo two\n")
    for name in ("python", "torchrun"):  # prints how it trains, or counts
        text = f'case "$2" in *device_count*) {counts};; *is_available*) echo 0;; *) case "$*" in *train_gpt*) ' \
               f'echo "ran {name} $* $DATA_PATH";; esac;; esac'
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    (tmp_path / ".venv").mkdir()
    for name in (".torch", ".mlx"):
        (tmp_path / ".venv" / name).touch()
    done = subprocess.run(["make", "train", "BIN=bin", "BACKEND=torch", *flags.split()], cwd=tmp_path, check=False,
                          env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, capture_output=True, text=True)
    [ran] = [line.removeprefix("ran ") for line in done.stdout.splitlines() if line.startswith("ran ")] or [""]
    assert ran.replace("data/", "").split("_sp")[0] == runs, done
    assert (done.returncode == 0) == bool(runs)


@pytest.mark.parametrize("number, seen", [("3", UserError), ("", "cuda:0"), ("1", "cuda:1")])
def test_a_rank_for_which_there_is_no_gpu(number, seen, monkeypatch, data_path):
    import torch

    import train_gpt
    monkeypatch.setenv("LOCAL_RANK", number)
    for name, value in {"is_available": True, "device_count": 2, "set_device": None,
                        "get_device_capability": (9, 0)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *given, value=value: value)
    s = tiny_settings("torch", data_path, device="gpu")
    if seen is UserError:
        with pytest.raises(UserError, match="LOCAL_RANK=3, but PyTorch sees 2 GPUs"):
            train_gpt.pick_device(s)
    else:
        assert str(train_gpt.pick_device(s)) == seen


@pytest.mark.parametrize("device, asked, has", [
    ("cuda", "torch.cuda.is_bf16_supported", True), ("cuda", "torch.cuda.is_bf16_supported", False),
    ("mps", "torch.backends.mps.is_macos_or_newer", True), ("mps", "torch.backends.mps.is_macos_or_newer", False),
    ("cpu", "torch.cpu._is_avx512_bf16_supported", True), ("cpu", "torch.cpu._is_avx512_bf16_supported", False)])
def test_bfloat16_where_the_device_computes_it(device, asked, has, monkeypatch, data_path, capsys):
    import torch

    import train_gpt
    monkeypatch.setattr(asked, lambda *given, **named: has)
    found = train_gpt.pick_dtype(tiny_settings("torch", data_path), torch.device(device))
    assert found == (torch.bfloat16 if has else torch.float32)
    assert ("warning: this GPU computes no bfloat16" in capsys.readouterr().err) == (device != "cpu" and not has)


# compilers


@pytest.mark.parametrize("flags", tiered([["--preflight"], []], 2))
def test_a_machine_that_compiles_nothing(flags, backend, start, monkeypatch):
    """No compiler, or a TMPDIR from which nothing may run: one line with the remedy, in a run and before it."""
    def fail(*given, **named):
        raise RuntimeError("no compiler\nand a page more")
    monkeypatch.setattr(trainer_class(backend), "train_step", fail)
    monkeypatch.setattr(trainer_class(backend), "one_line", lambda self, compiled: compiled and fail())
    code, text = start(*flags, "--compile", "1")
    assert code == 2 and "error: COMPILE=1 does not work here: no compiler: install a C++ compiler" in text
    assert "Traceback" not in text and "page more" not in text


@pytest.mark.slow
def test_a_defect_is_not_blamed_on_the_compiler(backend, start, monkeypatch):
    """Nor is a device that computes nothing at all."""
    def fail(*given, **named):
        raise RuntimeError("the device is lost")
    monkeypatch.setattr(trainer_class(backend), "train_step", fail)
    for probe in (lambda self, compiled: None, fail):
        monkeypatch.setattr(trainer_class(backend), "one_line", probe)
        code, text = start("--compile", "1")
        assert code == 1 and "error: RuntimeError: the device is lost" in text and "Traceback" in text


def test_one_line_needs_the_compiler(backend, monkeypatch, tmp_path, data_path):
    """Even if it was compiled before, with a compiler that is gone now."""
    s = tiny_settings(backend, data_path)
    trainer = trainer_class(backend)(s, initial_weights(s))
    trainer.one_line(False)
    assert backend == "torch" or compile_problem(trainer) == ""
    monkeypatch.setenv("PATH", "/usr/bin/nowhere")
    if backend == "torch":  # to load its compiler takes 5 s
        monkeypatch.setattr("torch.compile", lambda f: 1 / 0)
    assert compile_problem(trainer).startswith("COMPILE=1 does not work here: ")


# names and streams


def test_runs_of_one_second_get_a_folder_each(tmp_path, data_path):
    """Nobody gave a name that could be refused. Eight at once, as from a loop in a shell."""
    settings, path, made = tiny_settings("torch", data_path), tmp_path / "runs" / "20260101-000000", []
    threads = [threading.Thread(target=lambda: made.append(make_folder(path, settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {p.name for p in made} == {path.name, *(f"{path.name}-{n}" for n in range(2, 9))}
    assert all(p.is_dir() for p in made)


def test_a_folder_that_another_run_takes_during_the_check(tmp_path, data_path, monkeypatch):
    path = tmp_path / "runs" / "20260101-000000"

    def taken(checked, settings):
        if checked == path:  # another run makes it after it was seen to be free
            checked.mkdir(parents=True)
            raise UserError("it is in use by another run")

    monkeypatch.setattr(folder, "check_free", taken)
    assert make_folder(path, tiny_settings("torch", data_path)).name == f"{path.name}-2"


def test_ranks_share_a_name_that_was_taken(tmp_path, data_path):
    """The name of rank 0 counts: the folder of the other's would not be watched."""
    run = Run("torch", tmp_path / "a", data_path, ("taken_name",), 2, run_id="")
    assert run.wait() == [0, 0], run.text()
    first, second = sorted((tmp_path / "a" / "runs").iterdir())
    assert second.name == f"{first.name}-2" and not [*first.iterdir()]
    assert (tmp_path / "a" / "watched").read_text() == f"runs/{second.name}"


def test_closed_streams(backend, tmp_path, data_path):
    """A daemon has none: no line of ours fails, and what libraries print is not written into files of the run."""
    run = Run(backend, tmp_path / "a", data_path, ("no_streams",))
    assert run.wait() == [0] and run.status()["status"] == "finished"
    assert b"printed by a library" not in b"".join(file.read_bytes() for file in run.path.iterdir())


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_of_the_tools(closed, tmp_path):
    done = subprocess.run(f"'{sys.executable}' -m common.bundle --source train_gpt.py {closed}", shell=True, cwd=ROOT,
                          check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
