"""What this process may use, in a container too, whose limits are those of control groups: memory and CPUs."""
import contextlib
import os
from pathlib import Path

from common.machine import host_memory

GROUPS, GROUP_TREES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_memory():
    """Bytes of memory of this machine, or the least that a group allows."""
    limits = [*group_values("memory.max"), *group_values("memory.limit_in_bytes")]
    return min([host_memory(), *(limit for limit, *_ in limits)])


def usable_cpus():
    """CPUs that this process may run on, or the least that a group allows, rounded up."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [*group_values("cpu.max"), *group_values("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return min([here, *(-(-quota // period) for quota, period in limits)])


def group_values(*names):
    """The numbers in these files of the group of this process and of each group around it, where all are above 0: no
    limit is "max" or -1, and a stand-in for Linux may hold anything. Version 1 of control groups has a tree for each
    controller; version 2 has one for all."""
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
