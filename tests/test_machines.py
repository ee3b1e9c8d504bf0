"""Machines, disks and terminals that people have: `python -m pytest tests/test_machines.py`."""
import errno
import fcntl
import os

import pytest

import common.run
from common.data.folder import alone
from common.files import try_lock, warn_once, write_file
from common.folder import RunFolder, check_free, was_killed
from common.ranks import RankWatch, dead
from common.settings import UserError
from tests.conftest import tiny_settings


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
    first, second = (open(tmp_path / "a", "w") for _ in range(2))
    with first, second:
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
    (errno.EACCES, ": is the folder yours?"), (errno.EROFS, ": the disk is read-only: choose another folder"),
    (errno.EIO, ": the disk, or the connection to it, fails"), (errno.ELOOP, "")])
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
