"""The ablation, with few steps of a tiny model: `python -m pytest tests/records/test_ablation.py`."""
import time

import pytest

from common.checkpoint import checkpoints
from common.recipes import RECIPES
from common.settings import UserError
from records import ablation
from records.__main__ import main
from tests.conftest import BACKENDS, ROOT, TINY

TRIALS = {
    "baseline": ({}, None),
    "stride": ({"EVAL_STRIDE": 8}, "baseline"),
    "loop": ({"LOOP_LAYERS": "0-2", "ITERATIONS": 20}, "baseline"),
}


@pytest.fixture
def tiny(tmp_path, monkeypatch, data_path):
    """The working directory: a repository whose runs are its own."""
    for name in ("common", *BACKENDS.values()):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "TRIALS", TRIALS)
    monkeypatch.setattr(ablation, "SHARED", {"baseline"})
    monkeypatch.setattr(ablation, "STEPS", 10)
    size = {name.upper(): value for name, value in (TINY | {"checkpoint_every": 0}).items()}
    monkeypatch.setattr(ablation, "SIZE", {name: size[name] for name in size.keys() - {"VOCAB_SIZE", "ITERATIONS"}})
    return ["ablation", "--data", str(data_path), "--jobs", "2", "--seeds", "2"]


@pytest.mark.slow
def test_every_trial_is_run_and_compared(tiny, tmp_path, capsys):
    assert main(tiny) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    rows = {cells[1]: cells[2:-1] for cells in table}
    assert list(rows) == list(TRIALS) and len({len(row) for row in [lines[0].split("|")[2:-1], *rows.values()]}) == 1
    assert rows["baseline"][0] == "defaults" and rows["baseline"][-2:] == ["", ""]
    assert rows["loop"][0] == "`LOOP_LAYERS=0-2` `ITERATIONS=20`"
    steps = {name: int(row[4]) for name, row in rows.items()}
    assert steps["baseline"] == steps["stride"] == 10 < steps["loop"] < 20
    names = [f"{name}-{seed}" for name in ("baseline", "stride") for seed in (1337, 1338)]
    runs = [ablation.outcome(tmp_path / f"runs/ablation-torch-{name}") for name in names]
    assert [run["before"] for run in runs[:2]] == [run["before"] for run in runs[2:]]  # one training
    mean = sum(run["bpb"] for run in runs[2:]) / 2
    assert rows["stride"][1].startswith(f"{mean:.4f} ± ") and rows["stride"][6].endswith("against baseline")
    seed = runs[2]["bpb"] - runs[0]["bpb"], runs[3]["bpb"] - runs[1]["bpb"]
    assert rows["stride"][6].startswith(f"{sum(seed) / 2:+.4f} ± ")
    said = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/train.log")}
    assert main(tiny) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert said == {path: path.stat().st_mtime_ns for path in said}  # nothing is made again


def test_the_options_are_those_of_the_published_table():
    """records/NOTES.md names these settings."""
    published = {
        "stride": {"EVAL_STRIDE": 64},
        "window-512": {"EVAL_SEQ_LEN": 512, "EVAL_STRIDE": 256},
        "ttt": {"TTT_LR": 0.05, "TTT_CHUNK": "4096"},
        "ttt-document": {"TTT_LR": 0.05, "TTT_CHUNK": "1024d"},
        "ttt-stride": {"TTT_LR": 0.05, "TTT_CHUNK": "4096", "EVAL_STRIDE": 64},
        "embed-fp16": {"QUANT_LEVELS": "embed=fp16"},
        "loop": {"LOOP_LAYERS": "1-2"},
        "ema": {"EMA_DECAY": 0.95},
        "all-4-bit-qat": {"ITERATIONS": 500, "QUANT_LEVELS": "7", "QAT_START": 0.5},
    }
    assert {name: ablation.TRIALS[name][0] for name in published} == published
    assert ablation.trial_settings("loop", "d")["ITERATIONS"] == "138"


def test_what_comes_after_the_training_shares_it():
    assert {name for name in ablation.TRIALS if ablation.training(name) == "baseline"} == {
        "baseline", "stride", "window-512", "ttt", "ttt-document", "ttt-stride", "embed-fp16"}
    long = {name for name in ablation.TRIALS if ablation.training(name) == "long"}
    assert {"long", "all-4-bit", "matrices-6-bit"} < long
    assert all(ablation.training(name) == name for name in ("loop", "ema", "narrow", "all-4-bit-qat"))
    laptop = {name for name in ablation.TRIALS if ablation.training(name) == "laptop"}
    assert laptop == {"laptop", "documents", "adapters"}
    wider = {name for name in ablation.TRIALS if ablation.training(name) == "wider"}
    assert wider == {"wider", *(f"{bits}-bit{how}" for bits in (4, 6) for how in ("", "-gptq", "-clip"))}


def test_the_stack_ends_with_the_laptop_recipe():
    names = [name for name in ablation.TRIALS if name.startswith("and-")]
    assert [ablation.ancestry(name)[1] for name in names] == ["laptop", *names[:-1]]
    ends, recipe = ablation.TRIALS[names[-1]][0], RECIPES["laptop"]
    clock = {"max_wallclock_seconds", "val_loss_every"}
    assert all(ends[name.upper()] == recipe[name] for name in recipe.keys() - clock)
    assert {name.lower() for name in ends} - recipe.keys() == {
        "micro_batch_tokens", "checkpoint_every", "iterations", "vocab_size", "data_path"}


def test_another_vocabulary_is_compared_per_byte():
    runs = {"a": [{"loss": 4.0, "bpb": 2.0}, {"loss": 4.4, "bpb": 2.2}], "b": [{"loss": 5.0, "bpb": 1.9}]}
    assert ablation.side("b", runs, "a").losses == [3.8] and ablation.side("a", runs, "a").losses == [4.0, 4.4]
    first = int(ablation.trial_settings("laptop", "d")["ITERATIONS"])
    assert int(ablation.trial_settings("vocabulary", "d")["ITERATIONS"]) < 0.9 * first


@pytest.mark.parametrize("arguments, words", [
    (["--only", "nothing"], "nothing: no such trial; there are baseline"), (["--seeds", "1"], "a spread needs 2")])
def test_what_cannot_be_measured(arguments, words, capsys):
    assert main(["ablation", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_run_that_fails_is_reported(tiny, monkeypatch):
    monkeypatch.setitem(ablation.SIZE, "MODEL_DIM", "31")
    with pytest.raises(UserError, match="MODEL_DIM=31"):
        ablation.run_trial("loop", 1337, "torch", tiny[2])


@pytest.mark.slow
def test_a_shared_training_that_was_stopped_goes_on(tiny, monkeypatch):
    """To the step at which it is shared, not to the end."""
    monkeypatch.setattr(ablation, "STEPS", 30)
    folder = ablation.trained("baseline", 1337, "torch", tiny[2])
    for path in checkpoints(folder):
        path.unlink()
    values = ablation.trial_settings("baseline", tiny[2]) | {"SEED": "1337"}
    process = ablation.start(folder, values, "torch", CHECKPOINT_EVERY="10")
    while not checkpoints(folder):
        time.sleep(0.01)
    process.terminate()
    process.wait()
    made = checkpoints(folder)[0].name
    assert ablation.trained("baseline", 1337, "torch", tiny[2]) == folder
    assert made < "step-00000025.checkpoint" <= checkpoints(folder)[0].name
