"""The code of a record as text: it compiles in the Python that ran it, is in sight, and can have trained a model.

Run: `python -m pytest tests/test_records_code.py`.
"""
import base64
import bz2
import hashlib
import lzma
import re
import shutil
import zlib

import pytest

from common.bundle import bundle, bundle_source, pack, wrapper
from records.checks import check_logs
from records.code import inspect_code
from records.folder import open_folder
from records.rules import RULESETS
from records.source import check_compile, check_hazards, read_code
from tests.conftest import BACKENDS, ROOT
from tests.made_records import SCRIPT, make_record


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_record(tmp_path_factory.mktemp("clean"), (1.83,))


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


def wrapped(source):
    data = lzma.compress(source, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    how = 'format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2}]'
    return f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{base64.b85encode(data).decode()}"),{how}))'


@pytest.mark.parametrize(("source", "words"), [
    ("import urllib.request", "network"),
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
    (SCORED_FIRST, None), (ONE_FORWARD, None), (OTHER_BRANCH, None), (TRAINING, None),
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


@pytest.mark.parametrize("more", [
    "PAYLOAD = PAYLOAD", "for PAYLOAD in '': pass", "PAYLOAD += ''", "import decoder as bz2", "from decoder import *",
    "def unpack(text): pass", "unpack = 'x'", "unpack.__defaults__ = ()", "bz2.decompress = print", "bytes = b'x'",
    "def compile(*_): pass", "print()", "exec(print())", "if 1:\n    import decoder", "class x: pass",
    "linecache.cache[0] = print()"])
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

