"""One shape of command line for the three tools: `python -m common.data`, `python -m parity`, `python -m records`.

A command is a module with add_command(subparsers), which adds its parser and sets `run`: a function of the parsed
options that returns the exit code, or None for 0. It raises UserError for what the user can fix.
"""
import argparse
import errno
import os
import sys

from common.settings import UserError


def run_command(tool, description, commands, arguments=None, default=None, extra=""):
    """Exit code of one command: 2 after one line of error. tool: as in `python -m tool`; commands: modules; default: the
    command where the first argument does not name one; extra: the extra of pyproject.toml that has what they import.
    A command that sets `takes_settings` gets the arguments that it does not know as options.settings."""
    parser = argparse.ArgumentParser(
        f"python -m {tool}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=not default)
    for module in commands:
        module.add_command(subparsers)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if default and (not arguments or arguments[0] not in {*subparsers.choices, "-h", "--help"}):
        arguments.insert(0, default)
    options, rest = parser.parse_known_args(arguments)
    if rest and "takes_settings" not in options:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.settings = rest
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return 0
    except UserError as error:
        problem = error
    except ImportError as error:
        problem = f"{error}: `pip install '.[{extra}]'` provides what this command needs"
    except OSError as error:
        problem = f"{error}: free some space, then run the command again" if error.errno == errno.ENOSPC else error
    except KeyboardInterrupt:
        problem = "interrupted"
    print(f"error: {problem}", file=sys.stderr)
    return 2
