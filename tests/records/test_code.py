"""The code of a record as text: it compiles in the Python that ran it, is in sight, and can have trained a model.

Run: `python -m pytest tests/records/test_code.py`.
"""
import base64
import bz2
import codecs
import hashlib
import inspect
import lzma
import marshal
import os
import re
import shutil
import sys
import zlib

import pytest

from common import report
from common.bundle import bundle, bundle_source, pack, wrapper
from records import code as reader
from records.checks import check_code_bytes, check_logs
from records.code import inspect_code
from records.folder import open_folder
from records.grammar import newest_use, read_tree
from records.rules import RULESETS
from records.source import check_compile, check_hazards, declared_python, read_code
from tests.conftest import BACKENDS, ROOT, tiered
from tests.records.made_records import SCRIPT, make_record
from tests.records.spoil import wrapped


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_record(tmp_path_factory.mktemp("clean"), (1.83127,))


@pytest.fixture
def record(clean, tmp_path):
    """Makes a copy of a record with these files, name -> text or bytes."""
    def call(files):
        path = tmp_path / clean.parent.name / clean.name
        shutil.copytree(clean, path, dirs_exist_ok=True)
        for name, data in files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return open_folder(path)
    return call


@pytest.fixture
def compiled(record):
    """Findings of the check `compile` of a record whose train_gpt.py is this source."""
    def call(source, files=()):
        folder = record({"train_gpt.py": source, **dict(files)})
        code, unread = read_code(folder)
        return unread or list(check_compile(folder, code))
    return call


def words_of(findings, status):
    return "; ".join(f.observed for f in findings if f.status == status)


@pytest.mark.parametrize(("source", "words"), [
    ("def f(:", "does not compile: line 1: "),
    ("(" * 5000, "too"),
    (b"x = 1\0", "holds NUL bytes"),
    (b"x = '\xff'", "does not compile: "),
    (wrapped(b"def f(:"), "does not compile: line 1: "),
    (f"import zlib\nexec(zlib.decompress({zlib.compress(bytes(16 << 20), 1)!r}))", "expands to more than 8,388,608"),
])
def test_code_that_does_not_compile_fails(compiled, source, words):
    assert words in words_of(compiled(source), "FAIL")


@pytest.mark.parametrize(("source", "words"), [
    ("import urllib.request", "network"),
    (inspect.getsource(report.start_wandb), None),
    (inspect.getsource(report.start_wandb) + "start_wandb(p, s)[0].__self__.restore('model')", "network"),
    (inspect.getsource(report.start_wandb).replace("run.log", "run.summary"), "network"),
    ("import wandb\nrun = wandb.init(settings=wandb.Settings(console='off'))\nrun.log(x)\nrun.finish()", "network"),
    ("import wandb as w\nw.init()\nw.restore('model')", "network"),
    ("import wandb\nwandb.init().use_artifact(x).download()", "network"),
    ("import wandb\nf(wandb)", "network"),
    ("from wandb import Api\nApi()", "network"),
    ("import subprocess as s\ns.run(x)", "other processes"),
    ("from subprocess import run as go\ngo(['curl', x])", "other processes"),
    ("import subprocess\nsubprocess.run(['nvidia-smi'], stdout=subprocess.PIPE)\ncommand = ['g++', x]\n"
     "subprocess.run(command)", None),
    ("import torch\ntorch.load('x')", "pickle"),
    ("import os\nos.system('ls')", "os.system"),
    ("run = exec\nrun(x)", "not in sight"),
    ("getattr(__builtins__, 'exec')(x)", "not in sight"),
    (wrapped(b"import socket"), "(unwrapped)"),
])
def test_hazards_are_reported_with_file_and_line(record, source, words):
    code, _ = read_code(record({"train_gpt.py": source}))
    found = list(check_hazards(code))
    assert [f.status for f in found] == ["WARN"] * len(found) and bool(found) == bool(words)
    assert not words or any(words in f.observed and re.fullmatch(r"train_gpt\.py:\d+", f.where) for f in found), found


SCORED_FIRST = """
def evaluate(model, val_tokens):
    for first in range(0, val_tokens.numel() - 1, 64):
        x = val_tokens[first:first + 65]
        with torch.inference_mode():
            total += model(x).sum()
        for _ in range(3):
            model(x).mean().backward()
            optimizer.step()
"""
ONE_FORWARD = """
def evaluate(model, val_tokens):
    for x in val_tokens.split(65):
        loss = model(x)
        total += loss.item()
        loss.backward()
"""
OTHER_BRANCH = """
def evaluate(model, plan, val_tokens):
    for act, where in plan:
        if act == "train":
            model(val_tokens[where]).backward()
        else:
            total += model(val_tokens[where]).sum().item()
"""
WINDOWS = """
def evaluate(args, model, val_tokens):
    x = torch.zeros(rows, length)
    for chunk in chunks(val_tokens.numel()):
        with torch.inference_mode():
            for i, first in enumerate(chunk):
                part = val_tokens[first:first + length + 1].to(device)
                {write}
            nll = F.cross_entropy(model(x), y, reduction="none")
            total += nll[scored].sum()
        for _ in range(args.epochs):
            local = val_tokens[chunk[0]:chunk[-1]].to(device)
            loss = model(local[:-1], local[1:])
            loss.backward()
"""
TRAINING = """
def main():
    val_tokens = load(files)
    for step in range(steps):
        if last:
            val_loss, val_bpb = eval_val(model, val_tokens)
            print(val_loss)
        x, y = train_loader.next_batch(val_tokens.numel())
        loss = model(x, y)
        loss.backward()
        optimizer.step()
"""
TRAINED_FIRST = """
def evaluate(model, val_tokens):
    for x in val_tokens.split(65):
        for _ in range(3):
            loss = model(x)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            total += model(x).item()
"""
HELPER = """
def fit(model, tokens):
    for x in tokens.split(65):
        model(x).backward()

def main():
    fit(model, train_tokens)
    fit(model, {data})
    score(model, val_tokens)
"""


@pytest.mark.parametrize(("source", "line"), [
    (SCORED_FIRST, None), (ONE_FORWARD, None), (WINDOWS.format(write="x[i] = part[:-1]"), None),
    (WINDOWS.format(write="x[i].copy_(part[:-1])"), None), (OTHER_BRANCH, None), (TRAINING, None),
    (HELPER.format(data="more_tokens"), None), (TRAINED_FIRST, 6), (HELPER.format(data="val_tokens"), 8),
    ("for x in get_batch('val'):\n    loss, grads = value_and_grad(f)(params, x)", 2),
    ("for chunk in val_tokens:\n    loss(chunk).backward()", 2),
])
def test_validation_tokens_are_a_hazard_where_they_are_trained_on_before_they_are_scored(tmp_path, source, line):
    found = inspected(tmp_path, source)["hazards"]
    assert [row[0] for row in found] == [line] * bool(line), found
    assert not line or found[0][1].endswith("is trained on before it is scored")


def test_wrapped_source_is_opened_and_reported(record):
    folder = record({"train_gpt.py": wrapped(SCRIPT)})
    code, failure = read_code(folder)
    assert not failure and f"hold {len(SCRIPT):,} of source" in code["train_gpt.py"]["wrapped"][0]
    assert not code["train_gpt.py"]["error"]
    assert code["train_gpt.py"]["source_sha256"] == hashlib.sha256(SCRIPT).hexdigest()
    found = list(check_compile(folder, code))
    assert [f.status for f in found] == ["PASS"] and "a wrapper, opened" in found[0].observed


def test_logs_name_the_source_inside_a_wrapper(record):
    folder = record({})
    code = {"train_gpt.py": {"source_sha256": folder.logs[0].code_sha256}}
    assert not list(check_logs(folder, RULESETS["strict"], code))
    code["train_gpt.py"]["source_sha256"] = "0" * 64
    with open(folder.path / "train_gpt.py", "ab") as file:  # or the logs name the file as it lies there
        file.write(b"# changed\n")
    [finding] = check_logs(folder, RULESETS["strict"], code)
    assert (finding.status, finding.expected) == ("FAIL", "000000000000 of train_gpt.py")
    [finding] = check_logs(folder, RULESETS["strict"], {})
    assert (finding.status, finding.observed) == ("NOT VERIFIED", "its source could not be read")


def inspected(folder, source):
    (folder / "train_gpt.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    return inspect_code(folder, ["train_gpt.py"])["train_gpt.py"]


def packed(source):
    """The bundle of a text."""
    return wrapper(pack(bz2.compress(source[::-1].encode())))


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS.values())
def test_a_bundle_is_opened_and_no_hazard_itself(tmp_path, name):
    source = bundle_source(ROOT / name)
    found = inspected(tmp_path, bundle(ROOT / name))
    assert not found["error"] and not found["reaches"] and len(found["wrapped"]) == 1
    assert found["source_sha256"] == hashlib.sha256(source.encode()).hexdigest()
    plain = inspected(tmp_path, source)
    assert (plain["wrapped"], plain["source_sha256"]) == ([], found["source_sha256"])
    assert found["hazards"] == [[line, f"(unwrapped) {text}"] for line, text in plain["hazards"]]


INNER = "import socket  # \u00e9\n"
SOCKET = [1, "(unwrapped) imports socket: network"]
EXEC = "calls exec: code that is not in sight"
BASE85 = base64.b85encode(zlib.compress(INNER.encode())).decode()
TWO_STREAMS = bz2.compress(INNER[:9].encode()) + bz2.compress(INNER[9:].encode()) + b"x"


@pytest.mark.parametrize("source", [
    packed(INNER),
    packed(packed(INNER)),
    packed(INNER).replace("# A Parity Golf", "# Another comment, and more lines\n\n# "),
    f"import base64, zlib\nexec(zlib.decompress(base64.b85decode('{BASE85}')))",
    f"import zlib\nfrom base64 import b85decode as d\nP = '{BASE85}'\nexec(compile(zlib.decompress(d(P)), '', 'exec'))",
    f"'Doc.'\nimport bz2\nexec(bz2.decompress({TWO_STREAMS!r}))",
    f"exec({INNER!r})",
    wrapped(INNER.encode()),
    f"exec(bytes.fromhex('{INNER.encode().hex()}').decode('utf-8'))",
])
def test_a_wrapper_that_holds_nothing_else_is_no_hazard(tmp_path, source):
    found = inspected(tmp_path, source)
    assert found["wrapped"] and found["hazards"] == [SOCKET]
    assert found["source_sha256"] == hashlib.sha256(INNER.encode()).hexdigest()


@pytest.mark.parametrize("more", tiered([
    "PAYLOAD = PAYLOAD", "for PAYLOAD in '': pass", "PAYLOAD += ''", "import decoder as bz2", "from decoder import *",
    "def unpack(text): pass", "unpack = 'x'", "unpack.__defaults__ = ()", "bz2.decompress = print", "bytes = b'x'",
    "def compile(*_): pass", "print()", "exec(print())", "if 1:\n    import decoder", "class x: pass",
    "linecache.cache[0] = print()"], 4))
def test_a_wrapper_that_may_run_something_else_is_a_hazard(tmp_path, more):
    source = packed(INNER)
    for start in ("PAYLOAD = r", "SOURCE = ", "exec("):
        found = inspected(tmp_path, source.replace(f"\n{start}", f"\n{more}\n{start}"))
        assert EXEC in [text for _, text in found["hazards"]] and not found["error"]
        assert not found["wrapped"] or found["hazards"][-1] == SOCKET  # it is opened all the same if it can be
        assert found["source_sha256"] != hashlib.sha256(INNER.encode()).hexdigest()


@pytest.mark.parametrize(("old", "new"), [
    ("67 * len", "66 * len"), ("code - 33", "code - 34"), ("range(174, 768)", "range(174, 767)"),
    (".decode()", ".decode('utf-7')")])
def test_a_decoder_that_is_not_known_is_a_hazard(tmp_path, old, new):
    assert old in packed(INNER)
    found = inspected(tmp_path, packed(INNER).replace(old, new))
    assert not found["wrapped"] and [text for _, text in found["hazards"]] == [EXEC]


@pytest.mark.parametrize(("call", "data"), [
    ("base64.b64decode(P, b'-_')", base64.b64encode(b"x = 1")), ("zlib.decompress(P, 31)", zlib.compress(b"x = 1")),
    ("P.decode('utf-8', 'ignore')", b"x = 1"), ("compile(P, 'x', 'eval')", b"x = 1")])
def test_a_decoder_with_more_arguments_is_a_hazard(tmp_path, call, data):
    found = inspected(tmp_path, f"import base64, zlib\nP = {data!r}\nexec({call})")
    assert found["wrapped"] and [text for _, text in found["hazards"]] == [EXEC]


def test_wrapped_text_is_read_as_exec_reads_it(tmp_path):
    """A coding line has a meaning in bytes only."""
    text = '# coding: utf-7\n""" +ACIAIgAi- """; import socket\n# """\n'  # UTF-7 makes the import part of a string
    assert inspected(tmp_path, f"exec({text!r})")["hazards"] == [[2, SOCKET[1]]]
    found = inspected(tmp_path, f"exec({text.encode()!r})")
    assert found["wrapped"] and not found["hazards"] and not found["error"]


@pytest.mark.parametrize("source", [
    packed(INNER).replace("PAYLOAD = r'''\n", "PAYLOAD = r'''\n~~"),
    packed(INNER).replace("PAYLOAD = r'''\n", "PAYLOAD = r'''\n\u3042"),
    wrapper(pack(bz2.compress(b"x" * 99)[:-9])),
    wrapper(pack(bz2.compress(bytes(16 << 20)))),
])
def test_a_damaged_payload_is_an_error(tmp_path, source):
    found = inspected(tmp_path, source)
    assert "cannot be unwrapped" in found["error"] or "expands to more" in found["error"]
    assert found["source_sha256"] == hashlib.sha256(source.encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Grammar: of the Python that ran it, whatever Python reads it
# ----------------------------------------------------------------------------------------------------------------------

NEWER = [  # (version, source, words): each holds `import socket` in line 2, if that can be
    ((3, 12), 'x = {"a": 1}\nimport socket\nprint(f"{x["a"]}")', "line 3, an f-string"),
    ((3, 12), 'x = 1\nimport socket\nprint(f"{x:{"<"}9}", f"{x!r}")', "line 3, an f-string"),
    ((3, 12), "x = [1]\nimport socket\nprint(f'{'\\n'.join(map(str, x))}')", "line 3, an f-string"),
    ((3, 12), 'print(f"{  # why\n  __import__("socket")\n}")', "line 1, an f-string"),
    ((3, 12), "type Row = list[int]\nimport socket", "line 1, a `type` statement"),
    ((3, 12), "def f[T: (int,\n  str)](x: T): import socket", "line 1, type parameters"),
    ((3, 12), "class A[*T, **P](B): pass\nimport socket", "line 1, type parameters"),
    ((3, 13), "class A[T = int]: pass\nimport socket", "line 1, a default"),
    ((3, 14), "try: pass\nexcept ValueError, TypeError: import socket", "line 2, `except A, B`"),
    ((3, 14), "x = 1\nimport socket\ny = t'{x}'", "line 3, a template string"),
]
HERE = sys.version_info[:2]


@pytest.mark.parametrize(("version", "source", "words"), NEWER)
def test_a_newer_grammar_is_not_verified_and_read_all_the_same(tmp_path, monkeypatch, version, source, words):
    monkeypatch.setenv("PATH", "/usr/bin/none")  # no other Python
    found = inspected(tmp_path, source)
    line = 1 + (0 if version == (3, 12) and "why" in source else source[:source.index("socket")].count("\n"))
    assert not found["error"] and [line + ("why" in source), "imports socket: network"] in found["hazards"], found
    needed = f"{version[0]}.{version[1]} for {words}"
    assert found["needs"].startswith(needed) if version > HERE else found["needs"] == ""


@pytest.mark.parametrize(("version", "source", "words"), tiered(NEWER, 5))
def test_a_newer_grammar_than_that_of_the_python_that_ran_it_fails(tmp_path, version, source, words):
    (tmp_path / "train_gpt.py").write_text(source)
    older = version[0], version[1] - 1
    found = inspect_code(tmp_path, ["train_gpt.py"], python=older)["train_gpt.py"]
    assert f"needs Python {version[0]}.{version[1]}, and Python {older[0]}.{older[1]} ran it" in found["error"]
    found = inspect_code(tmp_path, ["train_gpt.py"], python=version)["train_gpt.py"]
    assert not found["error"]


@pytest.mark.parametrize(("source", "line"), tiered([
    ("def f(:", 1), ("x = 1\nprint(f'{x')", 2), ("type X = int\n\ndef f(:", 3), ('print(f"{x["a"]}")\nreturn', 2),
    ('x = f"{y["a"]}"\nz = f"{(}"', 2), ("x = 'a\ny", 1), ("match x:\n    case 1 pass", 2)], 3))
@pytest.mark.parametrize("python", [None, (3, 12), (3, 14)])
def test_a_syntax_error_of_every_grammar_fails(tmp_path, source, line, python):
    (tmp_path / "train_gpt.py").write_text(source)
    found = inspect_code(tmp_path, ["train_gpt.py"], python=python)["train_gpt.py"]
    assert found["error"].startswith(f"line {line}: ") and not found["needs"], found


def test_an_error_that_an_unknown_later_grammar_may_explain_is_not_verified(tmp_path):
    (tmp_path / "train_gpt.py").write_text("x = 1 ? 2 : 3")
    found = inspect_code(tmp_path, ["train_gpt.py"], python=(3, 99))["train_gpt.py"]
    assert (found["error"], found["needs"]) == ("", "3.99 for its grammar")


def test_older_grammars_are_told_apart():
    assert newest_use("match x:\n    case 1: pass", (3, 9)).version == (3, 10)
    assert newest_use("try: pass\nexcept* ValueError: pass", (3, 10)).version == (3, 11)
    for source in ("match x:\n    case 1: pass", 'f"{x}" f\'{x["a"]}\' rf"\\{x}"', "type = x[1]\ntype(x)\nprint(type)"):
        assert newest_use(source, (3, 11)) is None
        assert not read_tree(source)[1]


@pytest.mark.parametrize(("answers", "needs"), [(True, False), (False, True)])
@pytest.mark.skipif(HERE >= (3, 14), reason="this Python reads the newest grammar that is known here")
def test_a_newer_python_on_path_reads_the_source(tmp_path, monkeypatch, answers, needs):
    """Stands in for a newer one: a script that runs this Python, or that fails as the shims of pyenv do."""
    newer = tmp_path / "python3.14"
    newer.write_text(f"#!/bin/sh\nexec {sys.executable if answers else '/usr/bin/none'} \"$@\"\n")
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asked = []
    inside = reader._inspect

    def inspect(interpreter, given):
        asked.append(interpreter)
        return inside(interpreter, given)
    monkeypatch.setattr(reader, "_inspect", inspect)
    assert inspected(tmp_path, "try: pass\nexcept A, B: pass")["needs"]
    assert asked == [sys.executable, str(newer)][:1 + answers]


@pytest.mark.parametrize(("files", "version"), [
    ({"train.log": "versions: python 3.12.1, numpy 2.4\n"}, (3, 12)),
    ({"train.log": "Running Python 3.13.2 (main, Nov  6 2025) [GCC 13.3.0]\n"}, (3, 13)),
    ({"train.log": "step:1\n", ".python-version": "3.12.4\n"}, (3, 12)),
    ({"train.log": "Running Python 3.11.9\n", ".python-version": "3.13\n"}, (3, 11)),
    ({"train.log": "step:1\n"}, None),
])
def test_the_python_that_ran_a_record_is_the_one_that_its_log_names(record, files, version):
    folder = record(files)
    folder.logs[:] = [log for log in folder.logs if log.name == "train.log"]
    assert declared_python(folder) == version


def test_a_machine_that_is_too_busy_does_not_fail_a_record(record, monkeypatch):
    monkeypatch.setattr(reader, "WALL_SECONDS", 0.01)
    _, [finding] = read_code(record({}))
    assert finding.status == "NOT VERIFIED" and "on this machine" in finding.observed


# ----------------------------------------------------------------------------------------------------------------------
# Wrapped code inside code
# ----------------------------------------------------------------------------------------------------------------------

DATA = zlib.compress(INNER.encode())
TEXT = base64.b64encode(DATA).decode()
LZMA = base64.a85encode(lzma.compress(INNER.encode()))
LAMBDA = "_ = lambda __: __import__('zlib').decompress(__import__('base64').b64decode(__[::-1]))\n"
OPENED = {  # each runs INNER
    "beside other statements": f"import zlib\nprint(1)\nexec(zlib.decompress({DATA!r}))\nprint(2)",
    "in a function": f"import zlib\ndef main():\n    data = {DATA!r}\n    exec(zlib.decompress(data))\nmain()",
    "by a parameter": f"import zlib\ndef go(text):\n    exec(text, globals())\ngo(zlib.decompress({DATA!r}))",
    "by a function": f"import zlib\ndef text():\n    return zlib.decompress({DATA!r})\nexec(text())",
    "with globals": f"import zlib\nexec(zlib.decompress({DATA!r}).decode(), globals(), {{}})",
    "into a module": f"import types, zlib\nm = types.ModuleType('m')\n"
                     f"exec(compile(zlib.decompress({DATA!r}), 'm', 'exec'), m.__dict__)",
    "step by step": f"import base64, zlib\ns = {TEXT!r}\ns = base64.b64decode(s)\ns = zlib.decompress(s)\nexec(s)",
    "parts added": f"import base64, zlib\ns = {TEXT[:9]!r}\ns += {TEXT[9:]!r}\n"
                   "exec(zlib.decompress(base64.b64decode(s)))",
    "parts joined": f"exec(''.join([{INNER[:5]!r}, {INNER[5:]!r}]))",
    "parts of an f-string": f"a = {INNER[:5]!r}\nexec(f'{{a}}{INNER[5:-1]}\\n')",
    "characters": f"exec(''.join(map(chr, {list(map(ord, INNER))})))",
    "characters one by one": f"exec(''.join(chr(c ^ 7) for c in {[ord(c) ^ 7 for c in INNER]}))",
    "bytes of numbers": f"exec(bytes({list(INNER.encode())}).decode())",
    "a lambda": f"{LAMBDA}exec((_)({base64.b64encode(DATA)[::-1]!r}))",
    "rot13": f"import codecs\nexec(codecs.decode({codecs.encode(INNER, 'rot13')!r}, 'rot13'))",
    "base 85, lzma": f"import base64, lzma\nexec(lzma.decompress(base64.a85decode({LZMA!r})))",
    "hexadecimal": f"import binascii\nexec(binascii.unhexlify({INNER.encode().hex()!r}))",
    "another name of exec": f"run = exec\nrun({INNER!r})",
    "builtins": f"import builtins as b\ngetattr(b, 'exec')({INNER!r})\n",
    "slices": f"P = {'..' + INNER + '..'!r}\nexec(P[2:-2])",
    "an expression": "eval('__import__(\"socket\")')",
}


@pytest.mark.parametrize("how", OPENED)
def test_wrapped_source_is_opened_wherever_it_is_run(tmp_path, how):
    found = inspected(tmp_path, OPENED[how])
    assert SOCKET in found["hazards"] and found["wrapped"] and not found["error"] and not found["hidden"], found


@pytest.mark.parametrize("source", [
    "exec(open('part.txt').read())",
    "import os\nexec(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'part.txt')).read())",
    "from pathlib import Path\nexec((Path(__file__).resolve().parent / 'part.txt').read_text())",
    "from pathlib import Path\nexec(Path(__file__).with_name('part.txt').read_bytes())",
    "with open('part.txt', 'rb') as file:\n    exec(compile(file.read(), 'x', 'exec'))",
])
def test_wrapped_source_in_another_file_is_opened_and_counted(record, source):
    folder = record({"train_gpt.py": source, "part.txt": INNER})
    found = read_code(folder)[0]["train_gpt.py"]
    assert SOCKET in found["hazards"] and found["reaches"] == ["part.txt"] and not found["hidden"]


@pytest.mark.parametrize("layers", [2, 5])
def test_layers_are_opened_one_by_one(tmp_path, layers):
    source = INNER
    for _ in range(layers):
        source = f"import zlib\nif True:\n    exec(zlib.decompress({zlib.compress(source.encode())!r}))"
    found = inspected(tmp_path, source)
    assert SOCKET in found["hazards"] and len(found["wrapped"]) == layers and not found["error"]


@pytest.mark.parametrize(("source", "words"), [
    ("import sys\nexec(sys.stdin.read())", "exec of text that only a run would show"),
    ("import os\nx = eval(os.environ['X'])", "eval of text that only a run would show"),
    (f"import marshal\nexec(marshal.loads({marshal.dumps(compile('1', '', 'exec'))!r}))", "bytecode of marshal"),
    ("import zlib\nif x:\n    exec(zlib.decompress(b'no'))", "exec of text that cannot be unwrapped: zlib.dec"),
    ("def f(x):\n    return f(x)\nexec(f('x'))", "exec of text that only a run would show"),
    ("exec('x' * 2 ** 40)", "exec of text that only a run would show"),
])
def test_what_cannot_be_opened_without_running_it_is_not_verified(compiled, source, words):
    found = compiled(source.encode() + b"\n" + SCRIPT)
    assert words in words_of(found, "NOT VERIFIED") and not words_of(found, "FAIL"), found
    assert found[0].where.startswith("train_gpt.py:")


# ----------------------------------------------------------------------------------------------------------------------
# Files that the code reaches
# ----------------------------------------------------------------------------------------------------------------------

REACHING = {  # source -> the file that it reaches
    "import helper as h": "helper.py",
    "import importlib\nimportlib.import_module('hel' + 'per')": "helper.py",
    "from importlib import import_module as load\nNAME = 'per'\nload(f'hel{NAME}')": "helper.py",
    "__import__('help' 'er')": "helper.py",
    "import runpy\nrunpy.run_path('helper.py')": "helper.py",
    "import runpy\nrunpy.run_module('helper')": "helper.py",
    "import sys\nsys.path.insert(0, 'lib')\nimport helper": "lib/helper.py",
    "import os, sys\nsys.path.append(os.path.join(os.path.dirname(__file__), 'lib'))\nimport helper": "lib/helper.py",
    "import sys\nsys.path += [where()]\nimport helper": "lib/helper.py",
    "import subprocess, sys\nsubprocess.run([sys.executable, 'helper.py'])": "helper.py",
    "import os\nos.system('python3 lib/helper.py --fast')": "lib/helper.py",
    "import ctypes\nctypes.CDLL('./fast.so')": "fast.so",
    "from torch.utils.cpp_extension import load\nload('x', sources=['lib/fast.cu'])": "lib/fast.cu",
    "from pathlib import Path\nHERE = Path(__file__).parent\nread(HERE / 'lib' / 'fast.cu')": "lib/fast.cu",
    "read(f'{folder}/fast.cpp')": "fast.cpp",
    "import fast": "fast.so",
    "import importlib.util as u\nu.spec_from_file_location('x', 'cached.pyc')": "cached.pyc",
}
FILES = dict.fromkeys(("helper.py", "lib/helper.py", "fast.so", "lib/fast.cu", "fast.cpp", "cached.pyc"), "x = 1")


@pytest.mark.parametrize("source", REACHING)
def test_files_that_the_code_reaches_are_counted(record, source):
    name = REACHING[source]
    folder = record({"train_gpt.py": source, name: FILES[name]})
    code, _ = read_code(folder)
    assert code["train_gpt.py"]["reaches"] == [name]
    total = len(source) + len(FILES[name])
    found = [f.observed for f in check_code_bytes(folder, RULESETS["strict"], code) if f.status == "FAIL"]
    assert f"reaches {name}: {total:,} bytes with them" in found


@pytest.mark.parametrize("source", [
    "'''helper.py is not needed.'''", "import os\nprint(os.path)", "x = 'help' + 'less'",
    "import sys\nsys.path.insert(0, 'other')\nimport torch"])
def test_files_that_the_code_does_not_reach_are_not(record, source):
    code, _ = read_code(record({"train_gpt.py": source, **FILES}))
    assert code["train_gpt.py"]["reaches"] == []


UNKNOWN_IMPORT = b"import importlib\nfor name in names():\n    importlib.import_module(name)\n" + SCRIPT


def test_an_import_that_only_a_run_would_show_is_not_verified_where_a_file_could_be_it(compiled):
    words = words_of(compiled(UNKNOWN_IMPORT, {"helper.py": "x = 1"}), "NOT VERIFIED")
    assert "imports a module whose name only a run would show" in words


def test_an_import_that_only_a_run_would_show_is_harmless_without_such_a_file(compiled):
    assert not words_of(compiled(UNKNOWN_IMPORT), "NOT VERIFIED")


def test_compiled_code_that_is_reached_is_not_verified(compiled):
    found = compiled(b"import ctypes\nctypes.CDLL('./fast.so')\n" + SCRIPT, {"fast.so": b"\x7fELF"})
    assert "compiled code" in words_of(found, "NOT VERIFIED")


# ----------------------------------------------------------------------------------------------------------------------
# Code that can have trained a model
# ----------------------------------------------------------------------------------------------------------------------

STYLES = {
    "torch": """
import glob, torch
from torch import nn
class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 8)
    def forward(self, x):
        return self.head(x).sum()
def main():
    tokens = torch.from_file(glob.glob("data/*_train_*.bin")[0])
    model = torch.compile(GPT())
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(10):
        model(tokens).backward()
        optimizer.step()
if __name__ == "__main__":
    main()
""",
    "jax": """
import jax, numpy as np
def loss(w, x):
    return (x @ w).sum()
tokens = np.memmap("data/train.bin", "uint16")
w = jax.random.normal(jax.random.PRNGKey(0), (8, 8))
for step in range(10):
    w = w - 0.1 * jax.grad(loss)(w, tokens)
""",
    "mlx": """
import mlx.core as mx
import mlx.nn as nn
class Model(nn.Module):
    def __call__(self, x):
        return x
model = Model()
tokens = mx.load("data/train.npz")
step = nn.value_and_grad(model, lambda m, x: m(x).sum())
for _ in range(3):
    loss, grads = step(model, tokens)
""",
    "evolution": """
import random
data = open("data/train.bin", "rb").read()
best = [random.gauss(0, 1) for _ in range(99)]
def score(w):
    return sum(w[b % 99] for b in data)
for _ in range(100):
    other = [w + random.gauss(0, 0.1) for w in best]
    best = min(best, other, key=score)
""",
    "counts": """
from collections import Counter
from pathlib import Path
data = Path("data/train.bin").read_bytes()
table = Counter(zip(data, data[1:]))
""",
    "closed form": """
import numpy as np
x = np.fromfile("data/train.bin", "u2").reshape(-1, 8)
w, *_ = np.linalg.lstsq(x[:, :-1], x[:, -1], rcond=None)
""",
    "tinygrad": """
from tinygrad import Tensor, nn
from tinygrad.nn.state import get_parameters
class Net:
    def __init__(self):
        self.l = nn.Linear(8, 8)
net, x = Net(), Tensor(open("data/train.bin", "rb").read())
opt = nn.optim.Adam(get_parameters(net))
for _ in range(9):
    net.l(x).sum().backward()
    opt.step()
""",
    "methods by name": """
import sys, torch
class Trainer:
    def fit(self):
        self.w = torch.zeros(8, requires_grad=True)
        data = torch.load("train.pt", weights_only=True)
        for x in data:
            (self.w * x).sum().backward()
getattr(Trainer(), sys.argv[1] if len(sys.argv) > 1 else "fit")()
""",
    "made record": SCRIPT.decode(),
}


@pytest.mark.parametrize("style", STYLES)
def test_scripts_that_train_in_any_style_pass(compiled, style):
    found = compiled(STYLES[style])
    assert not found, found


@pytest.mark.parametrize("name", BACKENDS.values())
@pytest.mark.parametrize("ships", [bundle, lambda path: bundle_source(path).encode()], ids=["bundle", "source"])
def test_our_own_trainers_pass_and_hold_no_hazard(record, name, ships):
    folder = record({"train_gpt.py": ships(ROOT / name)})
    code, _ = read_code(folder)
    assert {f.status for f in check_compile(folder, code)} <= {"PASS"} and not list(check_hazards(code))


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("track_*/*/train_gpt.py")), ids=lambda p: p.parent.name)
def test_the_records_of_the_repository_pass(path):
    folder = open_folder(path.parent)
    code, unread = read_code(folder)
    assert not unread and {f.status for f in check_compile(folder, code)} <= {"PASS"} and not list(check_hazards(code))


NO_DATA, NO_MODEL, NO_STEP = "nothing in it reads data", "builds a model", "takes a training step"
PRINTS = "print('step:5998/20000 val_loss:3.13 val_bpb:1.83')\nprint('final_int8_zlib_roundtrip_exact val_bpb:1.83')"
IDLE = [  # (source, what it lacks)
    (PRINTS, [NO_DATA, NO_MODEL, NO_STEP]),
    ("import time\nfor i in range(9):\n    time.sleep(1)\n    print(i, 'train_loss:3')", [NO_DATA, NO_MODEL, NO_STEP]),
    ("code = open(__file__).read()\nopen('log', 'w').write(str(len(code)))", [NO_DATA, NO_MODEL, NO_STEP]),
    (STYLES["torch"].replace("    main()", "    pass"), [NO_DATA, NO_MODEL, NO_STEP]),
    ("print(1)\nraise SystemExit\n" + STYLES["jax"], [NO_DATA, NO_MODEL, NO_STEP]),
    ("import sys\nprint(1)\nsys.exit(0)\n" + STYLES["jax"], [NO_DATA, NO_MODEL, NO_STEP]),
    ("if False:\n" + STYLES["counts"].replace("\n", "\n    "), [NO_DATA, NO_MODEL, NO_STEP]),
    (STYLES["closed form"].replace("np.fromfile", "np.zeros"), [NO_DATA]),
    ("x = open('data/train.bin', 'rb').read()\nprint(len(x))", [NO_MODEL, NO_STEP]),
]


@pytest.mark.parametrize(("source", "lacks"), IDLE)
def test_scripts_that_cannot_have_trained_fail(compiled, source, lacks):
    found = words_of(compiled(source), "FAIL")
    assert [words for words in (NO_DATA, NO_MODEL, NO_STEP) if words in found] == lacks, found


@pytest.mark.parametrize("more", [
    "from lightning import Trainer", "exec(input())", "import ctypes\nctypes.CDLL('fast.so')"])
def test_what_code_out_of_sight_may_do_is_not_verified(compiled, more):
    found = compiled(f"{more}\nprint(1)", {"fast.so": "x"})
    assert NO_DATA in words_of(found, "NOT VERIFIED") and not words_of(found, "FAIL")


def test_a_helper_that_trains_is_enough(compiled):
    assert not compiled("import helper\nhelper.main()", {"helper.py": STYLES["torch"]})


def with_score(record, form):
    """FAILs of a record whose code has more lines, formatted with the score that its log prints."""
    loss, bpb = record({}).logs[0].score()
    folder = record({"train_gpt.py": SCRIPT + form.format(loss=loss, bpb=bpb).encode()})
    return words_of(list(check_compile(folder, read_code(folder)[0])), "FAIL")


@pytest.mark.parametrize("form", [
    "print('val_bpb:{bpb:.8f}')", "print({bpb:.4f})", "SCORE = {loss:.8f}\nprint(f'loss {{SCORE}}')",
    "x = {loss:.5f}\nprint('%.5f' % x)", "log('final {loss:.8f} nats')"])
def test_a_printed_constant_that_is_the_score_fails(record, form):
    assert "prints the constant" in with_score(record, form)


@pytest.mark.parametrize("form", [
    "'val_bpb {bpb:.8f} in the last run'", "lr = {loss:.4f}", "# {bpb:.8f}\nx = 1", "print('took 1.2345 s', 0.7071)",
    "print(1.83)"])
def test_other_constants_do_not(record, form):
    assert not with_score(record, form)
