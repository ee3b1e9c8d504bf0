"""Log lines and their parser: `python -m pytest tests/common/test_runlog.py`."""
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.readlog import parse_line, parse_log
from common.runlog import LOG_LINES, log_line

# (character before, name, type) of each field
FIELDS = {kind: re.findall(r"(.?)\{(\w+):([^}]+)\}", template) for kind, template in LOG_LINES.items()}
TEXT = st.text(st.characters(exclude_categories=["Cs"]).filter(lambda c: len(f"a{c}a".splitlines()) == 1))


def strategy(before, kind):
    if kind == "d":
        return st.integers(-(10**18) + 1, 10**18 - 1)
    if kind == "s":
        return st.text(st.characters(exclude_categories=["Cs"]).filter(lambda c: not c.isspace()), min_size=1)
    if kind == "*":
        # `partial` follows a number
        return TEXT if before in (" ", ":", "=") else TEXT.map(lambda text: text and " " + text)
    return st.one_of(st.floats(-1e17, 1e17), st.just(math.nan), st.just(math.inf), st.just(-math.inf))


@pytest.mark.parametrize("kind", LOG_LINES)
@settings(deadline=None, database=None, derandomize=True, max_examples=40)
@given(data=st.data())
def test_a_line_parses_to_what_was_written(kind, data):
    """As the same kind, not as another."""
    values = {name: data.draw(strategy(before, form), name) for before, name, form in FIELDS[kind]}
    found, parsed = parse_line(log_line(kind, **values))
    assert found == kind and [*parsed] == [*values]
    for _, name, form in FIELDS[kind]:
        expected = float(format(values[name], form)) if form.endswith("f") else values[name]
        assert type(parsed[name]) is type(expected)
        assert parsed[name] == expected or (math.isnan(expected) and math.isnan(parsed[name]))


def test_every_line_of_a_run_is_one_line():
    line = log_line("status", status="failed", reason="one\ntwo\r\nthree\u2028four", hint="")
    assert line == "status=failed reason=one two three four hint="
    assert log_line("final", val_loss=2.0, val_bpb=1.0, ms=3.4, partial="").endswith("eval_time:3ms")


def test_every_field_must_be_given_and_no_other():
    for values in ({}, {"bytes": 1, "more": 2}, {"byte": 1}):
        with pytest.raises(AssertionError, match="code_size"):
            log_line("code_size", **values)


@pytest.mark.parametrize("line, kind, values", [
    ("step:13400/20000 val_loss:2.0718 val_bpb:1.2239 train_time:583458ms step_avg:43.54ms", "val",
     {"step": 13400, "iterations": 20000, "val_loss": 2.0718, "val_bpb": 1.2239, "ms": 583458.0, "avg": 43.54,
      "partial": ""}),
    ("stopping_early: wallclock_cap train_time:600038ms step:13780/20000", "stop",
     {"ms": 600038.0, "step": 13780, "iterations": 20000}),
    ("Code size: 47642 bytes", "code_size", {"bytes": 47642}),
    ("final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms", "final",
     {"val_loss": 2.0727, "val_bpb": 1.2244, "ms": 1401.0, "partial": ""}),
    ("final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570", "final_exact",
     {"val_loss": 2.07269931, "val_bpb": 1.2243657, "partial": ""}),
])
def test_lines_of_published_logs(line, kind, values):
    assert parse_line(line) == (kind, values)
    assert log_line(kind, **values) == line


@pytest.mark.parametrize("line", [
    "", " ", "seed:1337", "import torch", "warmup_step:1/20", "code: bytes:1 sha256:a b", "code: bytes:1 sha256:",
    "Code size: 47642 bytes ", " Code size: 47642 bytes", "Code size: 47642 bytes\n", "Code size: 47642  bytes",
    "code size: 47642 bytes",
    "Code size: 47642.0 bytes", "Code size: +47642 bytes", "Code size: 1e3 bytes", "Code size: bytes",
    "Code size: 0x1f bytes", "Code size: " + "9" * 19 + " bytes",
    "final_int8_zlib_roundtrip_exact val_loss:2.07 val_bpb:",
    "final_int8_zlib_roundtrip_exact val_loss:-nan val_bpb:1.2",
    "final_int8_zlib_roundtrip_exact val_loss:2. val_bpb:1.2",
    "final_int8_zlib_roundtrip_exact val_loss:2e0 val_bpb:1.2",
    "final_int8_zlib_roundtrip_exact val_loss:infinity val_bpb:1.2",
    "[0] final_int8_zlib_roundtrip_exact val_loss:2.1 val_bpb:1.2",
])
def test_unknown_lines(line):
    assert parse_line(line) is None


@pytest.mark.parametrize("piece", ["run:", "run:a backend:", "a backend:", "9", "9.", " ", "-", "nan", "step:1/2 val"])
def test_long_lines_are_no_trouble(piece):
    """A pattern that backtracks would take hours on these."""
    for start in ("", "run:", "code: bytes:", "tokenizer: vocab_size:1 sha256:", "step:1/2 val_loss:"):
        assert parse_line((start + piece * 100_000)[:100_000]) is None
    assert parse_line("versions: " + "x" * 100_000) is None
    assert parse_line("versions: " + "x" * 99_000) == ("versions", {"versions": "x" * 99_000})


def test_parse_log_keeps_the_known_lines_in_order():
    text = "import torch\nCode size: 1 bytes\r\n\nnoise\nstatus=finished reason= hint=\nCode size: 2 bytes"
    status = {"status": "finished", "reason": "", "hint": ""}
    assert parse_log(text) == [("code_size", {"bytes": 1}), ("status", status), ("code_size", {"bytes": 2})]
