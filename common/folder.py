"""A run's folder, runs/RUN_ID: train.log, locked by the run, the bundled trainer, settings.json, status.json,
checkpoints until the run has ended, and then model.int8.zlib."""
import contextlib
import os
import shutil
import sys
from pathlib import Path

from common.console import say
from common.files import hold_lock, read_json, try_lock, with_remedy, write_file, write_json
from common.params import count_params
from common.report import Report, check_tools
from common.runlog import log_line
from common.settings import UserError

ENDED = "finished", "capped"  # status of a run that cannot be continued


def resume_hint(path):
    return f"continue with --resume {path}" if [*path.glob("step-*.checkpoint")] else ""


def end_run(path, status, reason, hint, step):
    """Write status.json, and the last line of train.log, which it returns."""
    line = log_line("status", status=status, reason=reason, hint=hint)
    (path / ".reserve").unlink(missing_ok=True)  # room on a full disk, where one may fail and the other not
    with contextlib.suppress(OSError), open(path / "train.log", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with contextlib.suppress(OSError):
        write_json(path / "status.json", {"status": status, "reason": reason, "hint": hint, "step": step})
    return line


def resume_folder(resume, run_id, backend):
    """The folder that RESUME names, as text. For auto: runs/RUN_ID or, without one, this backend's newest run with a
    checkpoint that has not ended; empty: none. Raises UserError."""
    if resume == "auto" and not run_id:
        runs = [path for path in Path("runs").glob("*") if path.is_dir()]
        for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
            if run_status(path) not in ("", *ENDED) and run_backend(path) in ("", backend) and resume_hint(path):
                return str(path)
        return ""
    path = Path("runs", run_id) if resume == "auto" else Path(resume)
    status, theirs = run_status(path), run_backend(path)
    if resume != "auto" and not status:
        raise UserError(f"RESUME={path} is not the folder of a run: name one, runs/..., or use RESUME=auto")
    if resume != "auto" and status in ENDED:
        raise UserError(f"RESUME={path} has ended ({status}): there is nothing to continue")
    if theirs not in ("", backend):
        raise UserError(f"{path} is a run of the {theirs} trainer: continue it with that one")
    return "" if status in ("", *ENDED) else str(path)


def run_status(path):
    """What status.json says of a run, or empty."""
    return read_json(path / "status.json").get("status") or ""


def run_backend(path):
    return read_json(path / "settings.json").get("backend", "")


def stored_settings(folder):
    """dict of what settings.json says, as text."""
    return {name: str(value) for name, value in read_json(Path(folder, "settings.json")).items()} if folder else {}


def check_free(path, settings):
    """Raises UserError if the folder is taken, in use or not writable, the disk too full, or a tool of REPORT_TO
    not installed."""
    check_tools(settings.report_to.names)
    above = existing_parent(path)
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{path} cannot be written: {above} is not a folder, or not yours, or read-only: start in "
                        "another one")
    if not settings.resume and path.exists() and any(file.stat().st_size for file in path.glob("[!.]*")):
        killed = ", of a run that was killed" if was_killed(path) else ""
        raise UserError(f"{path} is there already{killed}: choose another RUN_ID, remove it, or continue it with "
                        f"--resume {path}")
    with contextlib.suppress(FileNotFoundError), open(path / "train.log", "rb") as log:
        check_lock(path, log, "LOCK_SH")
    free, need = disk_free(path), disk_need(settings)
    if free < need:
        raise UserError(f"the disk of {path} has {free >> 20} MiB free, the run may need {need >> 20} MiB: free some "
                        "space", "disk_full")


def was_killed(path):
    """Whether a run has not ended, but its process is gone."""
    with contextlib.suppress(OSError), open(path / "train.log", "rb") as log:
        return run_status(path) == "running" and bool(try_lock(log, path, "LOCK_SH"))
    return False


def check_lock(path, log, how):
    if not hold_lock(log, path, how):
        raise UserError(f"{path} is in use by another run: wait for its end, or stop it")


def make_folder(path, settings):
    """The folder, made; without RUN_ID the next free one, where a run of the same second has this."""
    given, number, first = bool(settings.run_id or settings.resume), 1, path
    while True:
        if given or not path.exists():
            try:
                check_free(path, settings)
                path.mkdir(parents=True, exist_ok=given)
                return path
            except (UserError, FileExistsError):
                if given or not path.exists():  # else another run took it a moment ago
                    raise
        number += 1
        path = first.with_name(f"{first.name}-{number}")


class RunFolder:
    """Rank 0's hold on the folder. Raises UserError as check_free does."""

    def __init__(self, path, settings):
        try:
            self.path = path = make_folder(path, settings)
            if was_killed(path):
                say(f"warning: the run in {path} was killed, perhaps for lack of memory", sys.stderr)
            self.file = open(path / "train.log", "a+b", buffering=0)  # noqa: SIM115
            check_lock(path, self.file, "LOCK_EX")
            for left in path.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            write_file(path / ".reserve", os.urandom(1 << 14))
            write_json(path / "status.json", {"status": "running", "reason": ""})
        except OSError as error:
            raise UserError(f"{path} cannot be written: {with_remedy(error)}") from error
        if self.file.tell() and os.pread(self.file.fileno(), 1, self.file.tell() - 1) != b"\n":  # killed within a line
            self.file.write(b"\n")
        self.report = Report(settings, path, lambda text: say(text, sys.stderr))

    def log(self, kind, **values):
        line = log_line(kind, **values)
        with contextlib.suppress(OSError):  # a full disk does not end the training
            self.file.write(f"{line}\n".encode())
        say(line)
        self.report.put(kind, values)

    def end(self, status, reason, hint, step):
        """The last line of the log."""
        line = end_run(self.path, status, reason, hint, step)
        self.file.close()
        return line


def checkpoints_bytes(settings):
    """Bytes of one checkpoint, at most: weights, two moments, average."""
    width = 8 if settings.compute_dtype == "float64" else 4
    return (3 + (settings.ema_decay > 0)) * width * count_params(settings)


def disk_need(settings):
    """Bytes that a run may write: three checkpoints, the model file, the rest."""
    return 3 * checkpoints_bytes(settings) + 2 * count_params(settings) + (64 << 20)


def disk_free(path):
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path):
    """The path, or the nearest above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
