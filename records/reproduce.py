"""`python -m records reproduce ENTRY`: the machine, data and command that would reproduce a record. Nothing is run."""
import re
import shlex
from pathlib import Path

from common.command import path_argument
from common.settings import UserError
from records.checks import is_founding
from records.folder import data_of, on_fineweb, open_folder
from records.rules import SCRIPT, TRACKS
from records.show import clean
from records.tree import is_record_folder


def find_entry(entry, records):
    """Path of a record folder, from its path, its name or the part of it after the date. Raises UserError."""
    if Path(entry, "submission.json").is_file():
        return Path(entry)
    tracks = [records / track for track in TRACKS.values() if (records / track).is_dir()]
    folders = [path for track in tracks for path in sorted(track.iterdir()) if is_record_folder(path)]
    found = [path for path in folders if entry in (path.name, path.name[11:])]
    if len(found) != 1:
        problem = "more than one record has this name" if found else "no record has this name"
        names = "\n  ".join(clean(path.name) for path in folders) or "(none)"
        raise UserError(f"{entry}: {problem}; there are\n  {names}")
    return found[0]


def launch_command(backend, ranks):
    """What stands before the script in the command of a run."""
    if ranks == 1:
        return "python"
    if backend == "mlx":
        return f"mlx.launch -n {ranks} -- python"
    return f"torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node={ranks}"


def data_command(folder):
    """The line that gets the data of a record, or says whose it is."""
    dataset, log = data_of(folder), folder.logs[0] if folder.logs else None
    start = "source .venv/bin/activate &&"
    if on_fineweb(folder):
        variant = shlex.quote(dataset.rsplit("_", 1)[-1])
        return f"{start} pip install '.[data]' && python -m common.data fineweb --variant {variant}"
    if dataset.startswith("pydoc_sp") and log and log.run_settings.vocab_size:
        vocab = log.run_settings.vocab_size
        return f"{start} python -m common.data pydoc --vocab-size {vocab} --out data/pydoc_sp{vocab}"
    return f"# data: {clean(dataset)}, which is the submitter's own"


def run_words(settings, backend, ranks, script):
    """The command of a run, settings in front."""
    words = [f"{name}={shlex.quote(clean(str(value)))}" for name, value in sorted(settings.items())]
    return " ".join([*words, launch_command(backend, ranks), shlex.quote(script)])


def own_run(folder, log):
    """(what to say of the code, command) of a record that one of our trainers made. Raises UserError."""
    size = folder.files.get(SCRIPT)
    if not size or not str(folder.path).isprintable():
        raise UserError(f"{clean(str(folder.path))}: it holds no train_gpt.py that can be named in a command")
    settings = {}
    for name, value in log.settings.items():
        # names come from a stranger and go into a shell
        if name not in ("run_id", "resume", "report_to") and re.fullmatch(r"[a-z][a-z0-9_]*", name):
            settings[name.upper()] = int(value) if isinstance(value, bool) else value
    hint = "`python -m records verify --smoke` tries it in a sandbox first"
    code = f"# the code is the record's own, {size:,} bytes; {hint}"
    return code, run_words(settings, log.backend, log.world_size or 1, str(folder.path / SCRIPT))


def instructions(folder):
    """The text. Raises UserError where the folder does not say how it was run."""
    fields, log = folder.fields, folder.logs[0] if folder.logs else None
    if is_founding(folder):
        backend = "torch"
        code = "# model and hyperparameters: the defaults of this repository's trainer, which is not the code that ran"
        command = run_words(folder.raw["settings"], backend, 8, SCRIPT)
    elif log and log.backend in ("torch", "mlx"):
        backend = log.backend
        code, command = own_run(folder, log)
    else:
        name = clean(str(folder.path))
        raise UserError(f"{name}: its log does not come from one of this repository's trainers: follow its README.md")
    steps, seconds = fields["step_stop"], fields["wallclock_seconds"]
    machine = clean(log.device if log else folder.raw["hardware"])
    return "\n".join([
        f"# {clean(fields['name'])}: val_bpb {fields['val_bpb']:.4f}, {steps:,} steps in {seconds:,} s",
        f"# machine: {machine}; a slower one makes fewer steps in the same time",
        f"make install BACKEND={backend}",
        data_command(folder),
        code,
        command,
    ])


def run(options):
    folder = open_folder(find_entry(options.entry, options.records))
    needed = {"name", "val_bpb", "step_stop", "wallclock_seconds"}
    if folder.json_error or not needed <= folder.fields.keys():
        problem = folder.json_error or "lacks name, score, steps or time"
        raise UserError(f"{clean(str(folder.path))}: submission.json {problem}")
    print(instructions(folder))
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser("reproduce", help="print how to reproduce a record; runs nothing")
    words = "its folder, or the name of it, with the date or without"
    parser.add_argument("entry", metavar="ENTRY", help=words)
    words = "the folder that holds the tracks (default: records)"
    parser.add_argument("--records", type=path_argument, default=Path("records"), metavar="DIR", help=words)
    parser.set_defaults(run=run)
