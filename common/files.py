"""Write files whole or not at all; lock files; say what can be done about an error of the operating system."""
import contextlib
import errno
import functools
import json
import os
import sys

# without locks or fsync; EBADF: NFS, for a folder
UNSUPPORTED = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF
FULL, YOURS = ": is the disk full? Free some space", ": is the folder yours?"
REMEDIES = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL, errno.EACCES: YOURS, errno.EPERM: YOURS,
            errno.EROFS: ": its disk is read-only"}


def with_remedy(error):
    return str(error) + REMEDIES.get(error.errno, "")


@contextlib.contextmanager
def naming(path, doing):
    """An OSError raised inside names the file and what was tried."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename, error.strerror = error.filename or str(path), f"{error.strerror} while {doing}"
        raise


@functools.cache
def warn_once(text):
    with contextlib.suppress(OSError):
        print(f"warning: {text}", file=sys.stderr)


def open_streams():
    """Closed streams, as a daemon has them, lead to /dev/null: no file of a run gets their numbers."""
    while (file := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(file, True)
    os.close(file)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
                              for stream in (sys.stdout, sys.stderr))


def write_file(path, *parts):
    """Write buffers to a file, whole or not at all, even across a power cut. Returns the path. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path, "writing"):
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                sync(file.fileno(), path)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            sync(folder, path)
        finally:
            os.close(folder)
    return path


def sync(file, path):
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(f"{path.parent} is on a file system without fsync: a power cut may cost the newest files")


def as_utf8(text):
    """Text with backslashes for what is not UTF-8, as names may be."""
    return text.encode(errors="backslashreplace").decode()


def escape_in(*streams, **changes):
    """Let streams print backslashes for what their encoding lacks."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it is closed
            stream.reconfigure(errors="backslashreplace", **changes)


def write_json(path, values):
    return write_file(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def read_json(path):
    """The dict in a file that may hold anything; empty where it is missing or not a JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def try_lock(file, path, how="LOCK_EX"):
    """Try to lock an open file without waiting: True on success, None where nothing can be locked. Raises OSError."""
    import fcntl  # not on Windows
    with naming(path, "locking"):
        try:
            fcntl.flock(file, getattr(fcntl, how) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return None
    return True


def hold_lock(file, path, how="LOCK_EX"):
    """The same, but without locks only a warning tells the difference."""
    held = try_lock(file, path, how)
    if held is None:
        warn_once(f"{path} is on a file system without locks: nothing keeps a second process from writing there")
    return held is not False
