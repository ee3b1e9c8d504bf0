"""Write files whole or not at all; lock files; say what can be done about an error of the operating system."""
import contextlib
import errno
import functools
import json
import os
import sys

# What a file system answers that has no locks, or no fsync of a folder. NFS: EBADF for an exclusive lock of a folder.
UNSUPPORTED = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF
REMEDIES = {
    "is the disk full? Free some space": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "is the folder yours?": (errno.EACCES, errno.EPERM),
    "the disk is read-only: choose another folder": (errno.EROFS,),
    "the disk, or the connection to it, fails": (errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    "raise `ulimit -n`": (errno.EMFILE, errno.ENFILE),
    "choose a shorter name": (errno.ENAMETOOLONG,),
}


def with_remedy(error):
    """The text of an OSError, and what can be done about it, where that is known."""
    return ": ".join([str(error), *(text for text, numbers in REMEDIES.items() if error.errno in numbers)])


@contextlib.contextmanager
def naming(path, doing):
    """An OSError raised inside names the file and what was tried."""
    try:
        yield
    except OSError as error:
        if error.errno:  # else it is a text of a library
            error.filename, error.strerror = error.filename or str(path), f"{error.strerror} while {doing}"
        raise


@functools.cache
def warn_once(text):
    with contextlib.suppress(OSError):
        print(f"warning: {text}", file=sys.stderr)


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
    """fsync, where the file system of a path has it."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(f"{path.parent} is on a file system without fsync ({error.strerror}): a power cut may cost the newest "
                  "files there")


def write_json(path, values):
    return write_file(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def read_json(path):
    """The dict in a file that may hold anything; empty where it is missing or not a JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def try_lock(file, path, shared=False):
    """Lock an open file without waiting. True; False: another process holds it; None: no file of this file system can
    be locked. Raises OSError, which names the path."""
    import fcntl  # not on Windows, where a trainer gets only as far as to say so
    with naming(path, "locking"):
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return None
    return True


def unlock(file):
    import fcntl
    fcntl.flock(file, fcntl.LOCK_UN)


def hold_lock(file, path, shared=False):
    """The same, but a lock that cannot be had is only warned of. Whether no other process holds it."""
    held = try_lock(file, path, shared)
    if held is None:
        warn_once(f"{path} is on a file system without locks: nothing keeps a second process from writing there")
    return held is not False
