"""The bundler: `python -m pytest tests/common/test_bundle.py`."""
import ast
import bz2
import hashlib
import importlib.util
import inspect
import os
import random
import re
import shutil
import subprocess
import sys
import traceback
import unicodedata

import pytest

from common.bundle import LINE, PAIRS, SOURCE_LIMIT, BundleError, bundle, bundle_source, pack, unpack, wrapper
from common.settings import UserError
from tests.conftest import ROOT

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def project(folder, script, **modules):
    """Write train.py and its common/ folder; returns the path of train.py."""
    (folder / "common").mkdir(parents=True)
    for name, text in {"__init__": "", **modules}.items():
        (folder / "common" / f"{name}.py").write_bytes(text.encode())
    (folder / "train.py").write_bytes(script.encode())
    return folder / "train.py"


def output(script):
    """What the script prints when run from its own folder."""
    command = [sys.executable, "-B", script.name]
    done = subprocess.run(command, check=False, cwd=script.parent, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def run_bundle(folder, script):
    """Output of the bundle as the only file of a folder; that of its readable text is the same."""
    printed = set()
    for name, code in (("compressed", bundle(script)), ("readable", bundle_source(script).encode())):
        (folder / name).mkdir()
        alone = folder / name / script.name
        alone.write_bytes(code)
        assert bundle(alone) == code and bundle_source(alone) == bundle_source(script)
        printed.add(output(alone))
    [printed] = printed
    return printed


SCRIPT = '''#!/usr/bin/env python3
"""A trainer."""
import sys
try:
    import no_such_framework
except ModuleNotFoundError:
    no_such_framework = None

from common.shapes import (
    Circle,  # a comment that goes with its import
    area,
)
from common.units import UNIT  # this comment too

# how it is run
def main():
    """Its own docstrings

    stay."""
    from math import floor
    print(__name__, no_such_framework, floor(area(Circle(2))), UNIT, *sys.argv[1:],
          main.__doc__.split())  # as its own comments do


if __name__ == "__main__":
    main()
'''
SHAPES = '''"""Shapes.

Two "paragraphs".
"""
import json
import math
from dataclasses import dataclass

from common.units import UNIT, scaled  # this one goes too

NAMES = ["circle"]


@dataclass  # a comment
class Circle:
    """Around a centre."""
    radius: float


# the area of a circle
@scaled
def area(circle):
    """In square units."""
    # Archimedes
    if TEXT:
        return math.pi * circle.radius ** 2  # exact


def name(index):
    return json.dumps(NAMES[index])


TEXT = """
from common.units import UNIT


    # never touched, \u2028 é"""
'''
UNITS = '''from math import tau  # no line ends here: \u2028
import math
UNIT = round(tau)


def scaled(function):
    return lambda argument: UNIT * function(argument) * math.cos(0)


if __name__ == "__main__":
    import sys
    print("tried alone", sys.argv, __name__)  # and so does this

# The end
'''
SOURCE = '''# ===== common/units.py
from math import tau  # no line ends here: \u2028
import math
UNIT = round(tau)


def scaled(function):
    return lambda argument: UNIT * function(argument) * math.cos(0)



# The end


# ===== common/shapes.py
"""Shapes.

Two "paragraphs".
"""
import json
from dataclasses import dataclass


NAMES = ["circle"]


@dataclass  # a comment
class Circle:
    """Around a centre."""
    radius: float


# the area of a circle
@scaled
def area(circle):
    """In square units."""
    # Archimedes
    if TEXT:
        return math.pi * circle.radius ** 2  # exact


def name(index):
    return json.dumps(NAMES[index])


TEXT = """
from common.units import UNIT


    # never touched, \u2028 é"""


# ===== train.py
#!/usr/bin/env python3
"""A trainer."""
import sys
try:
    import no_such_framework
except ModuleNotFoundError:
    no_such_framework = None


# how it is run
def main():
    """Its own docstrings

    stay."""
    from math import floor
    print(__name__, no_such_framework, floor(area(Circle(2))), UNIT, *sys.argv[1:],
          main.__doc__.split())  # as its own comments do


if __name__ == "__main__":
    main()
'''


def test_source(tmp_path):
    """Word for word, but for the imports between the files, those made before, and the main block of a module."""
    script = project(tmp_path, SCRIPT, shapes=SHAPES, units=UNITS)
    assert bundle_source(script) == SOURCE
    code = bundle(script)
    assert len(code) < len(wrapper("").encode()) + 1000 and b"Archimedes" not in code


def test_bundle_prints_what_the_script_prints(tmp_path):
    script = project(tmp_path / "project", SCRIPT, shapes=SHAPES, units=UNITS)
    printed = "__main__ None 75 6 ['Its', 'own', 'docstrings', 'stay.']\n"
    assert run_bundle(tmp_path, script) == output(script) == printed


def test_windows_files_give_the_same_bundle(tmp_path):
    script, shapes = ("\ufeff" + text.replace("\n", "\r\n") for text in (SCRIPT, SHAPES))
    assert bundle_source(project(tmp_path, script, shapes=shapes, units=UNITS)) == SOURCE


@pytest.mark.parametrize("source", [
    "", "x = 1", "print(1)\r\n\r\n\r\n", '\ufeff"""from common.a import b"""\n', "PAYLOAD = r'''\n!\n'''\n",
    "import os; x = 'from common.a import b'", "import commonplace, os\nfrom common_x import y\n",
    "from __future__ import annotations\nfrom math import *\nprint = __file__, __doc__\n"])
def test_without_common_nothing_changes(tmp_path, source):
    script = project(tmp_path, source)
    assert bundle(script) == source.encode()
    assert bundle_source(script) == source.removeprefix("\ufeff").replace("\r\n", "\n")


def test_every_module_comes_once_after_what_it_imports(tmp_path):
    script = project(tmp_path / "project", "from common.top import a\nfrom common.left import b\nprint(a, b)\n",
                     top="from common.left import b\nfrom common.right import c\na = b + c\n",
                     left="from common.base import d\nb = d + 'left '\n",
                     right="from common.base import d\nc = d + 'right '\n",
                     base="d = 'base '\n", unused="d = 0\n")
    assert re.findall("# ===== (.*)", bundle_source(script)) == [
        "common/base.py", "common/left.py", "common/right.py", "common/top.py", "train.py"]
    assert run_bundle(tmp_path, script) == output(script) == "base left base right  base left \n"


def test_a_bundle_that_reaches_the_bundler_is_its_own_bundle(tmp_path):
    """It prints the same digest of its readable text in the repository, compressed and readable."""
    script = project(tmp_path / "project", "import hashlib\nfrom common.bundle import bundle, bundle_source\n"
                     "print(bundle_source(__file__).encode() == bundle(__file__) or len(bundle(__file__)),\n"
                     "      hashlib.sha256(bundle_source(__file__).encode()).hexdigest())\n")
    for name in ("bundle", "challenge", "command", "files", "recipes", "settings", "values"):
        shutil.copy(ROOT / "common" / f"{name}.py", script.parent / "common")
    source = bundle_source(script)
    assert len(source) < 1000 and "UserError" not in source
    sizes = [len(bundle(script)), True]
    for folder, code, size in zip("ab", (bundle(script), source.encode()), sizes):
        (tmp_path / folder).mkdir()
        alone = tmp_path / folder / "train.py"
        alone.write_bytes(code)
        assert output(alone) == f"{size} {hashlib.sha256(source.encode()).hexdigest()}\n"
    assert output(script) == output(tmp_path / "a" / "train.py")


# ----------------------------------------------------------------------------------------------------------------------
# The compressed file
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    b"", b"\0", b"\xff" * 67, b"\xff" * 200, bytes(500), *(random.Random(n).randbytes(n) for n in range(1, 300, 7))])
def test_text_of_a_payload_gives_its_bytes(data):
    assert unpack(pack(data)) in (data, data + b"\0")


def test_unpack_reads_what_was_shipped():
    """Golden text, with the ends of each range of letters: bundles in records must stay readable."""
    text = "!~\xa1\xac\xae\u02ff\u03a3\u0482\u048a\u052f\u0559\n\u0584!!"
    assert unpack(text).hex() == "4809bbba4c494a18accbf57e774d77e96da00a00"
    text = ("Aman<cTv`AP\u0277GZy\\V7xMxG6'o8G&\u01b1Iat2KN\"*>yPEvU\xf58S\u042a4{14B~98tee9=\u03df"
            "PIGVkU{p'f?x<;uU%2_\xc9&A+8o")
    assert unpack(text) == bytes(range(67)) + b"the rest\xff\xfe"


def test_a_payload_is_dense_and_harmless():
    """In UTF-8. Safe in a raw string, in a terminal, and in an editor that normalizes Unicode or strips spaces."""
    payload = pack(random.Random(1).randbytes(200_000))
    assert 200_000 / len(payload.encode()) > 0.836
    lines = payload.split("\n")
    assert max(map(len, lines)) == LINE and "'''" not in payload
    letters = set(payload) - {"\n"}
    assert letters == {chr(code) for code in (*range(33, 127), *PAIRS[:10 * 104])}
    assert {unicodedata.category(letter)[0] for letter in letters} <= set("LNPS")
    assert not {unicodedata.bidirectional(letter) for letter in letters} & {"R", "AL", "AN"}
    assert unicodedata.normalize("NFC", payload) == payload


FAILING = """import sys
import traceback
from common.a import fail
def main():
    try:
        fail(1)  # in the trainer
    except AssertionError:
        traceback.print_exc()  # before 3.13, the one of an error that nobody catches lacks the lines
        sys.exit(1)
main()
"""
FAIL = "# no line ends here: \u2028\n\n\ndef fail(x):\n    assert not x  # in the module\n"


def test_a_traceback_shows_lines_of_the_readable_text(tmp_path):
    script = project(tmp_path / "project", FAILING, a=FAIL)
    alone = tmp_path / "train.py"
    alone.write_bytes(bundle(script))
    done = subprocess.run([sys.executable, alone.name], check=False, cwd=tmp_path, env=ENVIRONMENT, capture_output=True)
    shown = re.findall(r'File "(.*)", line (\d+), in .*\n +(.*)', done.stderr.decode())
    lines = bundle_source(script).split("\n")
    assert done.returncode == 1 and [name for name, *_ in shown] == [f"{alone} --source"] * 2
    assert [text for *_, text in shown] == [lines[int(line) - 1].strip() for _, line, _ in shown]
    assert [text for *_, text in shown] == ["fail(1)  # in the trainer", "assert not x  # in the module"]


def test_a_traceback_of_a_thread_shows_no_line_of_another_text(tmp_path):
    """Python 3.11 and 3.12 show the numbers alone."""
    start = "import threading\nthreading.Thread(target=main).start()\n"
    script = project(tmp_path / "project", FAILING.replace("main()\n", start), a=FAIL)
    alone = tmp_path / "train.py"
    alone.write_bytes(bundle(script))
    done = subprocess.run([sys.executable, alone.name], check=False, cwd=tmp_path, env=ENVIRONMENT, capture_output=True)
    lines = bundle_source(script).split("\n")
    shown = re.findall(r'  File ".*train.py --source", line (\d+), in (.*)\n(?:    (.*))?', done.stderr.decode())
    assert [function for _, function, _ in shown] == ["main", "fail"]
    assert all(text in ("", lines[int(number) - 1].strip()) for number, _, text in shown)
    assert "assert not x" in lines[int(shown[1][0]) - 1]


LOADED = """import dataclasses
from common.a import where
@dataclasses.dataclass
class Point:
    x: "dataclasses.InitVar[int]"
    def far(self):
        return 1 / 0  # far
assert __name__ != "__main__"
"""


def test_a_bundle_is_a_module_under_any_name(tmp_path):
    alone = tmp_path / "train.py"
    alone.write_bytes(bundle(project(tmp_path / "project", LOADED, a="def where():\n    return 'here'\n")))
    hook = sys.excepthook
    for name in ("first", "second"):
        spec = importlib.util.spec_from_file_location(name, alone)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            assert module.Point.__module__ == module.where.__module__ == name and module.where() == "here"
            assert inspect.getsource(module.where) == "def where():\n    return 'here'\n"
            with pytest.raises(ZeroDivisionError) as error:
                module.Point(1).far()
            assert "return 1 / 0  # far" in traceback.format_exception(error.value)[-2]
        finally:
            del sys.modules[name]
    assert sys.excepthook is hook  # only a script sets it


# ----------------------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [
    ("import os.path\nimport numpy as np", "import os\nimport numpy as np"),
    ("from json import loads as load", "from json import loads as load"),
    ("def f(load):\n    import json as load", "def g(load):\n    return [load for load in load]"),
    ("try:\n    import tomllib as t\nexcept ImportError:\n    t = None", "t2 = [i for i in range(3)]"),
    ("names = [i for i in range(2)]", "numbers = {i: i for i in range(2)}"),
    ("class A:\n    load = 1", "class B:\n    load = 2\n    import json as numpy"),
    ("__all__ = ['x']", "__all__ = [type(1).__name__]"),
    ("if __name__ == '__main__':\n    load = 1", "load = 2"),
])
def test_names_that_do_not_clash(tmp_path, a, b):
    script = project(tmp_path / "project", "from common.a import x\nfrom common.b import y\nprint(x, y)\n",
                     a=f"{a}\nx = 1\n", b=f"{b}\ny = 2\n")
    assert run_bundle(tmp_path, script) == "1 2\n"


IMPORT = "from common.a import x\n"


@pytest.mark.parametrize(("where", "words", "script", "modules"), [
    # imports that cannot be taken out
    ("train.py:2", "import common.a", "x = 1\nimport common.a\n", {"a": "x = 1"}),
    ("train.py:1", "import os, common", "import os, common\n", {"a": "x = 1"}),
    ("train.py:1", "from common import a", "from common import a\n", {"a": "x = 1"}),
    ("train.py:1", "from common.a import x as y", "from common.a import x as y\n", {"a": "x = 1"}),
    ("train.py:1", "from common.a import x as x", "from common.a import x as x\n", {"a": "x = 1"}),
    ("train.py:1", "from common.a import *", "from common.a import *\n", {"a": "x = 1"}),
    ("common/a.py:2", "from .b import x", IMPORT, {"a": "x = 1\nfrom .b import x", "b": "x = 1"}),
    ("common/a.py:1", "from . import b", IMPORT, {"a": "from . import b\nx = 1", "b": "x = 1"}),
    ("train.py:1", "common.data", "from common.data import x\n", {"data": "x = 1"}),
    ("train.py:1", "common.data", "from common.data.fineweb import x\n", {}),
    ("train.py:2", "top-level", "def f():\n    from common.a import x\n", {"a": "x = 1"}),
    ("train.py:2", "top-level", "try:\n    from common.a import x\nexcept ImportError:\n    x = 0\n", {"a": "x = 1"}),
    ("common/a.py:3", "top-level", IMPORT, {"a": "x = 1\nif x:\n    from common.b import y", "b": "y = 1"}),
    ("train.py:1", "line of its own", "from common.a import x; print(x)\n", {"a": "x = 1"}),
    ("train.py:1", "line of its own", "y = 1; from common.a import x\n", {"a": "x = 1"}),
    ("common/a.py:2", "line of its own", IMPORT, {"a": "x = 1\nfrom common.b import y; x = 2", "b": "y = 1"}),
    ("train.py:1", "does not compile", "y = 1; \\\n" + IMPORT + "if x: pass\n", {"a": "x = 1"}),
    # modules and names that are not there
    ("train.py:2", "common/b.py", "import os\nfrom common.b import x\n", {"a": "x = 1"}),
    ("common/a.py:1", "common/b.py", IMPORT, {"a": "from common.b import x"}),
    ("train.py:1", "does not define `y`", "from common.a import x, y\n", {"a": "x = 1\ndef f(y): pass"}),
    ("train.py:1", "does not define `x`", IMPORT, {"a": "if __name__ == '__main__':\n    x = 1"}),
    ("train.py:1", "does not define `x`", IMPORT, {"a": "from common.b import x", "b": "x = 1"}),
    # cycles
    ("common/b.py:2", "cycle", IMPORT, {"a": "from common.b import y\nx = 1", "b": "y = 1\nfrom common.a import x"}),
    ("common/a.py:1", "cycle", IMPORT, {"a": "from common.a import x"}),
    ("common/c.py:1", "cycle", IMPORT, {
        "a": "from common.b import y", "b": "from common.c import z", "c": "from common.b import y"}),
    # what would mean something else in the bundle
    ("common/a.py:2", "__file__", IMPORT, {"a": "def x():\n    return __file__"}),
    ("common/a.py:1", "__name__", IMPORT, {"a": "x = __name__"}),
    ("common/a.py:1", "__doc__", IMPORT, {"a": "x = [__doc__]"}),
    ("common/a.py:2", "__name__", IMPORT, {"a": "x = 1\nif __name__ == '__main__':\n    x = 2\nelse:\n    x = 3"}),
    ("common/a.py:2", "__name__", IMPORT, {"a": "x = 1\nif __name__ != '__main__':\n    x = 2"}),
    ("common/a.py:3", "__name__", IMPORT, {"a": "if 1:\n    x = 1\n    if __name__ == '__main__':\n        x = 2"}),
    ("common/a.py:2", "`__cache`", IMPORT, {
        "a": "from common.b import y\n__cache = 1\nx = y", "b": "__cache = 2\ny = 2"}),
    ("common/a.py:1", "`open`", IMPORT, {"a": "from os import open\nx = 1"}),
    ("train.py:3", "`print`", IMPORT + "\ndef print(): pass\n", {"a": "x = 1"}),
    ("common/a.py:1", "`from math import *`", IMPORT, {"a": "from math import *\nx = 1"}),
    ("train.py:2", "`from math import *`", IMPORT + "from math import *\n", {"a": "x = 1"}),
    ("common/a.py:1", "`from __future__", IMPORT, {"a": "from __future__ import annotations\nx = 1"}),
    ("common/a.py:2", "`from __future__", IMPORT, {"a": "'Doc.'\nfrom __future__ import division as y\nx = 1"}),
    ("train.py:2", "`from __future__", "'Doc.'\nfrom __future__ import annotations\n" + IMPORT, {"a": "x = 1"}),
    ("train.py:3", "__doc__", "'''Doc.'''\n" + IMPORT + "print(__doc__)\n", {"a": "x = 1"}),
    ("common/a.py:1", "`globals`", IMPORT, {"a": "x = globals()"}),
    ("common/a.py:2", "`eval`", IMPORT, {"a": "def x(y):\n    return eval(y)"}),
    ("common/a.py:1", "`exec`", IMPORT, {"a": "exec('x = 1')\nx = 1"}),
    # not Python
    ("train.py:2", "syntax", "x = 1\nx = = 1\n", {}),
    ("common/a.py:2", "return", IMPORT, {"a": "x = 1\nreturn x"}),
    ("common/a.py:1", "null", IMPORT, {"a": "x = '\0'"}),
])
def test_refused(tmp_path, where, words, script, modules):
    with pytest.raises(BundleError) as refused:
        bundle(project(tmp_path, script, **modules))
    assert str(refused.value).startswith(f"{tmp_path / where}: ")
    assert words in str(refused.value).replace(os.sep, "/")


@pytest.mark.parametrize("binding", [
    "def load(): pass", "async def load(): pass", "class load: pass", "load = 1", "load: int = 1", "load += 1",
    "(z, [*load]) = 1, [2]", "for load in (): pass", "with x as load: pass", "try: pass\nexcept OSError as load: pass",
    "if x: load = 1", "while x: load = 1", "[load := 1 for _ in '1']", "def f(y=(load := 1)): pass",
    "def f():\n    global load\n    load = 1", "match x:\n    case {**load}: pass", "match x:\n    case [*load]: pass",
    "match x:\n    case str() as load: pass",
    "import load", "import json as load", "import load.parts", "from copy import copy as load",
    "try:\n    from json import load\nexcept ImportError:\n    load = None", "load = None\nfrom json import load",
    "global load\nload = 1"])
def test_one_name_in_two_files(tmp_path, binding):
    """Whatever binds `load` at top level, in a module or the trainer, clashes with an import of another `load`."""
    a, b = "x = 1\nfrom json import load\n", f"y = 1\n{binding}\n"
    script = project(tmp_path / "modules", "from common.a import x\nfrom common.b import y\n", a=a, b=b)
    with pytest.raises(BundleError, match=r"common.b\.py:[2-4]: `load`.*common.a\.py:2"):
        bundle(script)
    script = project(tmp_path / "script", IMPORT + binding, a=a)
    with pytest.raises(BundleError, match=r"train\.py:[2-4]: `load`.*common.a\.py:2"):
        bundle(script)


def test_the_trainer_may_not_redefine_what_it_imports(tmp_path):
    with pytest.raises(BundleError, match=r"train\.py:2: `x`"):
        bundle(project(tmp_path, IMPORT + "x = 2\n", a="x = 1\n"))


def test_unreadable_files(tmp_path):
    with pytest.raises(BundleError, match=r"absent\.py: No such file or directory: name a trainer or a bundle"):
        bundle(tmp_path / "absent.py")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    with pytest.raises(BundleError, match=r"latin\.py:1: .*utf-8"):
        bundle(tmp_path / "latin.py")
    assert issubclass(BundleError, UserError)


# ----------------------------------------------------------------------------------------------------------------------
# The command line and the trainers
# ----------------------------------------------------------------------------------------------------------------------


def run_command(*arguments, hash_seed="0"):
    command = [sys.executable, "-m", "common.bundle", *arguments]
    environment = {**ENVIRONMENT, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True)


def test_command_line(tmp_path):
    script = project(tmp_path, SCRIPT, shapes=SHAPES, units=UNITS)
    code, source = bundle(script), SOURCE.encode()
    for hash_seed in ("1", "2"):
        done = run_command(script, hash_seed=hash_seed)
        assert (done.returncode, done.stdout) == (0, code)
        assert done.stderr.decode().split() == [
            str(len(code)), "bytes,", "SHA-256", hashlib.sha256(code).hexdigest(),
            "source:", str(len(source)), "bytes,", "SHA-256", hashlib.sha256(source).hexdigest()]
    done = run_command(tmp_path / "absent.py")
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(r"error: .*absent\.py: No such file .*\n", done.stderr.decode())


def test_source_of_a_trainer_and_of_both_forms_of_its_bundle(tmp_path):
    """Printed, not run."""
    script = project(tmp_path / "project", SCRIPT + "\nraise SystemExit(3)\n", shapes=SHAPES, units=UNITS)
    (tmp_path / "bundled.py").write_bytes(bundle(script))
    (tmp_path / "readable.py").write_text(bundle_source(script), "utf-8")
    for path in (script, tmp_path / "bundled.py", tmp_path / "readable.py"):
        done = run_command("--source", path)
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, SOURCE + "\nraise SystemExit(3)\n", b"")
    piped = f"{sys.executable} -m common.bundle --source {ROOT / 'train_gpt.py'} | head -n 1"
    done = subprocess.run(piped, check=False, shell=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert done.stdout.startswith(b"# =====") and done.stderr == b""


LONG = pack(bz2.compress(bytes(SOURCE_LIMIT + 1)))


@pytest.mark.parametrize("payload", [
    "!!!!", "~" * 80, "no digits: \u3042", "a\u00a1", " a", pack(b"no bz2"), pack(bz2.compress(b"\xff")),
    pack(bz2.compress(b"x" * 99)[:-9]), pack(b""), LONG])
def test_a_damaged_payload_is_an_error(tmp_path, payload):
    path = tmp_path / "bundled.py"
    path.write_text(wrapper(payload), "utf-8")
    done = run_command("--source", path)
    line = wrapper("").split("\n").index("PAYLOAD = r'''") + 1
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"error: {path}:{line}: the payload cannot be unpacked: ")
    assert bundle(path) == path.read_bytes()


@pytest.mark.parametrize("name", ["train_gpt.py", "train_gpt_mlx.py"])
def test_trainers_become_one_file(tmp_path, name):
    source, code = bundle_source(ROOT / name), bundle(ROOT / name)
    tree = ast.parse(source)
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports and not [line for line in imports if re.search(r"\bcommon\b", line)]
    assert "# ===== common/settings.py\n" in source and (ROOT / "common" / "schedule.py").read_text().strip() in source
    assert source.endswith((ROOT / name).read_text()[-2000:])
    (tmp_path / name).write_bytes(code)
    assert bundle(tmp_path / name) == code and bundle_source(tmp_path / name) == source


@pytest.mark.parametrize("name", ["train_gpt.py", "train_gpt_mlx.py"])
def test_the_code_of_a_trainer_is_small(name):
    """It counts against the challenge's 16,000,000 bytes."""
    assert len(bundle(ROOT / name)) <= 68_000


def test_all_of_common_fits_in_one_file(tmp_path):
    """Every module can be inlined beside every other: top-level names are unique over common/*.py."""
    shutil.copytree(ROOT / "common", tmp_path / "common")
    lines = []
    for path in sorted((ROOT / "common").glob("[!_]*.py")):
        nodes = ast.parse(path.read_bytes()).body
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names += [node.targets[0].id for node in nodes if isinstance(node, ast.Assign)
                  and isinstance(node.targets[0], ast.Name)]
        names = {"bundle": ["bundle", "bundle_source"], "preflight": ["preflight"]}.get(path.stem, names)
        lines.append(f"from common.{path.stem} import {', '.join(names)}\n")
    assert "from common.bundle import bundle, bundle_source\n" in lines and len(lines) > 10
    (tmp_path / "train.py").write_text("".join(lines) + "print('ready')\n")
    compile(bundle_source(tmp_path / "train.py"), "train.py", "exec")
