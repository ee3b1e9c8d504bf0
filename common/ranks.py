"""What several processes of one run must know of each other, and what signals ask of them."""
import contextlib
import fcntl
import json
import os
import platform
import signal
import sys
import threading
import time

from common.folder import end_run

BEAT_SECONDS, RECORD_BYTES = 0.5, 4096
ORDERLY = "finished", "capped", "interrupted", "over_budget"


class Interrupt:
    """Handler of SIGINT and SIGTERM. The first one asks for a stop at the end of the step where `waits` is set, else it raises
    KeyboardInterrupt; one that comes a second later or more always does. Launchers send a Ctrl-C twice: that is one."""

    def __init__(self):
        self.asked, self.waits = 0.0, False

    def __call__(self, number, frame):
        now = time.monotonic()
        again, early = self.asked > 0, now - self.asked < 1
        self.asked = self.asked if again and early else now
        if not (early if again else self.waits):
            raise KeyboardInterrupt


class RankWatch:
    """Notices a rank that died, failed or hangs, says so in one line and ends this process, which may be waiting for that rank in a
    call that nothing interrupts. Each rank locks FOLDER/rank<r>, and the lock goes when the process does; twice a second it writes
    there how far it is. The lowest rank in order speaks. Ranks whose file is not seen, on another machine, are not watched."""

    def __init__(self, path, rank, world_size, timeout):
        self.path, self.rank, self.timeout, self.steps = path, rank, timeout, 0  # steps made
        self.state = {"pid": os.getpid(), "host": platform.node(), "step": 0, "phase": 0, "ended": "", "reason": "", "beat": 0}
        self.marked, self.limit, self.peers, self.thread = 0.0, float("inf"), {}, None
        if world_size > 1 and path.is_dir():
            self.file = os.open(path / f"rank{rank}", os.O_RDWR | os.O_CREAT)
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.beat()

    def start(self, world_size):
        """Once every rank has made its file."""
        for rank in {*range(world_size)} - {self.rank}:
            if (path := self.path / f"rank{rank}").exists():
                self.peers[rank] = [os.open(path, os.O_RDONLY), b"", 0.0]
        if self.peers:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()

    def mark(self, step, phase, limit):
        """Called as the run goes on: steps made, 0 before its data are read and 1 after, and for how many seconds that may stay so."""
        self.steps = step
        if self.thread:
            self.state |= {"step": step + 1, "phase": phase}
            self.marked, self.limit = time.monotonic(), limit
            self.beat()

    def close(self, status, reason, doubtful=False):
        """This rank ends, and tells the others why. A doubtful end may be the effect of another rank's, which then is told instead."""
        if self.thread:
            if doubtful:
                self.thread.join(4 * BEAT_SECONDS)
            self.state |= {"ended": status, "reason": reason[:500]}
            self.beat()

    def beat(self):
        self.state["beat"] += 1
        with contextlib.suppress(OSError):  # a full disk ends no training
            os.pwrite(self.file, json.dumps(self.state).encode().ljust(RECORD_BYTES)[:RECORD_BYTES], 0)

    def run(self):
        before = {}
        while not self.state["ended"]:
            self.beat()
            found = self.look()
            if found and found.keys() == before.keys():  # seen twice
                self.leave(found)
            before = found
            time.sleep(BEAT_SECONDS)

    def look(self):
        """dict rank -> (status, reason) of the ranks that are not in order."""
        now, wrong, states = time.monotonic(), {}, {self.rank: self.state}
        for rank, peer in self.peers.items():
            record = os.pread(peer[0], RECORD_BYTES, 0)
            if record != peer[1]:
                peer[1:] = record, now
            try:
                states[rank] = state = json.loads(record)
            except ValueError:  # read while it was written
                continue
            place = f"rank {rank} (process {state['pid']} on {state['host']})"
            if state["ended"]:
                if state["ended"] not in ORDERLY or (state["ended"] == "interrupted" and now - peer[2] > 3):
                    wrong[rank] = "rank_lost" if state["ended"] == "failed" else state["ended"], f"{place} failed: {state['reason']}"
            elif self.unlocked(peer[0]):
                wrong[rank] = "rank_lost", f"{place} died in step {state['step']}"
            elif now - peer[2] > self.timeout:
                wrong[rank] = "timeout", f"{place} hangs in step {state['step']}: no sign of life for {now - peer[2]:.0f} s"
        if not wrong and now - self.marked > self.limit:
            far = {rank: (state["step"], state["phase"]) for rank, state in states.items()}
            late = [rank for rank in far if far[rank] == min(far.values())]
            for rank in late if len(late) < len(far) else far:
                wrong[rank] = "timeout", f"rank {rank} hangs in step {far[rank][0]}, for {now - self.marked:.0f} s"
        self.states = states
        return wrong

    @staticmethod
    def unlocked(file):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        return True

    def leave(self, wrong):
        status, reasons = next(iter(wrong.values()))[0], "; ".join(reason for _, reason in wrong.values())
        if self.rank == min([r for r, state in self.states.items() if r not in wrong and not state["ended"]] or self.states):
            for rank in wrong.keys() & self.peers.keys():  # a process that hangs would keep the launcher waiting
                state = self.states[rank]
                if not state["ended"] and state["host"] == platform.node() and not self.unlocked(self.peers[rank][0]):
                    os.kill(state["pid"], signal.SIGKILL)
            print(f"error: {reasons}", file=sys.stderr)
            print(end_run(self.path, status, reasons, f"continue with --resume {self.path}" if [*self.path.glob("step-*.checkpoint")] else "",
                          self.steps), flush=True)
            sys.stderr.flush()
        else:
            time.sleep(4 * BEAT_SECONDS)
        os._exit(2)
