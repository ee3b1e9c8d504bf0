"""Are the two backends one model?

    python -m parity                                        climb the ladder here, torch against MLX, on the CPU
    python -m parity export --backend mlx FILE              write what one backend shows on this machine
    python -m parity compare FILE --backend torch           climb the ladder against such a file, elsewhere
    python -m parity curves                                 train both side by side and draw the losses

Exit code 0: every rung holds; 1: one does not; 2: it could not be tried. `python -m parity climb --help` tells the ladder's options.
"""
import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from common.settings import UserError
from parity import curves, ladder, portable, problem


def show(backend, task, dtype, **changes):
    """problem.observe, with a line on a terminal that tells how far it is. Raises UserError."""
    def progress(rung):
        if sys.stderr.isatty():
            print(f"\r\033[K{rung and f'{backend} {dtype}: {rung} ...'}", end="", file=sys.stderr, flush=True)

    try:
        return problem.observe(problem.trainer_class(backend), task, dtype, progress, **changes)
    except ValueError as error:  # weights that are not finite cannot be quantized
        raise UserError(f"{backend} in {dtype}: {error}") from None
    finally:
        progress("")


def report(title, rows, as_json, started, **more):
    """Prints one ladder; whether it holds."""
    if as_json:
        print(json.dumps({"ladder": title, "rungs": [dataclasses.asdict(row) for row in rows]} | more, sort_keys=True, allow_nan=False))
    else:
        print(*(f"{name}: {text}" for name, text in more.items()), title, ladder.table(rows), f"({time.perf_counter() - started:.0f} s)\n",
              sep="\n", flush=True)
    return all(row.passed for row in rows)


def climb_here(options):
    for backend in ("torch", "mlx"):
        problem.trainer_class(backend)  # one that is missing is told at once
    task = problem.make_problem(problem.embedded_corpus(options.data), options.steps, tie_embeddings=not options.untied)
    held = True
    for dtype in options.dtype or problem.DTYPES[:2]:
        started = time.perf_counter()
        sides = {backend: show(backend, task, dtype, device="cpu", compile=options.compile)[0] for backend in ("torch", "mlx")}
        rows = ladder.climb(dtype, sides["torch"], sides["mlx"], ("torch", "mlx"))
        full, tokens = problem.full_weights(task.settings), problem.first_rows(task)
        rows += [ladder.against_definition(dtype, task.settings, full, tokens, side, name) for name, side in sides.items()]
        held &= report(f"torch against mlx, {dtype}, CPU, {task.steps} steps", rows, options.json, started)
    return held


def export(options):
    if not options.file.parent.is_dir():
        raise UserError(f"{options.file.parent} is no folder: make it, or name another file")
    task = problem.make_problem(problem.embedded_corpus(options.data), options.steps, tie_embeddings=not options.untied)
    shown, device = show(options.backend, task, options.dtype, device=options.device, compile=options.compile)
    portable.write_fixture(options.file, task, shown, options.backend, options.dtype, f"{device}{', compiled' * options.compile}")
    print(f"{options.file}: {options.file.stat().st_size:,} bytes, what {options.backend} shows in {options.dtype} on {device}")
    return True


def compare_file(options):
    started = time.perf_counter()
    task, theirs, meta = portable.read_fixture(options.file)
    ours, device = show(options.backend, task, meta["dtype"], device=options.device, compile=options.compile)
    sides = f"{meta['backend']} (file)", f"{options.backend} (here)"
    return report(f"{sides[0]} against {sides[1]}, {meta['dtype']}, {task.steps} steps", ladder.climb(meta["dtype"], theirs, ours, sides),
                  options.json, started, file=meta["machine"], here=f"{device}{', compiled' * options.compile}")


def main(arguments=None):
    """Exit code."""
    parser = argparse.ArgumentParser("python -m parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands")
    climber = commands.add_parser("climb", help="climb the ladder here: the default")
    exporter = commands.add_parser("export", help="write what one backend shows")
    comparer = commands.add_parser("compare", help="climb against such a file")
    curver = commands.add_parser("curves", help="train both side by side and draw the losses")
    for command, run in ((climber, climb_here), (exporter, export), (comparer, compare_file), (curver, curves.run)):
        command.set_defaults(run=run)
    for command in (exporter, comparer):
        command.add_argument("file", type=Path)
        command.add_argument("--backend", choices=("torch", "mlx"), required=True)
        command.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    for command in (climber, exporter, curver):
        command.add_argument("--data", type=Path, default=Path("data/pydoc_sp1024"), help="data folder (default: the embedded corpus)")
    for command in (climber, exporter):
        command.add_argument("--steps", type=at_least(1), default=20,
                             help="optimizer steps of the training rung (default: 20, for which the bounds of losses were measured)")
        command.add_argument("--untied", action="store_true", help="with a head of its own")
    climber.add_argument("--dtype", action="append", choices=problem.DTYPES, help="again for more (default: float64 and float32)")
    exporter.add_argument("--dtype", choices=problem.DTYPES, default="float32", help="default: float32")
    for command in (climber, exporter, comparer):
        command.add_argument("--compile", action="store_true", help="compiled, as training is")
    for command in (climber, comparer):
        command.add_argument("--json", action="store_true", help="one JSON object a ladder instead of the table")
    curver.add_argument("--steps", type=at_least(1), default=100, help="optimizer steps of each run (default: 100)")
    curver.add_argument("--seeds", type=at_least(3), default=3, help="at least 3 (default: 3)")
    curver.add_argument("-o", "--output", type=Path, default=Path("parity_curves.png"), help="a .png, .svg or .pdf (default: parity_curves.png)")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in {*commands.choices, "-h", "--help"}:
        arguments = ["climb", *arguments]
    options = parser.parse_args(arguments)
    try:
        return 0 if options.run(options) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 2


def at_least(least):
    """The type of an argument: an integer that is no smaller."""
    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)
    number.__name__ = "integer"  # argparse names it
    return number


if __name__ == "__main__":
    sys.exit(main())
