"""Places people have: odd paths, sources that stay as they are, no HOME, another locale: `python -m pytest
tests/runs/test_places.py`."""
import ast
import os
import shlex
import shutil

import pytest

from common.params import initial_weights
from records.jail import stat_of
from tests.conftest import BACKENDS, ROOT, environment, run_script, tiny_settings, trainer_class

BARE = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TERM": "dumb"}


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_runs_land_where_one_starts(backend, tmp_path, data_path):
    """Not beside the sources, which stay as they are. Spaces and letters beyond ASCII, no HOME, LC_ALL=C."""
    sources, here = tmp_path / "pläces tést", tmp_path / "whère I start"
    shutil.copytree(ROOT / "common", sources / "common")
    shutil.copy(ROOT / BACKENDS[backend], sources)
    here.mkdir()
    before = files_of(sources)
    variables = environment(data_path, run_id="ü", iterations=2)
    variables.pop("HOME", None)
    done = run_script([sources / BACKENDS[backend]], here, variables | BARE)
    assert done.returncode == 0, done
    assert files_of(sources) == before
    assert (here / "runs" / "ü" / "model.int8.zlib").exists()


def test_the_linker_finds_pytorch_in_a_folder_with_spaces(monkeypatch, tmp_path, data_path):
    import torch
    from torch.utils import cpp_extension
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", "")
    monkeypatch.setattr(torch, "__path__", [f"{tmp_path}/pläces tést", *torch.__path__])
    s = tiny_settings("torch", data_path, compile=True)
    for _ in range(2):
        trainer_class("torch")(s, initial_weights(s))
        assert shlex.split(f"-L{cpp_extension.TORCH_LIB_PATH} -x") == [f"-L{tmp_path}/pläces tést/lib", "-x"]


def without_encoding(call):
    """Whether a call reads or writes text in the encoding of the locale."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    named = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if "encoding" in named:
        return False
    if ast.unparse(call.func) == "open":
        return "b" not in (ast.unparse(call.args[1]) if len(call.args) > 1 else "")
    place = {"read_text": 0, "write_text": 1}.get(name)
    is_path = place is not None and isinstance(call.func, ast.Attribute)
    return named.get("text") == "True" or (is_path and len(call.args) <= place)


def test_text_has_an_encoding_of_its_own():
    """Not that of the locale, in which a log or a manifest may not be readable."""
    paths = [ROOT / name for name in BACKENDS.values()]
    paths += [path for name in ("common", "parity", "records") for path in (ROOT / name).rglob("*.py")
              if "track_" not in str(path.relative_to(ROOT))]
    found = [f"{path.relative_to(ROOT)}:{node.lineno}" for path in paths for node in ast.walk(ast.parse(
        path.read_bytes())) if isinstance(node, ast.Call) and without_encoding(node)]
    assert found == []


@pytest.mark.parametrize("text, yes", [
    ("open(p)", True), ("open(p, 'w')", True), ("open(p, 'rb')", False), ("open(p, encoding='ascii')", False),
    ("p.read_text()", True), ("p.read_text('utf-8')", False), ("p.write_text(t)", True), ("os.open(p)", False),
    ("p.write_text(t, 'utf-8')", False), ("run(c, text=True)", True), ("run(c, encoding='utf-8')", False)])
def test_what_has_no_encoding_of_its_own(text, yes):
    assert without_encoding(ast.parse(text, mode="eval").body) == yes


def test_a_process_with_an_odd_name_is_counted(tmp_path):
    """Bytes that are not UTF-8 in its name hide neither its state nor its time from the watch of the sandbox."""
    path = tmp_path / "stat"
    path.write_bytes(b"12 (\xff) R" + b" 100" * 20)
    letter, seconds = stat_of(path)
    assert letter == "R" and seconds > 0
