"""A sandbox for a command and a copy of a record's folder: Linux namespaces of its own (`unshare`).

Inside there is no network except loopback, an environment of our choice, one writable folder (the copy, in memory), and
limits on CPU time, processes, memory and written bytes. This stops accidents and lazy cheating. It is not a virtual
machine: the kernel is shared, and the code can read every file that you can read. It can connect to Unix sockets
outside /run, /tmp and your home (and inside these, where Python lies in them). You see what it prints. Where the
sandbox cannot be set up, nothing is run.
"""
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

from records.jail import TOO_SLOW

PROBE_SECONDS = 30  # for `unshare` to answer
START_SECONDS = 60  # to set up the sandbox and to end it
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc",
           "--kill-child")
# Of all processes of a command. CPU seconds bound its work, whatever else the machine does. Only a command that waits
# meets the others: so long without any CPU time, and without a thread that asks for it, or so long in all.
Limits = namedtuple("Limits", "cpu wall idle memory", defaults=(300, 1800, 60, 8 << 30))


def can_sandbox():
    """Why a sandbox cannot be set up here; "" where it can."""
    if sys.platform != "linux":
        return f"there is no sandbox on {sys.platform}"
    if not shutil.which("unshare"):
        return "`unshare` of util-linux is not installed"
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, encoding="utf-8", errors="replace",
                              check=False, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"`unshare` did not answer in {PROBE_SECONDS} s"
    if done.returncode:
        return f"user namespaces are not allowed here ({done.stderr.strip()[-100:]})"
    return ""


def run_jailed(command, copy, output, settings, limits):
    """Exit code of a command in the sandbox, or one of those of jail.py. Its output goes into a file. settings: dict of
    its environment, besides PATH, HOME, TMPDIR, LANG and USER."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(copy), "TMPDIR": str(copy), "LANG": "C.UTF-8",
                   "USER": "record"}  # there may be no passwd entry to ask
    home = os.path.expanduser("~")  # "~" where there is neither HOME nor a passwd entry; Path.home() would raise
    environment |= {name: str(value) for name, value in settings.items()}
    program = Path(__file__).with_name("jail.py")
    given = map(str, (program, copy, home, limits.cpu, limits.wall, limits.idle, limits.memory))
    jail = [*UNSHARE, sys.executable, "-I", *given, *command]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            jail,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=copy,
            start_new_session=True,
        )
        try:
            return process.wait(limits.wall + START_SECONDS)
        except subprocess.TimeoutExpired:
            return TOO_SLOW
        finally:
            process.kill()  # --kill-child: what is inside goes with it
            process.wait()
