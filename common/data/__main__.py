"""Make or fetch training data: `python -m common.data COMMAND --help`."""
import contextlib
import os
import signal
import sys
import threading

from common.command import installed, run_command

with installed("data", __name__):
    from common.data import check, export, fineweb, pydoc, samples, stats
    from common.data.workers import end_if_imported


def main(arguments: list[str] | None = None) -> int:
    """Exit code of one command; without arguments, the help."""
    end_if_imported()
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is complete is kept
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = [pydoc, fineweb, export, check, stats, samples]
    return run_command("common.data", "Make or fetch training data.", commands, arguments or ["--help"], extra="data")


def end_with(code: int) -> None:
    """End the process, even if the thread of a pool still waits for worker processes that were killed."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end_with(main())
