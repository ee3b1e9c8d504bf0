"""Work spread over processes: results come in the order of the work, and no process outlives the command."""
import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading

from common.machine import group_values
from common.settings import UserError

MOST_WORKERS = 256
Died = concurrent.futures.BrokenExecutor  # raised by a result when a process of the pool is gone


def add_workers(parser) -> None:
    parser.add_argument("--workers", type=int, default=min(usable_cpus(), MOST_WORKERS),
                        help="processes; the result does not depend on it (default: %(default)s)")


def usable_cpus():
    """CPUs that this process may run on, or the least that a control group allows, rounded up."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [*group_values("cpu.max"), *group_values("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return min([here, *(-(-quota // period) for quota, period in limits)])


class _Here:
    """What is used of a pool, without processes."""

    def submit(self, function, *arguments):
        done = concurrent.futures.Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, **_):
        pass


def _make_pool(workers: int):
    """A pool. UserError: there can be none here; one worker needs no process then."""
    try:
        return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    except (OSError, ImportError, NotImplementedError) as error:  # no semaphores
        if workers == 1:
            return _Here()
        raise UserError(f"--workers {workers}: processes cannot work together here, as /dev/shm is full, missing or "
                        f"read-only ({error}): use --workers 1") from None


def _see_it_start(pool) -> None:
    """UserError: its processes die before they begin to work."""
    try:
        pool.submit(int).result()
    except Died:
        raise UserError("the worker processes end before they have begun: a script that calls this must do so below "
                        "`if __name__ == '__main__':`, as each process imports the script") from None


def end_if_imported() -> None:
    """End a worker process that is to do again what its script does, as a script without a main guard makes it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # the parent may be killed


@contextlib.contextmanager
def worker_pool(workers: int):
    """A pool of processes. After an error they are ended at once. UserError: a number that is not possible, or one of
    them died."""
    if not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers {workers}: 1 to {MOST_WORKERS} are possible")
    end_if_imported()
    others = multiprocessing.active_children()
    pool = _make_pool(workers)
    try:
        _see_it_start(pool)
        yield pool
    except BaseException as error:
        for child in set(multiprocessing.active_children()).difference(others):
            child.kill()
        # The pool's own thread may wait forever for the rest of what a child had begun to send.
        ending = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        ending.start()
        ending.join(5)
        if isinstance(error, Died):
            raise UserError(f"one of {workers} worker processes died, perhaps for lack of memory: "
                            "use fewer --workers") from None
        raise
    else:
        pool.shutdown()


def in_order(pool, function, jobs, ahead: int):
    """(job, function(job)) of each job, in order. Jobs are taken only as needed; at most `ahead` + 1 are under way."""
    waiting = collections.deque()
    for job in jobs:
        waiting.append((job, pool.submit(function, job)))
        if len(waiting) > ahead:
            yield waiting[0][0], waiting.popleft()[1].result()
    while waiting:
        yield waiting[0][0], waiting.popleft()[1].result()
