"""One shape of command line for the three tools: `python -m common.data`, `python -m parity`, `python -m records`.

A command is a module with add_command(subparsers), which adds its parser and sets `run`: a function of the parsed
options that returns the exit code, or None for 0. It raises UserError for what the user can fix.
"""
import argparse
import contextlib
import os
import sys
from pathlib import Path

from common.files import escape_in, open_streams, with_remedy
from common.settings import UserError


@contextlib.contextmanager
def installed(extra, name):
    """Around the imports of a tool, the module `name`: where it runs and a library is missing, one line says so. extra:
    of pyproject.toml."""
    problem = ""
    if sys.platform == "win32":
        problem = "Windows is not supported: use WSL (`wsl --install`), and this command there"
    else:
        try:
            yield
        except ModuleNotFoundError as missing:
            if name != "__main__":
                raise
            problem = missing_library(missing, extra)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def missing_library(missing, extra):
    """What to do about an ImportError. Raises it where it is a defect of ours."""
    if (missing.name or "").split(".")[0] in ("common", "parity", "records"):
        raise missing
    made = " or the Python of `make`, .venv/bin/python," if Path(".venv/bin/python").exists() else ""
    return f"{missing}: `pip install '.[{extra}]'`{made} provides what this command needs"


def path_argument(text):
    """Path of an argument, in which no shell may have replaced a leading ~."""
    return Path(os.path.expanduser(text))


def run_command(tool, description, commands, arguments=None, default=None, extra=""):
    """Exit code of one command: 2 after one line of error. tool: as in `python -m tool`; commands: modules; default:
    the command if the first argument is a flag, or none is given; extra: the extra of pyproject.toml that has what
    they import. A command that sets `takes_settings` gets the arguments that it does not know as options.settings."""
    parser = argparse.ArgumentParser(
        f"python -m {tool}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=not default)
    for module in commands:
        module.add_command(subparsers)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if default and (not arguments or (arguments[0][:1] == "-" and arguments[0] not in ("-h", "--help"))):
        arguments.insert(0, default)
    code = 0
    os.environ["MPLBACKEND"] = "agg"  # pictures go into files, whatever a notebook has set
    escape_in(sys.stdout, sys.stderr)
    with closed_pipe_is_quiet():
        options, rest = parser.parse_known_args(arguments)
        if rest and "takes_settings" not in options:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.settings = rest
        code = exit_code(options, extra)
    return code


@contextlib.contextmanager
def closed_pipe_is_quiet():
    """`| head` closes the pipe: what is inside ends then, without a message. Covers --help, which raises SystemExit."""
    open_streams()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # or Python flushes when it exits, and complains
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(options, extra):
    """Run a command; what the user can fix becomes one line of error."""
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        raise
    except UserError as error:
        problem = error
    except ImportError as error:
        problem = missing_library(error, extra)
    except OSError as error:
        problem = with_remedy(error)
    except KeyboardInterrupt:
        problem = "interrupted"
    print(f"error: {problem}", file=sys.stderr)
    return 2
