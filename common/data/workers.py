"""Work spread over processes: results come in the order of the work, and no process outlives the command."""
import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading

from common.settings import UserError

Died = concurrent.futures.BrokenExecutor  # raised by a result when a process of the pool is gone


def add_workers(parser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores,
                        help="processes; the result does not depend on it (default: %(default)s)")


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # the parent may be killed


@contextlib.contextmanager
def worker_pool(workers: int):
    """A pool of processes. After an error they are ended at once. UserError: a number that is not possible, or one of
    them died."""
    if not 1 <= workers <= 256:
        raise UserError(f"--workers {workers}: 1 to 256 are possible")
    others = multiprocessing.active_children()
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
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
