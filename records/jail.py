"""The inside of the sandbox: `python jail.py FOLDER HOME SECONDS MEMORY COMMAND...`, as first process of its own namespaces.

It puts a small file system in memory over FOLDER, with a copy of what lies there, as the one writable place, starts COMMAND in it in a
second user namespace, which cannot undo that, watches the number of processes and their memory, and when it ends the kernel ends everything
in it. Where the interpreter does not lie there, /run, /tmp and HOME are empty, so the sockets in them cannot be reached; those that lie
elsewhere in the file system can be. Linux only, standard library only.
"""
import contextlib
import ctypes
import fcntl
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 4096, 16384
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


def bind(source, target):
    must(libc.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), f"bind {source} on {target}")


def new_devices():
    """/dev becomes a folder of four devices that everyone may use, and of shm."""
    mount_memory("/dev/shm", 1 << 20)
    os.mkdir("/dev/shm/shm")
    os.symlink("/proc/self/fd", "/dev/shm/fd")
    for name in ("null", "zero", "random", "urandom"):
        os.close(os.open(f"/dev/shm/{name}", os.O_CREAT))
        bind(f"/dev/{name}", f"/dev/shm/{name}")
    bind("/dev/shm", "/dev")


def hidden_folders(home):
    """Real paths of the folders that are emptied: those without a part of the interpreter."""
    needed = [sys.executable, sys.prefix, sys.base_prefix, os.__file__, *sys.path]
    needed = {kind(path) + "/" for path in needed if path for kind in (os.path.abspath, os.path.realpath)}
    found = {os.path.realpath(path) for path in ("/run", "/var/run", "/tmp", home) if path and os.path.isdir(path)} - {"/"}
    return sorted(path for path in found if not any(n.startswith(path + "/") for n in needed))


def close_doors(folder, home):
    """Everything but the folder becomes read-only, the folder and /dev new and small, and of the network only loopback is there."""
    below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    new_devices()
    for path in hidden_folders(home):
        if os.path.isdir(path):  # else it lay in one that is hidden already
            mount_memory(path, 1 << 20)
    os.makedirs(folder, exist_ok=True)
    mount_memory(folder, DISK_BYTES)
    shutil.copytree(f"/proc/self/fd/{below}", folder, dirs_exist_ok=True)
    os.close(below)
    set_read_only("/", True, True)
    set_read_only(folder, False, False)
    set_read_only("/proc", False, False)  # for the maps of the second user namespace
    mount_memory("/dev/shm", DISK_BYTES)
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) >= (6, 14):  # before, this limit is the whole machine's: the watch below must do
        with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "w") as file:
            file.write(str(PIDS))
    for path in filter(os.path.exists, ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")):  # the machine's, not ours
        bind(path, path)
        set_read_only(path, True, True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def memory_of(process):
    """Resident bytes of a process, 0 when it has gone."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def shared_memory():
    """Bytes of the machine's shared memory and files in memory, which belong to no process's resident pages while none maps them."""
    with open("/proc/meminfo") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith("Shmem:")), 0)


def main(folder, home, seconds, memory, command):
    close_doors(folder, home)
    os.chdir(folder)
    for limit, value in ((resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0),
                         (resource.RLIMIT_NPROC, PROCESSES), (resource.RLIMIT_CPU, 4 * seconds)):
        resource.setrlimit(limit, (value, value))
    # at the lowest priority, so that this watch is heard however many they become
    child = subprocess.Popen(["nice", "-n", "19", "unshare", "--user", "--map-root-user", "--mount", *command], stdin=subprocess.DEVNULL)
    end, before = time.monotonic() + seconds, shared_memory()
    while child.poll() is None:
        alive = [name for name in os.listdir("/proc") if name.isdecimal()]
        if time.monotonic() > end:
            return TOO_LONG
        if len(alive) > PROCESSES:
            return TOO_MANY
        if sum(map(memory_of, alive)) + max(0, shared_memory() - before) > memory:
            return TOO_LARGE
        time.sleep(0.02)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    sys.stdout.flush()
    os._exit(code)  # the first process of the namespace: the kernel kills the rest
