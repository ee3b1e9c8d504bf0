"""`verify --pr BASE..HEAD`: one new record folder, and nothing else, read from git without touching the work tree.

Run: `python -m pytest tests/records/test_pr.py`.
"""
import datetime
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from records.__main__ import main
from records.git import Entry
from records.pull import GENERATED, LARGE, judge_date, judge_size
from tests.conftest import tiered
from tests.records.made_records import FINEWEB, make_record
from tests.records.spoil import field, replace_first, write

TODAY = datetime.datetime.now(datetime.UTC).date()
BEFORE = f"{TODAY - datetime.timedelta(days=9)}_before"
BETTER = f"{TODAY - datetime.timedelta(days=2)}_better"
TRACK = "records/track_10min_16mb"


def git(folder, *arguments):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": "file"}
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    command = ["git", *who, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder):
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository on branch `main` with one record; the record that a pull request adds lies outside."""
    folder = tmp_path_factory.mktemp("made")
    make_record(folder, (1.2246, 1.2250, 1.2243), "10min", "Before", BEFORE[:10], FINEWEB)
    before = folder / TRACK / BEFORE
    better = make_record(folder / "other", (1.2101, 1.2094, 1.2098), "10min", "Better", BETTER[:10], FINEWEB)
    repository = folder / "repository"
    (repository / TRACK).mkdir(parents=True)
    before.rename(repository / TRACK / BEFORE)
    for name in ("train_gpt.py", *GENERATED):
        (repository / name).write_text("x\n")
    git(repository, "init", "-q")
    commit(repository)
    return {"repository": repository, "better": better}


@pytest.fixture
def repository(made, tmp_path):
    """A copy of it, on a branch `pr`."""
    shutil.copytree(made["repository"], tmp_path / "repository")
    git(tmp_path / "repository", "checkout", "-q", "-b", "pr")
    return tmp_path / "repository"


def add(made, repository, name=BETTER, track=TRACK):
    (repository / track).mkdir(exist_ok=True)
    return shutil.copytree(made["better"], repository / track / name)


def judge(repository, capsys, commits="main..pr", *options):
    """(exit code, the one entry of --json, None where there is none, what stands on stderr)."""
    code = main(["verify", "--json", f"--pr={commits}", "--repo", str(repository), *options])
    out, err = capsys.readouterr()
    [entry] = json.loads(out).items() if out else [None]
    return code, entry, err


def findings(entry):
    """list of (status, observed, where) on the pull request."""
    return [(f["status"], f["observed"], f["where"]) for f in entry[1]["checks"]["pull request"]["findings"]]


def test_one_new_folder_is_judged_as_head_has_it_among_the_records_of_base(made, repository, capsys):
    folder = add(made, repository)
    for name in GENERATED:
        (repository / name).write_text("made anew\n")
    commit(repository)
    git(repository, "checkout", "-q", "main")  # neither the record nor what follows is in the work tree
    shutil.rmtree(repository / TRACK)
    code, (path, shown), _ = judge(repository, capsys)
    assert (code, path, shown["verdict"]) == (0, f"{TRACK}/{folder.name}", "passes")
    assert findings((path, shown)) == [("PASS", "as required", "")]
    assert BEFORE in shown["checks"]["significance"]["findings"][0]["observed"]
    assert not (repository / TRACK).exists()


def another(made, repository):
    add(made, repository)
    add(made, repository, BETTER + "2")


def renamed(made, repository):
    (repository / TRACK / BEFORE).rename(repository / TRACK / BETTER)


def changed(name, text="y\n"):
    """A new record, and another change."""
    def change(made, repository):
        add(made, repository)
        path = repository / name
        path.unlink() if text is None else path.write_text(text)
    return change


def many_changed(made, repository):
    add(made, repository)
    for path in (repository / TRACK / BEFORE).iterdir():
        path.write_text("y")


def removed(made, repository):
    add(made, repository)
    shutil.rmtree(repository / TRACK / BEFORE)


def submodule(made, repository):
    (add(made, repository) / "module").mkdir()
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{TRACK}/{BETTER}/module")


NEW, OLD = f"{TRACK}/{BETTER}", f"{TRACK}/{BEFORE}"
REFUSED = {  # what a request does -> (how, what is said of it, where)
    "nothing": (lambda made, repository: None, "adds no record folder", ""),
    "two folders": (another, f"adds 2 record folders: {NEW}, {NEW}2", ""),
    "a script changed": (changed("train_gpt.py"), "changes train_gpt.py", "/train_gpt.py"),
    "a file added": (changed("notes.md"), "adds notes.md", "/notes.md"),
    "a file beside the folders": (changed(f"{TRACK}/x.txt"), f"adds {TRACK}/x.txt", f"/{TRACK}/x.txt"),
    "a script removed": (changed("train_gpt.py", None), "removes train_gpt.py", "/train_gpt.py"),
    "a generated file removed": (changed(GENERATED[0], None), f"removes {GENERATED[0]}", f"/{GENERATED[0]}"),
    "an old record edited": (
        changed(f"{OLD}/README.md"), f"changes README.md of {OLD}, an earlier record", f"/{OLD}"),
    "a file of an old record removed": (
        changed(f"{OLD}/train.log", None), f"removes train.log of {OLD}, an earlier record", f"/{OLD}"),
    "all of an old record edited": (
        many_changed, f"changes README.md, model.int8.zlib, requirements.txt and 5 more of {OLD}, an earlier record",
        f"/{OLD}"),
    "an old record removed": (
        removed, f"removes README.md, model.int8.zlib, requirements.txt and 5 more of {OLD}, an earlier record",
        f"/{OLD}"),
    "an old record renamed": (renamed, f"renames {OLD} to {NEW}", f"/{OLD}"),
    "a submodule": (submodule, "a submodule", f"/{NEW}/module"),
}


@pytest.mark.parametrize("case", tiered(REFUSED, 3))
def test_what_is_no_single_new_folder_is_said_in_one_line(made, repository, capsys, case):
    change, observed, where = REFUSED[case]
    change(made, repository)
    commit(repository)
    code, entry, _ = judge(repository, capsys)
    assert code == 1 and findings(entry) == [("FAIL", observed, where)]
    judged_too = case not in ("nothing", "two folders", "a submodule")
    assert (len(entry[1]["checks"]) == 13) == judged_too


@pytest.mark.parametrize(("days", "base", "others", "status", "words"), [
    (0, 0, [], None, ""),
    (1, 0, [], None, ""),  # tomorrow has begun in the east
    (2, 0, [], "FAIL", "is in the future"),
    (-30, 0, [], None, ""),
    (-31, 0, [], "WARN", "is 31 days before the commit that it builds on"),
    (-5, 0, [(-6, TRACK), (-5, TRACK), (-1, "records/track_non_record_16mb")], None, ""),
    (-5, 0, [(-4, TRACK)], "WARN", "_other is newer"),
    (-20, -60, [], None, ""),
])
def test_a_date_is_that_of_the_request(days, base, others, status, words):
    def day(number):
        return TODAY + datetime.timedelta(days=number)
    names = {f"{track}/{day(number)}_other" for number, track in others}
    seconds = datetime.datetime.combine(day(base), datetime.time(12), datetime.UTC).timestamp()
    found = list(judge_date(f"{TRACK}/{day(days)}_new", seconds, names))
    assert [f.status for f in found] == ([status] if status else [])
    assert all(words.replace("_other is newer", f"is before {day(-4)}_other") in f.observed for f in found), found


def test_a_folder_that_is_too_large_is_not_copied():
    def judged(size, files):
        return [f.status for f in judge_size([Entry(f"x{i}", "100644", "0" * 40, size) for i in range(files)])]
    assert judged(LARGE, 1) == [] and judged(LARGE + 1, 1) == ["WARN"]
    assert judged(300 << 20, 1) == ["FAIL"] and judged(1, 1001) == ["FAIL"]


def test_a_base_that_has_moved_on_is_no_change_of_the_request(made, repository, capsys):
    add(made, repository)
    commit(repository)
    git(repository, "checkout", "-q", "main")
    day = shutil.copytree(repository / TRACK / BEFORE, repository / TRACK / f"{BETTER[:10]}_after")
    later = day.rename(day.with_name(f"{TODAY - datetime.timedelta(days=1)}_after"))
    field(date=later.name[:10])(later)
    write("train_gpt.py", "changed\n")(repository)
    commit(repository)
    code, entry, _ = judge(repository, capsys)
    assert code == 0 and findings(entry) == [("WARN", f"{BETTER[:10]} is before {later.name}", ".")]
    git(repository, "checkout", "-q", "pr")
    git(repository, "merge", "-q", "main", "-m", "merge")
    assert judge(repository, capsys, "main...pr")[1] == entry


def test_neither_hooks_nor_filters_run_and_links_are_not_followed(made, repository, capsys, tmp_path):
    folder = add(made, repository)
    ran = tmp_path / "ran"
    (repository / ".git/hooks/post-checkout").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (repository / ".git/hooks/post-checkout").chmod(0o755)
    (folder / "out").symlink_to(tmp_path)
    (folder / ".gitattributes").write_text("* filter=evil diff=evil export-ignore\n")
    commit(repository)
    for name, value in (("filter.evil.smudge", f"touch {ran}"), ("diff.evil.textconv", f"touch {ran}"),
                        ("diff.evil.command", f"touch {ran}"), ("core.fsmonitor", f"touch {ran}"),
                        ("core.pager", f"touch {ran}"), ("diff.external", f"touch {ran}")):
        git(repository, "config", name, value)
    code, entry, _ = judge(repository, capsys)
    assert code == 1 and not ran.exists()
    layout = entry[1]["checks"]["layout"]["findings"]
    assert ("a symbolic link that leaves the folder", "out") in [(f["observed"], f["where"]) for f in layout]


def test_what_git_cannot_show_is_said_in_one_line(made, repository, capsys, tmp_path, monkeypatch):
    add(made, repository)
    commit(repository)
    git(tmp_path, "clone", "-q", "--depth", "1", "--no-single-branch", f"file://{repository}", "shallow")
    git(repository, "checkout", "-q", "--orphan", "alone")
    commit(repository)
    for where, commits, words in (
            (repository, "main", "give two commits, as in origin/main..HEAD"),
            (repository, "..pr", "give two commits"),
            (repository, "--output=x..pr", "give two commits"),
            (repository, "main..no", "no is not a commit of"),
            (repository, "main..alone", "have no commit in common"),
            (tmp_path / "shallow", "origin/main..origin/pr", "run `git fetch --unshallow`"),
            (tmp_path, "main..pr", "is not in a git repository: give --repo DIR")):
        code, entry, error = judge(where, capsys, commits)
        assert (code, entry) == (2, None) and words in error and error.count("\n") == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    code, entry, error = judge(repository, capsys)
    assert (code, entry) == (2, None) and "git is not installed" in error


def test_the_repository_is_the_one_around_the_folder_and_head_is_the_default(made, repository, capsys, monkeypatch):
    add(made, repository)
    commit(repository)
    monkeypatch.chdir(repository / "records")
    monkeypatch.setenv("GIT_DIR", str(Path(__file__).parent))
    for commits in ("main..", "main..HEAD", f"{git(repository, 'rev-parse', 'main')}..pr"):
        assert main(["verify", "--pr", commits]) == 0
        assert capsys.readouterr().out.startswith(f"{NEW}\nPASSES by the strict rules\n")


def test_annotations_count_from_the_root_of_the_repository(made, repository, capsys):
    folder = add(made, repository)
    field(val_bpb=1.3001)(folder)
    replace_first("train.log", r"train_time:\d+ms step:5998", "train_time:600050ms step:5998")(folder)
    write("train_gpt.py", "y")(repository)
    commit(repository)
    assert main(["verify", "--pr", "main..pr", "--repo", str(repository), "--format", "github"]) == 1
    _, *lines = capsys.readouterr().out.splitlines()
    starts = [line.partition("::" + NEW)[0] for line in lines]
    assert "::error file=train_gpt.py,title=FAIL%3A pull request" in starts
    assert f"::error file={NEW}/submission.json,title=FAIL%3A score" in starts
    assert any(start.startswith(f"::warning file={NEW}/train.log,line=") for start in starts)
