"""`python -m parity climb`: the ladder on this machine, torch against MLX, and both against the model's definition."""
import argparse
import time

from common.command import path_argument
from common.params import param_table
from common.settings import Settings, load_settings, settings_of
from parity import ladder
from parity.problem import (
    DTYPES,
    embedded_corpus,
    first_rows,
    full_weights,
    known_settings,
    ladder_settings,
    make_problem,
    own_settings,
)
from parity.rungs import observe_aloud
from parity.trainers import Code, errors_of, load_trainer

SETTINGS = """\
Every setting of a trainer is a flag here too, and then holds in every rung: --loop-layers 1-2 --train-seq-len 128
--compile --recipe laptop (`python train_gpt.py --help` lists them). Without them the model is a small one of the
ladder's own. Environment variables are not read: the command of a proof says all of it.
"""


def add_command(subparsers):
    parser = subparsers.add_parser(
        "climb", help="climb the ladder here (default)", description=SETTINGS, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add_problem(parser)
    for backend in ("torch", "mlx"):
        parser.add_argument(f"--{backend}", type=path_argument, metavar="FILE",
                            help="a script or bundle whose trainer takes the place of this repository's; it is run")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="can be repeated (default: float64, float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object per ladder instead of the table")
    parser.set_defaults(run=run)


def add_problem(parser):
    """Flags of what is observed: data, steps and every setting. They end up in options.given, as flags of settings."""
    parser.add_argument("--data", dest="given", action="append", type=lambda text: f"--data-path={text}",
                        metavar="DIR", help="data folder (default: the embedded corpus)")
    parser.add_argument("--steps", type=at_least(1),
                        help="optimizer steps of the training rung (default: 20: the bounds of losses are for these)")
    hidden = {"dest": "given", "help": argparse.SUPPRESS}
    parser.add_argument("--untied", action="append_const", const="--tie-embeddings=0", **hidden)
    # known to argparse, or it would take their values for the positional FILE of export
    for name in settings_of("model", "training", "evaluation", "memory", "run"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action="append", type=lambda text, flag=flag: f"{flag}={text}", **hidden)
    parser.set_defaults(takes_settings=True)


def at_least(least):
    """The type of an argument: an integer that is not smaller."""
    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)
    number.__name__ = "integer"  # argparse names it
    return number


def problem_of(options, kind=Settings, load=load_settings):
    """(Problem, flags of settings in the command) that a command asks for. Raises UserError."""
    steps = [f"--iterations={options.steps}"] if options.steps else []
    flags = [*steps, *(options.given or []), *options.settings]
    settings = ladder_settings(flags, kind, load)
    embedded_corpus(settings.data_path)
    return make_problem(settings), flags


def run(options):
    """Exit code: 0 where every rung holds in every dtype."""
    scripts = {backend: path for backend in ("torch", "mlx") if (path := getattr(options, backend))}
    trainers = {backend: load_trainer(backend, scripts.get(backend)) for backend in ("torch", "mlx")}
    kind, code = Settings, Code(trainers["torch"])
    for backend in list(scripts)[:1]:  # the settings are those of the script from elsewhere, with its options
        kind, code = trainers[backend].settings_class, Code(trainers[backend])
    with errors_of(code):
        task, flags = problem_of(options, kind, code.load_settings)
    for trainer in trainers.values():
        own_settings(trainer.settings_class, task.settings, Code(trainer).name)  # raises before any work
    asked = task.settings.compute_dtype
    dtypes = options.dtype or (DTYPES[:2] if asked == "auto" else [asked])
    held = [climb(task, dtype, trainers, scripts, flags, options.json) for dtype in dtypes]
    return 0 if all(held) else 1


def climb(task, dtype, trainers, scripts, flags, as_json):
    """Whether one ladder holds. Prints it."""
    started = time.perf_counter()
    seen = {backend: observe_aloud(trainer, task, dtype) for backend, trainer in trainers.items()}
    left_out = seen["torch"].left_out | seen["mlx"].left_out
    rows = ladder.climb(dtype, seen["torch"].shown, seen["mlx"].shown, tuple(seen), left_out)
    agree = next(row.passed for row in rows if row.rung == "logits")
    more, without = definitions(task, dtype, trainers, seen, agree)
    device = "CPU" if task.settings.device == "cpu" else f"DEVICE={task.settings.device}"
    said = {backend: str(path) for backend, path in scripts.items()}
    if flags:
        said["settings"] = " ".join(flags)
    title = f"torch against mlx, {dtype}, {device}, {task.steps} steps"
    return ladder.report(title, rows + more, as_json, started, left_out | without, **said)


def definitions(task, dtype, trainers, seen, agree):
    """(list of Row, dict rung -> reason): each side against parity/reference.py. A trainer of this repository is always
    compared. Scripts from elsewhere may be another model: one that has other tensors, or two that agree with each other
    and not with the definition; agree: whether the two have equal logits."""
    rows, left_out = [], {}
    elsewhere = all(Code(trainer).path for trainer in trainers.values())
    for name, trainer in trainers.items():
        code, rung = Code(trainer), f"definition: {name}"
        own = own_settings(trainer.settings_class, task.settings, code.name)
        if tensors := other_tensors(own, code):
            left_out[rung] = f"another model, which has other tensors: {tensors}"
            continue
        row = ladder.against_definition(dtype, known_settings(Settings, own), full_weights(own, code), first_rows(task),
                                        seen[name].shown, name)
        if elsewhere and agree and not row.passed:
            where = f"by up to {row.worst:.1e} at {row.where}"
            left_out[rung] = f"another model: torch and mlx agree with each other, and differ from it {where}"
        else:
            rows.append(row)
    return rows, left_out


def other_tensors(settings, code):
    """Names of the tensors that only a script or only the definition has, or in another shape."""
    tables = code.param_table(settings), param_table(known_settings(Settings, settings))
    theirs, ours = ({name: p.shape for name, p in table.items()} for table in tables)
    return ", ".join(name for name in theirs | ours if theirs.get(name) != ours.get(name))
