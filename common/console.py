"""What a person sees of a run: lines, the phases that begin, errors. The log (runlog.py) has no phases."""
import contextlib
import os
import sys
import threading

from tqdm import tqdm


def say(text, file=None, end="\n"):
    """Print a line above the progress bar. A closed pipe or a full disk does not end the run."""
    file = file or sys.stdout
    with contextlib.suppress(OSError):
        try:
            tqdm.write(text, file=file, end=end)
            file.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # or Python complains when it exits


def say_end(error, status_line, hint):
    """How a run ended: the error on stderr, status_line on stdout; on a terminal, which shows both, the error with the
    hint. Either may be empty."""
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    if error:
        say(f"error: {error}\n  {hint}" if terminal and hint else f"error: {error}", sys.stderr)
    if status_line and not (terminal and error):
        say(status_line)


@contextlib.contextmanager
def phase(name, text):
    """A line on stderr as a phase begins; on a terminal, a clock runs beside it until the body ends."""
    text, done = f"{name:<10}{text}", threading.Event()
    if not sys.stderr.isatty():
        say(text, sys.stderr)
        yield
        return
    with tqdm(bar_format=f"{text}  {{elapsed}}") as line:
        def run_clock():
            while not done.wait(1.0):
                line.refresh()

        clock = threading.Thread(target=run_clock, daemon=True)
        clock.start()
        try:
            yield
        finally:
            done.set()
            clock.join()
