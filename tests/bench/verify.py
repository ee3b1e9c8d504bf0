"""CPU seconds of `verify`, those of its child processes included, on a tree of 60 record folders: of the folder with 50
before it, whether these pass or fail a check, and of all.

Run: `python -m tests.bench.verify [FOLDERS]`.
"""
import contextlib
import datetime
import io
import os
import sys
import tempfile
from pathlib import Path

from records.__main__ import main
from tests.conftest import ROOT
from tests.records.made_records import FINEWEB, SCRIPT, make_record

CODE_BYTES = 60_000
BEFORE = 50
LIMIT_ONE, LIMIT_ALL = 2.0, 60.0  # CPU seconds


def source():
    """A script of CODE_BYTES or a little more."""
    parts = [SCRIPT]
    for path in sorted((ROOT / "common").glob("*.py")):
        if sum(map(len, parts)) < CODE_BYTES:
            parts.append(path.read_bytes())
    return b"\n".join(parts)


def make_tree(folder, count):
    """Record folders of one track, each better than the one before; their paths."""
    code, paths = source(), []
    for number in range(count):
        date = (datetime.date(2026, 4, 1) + datetime.timedelta(days=number)).isoformat()
        scores = [1.9 - number / 100 + seed / 1e4 for seed in (1, 3, 2)]
        alone = Path(folder, "alone", date)  # where `pack` finds no earlier record to compare with
        with contextlib.redirect_stdout(io.StringIO()):
            made = make_record(alone, scores, "10min", f"Made{number}", date, FINEWEB, script=code, every=25)
        for log in made.glob("*.log"):  # with the source, as in the challenge: its Naive Baseline has 275 steps' lines
            log.write_bytes(code + b"\n" + log.read_bytes())
        track = Path(folder, made.parent.name)
        track.mkdir(exist_ok=True)
        paths.append(made.rename(track / made.name))
    return paths


def cpu_seconds(arguments):
    """Of one command, and what it prints."""
    before, out = os.times(), io.StringIO()
    with contextlib.redirect_stdout(out):
        main(["verify", *map(str, arguments)])
    after = os.times()
    return sum(after[:4]) - sum(before[:4]), out.getvalue()


def run(count):
    with tempfile.TemporaryDirectory() as folder:
        paths = make_tree(folder, count)
        size = sum(path.stat().st_size for path in paths[0].glob("*.log"))
        print(f"{count} folders, {size:,} bytes of logs and {len(source()):,} of code in each")
        measure(f"the folder with {BEFORE} before it", paths[BEFORE], LIMIT_ONE)
        measure("all folders", folder, LIMIT_ALL)
        for path in paths[:BEFORE]:
            (path / "README.md").unlink()
        measure(f"the folder with {BEFORE} before it that fail a check", paths[BEFORE], LIMIT_ONE)


def measure(what, path, limit):
    seconds, text = cpu_seconds([path])
    print(f"{what}: {seconds:.2f} s of CPU, at most {limit:.0f}; {text.splitlines()[1]}")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
