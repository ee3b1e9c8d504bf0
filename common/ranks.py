"""What the ranks of a run agree on, the watch over the other ranks, and signals."""
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from common.console import say_end
from common.files import as_utf8, try_lock
from common.folder import end_run, resume_hint
from common.settings import UserError

BEAT_SECONDS, RECORD_BYTES = 0.5, 4096
PATIENCE = 600.0  # seconds for what may compile, or is no step
MEETING = 10.0  # seconds until a rank says whom it waits for
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LAUNCHED = {"torch": ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
            "mlx": ("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_IBV_DEVICES")}
ALONE = "start all ranks with torchrun or mlx.launch, or unset these variables to train alone"
WAITER = """import select, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr)
"""
ORDERLY = "finished", "capped", "interrupted", "over_budget"


class Agreed(UserError):
    """Raised on every rank at the same place."""


def launched_rank(backend):
    """(rank, number of ranks, the variables as text) as a launcher sets them; empty is unset. Raises UserError."""
    names = LAUNCHED[backend]
    given = {name: value for name in names if (value := os.environ.get(name, "").strip())}
    for name in names - given.keys():
        os.environ.pop(name, None)
    text = " ".join(f"{name}={value}" for name, value in given.items())
    try:
        rank, size = int(given.get(names[0], 0)), int(given.get(names[1], 1))
    except ValueError:
        rank = size = -1
    others = len(given) == 4 and rank < size if backend == "torch" else len(given) > 1
    if (rank, size) != (0, 1) and not (others and rank >= 0):
        raise UserError(f"{text!r} is not a rank of a run: {ALONE}", "bad_settings")
    return rank, size, text


@contextlib.contextmanager
def meeting(text):
    """Around the call that waits for all ranks, deaf to Python: a signal ends it, and a child reports a long wait."""
    waiter = subprocess.Popen([sys.executable, "-SEc", WAITER, str(MEETING), f"waiting for the other ranks: {text}: "
                               f"{ALONE}"], stdin=subprocess.PIPE, start_new_session=True)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS
              if isinstance(signal.getsignal(number), Interrupt)}
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{text}: {str(error).splitlines()[0]}: {ALONE}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        waiter.communicate()


def agree(trainer, seconds, *flags):
    """(rank 0's seconds, whether each flag is True on any rank), on every rank."""
    if trainer.world_size == 1:
        return seconds, *flags
    total = trainer.all_sum(np.array([seconds if trainer.rank == 0 else 0.0, *flags], float))
    return float(total[0]), *map(bool, total[1:])


def rank_0_text(trainer, text):
    """The text (up to 255 bytes) of rank 0, on every rank."""
    codes = np.frombuffer(text.encode().ljust(255), np.uint8) * float(trainer.rank == 0)
    return bytes(trainer.all_sum(codes).astype(np.uint8)).decode().rstrip()


def together(trainer, act):
    """The result of act(). Raises UserError or OSError on every rank if act() does on one."""
    made = problem = None
    try:
        made = act()
    except (UserError, OSError) as error:
        problem = error
    if agree(trainer, 0.0, problem is not None)[1]:
        trainer.close()
        raise problem or Agreed("another rank cannot go on, and says why")
    return made


class Interrupt:
    """Handler of SIGINT, SIGTERM and SIGHUP inside a `with`. The first signal asks for a stop after the step where
    `waits` is set, else it raises KeyboardInterrupt; one that comes a second later or more always raises. Launchers
    send a Ctrl-C twice: that counts once."""

    def __init__(self):
        self.asked, self.waits, self.before = 0.0, False, {}

    def __enter__(self):
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self.before[number] = signal.signal(number, self)
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, number, frame):
        now = time.monotonic()
        again, early = self.asked > 0, now - self.asked < 1
        self.asked = self.asked if again and early else now
        if not (early if again else self.waits):
            raise KeyboardInterrupt


class RankWatch:
    """Reports a rank that died, failed or hangs, and ends this process, which may be waiting for it in a call that
    nothing interrupts. Each rank locks FOLDER/rank<r> until it dies, and writes its heartbeat there twice a second: how
    far it is. The lowest rank in order reports. Ranks on machines that do not share the folder are not watched."""

    def __init__(self, path, rank, world_size, timeout):
        self.path, self.rank, self.timeout, self.steps = path, rank, timeout, 0  # steps made
        self.state = {"pid": os.getpid(), "host": platform.node(), "ended": "", "reason": "", "beat": 0,
                      "far": [], "place": "the beginning", "limit": PATIENCE}
        self.world_size, self.thread, self.lock = world_size, None, threading.Lock()
        self.peers = {}  # rank -> [file, its last heartbeat, when that was first seen]
        self.states = {}  # rank -> state, as last read
        self.since = {}  # rank -> (how far it is, when that was first seen)

    def hold(self):
        """Make and lock this rank's file. Raises UserError."""
        if self.world_size > 1 and self.path.is_dir():
            self.file = os.open(self.path / f"rank{self.rank}", os.O_RDWR | os.O_CREAT)
            end = time.monotonic() + 10 * BEAT_SECONDS
            while try_lock(self.file, self.path) is False:
                if time.monotonic() > end:
                    raise UserError(f"rank {self.rank} of an earlier run in {self.path} is still running: stop "
                                    "that process, then start again")
                time.sleep(BEAT_SECONDS / 10)
            self.beat()

    def start(self):
        """Begin to watch, once every rank has made its file."""
        for rank in {*range(self.world_size)} - {self.rank}:
            if (path := self.path / f"rank{rank}").exists():
                self.peers[rank] = [os.open(path, os.O_RDONLY), b"", 0.0]
        if self.peers:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()

    def mark(self, far, place, limit):
        """Say how far the run is (a list of numbers that grows), the same in words, and the seconds it may take."""
        if self.thread:
            self.state |= {"far": far, "place": place, "limit": limit}
            self.beat()

    def each(self, far, place, limit):
        """A function that passes on items and marks each, counted behind `far`."""
        def marked(items):
            for number, item in enumerate(items):
                self.mark([*far, number], place, limit)
                yield item
            self.mark([*far, 1 << 40], place, PATIENCE)  # further than any that has not finished
        return marked

    def close(self, status, reason, doubtful=False):
        """This rank ends, and says why. doubtful: another rank may be the cause, and is then reported."""
        if self.thread:
            if doubtful:
                self.thread.join(4 * BEAT_SECONDS)
            self.state |= {"ended": status, "reason": as_utf8(reason)[:500].encode()[:2000].decode(errors="ignore")}
            self.beat()

    def beat(self):
        with self.lock, contextlib.suppress(OSError):  # a full disk does not end the training
            self.state["beat"] += 1
            os.pwrite(self.file, json.dumps(self.state, ensure_ascii=False).encode().ljust(RECORD_BYTES), 0)

    def run(self):
        before = {}
        while not self.state["ended"]:
            self.beat()
            found = self.look()
            if found and found.keys() == before.keys():  # seen twice
                self.leave(found)
            before, clock = found, time.monotonic()
            time.sleep(BEAT_SECONDS)
            if time.monotonic() - clock > 5 * BEAT_SECONDS:  # the machine was suspended
                self.since, self.peers = {}, {rank: [peer[0], b"", 0.0] for rank, peer in self.peers.items()}

    def look(self):
        """dict rank -> (status, reason) of the ranks that are not in order."""
        now, wrong, states = time.monotonic(), {}, {self.rank: dict(self.state)}
        for rank, peer in self.peers.items():
            record = os.pread(peer[0], RECORD_BYTES, 0)
            if record != peer[1]:
                peer[1:] = record, now
            try:
                states[rank] = json.loads(record)
            except ValueError:  # read while it was written
                if rank not in self.states:
                    continue
                states[rank] = self.states[rank]
            if found := self.judge(rank, states[rank], now - peer[2]):
                wrong[rank] = found
        self.states = states
        return wrong or self.late_ranks(now)

    def judge(self, rank, state, silent):
        """(status, reason) of a rank that failed, died or is silent for too long (seconds); None of another."""
        place, ended = f"rank {rank} (process {state['pid']} on {state['host']})", state["ended"]
        if ended in ORDERLY and not (ended == "interrupted" and silent > 3):
            return None
        if ended:
            return "rank_lost" if ended == "failed" else ended, f"{place} failed: {state['reason']}"
        if dead(self.peers[rank][0]):
            return "rank_lost", f"{place} died in {state['place']}"
        if silent > self.timeout:
            return "timeout", f"{place} hangs in {state['place']}: no heartbeat for {silent:.0f} s"
        return None

    def late_ranks(self, now):
        """The same of the ranks that are the furthest behind for too long: the others may only wait for them."""
        since = {}
        for rank, state in self.states.items():
            far, seen = self.since.get(rank, (None, now))
            since[rank] = state["far"], seen if far == state["far"] else now
        self.since, last = since, min(far for far, _ in since.values())
        late = {}
        for rank, (far, seen) in since.items():
            if far == last and now - seen > self.states[rank]["limit"]:
                late[rank] = "timeout", f"rank {rank} hangs in {self.states[rank]['place']}, for {now - seen:.0f} s"
        if len(late) == len(since):
            seconds = now - since[self.rank][1]
            reason = (f"no rank makes progress in {self.state['place']}, for {seconds:.0f} s: one of them hangs, or "
                      "the connection between them is lost")
            late = dict.fromkeys(late, ("timeout", reason))
        return late

    def leave(self, wrong):
        """Report these ranks, end those that hang, and this process."""
        status, reasons = next(iter(wrong.values()))[0], [reason for _, reason in wrong.values()]
        others = [rank for rank, state in self.states.items() if rank not in wrong and not state["ended"]]
        if self.rank != min(others or self.states):
            time.sleep(4 * BEAT_SECONDS)
            os._exit(2)
        for rank in wrong.keys() & self.peers.keys() if others else ():  # a hung one keeps the launcher waiting
            state = self.states[rank]
            if not state["ended"] and state["host"] == platform.node() and not dead(self.peers[rank][0]):
                os.kill(state["pid"], signal.SIGKILL)
        reason = "; ".join(dict.fromkeys(reasons))
        hint = resume_hint(self.path)
        say_end(reason, end_run(self.path, status, reason, hint, self.steps), hint)
        os._exit(2)


def dead(file):
    """Whether no process holds the lock of a rank's file, as far as files can be locked."""
    if free := try_lock(file, "rank", "LOCK_SH"):
        try_lock(file, "rank", "LOCK_UN")
    return bool(free)
