"""What this machine, or the container it runs in, has: bytes of memory (also the most that this process took), and a
compiler."""
import contextlib
import ctypes
import itertools
import os
import sys
import time
from pathlib import Path

GROUPS, GROUP_TREES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def host_peak_memory():
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def host_memory():
    """Bytes of this machine, or the least that a control group allows."""
    limits = [*group_values("memory.max"), *group_values("memory.limit_in_bytes")]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *(limit for limit, *_ in limits)])


def keep_freed_memory():
    """glibc gives large blocks back to Linux, which then fills each page with zeros again, step after step: keep
    them."""
    if {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():  # the user's choice
        return
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 2**30):  # M_MMAP_THRESHOLD
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def least_seconds(act, wait):
    """The fastest of six calls. wait: function of the result, which waits for it."""
    times = [time.perf_counter()]
    for _ in range(6):
        wait(act())
        times.append(time.perf_counter())
    return min(end - start for start, end in itertools.pairwise(times))


def group_values(*names):
    """The numbers in these files of the control group of this process and of each group around it, where all are above
    0: no limit is "max" or -1, and a stand-in for Linux may hold anything. Version 1 of control groups has a tree for
    each controller; version 2 has one for all."""
    with contextlib.suppress(OSError, ValueError):  # not Linux
        for line in GROUPS.read_text("utf-8", "replace").splitlines():
            _, controllers, path = line.split(":", 2)
            tree = GROUP_TREES / controllers
            group = tree / path.lstrip("/")
            for folder in (group, *group.parents[:len(group.parts) - len(tree.parts)]):
                with contextlib.suppress(OSError):  # of another tree, or not to be seen from inside
                    words = [word for name in names for word in (folder / name).read_text("utf-8").split()]
                    if words and all(word.isdecimal() and int(word) for word in words):
                        yield [*map(int, words)]


def compile_problem(trainer):
    """Why nothing can be compiled here, in one line, or empty."""
    for compiled in (False, True):
        try:
            trainer.one_line(compiled)
        except Exception as error:
            return compiled * (f"COMPILE=1 does not work here: {str(error).splitlines()[0][:300]}: install a C++ "
                               "compiler, choose a TMPDIR that is not noexec and has no spaces, or use COMPILE=0")
    return ""
