"""The statistics of records: `python -m pytest tests/records/test_significance.py`."""
import json
import re
import statistics

import numpy as np
import pytest

from records.__main__ import main
from records.rules import SP1024_NATS_PER_BPB
from records.significance import (
    MIN_RUNS,
    Side,
    compare,
    explain,
    interval,
    one_sample_p,
    power_of,
    runs_needed,
    welch_test,
)
from tests.records.made_records import FINEWEB, make_record, make_run

# published runs of 2026-03-23 and 2026-03-25, nats per token
BASELINE, CANDIDATE = [1.88976776, 1.88919190, 1.89110239], [1.88276292, 1.88156874, 1.88220393]


def test_the_published_fixture():
    test = welch_test(BASELINE, CANDIDATE)
    assert (round(test.t, 3), round(test.df, 4), round(test.p, 6)) == (11.834, 3.3063, 0.000403)
    assert round(welch_test(BASELINE, CANDIDATE, 0.005).p, 5) == 0.00955


def test_against_scipy():
    from scipy import stats
    random = np.random.Generator(np.random.Philox(5))
    for a, b in ((3, 3), (3, 7), (12, 4)):
        baseline, candidate = (list(random.normal(mean, sd, n)) for mean, sd, n in ((2.0, 0.001, a), (1.99, 0.003, b)))
        expected = stats.ttest_ind(np.array(baseline) - 0.005, candidate, equal_var=False, alternative="greater")
        test = welch_test(baseline, candidate, 0.005)
        assert (test.t, test.df, test.p) == pytest.approx((expected.statistic, expected.df, expected.pvalue))
        alone = stats.ttest_1samp(candidate, 1.995, alternative="less").pvalue
        assert one_sample_p(candidate, 2.0, 0.005) == pytest.approx(alone)
        both = stats.ttest_ind(baseline, candidate, equal_var=False).confidence_interval(0.99)
        assert interval(baseline, candidate) == pytest.approx((both.low, both.high))


def test_power_is_the_share_of_samples_that_reject():
    random = np.random.Generator(np.random.Philox(6))
    spreads, runs, gain = (0.001, 0.0012), (8, 8), 0.0068
    means = 2, 2 - gain
    samples = [[list(map(float, random.normal(*side))) for side in zip(means, spreads, runs)] for _ in range(4000)]
    share = np.mean([welch_test(*sides, 0.005).p < 0.01 for sides in samples])
    assert abs(share - power_of(gain, 0.005, *spreads, *runs)) < 0.03
    alone, both = runs_needed(BASELINE, CANDIDATE, 0.005)
    sd = statistics.stdev(BASELINE), statistics.stdev(CANDIDATE)
    gain = statistics.mean(BASELINE) - statistics.mean(CANDIDATE)
    assert power_of(gain, 0.005, *sd, 3 + both, 3 + both) >= 0.9 > power_of(gain, 0.005, *sd, 2 + both, 2 + both)
    assert alone is None or alone >= both


def test_the_margin_is_read_three_ways():
    ratio = SP1024_NATS_PER_BPB
    sides = [Side(name, runs, [x / ratio for x in runs]) for name, runs in (("b", BASELINE), ("c", CANDIDATE))]
    result = compare(*sides)
    margins = {name: reading["margin"] / ratio for name, reading in result["readings"].items()}
    expected = {"nats per token": 0.00296, "nats per byte": 0.00721, "bits per byte": 0.005, "no margin": 0.0}
    assert {name: round(m, 5) for name, m in margins.items()} == expected
    assert result["decision"] == "significant" and explain(result).startswith("SIGNIFICANT")


def test_other_tokens_are_compared_in_bits_per_byte():
    ratio = 2.5837  # nats per token of sp8192 at one bit per byte
    result = compare(Side("b", [x * SP1024_NATS_PER_BPB for x in (1.22, 1.221, 1.219)], [1.22, 1.221, 1.219]),
                     Side("c", [x * ratio for x in (1.2, 1.201, 1.199)], [1.2, 1.201, 1.199]))
    assert result["unit"] == "bits per byte" and round(result["margin"], 5) == 0.00296


@pytest.mark.parametrize(
    ("baseline", "candidate", "decision", "words"),
    [
        (BASELINE, CANDIDATE, "significant", "2 more seeds on both sides"),
        (BASELINE, [x + 0.002 for x in CANDIDATE], "not significant", "more seed"),
        (BASELINE, BASELINE[:2] + [1.89], "not significant", "more seeds do not help"),
        (BASELINE, CANDIDATE[:2], "not verified", "1 more"),
        (BASELINE, CANDIDATE[:1], "not verified", "2 more"),
        (BASELINE, [1.88] * 3, "not verified", "the same score"),
        ([1.9] * 3, [1.8] * 3, "not verified", "the same score"),
        ([1.9], [1.8], "not verified", f"{MIN_RUNS} are needed"),
    ],
)
def test_decisions_and_what_is_still_needed(baseline, candidate, decision, words):
    result = compare(Side("baseline", baseline), Side("candidate", candidate))
    assert result["decision"] == decision and words in explain(result)


def test_folders_runs_logs_and_numbers(tmp_path, capsys):
    before = make_record(tmp_path, (1.2246, 1.2250, 1.2243), "10min", "Before", "2026-05-01", FINEWEB)
    after = make_record(tmp_path, (1.2101, 1.2094, 1.2098), "10min", "After", "2026-05-02", FINEWEB)
    runs = [make_run(tmp_path / "runs", seed, 1.2195 + seed / 1e5, FINEWEB) for seed in (1, 2, 3)]
    capsys.readouterr()
    assert main(["significance", str(before), "--candidate", str(after)]) == 0
    assert capsys.readouterr().out.startswith("SIGNIFICANT")
    assert main(["significance", str(before), "--candidate", *map(str, runs)]) == 0
    assert main(["significance", str(after), "--candidate", *[str(run / "train.log") for run in runs]]) == 1
    capsys.readouterr()
    assert main(["significance", *map(str, BASELINE), "--candidate", *map(str, CANDIDATE), "--json"]) == 0
    assert round(json.loads(capsys.readouterr().out)["readings"]["nats per token"]["p"], 5) == 0.00955
    given = ["1.12", "1.121", "1.119", "--candidate", "1.1", "1.101", "1.099", "--unit", "bpb"]
    assert main(["significance", *given]) == 0


def test_logs_that_are_not_evidence(tmp_path, capsys):
    record = make_record(tmp_path, (1.2246, 1.2250, 1.2243), "10min", "Before", "2026-05-01", FINEWEB)
    (record / "train_seed9.log").write_bytes((record / "train_seed2.log").read_bytes())
    runs = [make_run(tmp_path / "runs", seed, 1.1 + seed / 1e4, FINEWEB) for seed in (1, 2, 3)]
    capsys.readouterr()
    assert main(["significance", str(record), "--candidate", *map(str, runs)]) == 3
    assert "is a copy of" in capsys.readouterr().out
    given = ["significance", *map(str, BASELINE), "--candidate"]
    assert main([*given, str(runs[0]), *map(str, runs)]) == 3
    for score in ("inf", "0.0", "nan"):
        log = runs[0] / "train.log"
        log.write_text(re.sub(r"(roundtrip_exact val_loss:\S+ val_bpb:)\S+", rf"\g<1>{score}", log.read_text()))
        capsys.readouterr()
        assert main([*given, str(log)]) == 2 and f"score {score}" in capsys.readouterr().err
    side = Side("c", BASELINE, None, ["\x1b[2J is a copy"])
    assert "\x1b" not in explain(compare(Side("b", BASELINE), side))
    assert main(["significance", "2.0", "--candidate", "x"]) == 2
    assert main(["significance", "2.0", "nan", "--candidate", "1.0"]) == 2
    assert main(["significance", "2.0", str(record), "--candidate", "1.0"]) == 2
