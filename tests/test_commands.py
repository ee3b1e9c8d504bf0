"""Every command that a page shows is one that its program takes: `python -m pytest tests/test_commands.py`."""
import importlib
import inspect
import re
import shlex

import pytest

import common.command
from common.settings import Settings, UserError, load_settings, settings_of
from parity.problem import ladder_settings
from tests.conftest import EXTRAS, ROOT
from tests.test_readme import PAGES

TRAINERS = {"train_gpt.py", "train_gpt_mlx.py"}
TOOLS = {"common.data", "parity", "records"}
SHELL = {"source", "cd", "git", "gh", "tensorboard", "wandb", "apt-get", "brew", "for", "done", "ruff"}
VARIABLES = {name.upper() for name in settings_of("model", "training", "evaluation", "memory", "run")}
OTHERS = {"BACKEND", "GPUS", "PYTHON", "WANDB_MODE", "OMP_NUM_THREADS"}
PROGRAMS = {"python", "make", "torchrun", "mlx.launch", "pip", *SHELL}
TARGETS = {target for line in re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
           for target in line.split()}


def shown_commands(text):
    """Every command of a page's code blocks and inline code, as words; what is optional is there, comments are not."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()] + [" ".join(code.split()) for code in inline]
    programs = "|".join(map(re.escape, PROGRAMS))
    for line in lines:
        command = re.sub(r"[\[\]]", "", line.split("  # ")[0]).strip()
        if re.match(rf"([A-Z_]+=\S* )*({programs})( |$)", command):
            for part in re.split(r" *(?:&&|;(?: do )?|\|| > /dev/null) *", command):
                if " " in part:  # else only a name
                    yield shlex.split(part)


def check(words, monkeypatch):
    """Asserts that the program takes the rest of the words."""
    given = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
        name, _, given[name] = words.pop(0).partition("=")
    program, arguments = words[0], words[1:]
    assert program in PROGRAMS and given.keys() <= VARIABLES | OTHERS, words
    if program == "python" and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:], monkeypatch)
    elif scripts := [at for at, word in enumerate(arguments) if word.rpartition("/")[2] in TRAINERS]:
        at = scripts[0]
        if program == "torchrun":
            from torch.distributed.run import get_args_parser
            get_args_parser().parse_args([word for word in arguments[:at + 1] if word != "..."])
        flags = [word for word in arguments[at + 1:] if word not in ("--preflight", "--source", "--help")]
        load_settings(Settings, flags, {name: text for name, text in given.items() if "$" not in text}, print)
    elif program == "make":
        for word in arguments:
            name, equals, _ = word.partition("=")
            assert name in (VARIABLES | OTHERS if equals else TARGETS), words
    elif program == "pip":
        assert arguments[0] == "install" and set(re.findall(r"\.\[(\w+)\]", " ".join(arguments))) <= EXTRAS.keys()
    else:
        assert program in SHELL, words


def check_module(name, arguments, monkeypatch):
    arguments = [word for word in arguments if word != "..." or arguments[-2:-1] == ["--github-id"]]
    if name in TOOLS:
        options, arguments = [], arguments if arguments[1:] else [*arguments, "--help"]  # only the name of a command
        monkeypatch.setattr(common.command, "exit_code", lambda found, extra: options.append(found))
        importlib.import_module(f"{name}.__main__").main([word for word in arguments if word != "COMMAND"])
        ladder_settings([*(getattr(options[0], "given", None) or []), *options[0].settings])
    elif name.startswith("tests.") and "*" not in name:
        source = inspect.getsource(importlib.import_module(name))
        assert "__main__" in source and all(flag in source for flag in arguments if flag[:2] == "--"), name
    else:
        assert name in ("pytest", "common.bundle") or "*" in name, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_its_program_takes(page, monkeypatch, capsys):
    commands = list(shown_commands(page.read_text()))
    for words in commands:
        try:
            check(list(words), monkeypatch)
        except SystemExit as end:  # 0: the help
            assert not end.code, f"{shlex.join(words)}: {capsys.readouterr().err}"
    assert commands


@pytest.mark.parametrize("command", [
    "python -m records pakc runs/x", "python -m parity --loop-layer 1-2", "make trian", "make train NUM_LAYER=6",
    "python train_gpt.py --num-layer 3", "NUM_LAYER=3 python train_gpt.py", "pip install '.[dta]'",
    "torchrun --nprocs=8 train_gpt.py", "python -m tests.bench.steps", "pythn train_gpt.py"])
def test_a_wrong_command_is_found(command, monkeypatch):
    with pytest.raises((AssertionError, SystemExit, ImportError, UserError)):
        check(shlex.split(command), monkeypatch)
