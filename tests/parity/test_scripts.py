"""The ladder with any setting and with any two scripts: `python -m pytest tests/parity/test_scripts.py`."""
import json
import shutil
import sys

import pytest

from common.bundle import bundle
from parity.__main__ import main
from parity.problem import SIZE, ladder_settings, make_problem
from parity.rungs import RUNGS, observe
from parity.trainers import load_trainer
from tests.conftest import BACKENDS, ROOT, tiered

pytestmark = pytest.mark.needs("torch", "mlx")
RECORDS = ROOT / "records" / "track_non_record_16mb"
SMALL = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "train_seq_len": 32,
         "train_batch_tokens": 256, "iterations": 3}
EVERY_RUNG = [*RUNGS, "logits as float32", "definition: torch", "definition: mlx"]


@pytest.fixture
def climb(data_path, capsys):
    """A function: flags -> (exit code, what --json prints) of a small ladder in reference mode."""
    def run(*flags):
        size = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
        code = main(["--dtype", "float64", "--json", f"--data={data_path}", *size, *map(str, flags)])
        return code, json.loads(capsys.readouterr().out)
    return run


def rungs(found, passed=True):
    return {row["rung"] for row in found["rungs"] if row["passed"] == passed}


# any setting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", tiered([
    ["--loop-layers", "0-1", "--loop-count=3", "--untied"],
    ["--ema-decay", "0.9", "--qat-start", "0.4", "--quant-levels", "matrix=int4,embed=fp16"],
    ["--quant-levels", "auto", "--eval-stride", "8", "--ttt-lr", "0.1", "--ttt-chunk", "64d", "--loss-chunk", "40"],
], 3), ids=str)
def test_a_ladder_with_settings_holds_in_every_rung(flags, climb):
    code, found = climb(*flags)
    assert code == 0 and rungs(found) == set(EVERY_RUNG) and "left_out" not in found
    assert all(flag in found["settings"] for flag in flags if flag[:2] == "--" and flag != "--untied")


# setting: the rungs that show it; every other rung is as without it
SHOWN = {
    "ema_decay=0.9": {"one step", "validation", "compressed bytes", "options"},
    "qat_start=0.4": {"training losses", "validation", "compressed bytes", "options"},
    "eval_stride=8": {"validation"},
    "ttt_lr=0.1 --ttt_chunk=256": {"validation"},
    "quant_levels=31": {"quantized payload", "compressed bytes"},
    "quant_levels=auto": {"quantized payload", "compressed bytes"},
}


@pytest.fixture(scope="module")
def plain(data_path):
    return observed(data_path)


def observed(data_path, *flags):
    """dict rung -> what torch shows in float64."""
    size = [f"--{name}={value}" for name, value in SMALL.items()]
    task = make_problem(ladder_settings([*size, f"--data-path={data_path}", "--train-batch-tokens=512", *flags]))
    return observe(load_trainer("torch"), task, "float64").shown


@pytest.mark.parametrize("flag", tiered(SHOWN, 3))
def test_a_setting_with_an_effect_after_the_step_is_used(flag, plain, data_path):
    shown = observed(data_path, *f"--{flag}".split())
    changed = {rung for rung in RUNGS if not same(shown[rung], plain[rung])}
    assert SHOWN[flag] - {"options"} <= changed <= SHOWN[flag]


def same(first, second):
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("flags, batch", [
    ([], 2048), (["--train-seq-len=128"], 2048), (["--train-seq-len=1024"], 8192), (["--train-seq-len=96"], 1536),
    (["--train-batch-tokens=4096"], 4096)])
def test_eight_ranks_can_share_a_batch(flags, batch):
    s = ladder_settings(flags)
    assert s.train_batch_tokens == s.micro_batch_tokens == batch and batch // s.train_seq_len % 8 == 0


def test_the_environment_is_not_read(monkeypatch):
    monkeypatch.setenv("NUM_LAYERS", "2")
    monkeypatch.setenv("NUM_LAYER", "2")
    assert ladder_settings([]).num_layers == SIZE["num_layers"]


def test_both_spellings_of_compile(monkeypatch):
    from parity import climb
    seen = []
    monkeypatch.setattr(climb, "make_problem", lambda s: seen.append(s.compile) or sys.exit(0))
    export = ["export", "--backend", "mlx", "file"]
    for command in (
        ["--compile"], ["--compile", "--json"], [*export, "--compile"], [*export[:-1], "--compile", "file"],
        ["--compile", "1"], ["--compile=true"], [*export[:-1], "--compile", "1", "file"],
        [], ["--compile", "0"], [*export[:-1], "--compile=no", "file"], export,
    ):
        with pytest.raises(SystemExit):
            main(command)
    assert seen == [True] * 7 + [False] * 4


# any two scripts ------------------------------------------------------------------------------------------------------


def test_the_bundles_of_a_record_climb(climb):
    """They were made before the options, with an older contract."""
    paths = {backend: RECORDS / f"2026-11-25_baseline_at_cpu_size_{name}" / "train_gpt.py"
             for backend, name in (("torch", "pytorch"), ("mlx", "mlx"))}
    code, found = climb("--torch", paths["torch"], "--mlx", paths["mlx"])
    assert code == 0 and rungs(found) == set(EVERY_RUNG) - {"options"}
    assert found["left_out"].keys() == {"options"} and " EMA_DECAY, " in found["left_out"]["options"]
    assert found["torch"] == str(paths["torch"])


def test_one_script_climbs_against_the_trainer_here(climb):
    """That of a record with options, but not all of today's, from before `state`."""
    [path] = RECORDS.glob("*_test_time_training_*/train_gpt.py")
    code, found = climb("--torch", path)
    assert code == 0 and rungs(found) == set(EVERY_RUNG) - {"options"}
    assert "has no setting" in found["left_out"]["options"] and "SMEAR_GATE" in found["left_out"]["options"]


@pytest.mark.slow
def test_compressed_bundles_climb(climb, tmp_path):
    for name in BACKENDS.values():
        (tmp_path / name).write_bytes(bundle(ROOT / name))
    code, found = climb("--torch", tmp_path / "train_gpt.py", "--mlx", tmp_path / "train_gpt_mlx.py")
    assert code == 0 and rungs(found) == set(EVERY_RUNG) and "left_out" not in found


@pytest.fixture
def fork(tmp_path):
    """A function: (file, old text, new text)... -> flags of a fork's two scripts, which are changed so."""
    def make(*changes):
        shutil.copytree(ROOT / "common", tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__", "data"))
        for name in BACKENDS.values():
            shutil.copy(ROOT / name, tmp_path / name)
        for name, old, new in changes:
            text = (tmp_path / name).read_text()
            assert text.count(old) == 1
            (tmp_path / name).write_text(text.replace(old, new))
        return "--torch", tmp_path / "train_gpt.py", "--mlx", tmp_path / "train_gpt_mlx.py"
    return make


def test_a_fork_with_a_tensor_and_a_setting_of_its_own_climbs(fork, climb):
    """A gain per channel of the embedding: one line in settings and table, two in each trainer."""
    loops = "    loop_count: int = setting("
    flags = fork(
        ("common/settings.py", loops, f'    gain_init: float = setting(1.0, "gain", 0, 9, kind="model")\n{loops}'),
        ("common/params.py", "    if num_skips(s):\n", '    table["gain"] = Param((dim,))\n    if num_skips(s):\n'),
        ("train_gpt.py", "        self.tok_emb = ", "        self.gain = nn.Parameter(torch.empty(s.model_dim))\n"
         "        self.tok_emb = "),
        ("train_gpt.py", "x, skips = self.embed(", "x, skips = self.s.gain_init * self.gain.to(self.dtype) * "
         "self.embed("),
        ("train_gpt_mlx.py", "        self.tok_emb = ", "        self.gain = mx.zeros(s.model_dim)\n"
         "        self.tok_emb = "),
        ("train_gpt_mlx.py", "x = x0 = self.embed(", "x = x0 = self.s.gain_init * self.gain.astype(self.dtype) * "
         "self.embed("),
    )
    code, found = climb(*flags, "--gain-init", "0.5")
    assert code == 0 and rungs(found) == set(EVERY_RUNG) - {"definition: torch", "definition: mlx"}
    assert set(found["left_out"].values()) == {"another model, which has other tensors: gain"}
    assert "--gain-init" in found["settings"]


@pytest.mark.slow
def test_a_defect_of_one_script_leaves_nothing_out(fork, climb):
    flags = fork(("train_gpt.py", "self.s.mlp_slope).square()", "self.s.mlp_slope)"))
    code, found = climb(*flags)
    assert code == 1 and "left_out" not in found
    assert {"logits", "definition: torch"} <= rungs(found, passed=False) and "definition: mlx" in rungs(found)


def test_a_trainer_of_this_repository_is_always_held_to_the_definition(climb, monkeypatch):
    """Whatever both sides agree about, and by whatever path it is named."""
    from parity import ladder
    monkeypatch.setattr(ladder, "reference_logits", lambda *a, whole=ladder.reference_logits: 2 * whole(*a))
    code, found = climb("--torch", ROOT / "tests" / ".." / "train_gpt.py")
    assert code == 1 and "left_out" not in found
    assert rungs(found, passed=False) == {"definition: torch", "definition: mlx"}


def test_a_setting_that_only_one_script_has_is_named(fork, data_path, capsys):
    loops = "    loop_count: int = setting("
    torch = fork(("common/settings.py", loops, f'    own: int = setting(0, "mine", 0, 9)\n{loops}'))[:2]
    assert main([*map(str, torch), "--data", str(data_path), "--own", "10"]) == 2
    assert "OWN=10 is not a whole number from 0 to 9" in capsys.readouterr().err
    assert main([*map(str, torch), "--data", str(data_path), "--own", "1"]) == 2
    assert capsys.readouterr().err == "error: train_gpt_mlx.py has no setting OWN\n"


def test_an_exception_of_a_script_is_shown_and_is_not_a_verdict(fork, data_path, capsys):
    torch = fork(("train_gpt.py", "        loss = self.backward(tokens)\n", "        loss = undefined\n"))[:2]
    size = [f"--{name}={value}" for name, value in SMALL.items()]
    assert main([*map(str, torch), f"--data={data_path}", *size]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "    loss = undefined" in lines
    assert lines[-1] == f"error: {torch[1]} does not run here: NameError: name 'undefined' is not defined"


@pytest.mark.parametrize("text, says", [
    (None, "No such file"),
    ("x = 1\n", "does not define one trainer: no class has backend"),
    ("import sys\nsys.exit('no')\n", "cannot be loaded: SystemExit: no"),
    ("1 / 0\n", "cannot be loaded: ZeroDivisionError"),
    ("def f(:\n", "invalid syntax"),
    ("import no_such_library\n", "No module named 'no_such_library'"),
    ("class A:\n    backend = 'mlx'\n    settings_class = train_step = token_nats = logits = gradients = weights = 1\n",
     "is a trainer for mlx: give it as --mlx"),
])
def test_a_script_that_is_not_a_trainer_is_one_line_of_error(text, says, tmp_path, capsys):
    path = tmp_path / "script.py"
    if text:
        path.write_text(text)
    assert main(["--torch", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["foo"])
    assert "invalid choice: 'foo'" in capsys.readouterr().err
