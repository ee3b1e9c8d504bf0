"""Make or fetch training data: `python -m common.data COMMAND --help`."""
import argparse
import contextlib
import errno
import os
import signal
import sys
import threading

from common.data import check, export, fineweb, pydoc, samples, stats
from common.settings import UserError

COMMANDS = [pydoc, fineweb, export, check, stats, samples]  # each has add_command(subparsers), which sets `run`, a function of the parsed arguments


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m common.data", description="Make or fetch training data.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(subparsers)
    options = parser.parse_args(arguments)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "run" not in options:
        parser.print_help()
        return 0
    try:
        options.run(options)
        return 0
    except KeyboardInterrupt:
        error = "interrupted"
    except UserError as problem:
        error = problem
    except OSError as problem:
        error = f"{problem}: free some space, then run the same command again" if problem.errno == errno.ENOSPC else problem
    print(f"error: {error}", file=sys.stderr)
    return 2


def end_with(code: int) -> None:
    """Ends the process, without a wait for the thread of a pool whose killed processes left it waiting."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end_with(main())
