"""`python -m records reproduce ENTRY`: the machine, the data and the command with which a record would be made again. Nothing is run."""
import re
import shlex
from pathlib import Path

from common.settings import UserError
from records.checks import is_founding
from records.folder import data_of, on_fineweb, open_folder
from records.rules import TRACKS
from records.verify import clean


def find_entry(entry, records):
    """Path of a record folder, from its path, its name or the part of it after the date. Raises UserError."""
    if Path(entry, "submission.json").is_file():
        return Path(entry)
    folders = [path for track in TRACKS.values() if (records / track).is_dir() for path in sorted((records / track).iterdir()) if path.is_dir()]
    found = [path for path in folders if entry in (path.name, path.name[11:])]
    if len(found) != 1:
        names = "\n  ".join(clean(path.name) for path in folders) or "(none)"
        raise UserError(f"{entry}: {'no' if not found else 'more than one'} record of this name; there are\n  {names}")
    return found[0]


def instructions(folder):
    """The text. Raises UserError where the folder does not say how it was run."""
    fields, raw, log = folder.fields, folder.raw, folder.logs[0] if folder.logs else None
    if is_founding(folder):
        settings, backend, ranks, script = raw["settings"], "torch", 8, "train_gpt.py"
        code = ["# the model and hyperparameters are the defaults of this repository's trainer; it is not the code that ran then"]
    elif log and log.backend in ("torch", "mlx"):
        if not folder.files.get("train_gpt.py") or not str(folder.path).isprintable():
            raise UserError(f"{clean(str(folder.path))}: no train_gpt.py in it that can be named in a command")
        settings = {name.upper(): int(value) if isinstance(value, bool) else value for name, value in log.settings.items()
                    if name not in ("run_id", "resume") and re.fullmatch(r"[a-z][a-z0-9_]*", name)}  # names come from a stranger and go into a shell
        backend, ranks, script = log.backend, log.world_size or 1, str(folder.path / "train_gpt.py")
        size = folder.files["train_gpt.py"]
        code = [f"# the code is the record's own, {size:,} bytes; `python -m records verify --smoke` tries it in a sandbox first"]
    else:
        raise UserError(f"{clean(str(folder.path))}: its log is not one of this repository's trainers: follow its README.md")
    dataset = data_of(folder)
    if on_fineweb(folder):
        variant = dataset.rsplit("_", 1)[-1]
        data = [f"source .venv/bin/activate && pip install '.[data]' && python -m common.data fineweb --variant {shlex.quote(variant)}"]
    elif dataset.startswith("pydoc_sp") and log.run_settings.vocab_size:
        vocab = log.run_settings.vocab_size
        data = [f"source .venv/bin/activate && python -m common.data pydoc --vocab-size {vocab} --out data/pydoc_sp{vocab}"]
    else:
        data = [f"# data: {clean(dataset)}, which is the submitter's own"]
    start = {"torch": "python" if ranks == 1 else f"torchrun --standalone --nproc_per_node={ranks}",
             "mlx": "python" if ranks == 1 else f"mlx.launch -n {ranks} -- python"}[backend]
    words = " ".join(f"{name}={shlex.quote(clean(str(value)))}" for name, value in sorted(settings.items()))
    machine = log.device if log else raw["hardware"]
    head = f"# {clean(fields['name'])}: val_bpb {fields['val_bpb']:.4f}, {fields['step_stop']:,} steps in {fields['wallclock_seconds']:,} s"
    return "\n".join([head, f"# machine: {clean(machine)}; a slower one makes fewer steps in the same time", f"make install BACKEND={backend}", *data,
                      *code, f"{words} {start} {shlex.quote(script)}"])


def run(options):
    folder = open_folder(find_entry(options.entry, options.records))
    if folder.json_error or not {"name", "val_bpb", "step_stop", "wallclock_seconds"} <= folder.fields.keys():
        raise UserError(f"{clean(str(folder.path))}: submission.json {folder.json_error or 'lacks name, score, steps or time'}")
    print(instructions(folder))
    return 0
