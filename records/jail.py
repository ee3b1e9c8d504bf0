"""The inside of the sandbox: `python jail.py FOLDER SECONDS MEMORY COMMAND...`, as first process of its own namespaces.

It puts a small file system in memory over FOLDER, with a copy of what lies there, as the one writable place, starts COMMAND in it in a
second user namespace, which cannot undo that, watches the number of processes and their memory, and when it ends the kernel ends everything
in it. Linux only, standard library only.
"""
import ctypes
import fcntl
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time

MS_NOSUID, MS_NODEV = 2, 4
MOUNT_ATTR_RDONLY, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 1, -100, 0x8000, 442
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PROCESSES, PIDS, FILE_BYTES, DISK_BYTES, OPEN_FILES = 128, 400, 128 << 20, 512 << 20, 1024
TOO_LONG, TOO_MANY, TOO_LARGE, NO_SANDBOX = 124, 125, 126, 127  # exit codes

libc = ctypes.CDLL(None, use_errno=True)


def must(result, what):
    if result:
        print(f"no sandbox: {what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(NO_SANDBOX)


def set_read_only(path, on, deep):
    attributes = struct.pack("QQQQ", on * MOUNT_ATTR_RDONLY, (not on) * MOUNT_ATTR_RDONLY, 0, 0)
    must(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), deep * AT_RECURSIVE, attributes, len(attributes)), f"mount_setattr {path}")


def mount_memory(path, size):
    must(libc.mount(b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, f"size={size}".encode()), f"tmpfs on {path}")


def close_doors(folder):
    """Everything but the folder becomes read-only, the folder and /dev/shm new and small, and of the network only loopback is there."""
    below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    mount_memory(folder, DISK_BYTES)
    shutil.copytree(f"/proc/self/fd/{below}", folder, dirs_exist_ok=True)
    os.close(below)
    set_read_only("/", True, True)
    set_read_only(folder, False, False)
    set_read_only("/proc", False, False)  # for the maps of the second user namespace
    mount_memory("/dev/shm", DISK_BYTES)
    try:  # newer kernels keep this limit per namespace; elsewhere the watch below and RLIMIT_NPROC, which root escapes, must do
        with open("/proc/sys/kernel/pid_max", "w") as file:
            file.write(str(PIDS))
    except OSError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def memory_of(process):
    """Resident bytes of a process, 0 when it has gone."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def main(folder, seconds, memory, command):
    close_doors(folder)
    os.chdir(folder)
    for limit, value in ((resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0),
                         (resource.RLIMIT_NPROC, PROCESSES), (resource.RLIMIT_CPU, 4 * seconds)):
        resource.setrlimit(limit, (value, value))
    # at the lowest priority, so that this watch is heard however many they become
    child = subprocess.Popen(["nice", "-n", "19", "unshare", "--user", "--map-root-user", "--mount", *command], stdin=subprocess.DEVNULL)
    end = time.monotonic() + seconds
    while child.poll() is None:
        alive = [name for name in os.listdir("/proc") if name.isdecimal()]
        if time.monotonic() > end:
            return TOO_LONG
        if len(alive) > PROCESSES:
            return TOO_MANY
        if sum(map(memory_of, alive)) > memory:
            return TOO_LARGE
        time.sleep(0.02)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    os._exit(code)  # the first process of the namespace: the kernel kills the rest
