"""The bundler: `python -m pytest tests/test_bundle.py`."""
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.bundle import BundleError, bundle
from common.settings import UserError

ROOT = Path(__file__).parents[1]
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
    """Output of the bundle as the only file of a folder."""
    (folder / "alone").mkdir()
    alone = folder / "alone" / script.name
    alone.write_bytes(bundle(script))
    assert bundle(alone) == alone.read_bytes()
    return output(alone)


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
    print(__doc__, __name__, no_such_framework, floor(area(Circle(2))), UNIT, *sys.argv[1:],
          main.__name__)  # as its own comments do


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
    print("tried alone", sys.argv, __name__)
'''
BUNDLE = '''#!/usr/bin/env python3
"""A trainer."""
import sys
try:
\timport no_such_framework
except ModuleNotFoundError:
\tno_such_framework = None


# ===== common/units.py
from math import tau
import math
UNIT = round(tau)

def scaled(function):
\treturn lambda argument: UNIT * function(argument) * math.cos(0)


# ===== common/shapes.py
from dataclasses import dataclass

@dataclass
class Circle:
\tradius: float

@scaled
def area(circle):
\tif TEXT:
\t\treturn math.pi * circle.radius ** 2

TEXT = """
from common.units import UNIT


    # never touched, \u2028 é"""


# ===== train.py

# how it is run
def main():
\t"""Its own docstrings

    stay."""
\tfrom math import floor
\tprint(__doc__, __name__, no_such_framework, floor(area(Circle(2))), UNIT, *sys.argv[1:],
\t\t  main.__name__)  # as its own comments do


if __name__ == "__main__":
\tmain()
'''


def test_text(tmp_path):
    assert bundle(project(tmp_path, SCRIPT, shapes=SHAPES, units=UNITS)).decode() == BUNDLE


def test_bundle_prints_what_the_script_prints(tmp_path):
    script = project(tmp_path / "project", SCRIPT, shapes=SHAPES, units=UNITS)
    assert run_bundle(tmp_path, script) == output(script) == "A trainer. __main__ None 75 6 main\n"


def test_windows_files_give_the_same_bundle(tmp_path):
    script, shapes = ("\ufeff" + text.replace("\n", "\r\n") for text in (SCRIPT, SHAPES))
    assert bundle(project(tmp_path, script, shapes=shapes, units=UNITS)).decode() == BUNDLE


@pytest.mark.parametrize("source", [
    "", "x = 1", "print(1)\r\n\r\n\r\n", '\ufeff"""from common.a import b"""\n',
    "import os; x = 'from common.a import b'", "import commonplace, os\nfrom common_x import y\n",
    "from __future__ import annotations\nfrom math import *\nprint = __file__\n"])
def test_without_common_nothing_changes(tmp_path, source):
    assert bundle(project(tmp_path, source)) == source.encode()


def test_every_module_comes_once_after_what_it_imports(tmp_path):
    script = project(tmp_path / "project", "from common.top import a\nfrom common.left import b\nprint(a, b)\n",
                     top="from common.left import b\nfrom common.right import c\na = b + c\n",
                     left="from common.base import d\nb = d + 'left '\n",
                     right="from common.base import d\nc = d + 'right '\n",
                     base="d = 'base '\n", unused="d = 0\n")
    assert re.findall("# ===== (.*)", bundle(script).decode()) == [
        "common/base.py", "common/left.py", "common/right.py", "common/top.py", "train.py"]
    assert run_bundle(tmp_path, script) == output(script) == "base left base right  base left \n"


GET_X = "from common.a import x\nprint(x() if callable(x) else x)\n"


@pytest.mark.parametrize("module", [
    "def gone(): pass\nx = 1",
    "async def gone(): print(0)\nx = 1",
    "class gone:\n    y = 1\n    def z(self): print(0)\nx = 1",
    "class gone(ValueError): pass\nx = 1",
    "gone = gone_too = 3\nx = 1",
    "gone, [*gone_too] = 1, frozenset({2})\nx = 1",
    "gone = lambda y: y + 1\nx = 1",
    "gone = {i: i for i in range(3)}\nx = 1",
    "import json as gone\nfrom os import path as gone_path, sep as gone_sep\nx = 1",
    "gone = 1\ndef gone_too(): return gone\nx = 1",
    "def gone(): return gone_too()\ndef gone_too(): return gone()\nx = 1",
    "from common.b import gone\ndef gone_too(): return gone()\nx = 1",
    "from common.b import y, gone\nclass gone_too:\n    def z(self): gone()\nx = y",
    "import functools as gone\n@gone.cache\ndef gone_too(): pass\nx = 1",
    "from functools import cache as gone\n@gone\ndef gone_too(): pass\nx = 1",
    "import dataclasses as gone\n@gone.dataclass(frozen=True)\nclass gone_too:\n    y: list = gone.field(default=1)\nx = 1",
    "import re as gone\ngone_pattern = gone.compile('y')\nx = 1",
    "from typing import Protocol as gone\nclass gone_too(gone):\n    @property\n    def y(self): ...\nx = 1",
])
def test_what_nothing_names_goes(tmp_path, module):
    script = project(tmp_path / "project", GET_X, a=module, b="def gone(): pass\ny = 1\n")
    assert b"gone" not in bundle(script)
    assert run_bundle(tmp_path, script) == output(script) == "1\n"


REGISTRY = "calls = []\ndef call(f=None, *more):\n    calls.append(1)\n    return f\ndef x(): return calls\n"


@pytest.mark.parametrize("module", [
    # uses
    "def kept(f): return f()\n@kept\ndef x(): return 3",
    "kept = 3\ndef x(y=kept): return y",
    "kept = 3\ndef x(*, y=lambda: kept): return y()",
    "kept = 3\nclass kept_class:\n    y = [kept for _ in '1']\ndef x(): return kept_class.y",
    "kept = 3\ndef x(): return f'{1:{kept}}'",
    "kept = 3\nasync def kept_wait(): return kept\ndef x():\n    import asyncio\n    return asyncio.run(kept_wait())",
    "def x():\n    global kept\n    from os import sep as kept\n    return kept_sep()\ndef kept_sep(): return kept\nkept = 1",
    "kept = 3\nkept: int\nkept += 1\ndef x(): return kept",
    "class kept: pass\ndef x(y: kept): return y\nx = x.__annotations__['y'].__name__",
    "import dataclasses, typing as kept\n@dataclasses.dataclass\nclass kept_class:\n    y: 'kept.ClassVar[int]' = 1\n"
    "x = dataclasses.fields(kept_class)",
    "import sys\nkept = 3\ndef x(): return getattr(sys.modules[x.__module__], 'kept')",
    "try:\n    import no_such_module as kept\nexcept ImportError:\n    kept = None\nx = 1",
    "import xml.dom as kept\nfrom os import path as kept_path\nkept_both = kept, kept_path\ndef x(): return len(kept_both)",
    # statements that do more than bind names
    REGISTRY + "call()\ncall()",
    REGISTRY + "kept_it = call()",
    REGISTRY + "kept_it: int = call()",
    REGISTRY + "kept_it = list(map(call, (1, 2)))",
    REGISTRY + "kept_it = [(lambda: call())() for _ in range(2)]",
    REGISTRY + "def kept(y=call()): pass",
    REGISTRY + "@call\ndef kept(): pass",
    REGISTRY + "@call\nclass kept: pass",
    REGISTRY + "class kept:\n    y = call()",
    REGISTRY + "class kept:\n    @call\n    def y(self): pass",
    REGISTRY + "class kept:\n    for y in '12': calls.append(y)",
    REGISTRY + "class kept:\n    calls += [3]",
    REGISTRY + "class kept:\n    calls[:] = [3]",
    REGISTRY + "class kept:\n    def __init_subclass__(cls): call()\nclass kept_subclass(kept): pass",
    REGISTRY + "class kept(type):\n    def __init__(cls, *y): call()\nclass kept_class(metaclass=kept): pass",
    REGISTRY + "class kept: pass\nclass kept_subclass(kept): pass\ndef x(): return len(kept.__subclasses__())",
    REGISTRY + "import functools\n@functools.singledispatch\ndef kept(y): return 0\n@kept.register\ndef kept_int(y: int): return y\n"
    "x = kept(1)",
    REGISTRY + "calls += [2]",
    REGISTRY + "calls[:] = [2]",
    REGISTRY + "kept_same = calls\nkept_it, kept_same[:] = 1, [2]",
    REGISTRY + "kept_it = [kept_was := calls]\ncalls = [2]\ndef kept_get(): return kept_was\nx = kept_get",
    REGISTRY + "call.kept = 4\nx = [call].pop().kept",
    REGISTRY + "calls.append(2)\ndel call",
    REGISTRY + "if calls:\n    pass\nelse:\n    def kept(): return 5\n    x = kept",
    REGISTRY + "while calls != [1]:\n    call()",
    REGISTRY + "with open('kept', 'w') as kept_file: calls.append(kept_file.write('4'))",
])
def test_what_is_used_or_acts_stays(tmp_path, module):
    script = project(tmp_path / "project", GET_X, a=module + "\n")
    assert set(re.findall(r"kept\w*", module)) <= set(re.findall(r"kept\w*", bundle(script).decode()))
    assert run_bundle(tmp_path, script) == output(script)


PROSE = """
'''gone:
the module'''
# gone
import sys  # gone, é

TEXT = '# kept'  # gone: '
LONG = '''
    # kept: four spaces
\t# kept: a tab, two spaces at the end \x20
\\
    "kept" '''  # gone


class Empty:
    "kept: the whole body"


class Both:
    # gone
    '''gone'''

    text = 'kept'

    def method(self, a=f'''
        # kept {TEXT}
    {
        TEXT!r:>20}
    ''',  # gone
               b=(  # gone
                   '# kept'
                   # gone
               )):
        "gone"
        def inner():
            '''gone
            '''
            'kept, as no docstring'
            return a, \\
                b
        return inner()


def nothing():
    '''kept
    # the whole body'''


async def later():
    "gone"
    return await None


def x():
    return repr((TEXT, LONG, Empty().__class__, Both().method(), Both.text, nothing(), later.__name__))
"""


def test_docstrings_and_comments_of_modules_go_and_strings_stay(tmp_path):
    script = project(tmp_path / "project", GET_X, a=PROSE)
    assert run_bundle(tmp_path, script) == output(script).replace("common.a", "__main__")
    text = bundle(script).decode()
    assert "gone" not in text
    assert text.count("kept") == PROSE.count("kept")


def test_a_tab_for_four_spaces(tmp_path):
    module = """
def x():
    for text in ('''
    four''', f'''
    {1}
        eight'''):
        if text:
            print(text,
                  len(text))
            continue; '''
        eight'''
    return [
      2]
"""
    script = project(tmp_path / "project", f"if 1:\n    # why\n        # how\n    y = '''\n    four'''\n{GET_X}", a=module)
    assert run_bundle(tmp_path, script) == output(script)
    text = bundle(script).decode()
    assert text.startswith("if 1:\n\t# why\n\t\t# how\n\ty = '''\n    four'''\n")
    assert "\ndef x():\n\tfor text in ('''\n    four''', f'''\n    {1}\n        eight'''):\n\t\tif text:\n" in text
    assert "\n\t\t\tprint(text,\n\t\t\t\t  len(text))\n\t\t\tcontinue; '''\n        eight'''\n\treturn [\n\t  2]\n" in text


def test_a_script_indented_by_tabs(tmp_path):
    script = project(tmp_path / "project", f"{GET_X}if x:\n\tif x:\n\t\tprint(2)\n", a="x = 1\n")
    assert bundle(script).decode().endswith("if x:\n\tif x:\n\t\tprint(2)\n")
    assert run_bundle(tmp_path, script) == "1\n2\n"


def test_an_import_is_made_once(tmp_path):
    once = "import json\nimport os.path\nfrom math import pi, e\n"
    script = project(tmp_path / "project", f"import json\ntry:\n    import re\nfinally:\n    pass\n{GET_X}import re, string\n",
                     a=f"from common.b import y\n{once}import re\nimport re, string\n"
                     "x = json.dumps([os.path.sep, pi, re.escape(string.digits), y()])\n",
                     b=f"{once}import re\ndef y():\n    import re, string\n    return json, os.sep, pi, re, string\ny = str\n")
    assert run_bundle(tmp_path, script) == output(script)
    lines = [line.strip() for line in bundle(script).decode().split("\n") if "import" in line]
    assert lines == ["import json", "import re", "import os.path", "from math import pi, e", "import re",
                     "import re, string", "import re, string", "import re, string"]


def test_a_bundle_that_reaches_the_bundler_is_its_own_bundle(tmp_path):
    script = project(tmp_path / "project", "import hashlib\nfrom common.bundle import bundle\n"
                     "print(hashlib.sha256(bundle(__file__)).hexdigest())\n")
    for name in ("bundle", "settings"):
        shutil.copy(ROOT / "common" / f"{name}.py", script.parent / "common")
    code = bundle(script)
    assert len(code) < 400 and b"UserError" not in code
    assert run_bundle(tmp_path, script) == output(script) == hashlib.sha256(code).hexdigest() + "\n"


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
    ("common/a.py:2", "line of its own", IMPORT, {"a": "x = 1\nfrom common.b import y;", "b": "y = 1"}),
    ("common/a.py:2", "line of its own", IMPORT, {"a": "def x():\n    'Doc.'; return 1"}),
    ("common/a.py:1", "line of its own", IMPORT, {"a": "y = 0; x = 1"}),
    ("common/a.py:1", "in one line", IMPORT, {
        "a": "x = 1\nimport functools\n@(\n    functools.cache\n)\ndef y(): pass"}),
    ("common/a.py:1", "four spaces", IMPORT, {"a": "def x():\n  if 1:\n    return 1"}),
    ("train.py:1", "four spaces", IMPORT + "if x:\n  if x:\n    print(x)\n", {"a": "x = 1"}),
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
    ("common/a.py:2", "`x.__doc__`", IMPORT, {"a": "def x():\n    return x.__doc__"}),
    ("train.py:2", "`x.__doc__`", IMPORT + "print(x.__doc__)\n", {"a": "x = 1"}),
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
    with pytest.raises(BundleError, match=r"absent\.py:1: .*No such file"):
        bundle(tmp_path / "absent.py")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    with pytest.raises(BundleError, match=r"latin\.py:1: .*utf-8"):
        bundle(tmp_path / "latin.py")
    assert issubclass(BundleError, UserError)


def run_command(script, hash_seed):
    environment = {**ENVIRONMENT, "PYTHONHASHSEED": hash_seed}
    return subprocess.run([sys.executable, "-m", "common.bundle", script], check=False, cwd=ROOT, env=environment,
                          capture_output=True)


def test_command_line(tmp_path):
    script = project(tmp_path, SCRIPT, shapes=SHAPES, units=UNITS)
    code = bundle(script)
    for hash_seed in ("1", "2"):
        done = run_command(script, hash_seed)
        assert (done.returncode, done.stdout) == (0, code)
        assert done.stderr.decode().split() == [str(len(code)), "bytes,", "SHA-256", hashlib.sha256(code).hexdigest()]
    done = run_command(tmp_path / "absent.py", "1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(r"error: .*absent\.py:1: .*\n", done.stderr.decode())


@pytest.mark.parametrize("name, limit", [("train_gpt.py", 108_000), ("train_gpt_mlx.py", 112_000)])  # records ship the first
def test_trainers_become_one_file(tmp_path, name, limit):
    code = bundle(ROOT / name)
    compile(code, name, "exec")
    imports = [ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports and not [line for line in imports if re.search(r"\bcommon\b", line)]
    assert b"\n# ===== common/settings.py" in code and b"\n# ===== " + name.encode() in code
    assert len(code) <= limit
    (tmp_path / name).write_bytes(code)
    assert bundle(tmp_path / name) == code


def test_all_of_common_fits_in_one_file(tmp_path):
    """Every module can be inlined beside every other: top-level names are unique over common/*.py."""
    shutil.copytree(ROOT / "common", tmp_path / "common")
    lines = []
    for path in sorted((ROOT / "common").glob("[!_]*.py")):
        nodes = ast.parse(path.read_bytes()).body
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names = ["bundle"] if path.stem == "bundle" else names
        lines.append(f"from common.{path.stem} import {', '.join(names)}\n")
    assert "from common.bundle import bundle\n" in lines and len(lines) > 10
    (tmp_path / "train.py").write_text("".join(lines) + "print('ready')\n")
    compile(bundle(tmp_path / "train.py"), "train.py", "exec")
