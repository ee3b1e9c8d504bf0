"""The import laws: `python -m pytest tests/test_imports.py`."""
import ast
import graphlib
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import EXTRAS, ROOT

TRAINERS = {"train_gpt": "torch", "train_gpt_mlx": "mlx"}
DATA_LIBRARIES = {"sentencepiece", "huggingface_hub", "tqdm", "pyarrow", "matplotlib"}
RECORDS_TESTS = "tests/records/*", "tests/hostile/campaign.py", "tests/bench/verify.py", "tests/runs/test_places.py"
LIBRARIES = {
    "common.tokenizer": {"sentencepiece"},
    "common.artifact": {"safetensors"},
    "common.checkpoint": {"safetensors"},
    "common.console": {"tqdm"},
    "common.loop": {"tqdm"},
    "common.report": {"tensorboard", "wandb", "trackio"},  # in functions, when REPORT_TO names them
    "common.openblas": {"scipy_openblas32"},
    "common.kernels": {"torch", "triton"},
}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


COMMON = {module_name(path): path for path in sorted((ROOT / "common").rglob("*.py"))}
PRODUCT = {module_name(path): path for path in sorted(
    path for pattern in ("*.py", "common/**/*.py", "parity/*.py", "records/*.py") for path in ROOT.glob(pattern))}
# scripts are loaded by their path in one place; the corpus is the documentation of modules by name
DYNAMIC = {"parity.trainers", "common.data.pydoc"}


def imported_names(path):
    """Dotted names that the file imports, anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_bytes(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path):
    return {name.split(".")[0] for name in imported_names(path)} - sys.stdlib_module_names


def test_the_modules_are_found():
    assert {"common.settings", "common.bundle", "common.data.__main__", *LIBRARIES} <= set(COMMON)


@pytest.mark.parametrize("name", COMMON)
def test_common_imports_numpy_and_itself(name):
    libraries = DATA_LIBRARIES if name.startswith("common.data.") else LIBRARIES.get(name, set())
    assert packages(COMMON[name]) <= {"numpy", "common"} | libraries


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_imports_its_framework_and_common(name):
    assert packages(ROOT / f"{name}.py") <= {TRAINERS[name], "numpy", "common"}


def test_there_is_no_circle():
    graph = {name: set() for name in PRODUCT}
    for name, path in PRODUCT.items():
        for imported in imported_names(path):
            module = imported if imported in PRODUCT else imported.rpartition(".")[0]
            graph[name] |= {module} & set(PRODUCT) - {name}
    assert "common.settings" in graph["common.bundle"] and "common.run" in graph["train_gpt"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def dynamic_imports(source):
    """Lines that import by a name that is not in sight: importlib and __import__, by whatever spelling."""
    return sorted(node.lineno for node in ast.walk(ast.parse(source))
                  if (isinstance(node, ast.Name) and node.id in ("__import__", "importlib", "import_module"))
                  or (isinstance(node, ast.Attribute) and node.attr in ("__import__", "import_module", "exec_module"))
                  or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "importlib"
                      and {alias.name for alias in node.names} - {"metadata"}))


def test_no_import_is_hidden():
    """A circle behind importlib is a circle."""
    assert dynamic_imports("import importlib\nimportlib.import_module('x')\n__import__('y')") == [2, 2, 3]
    assert dynamic_imports("from importlib import import_module as load\nload('x')") == [1]
    assert not dynamic_imports("from importlib import metadata\nmetadata.version('x')")
    found = {name: dynamic_imports(path.read_bytes()) for name, path in PRODUCT.items() if name not in DYNAMIC}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_functions_are_short():
    long = {}
    for name, path in PRODUCT.items():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long[f"{name}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}


IMPORT = """
import importlib, sys
importlib.import_module(sys.argv.pop())
unwanted = sys.argv.pop().split(",")
found = sorted({name.split(".")[0] for name in sys.modules}.intersection(unwanted))
sys.exit(f"loads {found}" if found else 0)
"""


@pytest.mark.parametrize("name", [*COMMON, *TRAINERS])
def test_importing_has_no_side_effect(tmp_path, name):
    """Prints nothing, makes no file, reads no flag or setting, and loads nothing a law forbids, by whatever way."""
    unwanted = {"parity", "records", "tests", *TRAINERS, *TRAINERS.values()} - {name, TRAINERS.get(name)}
    command = [sys.executable, "-c", IMPORT, "--no-such-flag", ",".join(unwanted), name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ITERATIONS": "no number"}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    assert not list(tmp_path.iterdir())


def test_modules_are_short():
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in PRODUCT.items()}
    assert {name: n for name, n in lines.items() if n > (700 if name in TRAINERS else 400)} == {}


@pytest.mark.parametrize("pattern", ["*.py", "common/**/*.py", "parity/*.py", "tests/**/*.py"])
def test_nothing_imports_records(pattern):
    """Only its own tests do."""
    files = [path for path in ROOT.glob(pattern) if not any(map(path.relative_to(ROOT).match, RECORDS_TESTS))]
    assert files and not [
        path for path in files if any(name.split(".")[0] == "records" for name in imported_names(path))
    ]


MISSING = """
import sys


class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing)
"""
ALL = {name for extra, names in EXTRAS.items() if extra for name in names}
BASE = {"sentencepiece", "safetensors", "tqdm"}
FREE = "tests/common/test_settings.py", "tests/common/test_params.py", "tests/records/test_arguments.py"
STATE = "tests/runs/test_repeatable.py", "-k", "taken_over and cpu"


@pytest.mark.slow
@pytest.mark.parametrize("missing, arguments, says, code", [
    (ALL | BASE, FREE, r"^\d{3} passed", 0),
    (ALL | BASE, ("tests/common/test_schedule.py",), r"hypothesis is not installed: `pip install '\.\[dev\]'`", 5),
    ({"mlx"}, STATE, r"mlx is not installed: .*\n1 passed, 1 skipped", 0),
    ({"torch"}, STATE, r"torch is not installed: .*\n1 passed, 1 skipped", 0),
    ({"mlx"}, (*STATE, "--complete"), "1 passed, .*1 error", 1),
], ids=["numpy and pytest", "no hypothesis", "torch alone", "mlx alone", "complete torch"])
def test_tests_run_with_what_is_installed(missing, arguments, says, code, tmp_path):
    """What is not installed is named; with --complete, as make runs them, it is missed."""
    (tmp_path / "missing.py").write_text(MISSING.format(names=missing - {"pytest", "pytest_xdist"}))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "missing", "-p", "no:cacheprovider", "-p", "no:xdist",
               "-p", "no:hypothesispytest", *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code and re.search(says, done.stdout, re.MULTILINE), done.stdout + done.stderr
