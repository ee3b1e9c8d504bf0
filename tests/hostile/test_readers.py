"""Readers of untrusted bytes: `python -m pytest tests/hostile/test_readers.py`. campaign.py makes the inputs."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.campaign import FINDINGS, TARGETS, attempt, campaign, from_bytes

# inputs per target, and the block of seeds that they begin at
FEW, MANY = (4000, 0), (100_000, 1)


@pytest.mark.parametrize("inputs, first", [FEW, pytest.param(*MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_seeded_mutations(name, inputs, first):
    """A reader gives a valid result or its own error, in bounded memory, and both do happen."""
    totals = campaign(name, inputs, first)
    assert totals["findings"] == 0 and totals["inputs"] == inputs
    assert totals["valid"] > inputs // 200 and totals["refused"] > inputs // 2, totals
    assert totals["MiB"] < 400, totals  # 40 to 60 here, most of it the interpreter with its libraries


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("settings", "runlog")])
def test_any_bytes(name, tmp_path):
    """Bytes from hypothesis, alone and in the middle of a sample."""
    import random
    target = TARGETS[name](tmp_path)
    sample = target.make(random.Random(0))

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=3000), st.integers(0, len(sample)))
    def check(data, place):
        attempt(target, data)
        attempt(target, sample[:place] + data[:40] + sample[place:])
    check()


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(max_size=40).map(lambda text: "--" + text), max_size=4), st.text(max_size=200))
def test_any_text(flags, line):
    for name, given_ in (("settings", (flags, {"SEED": line})), ("runlog", line)):
        attempt(TARGETS[name]("."), given_)


def test_findings_stay_mended(tmp_path):
    """Every input that a reader once failed on, in tests/hostile/found/TARGET-*, still ends as it must."""
    paths = sorted(FINDINGS.iterdir())
    assert "tokenizer-longpiece" in [path.name for path in paths]  # a segmentation fault in sentencepiece 0.2.1
    for path in paths:
        name = path.name.split("-")[0]
        attempt(TARGETS[name](tmp_path), from_bytes(name, path.read_bytes()))


def test_a_finding_is_noticed(tmp_path, monkeypatch):
    """The harness itself: an exception that is not the reader's own counts as a finding, and its input is kept."""
    import random

    import tests.hostile.campaign as hostile
    monkeypatch.setattr(hostile, "FINDINGS", tmp_path / "kept")
    target = TARGETS["runlog"](tmp_path)
    monkeypatch.setattr(target, "read", lambda line: 1 // (len(line) % 2))
    totals = hostile.read_block("runlog", target, 0, 100)
    assert 0 < totals[2] < 100 and sum(totals) == 100
    kept = [from_bytes("runlog", path.read_bytes()) for path in (tmp_path / "kept").iterdir()]
    r = random.Random("runlog 0")
    assert {*kept} == {line for line in (target.make(r) for _ in range(100)) if len(line) % 2 == 0}
