"""The inside of the sandbox: `python jail.py FOLDER HOME CPU WALL IDLE MEMORY COMMAND...`, the first process of its
own namespaces. CPU, WALL and IDLE are seconds.

It mounts a small file system in memory over FOLDER, with a copy of what lies there, as the only writable place. There
it starts COMMAND, in a second user namespace, which cannot undo that. It watches the number of processes, their memory
and their CPU time; when it ends, the kernel ends every process inside. /run, /tmp and HOME are empty unless the
interpreter lies in them, so sockets in them cannot be reached; sockets elsewhere in the file system can. Linux only,
standard library only.
"""
import contextlib
import ctypes
import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 4096, 16384
MOUNT_ATTR_RDONLY, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 1, -100, 0x8000, 442
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PROCESSES = 128  # that may run
PIDS = 400  # process ids, where the kernel counts them per namespace
FILE_BYTES, DISK_BYTES = 128 << 20, 512 << 20  # of one file, of all
OPEN_FILES = 1024
# Exit codes; COMMAND's own are below them. A busy machine can bring about TOO_SLOW, but no other.
# `unshare` and others exit with NOT_STARTED or NO_SANDBOX where they cannot execute a command.
IDLE, TOO_SLOW, TOO_LONG, TOO_MANY, TOO_LARGE, NOT_STARTED, NO_SANDBOX = 121, 122, 123, 124, 125, 126, 127
TICKS = os.sysconf("SC_CLK_TCK")  # per second, of the kernel's CPU times

libc = ctypes.CDLL(None, use_errno=True)


def must(result, what):
    """Exit with NO_SANDBOX where a system call failed."""
    if result:
        print(f"no sandbox: {what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(NO_SANDBOX)


def set_read_only(path, on=True, deep=False):
    """Make a mount read-only, or writable again; deep: the mounts below it too."""
    sets, clears = (MOUNT_ATTR_RDONLY, 0) if on else (0, MOUNT_ATTR_RDONLY)
    attributes = struct.pack("QQQQ", sets, clears, 0, 0)  # struct mount_attr
    flags = AT_RECURSIVE if deep else 0
    result = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))
    must(result, f"mount_setattr {path}")


def mount_memory(path, size):
    options = f"size={size}".encode()
    must(libc.mount(b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options), f"tmpfs on {path}")


def bind(source, target):
    must(libc.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), f"bind {source} on {target}")


def new_devices():
    """/dev becomes a folder with four devices that everyone may use, and shm."""
    mount_memory("/dev/shm", 1 << 20)
    os.mkdir("/dev/shm/shm")
    os.symlink("/proc/self/fd", "/dev/shm/fd")
    for name in ("null", "zero", "random", "urandom"):
        os.close(os.open(f"/dev/shm/{name}", os.O_CREAT))
        bind(f"/dev/{name}", f"/dev/shm/{name}")
    bind("/dev/shm", "/dev")


def hidden_folders(home):
    """Real paths of the folders that are emptied: those without a part of the interpreter."""
    interpreter = [path for path in (sys.executable, sys.prefix, sys.base_prefix, os.__file__, *sys.path) if path]
    needed = [kind(path) + "/" for path in interpreter for kind in (os.path.abspath, os.path.realpath)]
    found = {os.path.realpath(path) for path in ("/run", "/var/run", "/tmp", home) if path and os.path.isdir(path)}
    return sorted(path for path in found - {"/"} if not any(n.startswith(path + "/") for n in needed))


def close_doors(folder, home):
    """Everything except the folder becomes read-only, the folder and /dev are new and small, loopback is the only
    network."""
    below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    new_devices()
    for path in hidden_folders(home):
        if os.path.isdir(path):  # or it lay in one that is hidden already
            mount_memory(path, 1 << 20)
    os.makedirs(folder, exist_ok=True)
    mount_memory(folder, DISK_BYTES)
    shutil.copytree(f"/proc/self/fd/{below}", folder, dirs_exist_ok=True)
    os.close(below)
    set_read_only("/", deep=True)
    set_read_only(folder, on=False)
    set_read_only("/proc", on=False)  # for the maps of the second user namespace
    mount_memory("/dev/shm", DISK_BYTES)
    limit_pids()
    for path in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"):  # the machine's, not ours
        if os.path.exists(path):
            bind(path, path)
            set_read_only(path, deep=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def limit_pids():
    """Limit the process ids, from Linux 6.14 on; before, the limit is the whole machine's, and main() has to watch."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) >= (6, 14):
        with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "w", encoding="ascii") as file:
            file.write(str(PIDS))


def memory_of(process):
    """Resident bytes of a process, 0 when it has gone."""
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def stat_of(path):
    """(state letter, seconds of CPU time of a process and of its children that have ended) of /proc/.../stat."""
    try:
        with open(path, encoding="latin-1") as file:  # a process may take any bytes as its name
            words = file.read().rpartition(")")[2].split()
        return words[0], sum(map(int, words[11:15])) / TICKS
    except (OSError, ValueError, IndexError):
        return "", 0.0


def is_runnable(process):
    """Whether a thread of a process runs, or waits for a CPU or a disk only."""
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:
        return False
    return any(stat_of(f"/proc/{process}/task/{thread}/stat")[0] in ("R", "D") for thread in threads)


def shared_memory():
    """Bytes of the machine's shared memory and files in memory. While no process maps them, no process's resident pages
    include them."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith("Shmem:")), 0)


def start(command, cpu_seconds):
    """The process of the command, with limits for each process in it."""
    limits = {
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CPU: cpu_seconds + 5,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    # at the lowest priority, so that the watch gets its turn however many processes there are
    inside = ["nice", "-n", "19", "unshare", "--user", "--map-root-user", "--mount", *command]
    return subprocess.Popen(inside, stdin=subprocess.DEVNULL)


def watch(child, cpu_seconds, wall_seconds, idle_seconds, memory):
    """Exit code of the command, or one of those above."""
    shared, begun = shared_memory(), time.monotonic()
    used, worked = 0.0, begun  # CPU seconds, and when some were used last
    while child.poll() is None:
        now = time.monotonic()
        alive = [name for name in os.listdir("/proc") if name.isdecimal()]
        others = [name for name in alive if name != "1"]
        cpu = sum(stat_of(f"/proc/{name}/stat")[1] for name in others) + sum(os.times()[2:4])
        if cpu != used:
            used, worked = cpu, now
        if used > cpu_seconds:
            return TOO_LONG
        if len(alive) > PROCESSES:
            return TOO_MANY
        if sum(map(memory_of, alive)) + max(0, shared_memory() - shared) > memory:
            return TOO_LARGE
        if now - worked > idle_seconds:
            if not any(map(is_runnable, others)):
                return IDLE
            worked = now  # it waits for its turn on a busy machine
        if now - begun > wall_seconds:
            return TOO_SLOW
        time.sleep(0.02)
    if child.returncode < 0:
        return TOO_LONG if -child.returncode == signal.SIGXCPU else 128 - child.returncode
    return child.returncode if child.returncode < IDLE or child.returncode > NO_SANDBOX else 1


def main(folder, home, cpu_seconds, wall_seconds, idle_seconds, memory, *command):
    """Exit code of the command, or one of those above."""
    close_doors(folder, home)
    os.chdir(folder)
    child = start(command, int(cpu_seconds))
    return watch(child, int(cpu_seconds), int(wall_seconds), int(idle_seconds), int(memory))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the first process of the namespace: the kernel kills the rest
