"""The record of the day, which a new record must beat, and the tree of records that it is found in.

Run: `python -m pytest tests/records/test_baseline.py`.
"""
import collections
import os
import re
import shutil

import pytest

import records.code
import records.folder
from records.__main__ import main
from records.tree import Tree
from records.verdict import status_of
from records.verify import verify_folder
from tests.conftest import tiered
from tests.records.made_records import FINEWEB, make_record
from tests.records.spoil import field, remove, replace_first

MOST_READS = 5  # of one log: by its reader, and by checks that look for bytes in any file
CANDIDATE = "2026-05-09_candidate"
SCORES = {  # in the record track; 0.003 bits per byte are the margin
    "2026-05-01_first": (1.2246, 1.2250, 1.2243),
    "2026-05-02_day": (1.2146, 1.2150, 1.2143),
    "2026-05-03_worse": (1.2196, 1.2200, 1.2193),
    CANDIDATE: (1.2101, 1.2094, 1.2098),
    "2026-05-10_later": (1.1046, 1.1050, 1.1043),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name, scores in SCORES.items():
        make_record(folder, scores, "10min", name[11:], name[:10], FINEWEB)
    make_record(folder, (1.83,))
    return folder / "records"


@pytest.fixture
def track(made, tmp_path):
    """The track folder of a copy of the tree, to be spoiled."""
    shutil.copytree(made, tmp_path / "records")
    return tmp_path / "records/track_10min_16mb"


def significance(track, name=CANDIDATE, **options):
    return verify_folder(track / name, **options)["significance"]


def scores_of(name, *scores):
    """Puts other scores into the logs of a record. The claims stay."""
    def spoil(track):
        for seed, score in enumerate(scores, 1):
            for log in (track / name).glob("*.log"):
                if f'"seed": {seed},' in log.read_text():
                    replace_first(log.name, r"(?<=roundtrip_exact val_loss:)\S+ val_bpb:\S+",
                         f"{score * 1.688:.8f} val_bpb:{score:.8f}")(track / name)
    return spoil


def of(name, spoil):
    return lambda track: spoil(track / name)


def one_log(name):
    """Leaves one of a record's logs."""
    def spoil(track):
        for log in (track / name).glob("train_seed*.log"):
            log.unlink()
        field(seeds=None, seed_results=None, val_bpb_mean=None, val_bpb_std=None, seed=1)(track / name)
    return spoil


def copy_a_log(folder):
    shutil.copyfile(folder / "train_seed2.log", folder / "train_seed9.log")


DAY, FIRST = "2026-05-02_day", "2026-05-01_first"
CASES = {  # what is done to the tree -> (what does it, status, words of the finding, words of each note)
    "nothing": (lambda track: None, "PASS", rf"better than the record of the day \({DAY}\); p = ", []),
    "the record of the day fails a check": (
        of(DAY, remove("README.md")), "PASS", rf"the record of the day \({DAY}\); p = .*; {DAY} fails layout$",
        [r"^significant: .* better than the best without a failed check \(2026-05-03_worse\); p = "]),
    "every earlier record fails a check": (
        lambda track: [remove("README.md")(track / name) for name in list(SCORES)[:3]], "PASS", "_day fails layout$",
        ["^there is no earlier record without a failed check$"]),
    "a record that fails a check is better": (
        scores_of(DAY, 1.2080, 1.2084, 1.2077), "FAIL", rf"worse than .*{DAY}.*; {DAY} fails .*score",
        ["^significant: .*2026-05-03_worse"]),
    "it is better by less than the margin": (
        scores_of(DAY, 1.2111, 1.2104, 1.2108), "FAIL", rf"0.001.* better than .*{DAY}",
        ["^significant: .*2026-05-03_worse"]),
    "the record of the day has one run": (
        one_log(DAY), "NOT VERIFIED", rf"the record of the day \({DAY}\) has 1 run, 3 are needed: 2 more",
        [r"^significant: .* better than the best with 3 runs \(2026-05-03_worse\); p = "]),
    "a claim that no log shows": (
        of("2026-05-03_worse", field(val_bpb=0.5)), "PASS", f"better than .*{DAY}", []),
    "the record of the day holds a log twice": (
        of(DAY, copy_a_log), "NOT VERIFIED", "train_seed9.log is a copy of train_seed2.log",
        ["^significant: .*2026-05-03_worse"]),
    "it holds a log twice itself": (
        of(CANDIDATE, copy_a_log), "FAIL", "^candidate: train_seed9.log is a copy of train_seed2.log$", []),
    "names that are not those of records": (
        lambda track: [shutil.copytree(track / "2026-05-10_later", track / name)
                       for name in (".2026-05-01_x", "2026-05-01", "2026-13-01_x")],
        "PASS", f"better than .*{DAY}", []),
    "the same day, earlier": (
        lambda track: [field(date="2026-05-09T12:00:00Z")(track / CANDIDATE),
                       field(date="2026-05-09T13:59:00+02:00")((track / DAY).rename(track / "2026-05-09_day"))],
        "PASS", "better than .*2026-05-09_day", []),
    "the same day, later": (
        lambda track: [field(date="2026-05-09T12:00:00Z")(track / CANDIDATE),
                       field(date="2026-05-09T14:01:00+02:00")((track / DAY).rename(track / "2026-05-09_day"))],
        "PASS", "better than .*2026-05-03_worse", []),
    "the same day, without a time": (
        lambda track: (track / DAY).rename(track / "2026-05-09_day"), "PASS", "better than .*2026-05-03_worse", []),
}


@pytest.mark.parametrize("case", tiered(CASES, 3))
def test_the_record_of_the_day_decides_and_notes_stand_beside_it(track, case):
    spoil, status, words, notes = CASES[case]
    spoil(track)
    found = significance(track)
    assert (found[0].status, status_of(found)) == (status, status), found
    assert re.search(words, found[0].observed), found
    assert [f.status for f in found[1:]] == ["note"] * len(notes), found
    assert all(re.search(note, f.observed) for note, f in zip(notes, found[1:])), found


def test_other_runs_can_be_named_to_be_beaten(track, capsys):
    for name in list(SCORES)[:3]:
        shutil.rmtree(track / name)
    assert [f.status for f in significance(track)] == ["NOT VERIFIED"]
    assert main(["verify", str(track / CANDIDATE)]) == 3
    assert main(["verify", str(track / CANDIDATE), "--baseline", "2.0695", "2.0702", "2.0690"]) == 0
    assert main(["verify", str(track / CANDIDATE), "--baseline", str(track / "2026-05-10_later")]) == 1


def test_a_difference_that_is_not_shown_says_how_many_seeds_would(track):
    scores_of(DAY, 1.2133, 1.2152, 1.2130)(track)
    [finding, _] = significance(track)
    assert finding.status == "FAIL" and re.search(r"\d more seeds? .* would give 90 %", finding.meaning), finding
    finding = significance(track, ruleset="upstream-2026-04")[0]
    assert finding.status == "WARN" and finding.expected == "p < 0.01 at a margin of 0.00000"


def test_a_tree_names_the_other_records_of_both_tracks(made):
    tree = Tree()
    folder = tree.folder(made / "track_10min_16mb" / CANDIDATE)
    others = [other.name for other in tree.others(folder)]
    assert others == [*(name for name in SCORES if name != CANDIDATE), "2026-05-01_made"]
    assert [other.name for other in tree.earlier(folder)] == [DAY, "2026-05-03_worse", FIRST]
    assert tree.folder(folder.path) is folder


@pytest.mark.parametrize(("command", "code"), [("verify {}", 1), ("leaderboard --records {}", 0)])
def test_each_log_and_source_of_a_tree_is_read_once(track, monkeypatch, capsys, command, code):
    """So that the time is linear: each of these records asks what those before it score and fail."""
    counts, tree = collections.Counter(), track.parent

    def counted(module, name, key):
        function = getattr(module, name)

        def call(*given, **options):
            counts[name, key(*given)] += 1
            return function(*given, **options)
        monkeypatch.setattr(module, name, call)
    counted(records.folder, "read_logs", lambda name, file: (name, os.fstat(file.fileno()).st_ino))
    counted(records.folder, "read_bounded", lambda path, limit: path)
    counted(records.code, "inspect_code", lambda path, *given: path)
    assert main(command.format(tree).split()) == code
    capsys.readouterr()
    logs = list(tree.glob("*/*/*.log"))
    once = {key: n for key, n in counts.items() if key[0] != "read_bounded"}
    assert len(once) == len(logs) + len({log.parent for log in logs}) and set(once.values()) == {1}, once
    reads = {counts["read_bounded", log] for log in logs}
    assert 1 <= min(reads) and max(reads) <= MOST_READS, reads


def test_the_search_for_a_record_that_passes_stops_at_the_first_failed_check(track, monkeypatch):
    """Their code is not inspected, which takes a process for each."""
    for name in list(SCORES)[:3]:
        (track / name / "README.md").unlink()
    inspected = []
    inspect_code = records.code.inspect_code

    def note_inspection(path, *given, **options):
        inspected.append(path)
        return inspect_code(path, *given, **options)
    monkeypatch.setattr(records.code, "inspect_code", note_inspection)
    assert significance(track)[1].observed == "there is no earlier record without a failed check"
    assert [path.name for path in inspected] == [CANDIDATE, DAY]
