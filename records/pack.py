"""`python -m records pack runs/<id>...`: a record folder from finished runs of one configuration, one per seed.

Every figure comes from the logs. The median run by score stands for all: train.log, the model file and the numbers of
submission.json are its own, so that a reviewer who scores the model again meets val_bpb itself. Of an even number of
runs it is the worse of the two in the middle. The logs of the other seeds lie beside it.
"""
import datetime
import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path

from common.command import path_argument
from common.folder import was_killed
from common.settings import UserError
from records.budget import MODEL_LIMIT
from records.checks import PLACEHOLDER
from records.evaluation import MODEL_FILE
from records.folder import CODE_LIMIT, JSON_LIMIT, Refused, open_bounded, read_bounded
from records.logs import LOG_LIMIT, read_log
from records.reproduce import launch_command
from records.rules import FAIL, TEXT_FIELDS, TRACKS
from records.show import as_text
from records.strict_json import load_json
from records.verdict import exit_code, status_of
from records.verify import verify_folder

BACKENDS = {"train_gpt.py": "torch", "train_gpt_mlx.py": "mlx"}  # of the script that a run folder holds


class Run:
    """One finished run folder. Raises UserError."""

    def __init__(self, path):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give runs/<id> of a finished run")
        self.path = path
        self.script = next((name for name in BACKENDS if (path / name).is_file()), "train_gpt.py")
        try:
            status = load_json(self.read("status.json", JSON_LIMIT)).get("status")
        except ValueError as error:
            raise UserError(f"{path / 'status.json'} {error}") from None
        if status not in ("finished", "capped"):
            status = "running, but its process is gone" if was_killed(path) else status
            raise UserError(f"{path} ended with status {status}: only a finished run can be packed")
        self.model = self.read(MODEL_FILE, MODEL_LIMIT)
        self.code = self.read(self.script, CODE_LIMIT)
        self.log = log = self.read_log()
        if log.problems or not log.score() or not log.pre_quant or log.total_bytes is None:
            raise UserError(f"{path}/train.log: {'; '.join(log.problems) or 'is not the whole log of one run'}")
        if log.partial:
            raise UserError(
                f"{path} was scored on part of validation ({log.partial} tokens): run it again with VAL_TOKENS_LIMIT=0"
            )

    def read(self, name, limit):
        try:
            return read_bounded(self.path / name, limit)
        except Refused as error:
            raise UserError(f"{self.path / name} {error}") from None

    def read_log(self):
        path = self.path / "train.log"
        try:
            with open_bounded(path, LOG_LIMIT) as file:
                return read_log(path.name, file)
        except Refused as error:
            raise UserError(f"{path} {error}: log fewer steps, with a larger TRAIN_LOG_EVERY") from None

    @property
    def configuration(self):
        """dict of the changed settings that all seeds must share."""
        return {name: value for name, value in self.log.settings.items() if name not in ("seed", "run_id", "resume")}


def read_runs(paths):
    """list of Run, the median by score first, then by seed. UserError: they are not seeds of one configuration."""
    runs = sorted((Run(path) for path in paths), key=lambda run: run.log.score()[1])
    first = runs[0]
    for run in runs[1:]:
        if run.code != first.code or run.script != first.script:
            raise UserError(f"{run.path} ran other code than {first.path}: pack runs of the same code")
        ours, theirs = run.configuration, first.configuration
        if wrong := sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)):
            names = ", ".join(wrong)
            raise UserError(f"{run.path} and {first.path} differ in {names}: pack runs that differ only in the seed")
        if run.log.manifest_sha256 != first.log.manifest_sha256:
            raise UserError(f"{run.path} and {first.path} used different data")
    seeds = [run.log.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, sorted(seeds)))}: pack one run per seed")
    median = runs.pop(len(runs) // 2)
    return [median, *sorted(runs, key=lambda run: run.log.seed)]


def submission(runs, options, date):
    """The object of submission.json."""
    main = runs[0].log
    val_loss, val_bpb = main.score()
    fields = {
        "author": options.author,
        "github_id": options.github_id,
        "name": options.name,
        "blurb": options.blurb or options.name,
        "date": date,
        "track": TRACKS[options.track],
        "val_loss": val_loss,
        "val_bpb": val_bpb,
        "pre_quant_val_loss": main.pre_quant[0],
        "pre_quant_val_bpb": main.pre_quant[1],
        "step_stop": main.last_step,
        "wallclock_seconds": round(main.train_ms / 1e3, 3),
        "bytes_total": main.total_bytes,
        "bytes_model_int8_zlib": main.model_bytes,
        "bytes_code": main.code_bytes,
        "dataset": main.dataset,
        "hardware": main.device,
        "max_wallclock_seconds": main.cap_seconds,
        "seeds": [run.log.seed for run in runs],
        "seed_results": {str(run.log.seed): seed_result(run.log) for run in runs},
    }
    if len(runs) > 1:
        scores = [run.log.score()[1] for run in runs]
        fields["val_bpb_mean"] = round(statistics.mean(scores), 8)
        fields["val_bpb_std"] = round(statistics.stdev(scores), 8)
    for name, limit in TEXT_FIELDS.items():
        if not fields[name].strip() or len(fields[name]) > limit:
            raise UserError(f"--{name.replace('_', '-')}: give 1 to {limit} characters")
    return fields


def seed_result(log):
    val_loss, val_bpb = log.score()
    return {"val_loss": val_loss, "val_bpb": val_bpb, "step_stop": log.last_step, "bytes_total": log.total_bytes}


def requirements(log):
    """requirements.txt: the packages whose versions the log names."""
    pinned = re.findall(r"\b(numpy|sentencepiece|safetensors) (\d[\w.+-]*)", log.versions)
    framework = re.search(r"\b(torch|mlx) (\d[\w.]*)", log.device)
    lines = [*(f"{name}=={version}" for name, version in pinned), "tqdm"]
    if framework and framework[1] == "mlx":  # on Linux the backend and a fast BLAS are packages of their own
        lines += [
            f"mlx=={framework[2]}; sys_platform == 'darwin'",
            f"mlx[cpu]=={framework[2]}; sys_platform == 'linux'",
            "scipy-openblas32; sys_platform == 'linux'",
        ]
    elif framework:
        lines.append(f"torch=={framework[2]}")
    return "\n".join(lines) + "\n"


def command_of(run):
    """The shell command of a run, settings in front."""
    settings = {name: value for name, value in run.log.settings.items() if name not in ("run_id", "resume")}
    words = [f"{n.upper()}={int(v) if isinstance(v, bool) else v}" for n, v in sorted(settings.items())]
    return " ".join([*words, launch_command(BACKENDS[run.script], run.log.world_size or 1), "train_gpt.py"])


def results_table(runs, fields):
    """One row per seed, in Markdown; with several, their mean and spread below."""
    rows = [
        "| seed | val_bpb | val_loss | val_bpb before quantization | steps | seconds | bytes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for log in (run.log for run in runs):
        val_loss, val_bpb = log.score()
        rows.append(
            f"| {log.seed} | {val_bpb:.8f} | {val_loss:.8f} | {log.pre_quant[1]:.4f} | {log.last_step:,} | "
            f"{log.train_ms / 1e3:,.1f} | {log.total_bytes:,} |"
        )
    if len(runs) > 1:
        mean, spread = fields["val_bpb_mean"], fields["val_bpb_std"]
        rows += ["", f"Mean {mean:.6f}, standard deviation {spread:.6f} bits per byte."]
    return "\n".join(rows)


def readme_draft(runs, fields):
    """README.md: what the logs say, and places for what they cannot say."""
    main = runs[0]
    log = main.log
    limit = f"at most {log.cap_seconds:g} s of training" if log.cap_seconds else "no time limit"
    changed = [f"`{name.upper()}={value}`" for name, value in sorted(main.configuration.items())]
    chosen = "This run" if len(runs) == 1 else "The median run by score, in the first row,"
    tokens = f"{log.last_step * log.batch_tokens:,} training tokens, " if log.batch_tokens else ""
    warning = " This is not FineWeb: do not compare it with scores on FineWeb."
    if "fineweb" in log.dataset.lower():
        warning = ""
    return f"""# {fields['name']}

val_bpb **{fields['val_bpb']:.4f}** on `{log.dataset}`, {fields['bytes_total']:,} bytes.{warning}

## The idea

{PLACEHOLDER}: what is new, in a paragraph.

## Why it should work, and what shows that it does

{PLACEHOLDER}: the reasoning, the ablation or the comparison with what came before.

## Results

{results_table(runs, fields)}

{chosen} is the one in `train.log` and `{MODEL_FILE}`; `submission.json` has its numbers.

## Compute

`MAX_WALLCLOCK_SECONDS={log.cap_seconds:g}`: {limit}. {tokens}{log.train_ms / 1e3:,.1f} s on {log.device}
({log.memory_mib:,} MiB peak memory). {log.versions}.

## Configuration

{', '.join(changed) or 'the defaults'}.

{log.params:,} parameters. Code {log.code_bytes:,} bytes, model {log.model_bytes:,} bytes.

## Command

From within this folder, after `pip install -r requirements.txt`; `DATA_PATH` is relative to this folder:

```
{command_of(main)}
```
"""


def write_folder(target, runs, fields):
    """Make the record folder, which then is complete or not there."""
    main = runs[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pack-") as temporary:
        made = Path(temporary, target.name)
        made.mkdir()
        (made / "train_gpt.py").write_bytes(main.code)
        shutil.copyfile(main.path / "train.log", made / "train.log")
        for other in runs[1:]:
            shutil.copyfile(other.path / "train.log", made / f"train_seed{other.log.seed}.log")
        (made / MODEL_FILE).write_bytes(main.model)
        text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
        (made / "submission.json").write_text(text, "utf-8", "backslashreplace")
        (made / "requirements.txt").write_text(requirements(main.log), encoding="utf-8")
        (made / "README.md").write_text(readme_draft(runs, fields), "utf-8", "backslashreplace")
        made.rename(target)


def run(options):
    """Exit code of verify on the new folder."""
    runs = read_runs(options.runs)
    date = options.date or datetime.date.today().isoformat()
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        raise UserError(f"--date {date} is not a date: write YYYY-MM-DD") from None
    slug = re.sub(r"[^a-z0-9]+", "_", options.name.lower()).strip("_")[:60]
    if not slug:
        raise UserError(f"--name {options.name}: give a name with letters or digits; the folder is named after it")
    target = options.records / TRACKS[options.track] / f"{date}_{slug}"
    if target.exists():
        raise UserError(f"{target} already exists: choose another --name, or remove it")
    write_folder(target, runs, submission(runs, options, date))
    result = verify_folder(target)
    print(as_text(target, result))
    readme = target / "README.md"
    if status_of(result["layout"]) == FAIL and PLACEHOLDER in readme.read_text(encoding="utf-8"):
        print(f"\n{target} is a draft. Write the idea and its justification where {readme} says {PLACEHOLDER}, then:")
        print(f"  python -m records verify {target}")
    return exit_code([result])


def add_command(subparsers):
    parser = subparsers.add_parser("pack", help="make a record folder from finished runs")
    words = "runs/<id> of one configuration, one per seed"
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help=words)
    words = "the folder that holds the tracks (default: records)"
    parser.add_argument("--records", type=path_argument, default=Path("records"), metavar="DIR", help=words)
    entry = parser.add_argument_group("the submission")
    entry.add_argument("--track", required=True, choices=TRACKS)
    entry.add_argument("--name", required=True, help="title of the record")
    entry.add_argument("--author", required=True, help="your name")
    entry.add_argument("--github-id", required=True, metavar="USER", help="your GitHub user name")
    entry.add_argument("--blurb", metavar="TEXT", help="one or two sentences for the table (default: the name)")
    entry.add_argument("--date", metavar="YYYY-MM-DD", help="(default: today)")
    parser.set_defaults(run=run)
