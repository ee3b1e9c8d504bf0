"""Machines, disks and terminals that people have: `python -m pytest tests/runs/test_machines.py`."""
import argparse
import ast
import errno
import fcntl
import io
import json
import multiprocessing.synchronize
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

import common.run
from common import machine
from common.data.__main__ import main as data_tool
from common.data.folder import alone
from common.data.workers import MOST_WORKERS, add_workers, in_order, usable_cpus, worker_pool
from common.files import escape_in, try_lock, warn_once, write_file
from common.folder import RunFolder, check_free, say, was_killed
from common.ranks import RankWatch, dead
from common.readlog import parse_log
from common.settings import UserError
from tests.conftest import BACKENDS, ROOT, run_script, tiny_settings


@pytest.fixture(autouse=True)
def warned_anew():
    warn_once.cache_clear()


# disks ----------------------------------------------------------------------------------------------------------------

NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF


def failing(number):
    def call(*_):
        raise OSError(number, os.strerror(number))
    return call


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_a_run_goes_on_after_one_warning(number, tmp_path, monkeypatch, capsys):
    """NFS without lockd, Lustre without flock, FUSE."""
    monkeypatch.setattr(fcntl, "flock", failing(number))
    settings = tiny_settings("torch", "data")
    folder = RunFolder(tmp_path / "r", settings)
    assert capsys.readouterr().err.count("is on a file system without locks: nothing keeps a second") == 1
    folder.end("finished", "", "", 0)
    with alone(tmp_path):
        pass
    assert "warning: " in capsys.readouterr().err
    watches = [RankWatch(tmp_path, rank, 2, 60.0) for rank in range(2)]
    for watch in watches:
        watch.hold()
    assert not dead(watches[0].file)  # or every rank would end the others
    assert not was_killed(tmp_path / "r")


def test_a_lock_that_another_process_holds_is_another_thing(tmp_path, capsys):
    with open(tmp_path / "a", "w") as first, open(tmp_path / "a", "w") as second:
        assert try_lock(first, tmp_path) is True and try_lock(second, tmp_path) is False
        assert not dead(second)
    with open(tmp_path / "a") as third:
        assert dead(third) and try_lock(third, tmp_path) is True  # looked at, not kept
    assert not capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_without_fsync_a_file_is_written_after_one_warning(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", failing(number))
    for name in ("a", "b"):
        assert write_file(tmp_path / name, b"new").read_bytes() == b"new"
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("number, remedy", [
    (errno.ENOSPC, ": is the disk full? Free some space"), (errno.EDQUOT, ": is the disk full? Free some space"),
    (errno.EACCES, ": is the folder yours?"), (errno.EROFS, ": its disk is read-only"),
    (errno.EIO, ""), (errno.ELOOP, "")])
def test_an_error_of_the_system_is_reported_with_path_and_attempt(number, remedy, tmp_path, monkeypatch):
    """And with advice that fits it, or none."""
    text = f"[Errno {number}] {os.strerror(number)} while {{}}: '{tmp_path / 'a'}'{remedy}"
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.raises(OSError) as locking, open(tmp_path / "b", "w") as file:
        try_lock(file, tmp_path / "a")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(OSError) as writing:
        write_file(tmp_path / "a", b"new")
    for raised, doing in ((writing, "writing"), (locking, "locking")):
        status, reason, defect = common.run.explain(raised.value)
        assert reason == text.format(doing) and not defect
        assert status == ("disk_full" if "Free" in remedy else "failed")
    with pytest.raises(UserError) as refused:
        RunFolder(tmp_path / "r", tiny_settings("torch", "data"))
    assert str(refused.value).startswith(f"{tmp_path / 'r'} cannot be written: [Errno {number}]")
    assert str(refused.value).endswith(f"/r'{remedy}")


def test_a_killed_run_is_known_as_such(tmp_path, capsys):
    """Its status is still "running", but no process holds its folder."""
    settings = tiny_settings("torch", "data")
    folder = RunFolder(tmp_path / "r", settings)
    assert not was_killed(tmp_path / "r")
    with pytest.raises(UserError, match="r is there already: choose"):
        folder.log("warmup", steps=0, seconds=0.0)
        check_free(tmp_path / "r", settings)
    folder.file.close()  # as a process that is gone
    assert was_killed(tmp_path / "r")
    with pytest.raises(UserError, match="r is there already, of a run that was killed: choose"):
        check_free(tmp_path / "r", settings)
    capsys.readouterr()
    again = RunFolder(tmp_path / "r", tiny_settings("torch", "data", resume=str(tmp_path / "r")))
    assert "r was killed, perhaps for lack of memory" in capsys.readouterr().err
    again.end("finished", "", "", 0)
    assert not was_killed(tmp_path / "r")


# sizes ----------------------------------------------------------------------------------------------------------------

HERE = 1 << 40, 64  # a large machine


def in_groups(tmp_path, monkeypatch, path_lines, **files):
    """A machine with these control groups: lines of /proc/self/cgroup, and files in /sys/fs/cgroup."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "GROUP_TREES", tmp_path / "tree")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(HERE[1]), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": HERE[0] >> 12, "SC_PAGE_SIZE": 1 << 12}.get)
    if path_lines is not None:
        (tmp_path / "cgroup").write_text(path_lines)
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text + "\n")
    return machine.host_memory(), usable_cpus()


@pytest.mark.parametrize("lines, files, memory, cpus", [
    (None, {}, *HERE),
    ("0::/\n", {}, *HERE),
    ("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}, *HERE),
    ("0::/\n", {"memory.max": "", "cpu.max": "0 100000"}, *HERE),
    ("0::/\n", {"memory.max": "0", "cpu.max": "50000 0"}, *HERE),
    ("no groups\n", {"memory.max": "4096000", "cpu.max": ""}, *HERE),
    ("0::/\n", {"memory.max": str(2 << 30), "cpu.max": "150000 100000"}, 2 << 30, 2),
    ("0::/\n", {"memory.max": str(1 << 50), "cpu.max": "9900000 100000"}, *HERE),
    ("0::/a/b/c\n", {"a/memory.max": "4096000", "a/b/memory.max": "8192000", "a/b/c/memory.max": "max",
                     "a/cpu.max": "800000 100000", "a/b/c/cpu.max": "50000 100000"}, 4096000, 1),
    ("0::/a/b/c\n", {"a/b/memory.max": "8192000", "a/b/cpu.max": "400000 50000"}, 8192000, 8),
    ("0::/../elsewhere\n", {"memory.max": "8192000"}, 8192000, HERE[1]),
    ("5:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n", {
        "memory/memory.limit_in_bytes": "8192000", "cpu,cpuacct/cpu.cfs_quota_us": "300000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8192000, 3),
    ("5:memory:/docker/1\n3:cpu,cpuacct:/\n", {
        "memory/docker/1/memory.limit_in_bytes": "9223372036854771712", "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000"}, *HERE),
])
def test_the_least_limit_of_all_enclosing_groups_counts(lines, files, memory, cpus, tmp_path, monkeypatch):
    """Containers, versions 1 and 2; a limit above what the machine has is none."""
    assert in_groups(tmp_path, monkeypatch, lines, **files) == (memory, cpus)


@pytest.mark.parametrize("here, workers", [(384, 256), (256, 256), (3, 3)])
def test_the_default_number_of_workers_is_possible(here, workers, monkeypatch):
    """And that of the container, not of the machine."""
    monkeypatch.setattr("common.data.workers.usable_cpus", lambda: here)
    parser = argparse.ArgumentParser()
    add_workers(parser)
    assert parser.parse_args([]).workers == workers <= MOST_WORKERS


def twice(job):
    if job == 3:
        raise UserError("three")
    return 2 * job


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENOSYS])
def test_without_shared_memory_one_worker_needs_no_process(number, monkeypatch):
    """/dev/shm is read-only, full, or not there."""
    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", failing(number))
    words = f"--workers 2: processes cannot work together here.*{os.strerror(number)}.*: use --workers 1"
    with pytest.raises(UserError, match=words):
        with worker_pool(2):
            pass
    with worker_pool(1) as pool:
        assert [*in_order(pool, twice, range(3), 2)] == [(0, 0), (1, 2), (2, 4)]
    with pytest.raises(UserError, match="three"), worker_pool(1) as pool:
        [*in_order(pool, twice, range(5), 2)]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from common.data.{module} import {name}
try:
    code = {call}
except Exception as error:
    print(type(error).__name__, error)
    code = 2
print("code", code)
"""


@pytest.mark.parametrize("module, name, call", [
    ("__main__", "main", "main(['export', 'a.jsonl', '--tokenizer', 'bytes', '--val-docs=1', '--out=out'])"),
    ("tokenizers", "try_model", "try_model('a.model')")])
def test_a_script_without_a_main_guard_is_blamed_itself(module, name, call, tmp_path):
    """Not the tokenizer, nor the memory, and without a traceback. Its workers do not repeat what it does."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "a.model").write_bytes(b"")
    (tmp_path / "s.py").write_text(SCRIPT.format(root=str(ROOT), module=module, name=name, call=call))
    done = run_script(["s.py"], tmp_path, dict(os.environ))
    said = done.stdout + done.stderr
    assert "Traceback" not in said and said.count("the worker processes end before they have begun") == 1
    assert "if __name__ == '__main__':" in said and said.count("code 2\n") == 1, said
    assert not (tmp_path / "out").exists() and "a.model" not in said


# terminals and environments -------------------------------------------------------------------------------------------

TOOLS = "common.data", "parity", "records"


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_without_its_libraries_says_what_to_install(tool, tmp_path):
    """As `python3 -m common.data` outside of the environment."""
    done = run_script(["-S", "-m", tool, "--help"], ROOT, {"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.match(r"error: No module named '\w+': `pip install '\.\[(data|records)\]'` .*provides", done.stderr)


WINDOWS = """
import argparse, contextlib, dataclasses, datetime, difflib, json, pathlib, runpy, sys, time
sys.platform, sys.argv = "win32", ["x"]
sys.modules["fcntl"] = sys.modules["resource"] = None
"""


@pytest.mark.parametrize("start", [
    *(f"runpy.run_module('{tool}', run_name='__main__', alter_sys=True)" for tool in TOOLS),
    *(f"runpy.run_path('{script}', run_name='__main__')" for script in BACKENDS.values())])
def test_on_windows_there_is_a_word(start):
    done = run_script(["-c", WINDOWS + start], ROOT, dict(os.environ, PYTHONPATH=str(ROOT)))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: Windows is not supported: use WSL")


def test_what_windows_lacks_is_imported_where_it_is_used():
    """Or a bundle, in which all imports come first, would not get to the word."""
    for path in (ROOT / "common").glob("**/*.py"):
        for node in ast.parse(path.read_bytes()).body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not names & {"fcntl", "resource", "pwd", "grp", "termios"}, path


ODD = b"d\xff\xc3\xa9"  # a name from an old disk


@pytest.fixture
def odd_folder(data_path, tmp_path):
    folder = tmp_path / os.fsdecode(ODD)
    shutil.copytree(data_path, folder)
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_cannot_be_printed_is_printed_with_backslashes(encoding, odd_folder, capfdbinary):
    with open(1, "w", encoding=encoding, closefd=False) as stream:
        escape_in(stream, None, io.StringIO())
        say(f"folder {odd_folder.name}", stream)
    shown = {"ascii": b"d\\udcff\\xe9", "utf-8": b"d\\udcff\xc3\xa9"}[encoding]
    assert capfdbinary.readouterr().out == b"folder " + shown + b"\n"


def test_a_log_takes_every_name(odd_folder, tmp_path, capsys):
    folder = RunFolder(tmp_path / "r", tiny_settings("torch", odd_folder))
    escape_in(sys.stdout)
    folder.log("resume", step=1, ms=0.0, path=odd_folder)
    folder.end("failed", f"{odd_folder}: no such folder", "", 0)
    found = parse_log((tmp_path / "r/train.log").read_text("utf-8"))
    assert [kind for kind, _ in found] == ["resume", "status"]
    assert all("d\\udcff\u00e9" in str(values) or "udcff" in values["path"] for _, values in found[:1])
    watch = RankWatch(tmp_path / "r", 0, 2, 60.0)
    watch.hold()
    watch.thread = threading.Thread()
    watch.close("failed", f"{odd_folder}: no such folder")
    assert "udcff" in json.loads((tmp_path / "r/rank0").read_text("utf-8"))["reason"]


@pytest.mark.parametrize("command, code", [
    ("check {} --tokenizer bytes", 0), ("samples {} --tokenizer bytes --windows=1", 0), ("check {}/none", 2),
    ("stats {} --tokenizer bytes --workers=1", 0), ("export {}/none.txt --tokenizer bytes --out {}/out", 2)])
def test_a_data_tool_takes_every_name(command, code, odd_folder, capsys):
    """In a title of a picture too."""
    arguments = [word.format(odd_folder) for word in command.split()]
    assert data_tool([*arguments]) == code
    shown = capsys.readouterr()
    assert code == 0 or "udcff" in shown.err


@pytest.mark.parametrize("how", ["--out={}", "--out {}"])
def test_a_tilde_in_an_argument_is_the_home_folder(how, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    arguments = how.format("~/made").split()
    assert data_tool(["export", "~/a.jsonl", "--tokenizer", "bytes", "--val-docs=1", "--workers=1", *arguments]) == 0
    assert (tmp_path / "made/manifest.json").exists() and not (tmp_path / "~").exists()
    assert data_tool(["export", "~/a.jsonl", "--tokenizer=~/none.model", *arguments]) == 2
    assert f"{tmp_path}/none.model: no such file" in capsys.readouterr().err
    (tmp_path / "own").write_text("\n".join(["parity-golf-table 1 0", "", *(f"{byte:02x}" for byte in range(256)), ""]))
    assert data_tool(["export", "~/a.jsonl", "--tokenizer", "table:~/own", "--val-docs=1", "--workers=1",
                      *how.format("~/by-table").split()]) == 0
    assert data_tool(["check", "~/by-table", "--tokenizer", "table:~/own", "--docs", "~/a.jsonl", "--workers=1"]) == 0


def test_every_path_of_a_tool_takes_a_tilde():
    """By its type: an argument that has none is text."""
    for tool in ("common/data", "parity", "records"):
        for path in (ROOT / tool).glob("*.py"):
            assert "type=Path" not in path.read_text("utf-8"), path


@pytest.mark.parametrize("command", [
    "common.data", "parity --help", "records verify records/none", "records verify records/none 2>&1",
    "common.bundle train_gpt.py 2>&1"])
def test_whoever_stops_reading_hears_nothing_more(command):
    """`| head`, which may have gone before the first line."""
    done = subprocess.run(f"'{sys.executable}' -m {command} | true", shell=True, cwd=ROOT, capture_output=True,
                          check=False)
    assert not done.stdout and b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


def test_pictures_need_no_display_whatever_a_notebook_has_set(data_path, tmp_path):
    command = ["-m", "common.data", "stats", data_path, "--workers=1", "--png", tmp_path / "a.png"]
    done = run_script(command, ROOT, dict(os.environ, MPLBACKEND="module://matplotlib_inline.backend_inline"))
    assert done.returncode == 0 and (tmp_path / "a.png").stat().st_size > 10_000, done.stderr


def test_stats_of_a_folder_of_someone_else(data_path, monkeypatch, capsys, tmp_path):
    """Its numbers do not need a picture in that folder; a picture that is asked for does need its place."""
    def refused(self, path, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refused)
    assert data_tool(["stats", str(data_path), "--workers=1"]) == 0
    shown = capsys.readouterr().out
    assert "bits per byte" in shown and "no picture: " in shown and "--png FILE.png puts it elsewhere" in shown
    assert data_tool(["stats", str(data_path), "--workers=1", "--png", str(tmp_path / "a.png")]) == 2
    assert "is the folder yours?" in capsys.readouterr().err
    for name in ("none/a.png", "a.xyz"):
        assert data_tool(["stats", str(data_path), "--png", str(tmp_path / name)]) == 2
        shown = capsys.readouterr()
        assert not shown.out and "name a .png in a folder that exists" in shown.err
