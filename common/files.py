"""Write files whole or not at all; lock files."""
import contextlib
import fcntl
import json
import os
import sys


def open_streams():
    """Closed streams, as a daemon has them, lead to /dev/null: no file of a run gets their numbers."""
    while (file := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(file, True)
    os.close(file)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115


def write_file(path, *parts):
    """Write buffers to a file, whole or not at all, even across a power cut. Returns the path. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def write_json(path, values):
    return write_file(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def read_json(path):
    """The dict in a file that may hold anything; empty where it is missing or not a JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def try_lock(file, how=fcntl.LOCK_EX):
    """Try to lock an open file without waiting; True on success."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
