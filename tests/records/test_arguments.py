"""The command line of `python -m records verify`: `python -m pytest tests/records/test_arguments.py`."""
import argparse

import pytest

from records import verify
from records.__main__ import main


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three empty folders A, B and C, where the test runs."""
    monkeypatch.chdir(tmp_path)
    for name in "ABC":
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(("arguments", "baseline", "checked"), [
    ("A", None, "A"),
    ("A B", None, "A B"),
    ("--baseline A B", "A", "B"),
    ("--baseline A B -- C", "A B", "C"),
    ("--baseline A -- B C", "A", "B C"),
    ("C --baseline A B", "A B", "C"),
    ("--baseline A --baseline B -- C", "A B", "C"),
    ("C --baseline A --baseline B", "A B", "C"),
    ("--baseline 2.07 2.08 2.09 C", "2.07 2.08 2.09", "C"),
    ("--baseline 2.07 2.08 2.09 --json C", "2.07 2.08 2.09", "C"),
    ("--baseline a.log b.log C", "a.log b.log", "C"),
])
def test_baseline_leaves_the_folder_to_check(folders, arguments, baseline, checked):
    parser = argparse.ArgumentParser()
    verify.add_command(parser.add_subparsers())
    options = parser.parse_args(["verify", *arguments.split()])
    verify.take_folders(options)
    assert [str(path) for path in options.folders] == checked.split()
    assert options.baseline == (baseline and baseline.split())


@pytest.mark.parametrize(("arguments", "said"), [
    ("", "needs the FOLDER to check"),
    ("--baseline A", "needs the FOLDER to check"),
    ("--baseline 2.07 2.08 2.09", "needs the FOLDER to check"),
    ("--baseline A B C", "is C the FOLDER to check or one more baseline?"),
    ("--baseline 2.07 A B", "is B the FOLDER to check or one more baseline?"),
])
def test_what_may_be_folder_or_baseline_is_refused_in_one_line(folders, capsys, arguments, said):
    assert main(["verify", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and said in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
