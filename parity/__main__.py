"""Are the two backends one model?

    python -m parity                                        climb the ladder here, torch against MLX, on the CPU
    python -m parity export --backend mlx FILE              write what one backend shows on this machine
    python -m parity compare FILE --backend torch           climb the ladder against such a file, elsewhere
    python -m parity curves                                 train both side by side and draw the losses

Exit code 0: every rung holds; 1: one does not; 2: it could not be tried.
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
    def progress(rung):
        if sys.stderr.isatty():
            print(f"\r\033[K{backend} {dtype}: {rung} ...", end="", file=sys.stderr, flush=True)

    shown = problem.observe(problem.trainer_class(backend), task, dtype, progress, **changes)
    progress("done")
    return shown


def report(title, rows, names, as_json, started):
    """Prints one ladder; whether it holds."""
    if as_json:
        print(json.dumps({"ladder": title, "rungs": [dataclasses.asdict(row) for row in rows]}, sort_keys=True, default=str))
    else:
        print(f"\r\033[K{title}\n{ladder.table(rows, names)}\n({time.perf_counter() - started:.0f} s)\n" if sys.stdout.isatty() else
              f"{title}\n{ladder.table(rows, names)}\n({time.perf_counter() - started:.0f} s)\n", flush=True)
    return all(row.passed for row in rows)


def climb_here(options):
    task = problem.make_problem(problem.embedded_corpus(options.data), options.steps, tie_embeddings=not options.untied)
    held = True
    for dtype in options.dtype or problem.DTYPES[:2]:
        started = time.perf_counter()
        torch, mlx = (show(backend, task, dtype, device="cpu", compile=options.compile) for backend in ("torch", "mlx"))
        rows = ladder.climb(dtype, torch, mlx)
        full, tokens = problem.full_weights(task.settings), problem.first_rows(task)
        for name, side in (("torch", torch), ("mlx", mlx)):
            row = ladder.against_definition(dtype, task.settings, full, tokens, side)
            rows.append(dataclasses.replace(row, rung=f"definition: {name}"))
        held &= report(f"torch against mlx, {dtype}, CPU, {task.steps} steps", rows, ("torch", "mlx"), options.json, started)
    return held


def export(options):
    if not options.file.parent.is_dir():
        raise UserError(f"{options.file.parent} is no folder: make it, or name another file")
    task = problem.make_problem(problem.embedded_corpus(options.data), options.steps)
    shown = show(options.backend, task, options.dtype, device=options.device, compile=options.compile)
    portable.write_fixture(options.file, task, shown, options.backend, options.dtype, options.device)
    print(f"{options.file}: {options.file.stat().st_size:,} bytes, what {options.backend} shows in {options.dtype}")
    return True


def compare_file(options):
    started = time.perf_counter()
    task, theirs, meta = portable.read_fixture(options.file)
    ours = show(options.backend, task, meta["dtype"], device=options.device, compile=options.compile)
    names = (f"{meta['backend']} (file)", f"{options.backend} (here)")
    print(f"the file: {meta['backend']} on {meta['machine']}")
    return report(f"{names[0]} against {names[1]}, {meta['dtype']}, {task.steps} steps", ladder.climb(meta["dtype"], theirs, ours), names,
                  options.json, started)


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=climb_here)
    commands = parser.add_subparsers(title="commands")
    exporter = commands.add_parser("export", help="write what one backend shows")
    comparer = commands.add_parser("compare", help="climb against such a file")
    for command, run in ((exporter, export), (comparer, compare_file)):
        command.add_argument("file", type=Path)
        command.add_argument("--backend", choices=("torch", "mlx"), required=True)
        command.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
        command.set_defaults(run=run)
    for command in (parser, exporter):
        command.add_argument("--data", type=Path, default=Path("data/pydoc_sp1024"), help="data folder (default: the embedded corpus)")
        command.add_argument("--steps", type=curves.at_least(1), default=20, help="optimizer steps of the training rung (default: 20)")
    parser.add_argument("--dtype", action="append", choices=problem.DTYPES, help="again for more (default: float64 and float32)")
    exporter.add_argument("--dtype", choices=problem.DTYPES, default="float32", help="default: float32")
    for command in (parser, exporter, comparer):
        command.add_argument("--compile", action="store_true", help="compiled, as training is")
    for command in (parser, comparer):
        command.add_argument("--json", action="store_true", help="one JSON object a ladder instead of the table")
    parser.add_argument("--untied", action="store_true", help="with a head of its own")
    curves.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return 0 if options.run(options) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
