"""The cost of an idea: a real diff is applied to a copy of the tree, and climbs.

ideas/mlp_power.diff makes the power of the relu an option; mlp_power_fork.diff is a fork that writes it into the two
trainers alone.

Run: `python -m pytest tests/parity/test_idea.py`.
"""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from parity.__main__ import main
from parity.rungs import RUNGS
from tests.conftest import ROOT

pytestmark = pytest.mark.needs("torch", "mlx")
IDEAS = ROOT / "tests/parity/ideas"
SIZE = ["--num-layers=2", "--model-dim=32", "--train-seq-len=32", "--train-batch-tokens=256", "--steps=3"]
EVERY_RUNG = {*RUNGS, "logits as float32", "definition: torch", "definition: mlx"}


def changes(idea):
    """dict file -> (lines before, lines after) of a diff with one hunk per file."""
    found, one_file = {}, r"^\+\+\+ b/(\S+)\n@@.*\n((?:[ +-].*\n)+?)(?=--- a/|\Z)"
    for name, hunk in re.findall(one_file, (IDEAS / idea).read_text(), re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert name not in found
        found[name] = before, after
    return found


def one_line(before, after):
    """Whether a hunk adds one line or changes one."""
    old, new = before.splitlines(), after.splitlines()
    return len(set(new) - set(old)) == 1 and len(set(old) - set(new)) <= 1


@pytest.fixture
def tree(tmp_path):
    """A function: (idea, files of it to leave as they are) -> copy of the tree with it."""
    def make(idea, without=()):
        for folder in ("common", "parity"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("train_gpt.py", "train_gpt_mlx.py"):
            shutil.copy(ROOT / name, tmp_path / name)
        for name, (before, after) in changes(idea).items():
            if name not in without:
                text = (tmp_path / name).read_text()
                assert text.count(before) == 1, f"{idea} does not fit {name}: make it again"
                (tmp_path / name).write_text(text.replace(before, after))
        return tmp_path
    return make


def climb(folder, data_path, *flags):
    """(exit code, what --json prints) of the ladder of a tree, in reference mode."""
    command = [sys.executable, "-m", "parity", "--dtype=float64", "--json", f"--data={data_path}", *SIZE, *flags]
    env = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def failing(found):
    return {row["rung"] for row in found["rungs"] if not row["passed"]}


def test_an_option_of_the_model_costs_one_line_in_five_places():
    found = changes("mlp_power.diff")
    assert list(found) == ["common/settings.py", "parity/options.py", "parity/reference.py", "train_gpt.py",
                           "train_gpt_mlx.py"]
    assert all(one_line(*hunk) for hunk in found.values())


@pytest.mark.slow
def test_it_climbs_with_the_definition(tree, data_path):
    """With the option alone, and with all options in the rung of options."""
    code, found = climb(tree("mlp_power.diff"), data_path, "--mlp-power=3")
    assert code == 0 and {row["rung"] for row in found["rungs"]} == EVERY_RUNG and "left_out" not in found
    tensors = {row["rung"]: row["compared"] for row in found["rungs"]}
    assert tensors["options"].startswith("4 tensors")


@pytest.mark.slow
@pytest.mark.parametrize("without, first", [
    ("parity/reference.py", {"definition: torch", "definition: mlx"}),
    ("train_gpt_mlx.py", None),
])
def test_a_place_that_is_forgotten_fails(without, first, tree, data_path):
    code, found = climb(tree("mlp_power.diff", [without]), data_path, "--mlp-power=3")
    assert code == 1 and (failing(found) == first if first else {"logits", "definition: mlx"} <= failing(found))


@pytest.mark.slow
def test_a_fork_edits_the_two_trainers_and_nothing_else(tree, data_path, capsys):
    """Proven from here, but for the definition, which it leaves."""
    found = changes("mlp_power_fork.diff")
    assert list(found) == ["train_gpt.py", "train_gpt_mlx.py"] and all(one_line(*hunk) for hunk in found.values())
    folder = tree("mlp_power_fork.diff")
    scripts = [f"--torch={folder / 'train_gpt.py'}", f"--mlx={folder / 'train_gpt_mlx.py'}"]
    command = ["--dtype=float64", f"--data={data_path}", *SIZE]
    assert main([*command, "--json", *scripts]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["rung"] for row in found["rungs"]} == EVERY_RUNG - {"definition: torch", "definition: mlx"}
    assert found["left_out"].keys() == {"definition: torch", "definition: mlx"}
    reason = "another model: torch and mlx agree with each other, and differ from it by up to "
    assert all(text.startswith(reason) for text in found["left_out"].values())
    assert main([*command, scripts[0]]) == 1  # against the trainer here
    text = capsys.readouterr().out
    assert "first failing rung: logits, at " in text and "left out" not in text
