"""What `verify` says to people and programs, the clock check, and the reviewer's twelve questions.

Run: `python -m pytest tests/records/test_verdict.py`.
"""
import hashlib
import html
import json
import re
import shutil
import unicodedata

import pytest

from common.bundle import bundle
from records.__main__ import main
from records.claims import size_row
from records.clock import check_clock
from records.folder import open_folder
from records.rules import RULESETS, Finding
from records.show import MEANINGS, USUALLY, WIDTH, as_annotations, as_summary, as_text, escaped, heading
from records.verdict import status_of
from records.verify import NAMES, verify_folder
from tests.conftest import ROOT
from tests.records.made_records import FINEWEB, MANIFEST, SCRIPT, make_record
from tests.records.spoil import edit, field, replace_first, wrapped, write, write_code
from tests.records.test_pack import FAILING

HOSTILE = "\x1b[2J\r\n::error::gotcha ##[group]\u202e, a:b % <script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_record(folder, (1.2246, 1.2250, 1.2243), "10min", "Before", "2026-05-01", FINEWEB)
    record = make_record(folder, (1.2101, 1.2094, 1.2098), "10min", "Better", "2026-05-02", FINEWEB)
    return {"plain": make_record(folder, (1.83, 1.85, 1.84)), "record": record}


@pytest.fixture
def copy_of(made, tmp_path):
    """A copy of one of them, neighbours and all, to be spoiled."""
    def call(kind):
        shutil.copytree(made[kind].parent, tmp_path / made[kind].parent.name)
        return tmp_path / made[kind].parent.name / made[kind].name
    return call


def printed(capsys, *arguments):
    """(exit code, what verify prints)."""
    code = main(["verify", *map(str, arguments)])
    return code, capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# The reviewer's questions
# ----------------------------------------------------------------------------------------------------------------------


def copy_neighbour(folder):
    """The logs of the record before it: the same scores, under its own name."""
    for log in folder.glob("*.log"):
        log.unlink()
    for log in folder.with_name("2026-05-01_before").glob("*.log"):
        shutil.copyfile(log, folder / log.name)


def scored_here(documents):
    """A model that was scored on this data by this repository, but for the score in its log."""
    def spoil(folder):
        digest = hashlib.sha256((documents / "manifest.json").read_bytes()).hexdigest()
        replace_first("train.log", MANIFEST, digest)(folder)
        how = '"compile": false, "compute_dtype": "float32", "train_seq_len"'
        replace_first("train.log", '"train_seq_len"', how)(folder)
        replace_first("train.log", "cd" * 32, hashlib.sha256(b"bytes").hexdigest())(folder)
    return spoil


NOT_AS_IT_SHOULD = {  # check -> (folder, what spoils it, what is asked of verify, status) beside those in FAILING
    "compile": ("plain", write_code("def f(:"), {}, "FAIL"),
    "significance": ("record", copy_neighbour, {}, "FAIL"),
    "smoke run": ("plain", write_code("raise SystemExit(1)"), {"smoke": True}, "FAIL"),
    "re-evaluation": ("plain", lambda folder: None, {"data": True}, "FAIL"),
    "hazards": ("plain", write_code("import socket"), {}, "WARN"),
}
AS_IT_SHOULD = {  # check -> (folder, what is done to it, what is asked of verify); the others pass in a packed folder
    "smoke run": ("plain", write("train_gpt.py", bundle(ROOT / "train_gpt.py")), {"smoke": True}),
    "re-evaluation": ("plain", lambda folder: None, {"data": True}),
}


def judged(folder, check, asked, documents):
    """Findings of one check."""
    if "data" in asked:
        scored_here(documents)(folder)
        asked = {"data": documents}
    return verify_folder(folder, **asked)[check]


@pytest.mark.parametrize("check", NOT_AS_IT_SHOULD)
def test_a_question_is_answered_with_no(copy_of, documents, check):
    kind, spoil, asked, status = NOT_AS_IT_SHOULD[check]
    folder = copy_of(kind)
    spoil(folder)
    found = judged(folder, check, asked, documents)
    assert status_of(found) == status, found


@pytest.mark.parametrize("check", [
    pytest.param(name, marks=pytest.mark.slow) if name in AS_IT_SHOULD else name for name in NAMES])
def test_a_question_is_answered_with_yes(copy_of, documents, check):
    kind, mend, asked = AS_IT_SHOULD.get(check, ("record", lambda folder: None, {}))
    folder = copy_of(kind)
    mend(folder)
    found = judged(folder, check, asked, documents)
    if check == "re-evaluation":  # the score that it has here becomes that of its log
        bpb = found[0].observed.split()[0]
        replace_first("train.log", r"(?<=roundtrip_exact val_loss:)(\S+) val_bpb:\S+", f"5.0 val_bpb:{bpb}")(folder)
        found = verify_folder(folder, data=documents)[check]
    assert status_of(found) == "PASS", found


def test_each_question_of_the_guide_has_a_folder_that_fails_it():
    rows = re.findall(r"(?m)^\| \d+ \| (.+?) \| (.+?) \|", (ROOT / "records/GUIDE.md").read_text())
    assert [name for name, _ in rows] == list(NAMES) and all(question.endswith("?") for _, question in rows)
    assert {*FAILING, *NOT_AS_IT_SHOULD} == set(NAMES) and all(FAILING.values())


def test_the_sample_in_the_guide_is_what_verify_prints(copy_of, capsys, monkeypatch):
    """Where this fails because the output has changed: put what it prints into GUIDE.md."""
    folder = copy_of("record")
    field(val_bpb=1.2001)(folder)
    end_at(600_050)(folder)
    monkeypatch.chdir(folder.parents[1])
    _, text = printed(capsys, f"{folder.parent.name}/{folder.name}")
    assert f"```\n{text.rstrip()}\n```\n" in (ROOT / "records/GUIDE.md").read_text(), text


# ----------------------------------------------------------------------------------------------------------------------
# The clock, and the sum of the bytes
# ----------------------------------------------------------------------------------------------------------------------


def end_at(ms):
    """The run of a log ends at this time."""
    def spoil(folder):
        replace_first("train.log", "train_time:599800ms step_avg:100.00ms",
             f"train_time:{ms}ms step_avg:{ms / 5998:.2f}ms")(folder)
        replace_first("train.log", "train_time:599800ms step:5998", f"train_time:{ms}ms step:5998")(folder)
    return spoil


def evaluations(*seconds):
    """The time of the final evaluation, and of others before it."""
    def spoil(folder):
        *others, final = [f"{1e3 * s:.0f}" for s in seconds]
        replace_first("train.log", r"eval_time:\d+", f"eval_time:{final}")(folder)
        for number, ms in enumerate(others):
            line = f"final_other{number} val_loss:2.0000 val_bpb:1.3000 eval_time:{ms}ms\nfinal_int8"
            replace_first("train.log", "final_int8", line)(folder)
    return spoil


def limit(seconds, readme):
    """The limit of the runs, and what the README says of it."""
    def spoil(folder):
        for log in folder.glob("*.log"):
            replace_first(log.name, '"max_wallclock_seconds": 600.0', f'"max_wallclock_seconds": {seconds:.1f}')(folder)
        write("README.md", readme)(folder)
    return spoil


@pytest.mark.parametrize(("kind", "spoil", "status", "where"), [  # the runs took 599.8 s, 5,998 steps, of at most 600 s
    ("record", end_at(600_050), "WARN", r"train.log:\d+"),
    ("record", end_at(600_201), "FAIL", r"train.log:\d+"),
    ("record", field(wallclock_seconds=599.8), "PASS", ""),
    ("record", field(wallclock_seconds=599), "PASS", ""),
    ("record", field(wallclock_seconds=600), "PASS", ""),
    ("record", field(wallclock_seconds=600.0), "WARN", "submission.json"),
    ("record", field(wallclock_seconds=599.7), "FAIL", "submission.json"),
    ("record", field(wallclock_seconds=601), "FAIL", "submission.json"),
    ("record", field(step_stop=5997), "FAIL", "submission.json"),
    ("record", edit("train.log", ("step_avg:100.00ms", "step_avg:90.00ms")), "FAIL", r"train.log:\d+"),
    ("record", evaluations(600), "PASS", ""),
    ("record", evaluations(601), "FAIL", r"train.log:\d+"),
    ("record", evaluations(599, 2), "WARN", r"train.log:\d+"),
    ("plain", limit(14_400, "trained for 14,400 s"), "PASS", ""),
    ("plain", limit(14_400, "trained for 4 hours"), "PASS", ""),
    ("plain", limit(14_400, "a 4-hour run"), "PASS", ""),
    ("plain", limit(14_400, "240 minutes"), "PASS", ""),
    ("plain", limit(14_400, "14 hours, 144 runs"), "FAIL", "README.md"),
    ("plain", limit(14_400, "2.4 hours"), "FAIL", "README.md"),
    ("plain", limit(0, "MAX_WALLCLOCK_SECONDS=0"), "PASS", ""),
    ("plain", limit(0, "Unlimited compute"), "PASS", ""),
    ("plain", limit(0, "MAX_WALLCLOCK_SECONDS=600"), "FAIL", "README.md"),
])
def test_times_are_those_of_the_log_and_keep_the_limit(copy_of, kind, spoil, status, where):
    folder = copy_of(kind)
    spoil(folder)
    found = list(check_clock(open_folder(folder), RULESETS["strict"])) or [Finding("PASS", "")]
    assert len(found) == 1 and found[0].status == status and re.fullmatch(where, found[0].where), found


def test_a_line_of_the_log_is_named(copy_of):
    folder = copy_of("record")
    end_at(600_050)(folder)
    [finding] = check_clock(open_folder(folder), RULESETS["strict"])
    number = int(finding.where.removeprefix("train.log:"))
    assert "stopping_early" in (folder / "train.log").read_text().splitlines()[number - 1]


def test_logs_may_name_the_digest_of_a_wrapper_itself(copy_of):
    folder, code = copy_of("plain"), wrapped(SCRIPT).encode()
    write("train_gpt.py", code)(folder)
    digest = hashlib.sha256(code).hexdigest()
    edit("train*.log", (r"(?<=^code: bytes:)\d+ sha256:\w+", f"{len(code)} sha256:{digest}"))(folder)
    assert not [f for f in verify_folder(folder)["logs"] if "of train_gpt.py" in f.expected]
    edit("train*.log", (digest, "ab" * 32))(folder)
    assert [f for f in verify_folder(folder)["logs"] if "of train_gpt.py" in f.expected]


def test_without_a_main_log_the_score_of_any_middle_run_may_be_claimed(copy_of):
    folder = copy_of("plain")
    (folder / "train.log").rename(folder / "run_of_the_middle.log")
    result = verify_folder(folder)
    assert status_of(result["layout"]) == "FAIL" and status_of(result["score"]) == "PASS"


def test_the_same_of_three_logs_is_one_row(copy_of):
    folder = copy_of("plain")
    write("README.md", "Some other data, MAX_WALLCLOCK_SECONDS=600")(folder)
    write_code(SCRIPT + b"\n")(folder)
    result = verify_folder(folder)
    assert [f.observed for f in result["score"]] == ["scored on pydoc_sp1024, which the README does not say"]
    [row] = [f for f in result["code bytes"] if "shipped" in f.observed]
    assert all(name in row.expected for name in ("bytes_code", "train.log:", "train_seed1.log:"))


def test_two_logs_of_the_same_bytes_are_one_run(copy_of):
    folder = copy_of("record")
    end_at(600_050)(folder)
    shutil.copyfile(folder / "train.log", folder / "train_seed3.log")
    assert len(list(check_clock(open_folder(folder), RULESETS["strict"]))) == 1


@pytest.mark.parametrize(("change", "status", "words"), [
    ({}, "PASS", "{total:,} bytes in all = {model:,} model + {code:,} code"),
    ({"bytes_total": 99_999}, "note", "99,999 bytes in all, {more:,} more than {model:,} model + {code:,} code"),
    ({"bytes_total": 99}, "note", "99 bytes in all, {less:,} less than {model:,} model + {code:,} code"),
    ({"bytes_code": None, "bytes_model_int8_zlib": None}, "PASS", "in all = {model:,} model + {code:,} code"),
])
def test_the_bytes_are_a_sum(copy_of, change, status, words):
    folder = copy_of("plain")
    fields = json.loads((folder / "submission.json").read_text())
    sizes = {name: fields[f"bytes_{claim}"] for name, claim in (("total", "total"), ("model", "model_int8_zlib"),
                                                               ("code", "code"))}
    sizes |= {"more": 99_999 - sizes["total"], "less": sizes["total"] - 99}
    field(**change)(folder)
    [finding] = size_row(open_folder(folder))
    assert finding.status == status and words.format(**sizes) in finding.observed, finding


def test_a_part_of_the_bytes_that_is_not_known_is_named(copy_of):
    folder = copy_of("plain")
    field(bytes_code=None)(folder)
    for log in folder.glob("*.log"):
        replace_first(log.name, r"(?m)^Code size.*\n", "")(folder)
        replace_first(log.name, r"(?m)^code: bytes.*\n", "")(folder)
    [finding] = size_row(open_folder(folder))
    assert (finding.status, finding.expected) == ("note", "the bytes of code, stated")
    assert finding.observed.endswith(" model + unknown code")
    found = verify_folder(folder)["artifact"]
    assert [(f.status, f.observed) for f in found] == [("PASS", "as required"), ("note", finding.observed)]


# ----------------------------------------------------------------------------------------------------------------------
# What is printed
# ----------------------------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first_then_what_is_not_a_plain_pass(copy_of, capsys):
    folder = copy_of("record")
    write("train_gpt.py", SCRIPT + b"\nimport socket\n")(folder)
    (folder / "README.md").unlink()
    code, text = printed(capsys, folder)
    lines = text.splitlines()
    assert code == 1 and lines[:2] == [str(folder), "FAILS by the strict rules: layout, code bytes, logs"]
    assert lines[2:5] == ["Warnings: hazards; not asked: smoke run (--smoke), re-evaluation (--data DIR)",
                          "Next: mend what is marked FAIL, then run this command again.", ""]
    assert lines[5:10] == ["FAIL  layout  README.md", "    is missing", "    expected: present",
                           "    > Programs and people find a record by its name and files: add or mend what",
                           "      is named."]
    line = SCRIPT.count(b"\n") + 2
    assert f"WARN  hazards  train_gpt.py:{line}" in lines and "PASS" not in text and "schema" not in text
    assert "PASS  schema" in printed(capsys, "-v", folder)[1].splitlines()


def test_what_passes_beside_a_failure_is_for_verbose(copy_of, capsys):
    folder = copy_of("plain")
    write("NOTES.md", "words")(folder)
    write("table.bin", b"12345")(folder)
    text = printed(capsys, folder)[1]
    assert "FAIL  code bytes  table.bin" in text and "NOTES.md" not in text
    assert "PASS  code bytes  NOTES.md" in printed(capsys, "-v", folder)[1].splitlines()


def test_a_record_that_passes_has_no_rows(made, capsys):
    code, text = printed(capsys, made["record"])
    assert code == 0 and text.splitlines()[1:] == [
        "PASSES by the strict rules", "Not asked: smoke run (--smoke), re-evaluation (--data DIR)",
        "Next: nothing is left to mend.", ""]
    code, text = printed(capsys, "-v", made["record"])
    assert code == 0 and "bytes in all = " in text and "better than the record of the day" in text
    assert all(f"PASS  {name}" in text for name in NAMES if name not in ("smoke run", "re-evaluation"))


@pytest.mark.parametrize("status", ["FAIL", "WARN", "NOT VERIFIED", "not asked", "PASS"])
def test_the_verdict_takes_at_most_six_lines_of_80_columns(status):
    for other in ("FAIL", "WARN", "NOT VERIFIED", "not asked"):
        result = {name: [Finding(status if i % 2 else other, "")] for i, name in enumerate(["pull request", *NAMES])}
        lines = heading("records/track_10min_16mb/2026-05-01_x", result, "upstream-2026-04")
        assert len(lines) <= 6 and max(map(len, lines)) <= WIDTH, lines


def test_words_of_a_folder_neither_move_the_cursor_nor_leave_the_80_columns(made):
    result = verify_folder(made["plain"])
    result["score"] = [Finding("FAIL", HOSTILE * 9, HOSTILE, HOSTILE, "")]
    text = as_text("records/\x1b[2J", result)
    assert not any(unicodedata.category(c)[0] == "C" and c != "\n" for c in text)
    assert max(map(len, text.splitlines())) <= WIDTH and "??::error::gotcha" in text


def test_findings_of_one_meaning_share_its_sentence():
    findings = [Finding("FAIL", "a"), Finding("FAIL", "b"), Finding("FAIL", "c", "", "", "It differs."),
                Finding("note", "d")]
    lines = as_text("x", {"score": findings}).splitlines()
    assert lines[4:] == ["FAIL  score", "    a", "FAIL  score", "    b",
                         "    > A score stands in a log, on the validation text in full: claim what the",
                         "      log prints.", "FAIL  score", "    c", "    > It differs.", "note  score", "    d"]


def test_every_check_has_its_sentences():
    assert list(MEANINGS) == ["pull request", *NAMES]
    sentences = [sentence for by_status in MEANINGS.values() for sentence in by_status.values()]
    assert all(re.fullmatch(r"[A-Z].*\.", sentence) for sentence in [*sentences, *USUALLY.values()])
    assert {status for by_status in MEANINGS.values() for status in by_status} <= set(USUALLY)


def test_json_is_sorted_and_the_same_twice(made, capsys):
    given = [printed(capsys, *flags, made["plain"]) for flags in (["--json"], ["--json"], ["--format", "json"])]
    assert given[0] == given[1] == given[2] and given[0][0] == 0
    shown = json.loads(given[0][1])
    assert json.dumps(shown, sort_keys=True, indent=1) + "\n" == given[0][1]
    checks = shown[str(made["plain"])]["checks"]
    assert list(checks) == sorted(NAMES) and shown[str(made["plain"])]["verdict"] == "passes"
    assert set(checks["layout"]["findings"][0]) == {"status", "observed", "expected", "where", "meaning"}


@pytest.mark.parametrize("arguments", [["no"], [], ["FOLDER", "--backend", "mlx"], ["FOLDER", "--data", "no"],
                                       ["FOLDER", "--pr", "a..b"]])
def test_what_cannot_be_asked_is_refused_in_one_line(made, capsys, arguments):
    given = [str(made["plain"]) if word == "FOLDER" else word for word in arguments]
    assert main(["verify", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_findings_are_bounded_and_the_worst_come_first(copy_of):
    folder = copy_of("plain")
    for i in range(30):
        (folder / f"{i}.zip").write_bytes(b"x")
    (folder / "README.md").unlink()
    found = verify_folder(folder)["layout"]
    assert len(found) == 21 and found[0].where == "README.md"
    assert (found[20].status, found[20].observed) == ("FAIL", "and 11 more")


def test_a_track_folder_and_the_folder_of_the_tracks_stand_for_their_records(made, tmp_path, capsys):
    track, records = made["record"].parent, made["record"].parents[1]
    assert printed(capsys, track)[1].endswith("\n\nOf 2 folders: passes 1, not verified 1\n")
    code, text = printed(capsys, records)
    assert code == 3 and text.endswith("\n\nOf 3 folders: passes 2, not verified 1\n")
    whole = json.loads(printed(capsys, "--json", records)[1])
    assert set(whole) == {str(path) for path in records.glob("*/*")}
    assert whole[str(made["record"])] == json.loads(printed(capsys, "--json", made["record"])[1])[str(made["record"])]
    (tmp_path / "track_10min_16mb/.hidden").mkdir(parents=True)
    assert main(["verify", str(tmp_path)]) == 2 and "holds no record folder" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# GitHub
# ----------------------------------------------------------------------------------------------------------------------


def test_annotations_name_level_file_and_line(copy_of, capsys, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    folder = copy_of("record")
    write_code("import socket")(folder)
    field(val_bpb=1.3001)(folder)
    code, text = printed(capsys, "--format", "github", folder)
    first, *lines = text.splitlines()
    assert first == f"fails: {folder}"
    command = r"::(error|warning|notice) (file=[^,:]+,(line=\d+,)?)?title=[^,:]+::"
    assert code == 1 and lines and all(re.match(command, line) for line in lines)
    assert f"::error file={folder}/submission.json,title=FAIL%3A score::{folder}: val_bpb 1.3001 claimed (" in text
    assert f"::warning file={folder}/train_gpt.py,line=1,title=WARN%3A hazards::{folder}: imports socket" in text
    assert summary.read_text().startswith("before\n### Record: fails\n\n<pre>\n")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert printed(capsys, "--format", "github", folder) == (code, text)


def test_words_of_a_folder_are_no_commands_and_no_markup(made, tmp_path, monkeypatch):
    result = {"score": [Finding("FAIL", HOSTILE, HOSTILE, f"{HOSTILE}:7"), Finding("NOT VERIFIED", "x", "", ".")]}
    verdict, first, second = as_annotations("records/a,b", result)
    assert verdict == "fails: records/a,b"
    assert first.startswith("::error file=records/a%2Cb/") and first.count("\n") == first.count("\r") == 0
    assert "##[" not in first and ",line=7,title=FAIL%3A score::records/a,b: ?" in first
    assert second.startswith("::notice title=NOT VERIFIED%3A score::records/a,b: x%0A")
    assert escaped("50%\r\n:,") == "50%25%0D%0A:," and escaped("50%\r\n:,", True) == "50%25%0D%0A%3A%2C"
    text = as_summary({"records/x": result}, "strict")
    assert "<script>" not in text and html.escape("<script>") in text
