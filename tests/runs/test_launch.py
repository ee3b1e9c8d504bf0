"""A record with one command, and as clusters start it: `python -m pytest tests/runs/test_launch.py`."""
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment
from tests.faults import free_ports, settings

LAUNCH = ROOT / "records/launch"
RECORD = {"record_name": "A tiny Record!", "record_author": "me", "record_github_id": "me"}
PACKED = "track_10min_16mb/2026-01-01_a_tiny_record"
# what stands for these commands
STUBS = {
    "python": f"""echo "$SEED $RUN_ID $RESUME $*" >> calls
if [[ $* == *" pack "* ]]; then mkdir -p "$RECORD_DIR/{PACKED}"; fi""",
    "srun": 'echo srun >> calls; "$@"',
    "scontrol": "printf 'node7\\nnode8\\n'",
}


def run(script, folder, env):
    return subprocess.run(["bash", str(LAUNCH / script)], cwd=folder, env=env, capture_output=True, text=True,
                          check=False, timeout=300)


def stubbed(folder, env):
    """The environment with a stub of Python and of Slurm's commands; what they start ends in the file `calls`."""
    (folder / "bin").mkdir()
    for name, text in STUBS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (folder / "bin" / name).chmod(0o755)
    return env | {"PATH": f"{folder / 'bin'}:{env['PATH']}", "PYTHON": "python"}


@pytest.fixture
def env(tmp_path, data_path):
    return environment(data_path, record_dir=tmp_path / "records", **RECORD)


@pytest.fixture
def calls(tmp_path):
    return lambda: (tmp_path / "calls").read_text().replace(f"{ROOT}/", "").replace(f"{tmp_path}/", "").splitlines()


@pytest.mark.slow
def test_one_command_makes_a_verified_record(tmp_path, env, calls):
    """With MLX, which starts fastest. Started again, it only verifies again."""
    env |= {"GPUS": "1", "TRAINER": "train_gpt_mlx.py", "RECORD_TRACK": "non-record", "PYTHON": sys.executable}
    done = run("run.sh", tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (tmp_path / "records/track_non_record_16mb").iterdir()
    assert len([*folder.glob("*.log")]) == 3
    verdict = (tmp_path / "runs/verify.txt").read_text()
    assert "FAILS by the strict rules: layout\nNext" in verdict and "2 places still say TO BE WRITTEN" in verdict
    done = run("run.sh", tmp_path, stubbed(tmp_path, env))
    assert done.returncode == 0, done.stdout + done.stderr
    assert calls() == [
        "   train_gpt_mlx.py --preflight",
        f"   -m records verify --smoke --data {env['DATA_PATH']} records/track_non_record_16mb/{folder.name}"]


def test_on_eight_gpus_torchrun_starts_each_seed(tmp_path, env, calls):
    env = stubbed(tmp_path, env | {"GPUS": "8", "DATA_PATH": "nowhere"})
    done = run("run.sh", tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    start = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc_per_node=8 train_gpt.py"
    runs = [f"a_tiny_record_{seed}" for seed in (1, 2, 3)]
    assert calls() == [
        "   -m common.data fineweb --out nowhere",
        f"   {start} --preflight",
        *(f"{seed} {name} auto {start}" for seed, name in enumerate(runs, 1)),
        f"   -m records pack {' '.join(f'runs/{name}' for name in runs)} --records records --track 10min "
        "--name A tiny Record! --author me --github-id me",
        f"   -m records verify --smoke --data nowhere records/{PACKED}"]


@pytest.mark.slow
def test_slurm_starts_it_on_each_node_and_two_nodes_make_the_same_model(tmp_path, env, calls, data_path, whole):
    """Two agents, on this machine, that meet as slurm.sh says, make the model of one process."""
    slurm = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": 2, "SLURM_JOB_ID": 5,
             "SLURM_GPUS_ON_NODE": 1, "RECORD_SEEDS": 4}
    (tmp_path / "records").symlink_to(ROOT / "records")
    env = stubbed(tmp_path, env | {name: str(value) for name, value in slurm.items()} | {"RECORD_DIR": "made"})
    done = run("slurm.sh", tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    start = calls()[calls().index("srun") + 1].removesuffix(" --preflight")
    assert calls().count("srun") == 2 and start.endswith("--rdzv-endpoint=node7:29500 --nproc_per_node=1 train_gpt.py")
    words = start.split()
    words[words.index("--rdzv-endpoint=node7:29500")] = f"--rdzv-endpoint=127.0.0.1:{free_ports(1)[0]}"
    words[-1:] = ["--local-addr=127.0.0.1", str(ROOT / "train_gpt.py")]
    own = environment(data_path) | settings(data_path)
    nodes = [subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=own, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert "world_size:2" in "".join(said)
    assert (tmp_path / "runs/r/model.int8.zlib").read_bytes() == whole("torch")


@pytest.mark.parametrize("missing", RECORD)
def test_what_is_not_set_is_named_before_any_work(missing, tmp_path, env, calls):
    done = run("run.sh", tmp_path, stubbed(tmp_path, {k: v for k, v in env.items() if k != missing.upper()}))
    assert done.returncode and f"{missing.upper()}: is not set" in done.stderr and not (tmp_path / "calls").exists()
