"""`python -m records pack runs/<id>...`: a record folder from finished runs of one configuration, one a seed.

Every figure comes from the logs. The run in the middle by score stands for all: train.log, the model file and the numbers of
submission.json are its own, so that a reviewer who scores the model again meets val_bpb itself; of an even number of runs, the worse of
the middle two. The other seeds' logs lie beside it.
"""
import datetime
import json
import re
import statistics
import tempfile
from pathlib import Path

from common.settings import UserError
from records.checks import PLACEHOLDER
from records.folder import CODE_LIMIT, JSON_LIMIT, Refused, load_json, read_bounded
from records.logs import LOG_LIMIT, read_log
from records.rules import FAIL, TEXT_FIELDS, TRACKS
from records.verify import exit_code, status_of, table, verify_folder

MODEL_FILE = "model.int8.zlib"
SCRIPTS = ("train_gpt.py", "train_gpt_mlx.py")


class Run:
    """One finished run folder. Raises UserError."""

    def __init__(self, path):
        if not path.is_dir():
            raise UserError(f"{path} is no folder: give runs/<id> of a finished run")
        self.path, self.script = path, next((name for name in SCRIPTS if (path / name).is_file()), SCRIPTS[0])
        try:
            self.status = load_json(self.read("status.json", JSON_LIMIT)).get("status")
        except ValueError as error:
            raise UserError(f"{path / 'status.json'} {error}") from None
        if self.status not in ("finished", "capped"):
            raise UserError(f"{path} ended with status {self.status}: only a finished run can be packed")
        self.log_bytes, self.model = self.read("train.log", LOG_LIMIT), self.read(MODEL_FILE, 1 << 28)
        self.code = self.read(self.script, CODE_LIMIT)
        self.log = read_log("train.log", self.log_bytes)
        if self.log.problems or not self.log.score() or not self.log.pre_quant or self.log.total_bytes is None:
            raise UserError(f"{path}/train.log: {'; '.join(self.log.problems) or 'is not the whole log of one run'}")
        if self.log.partial:
            raise UserError(f"{path} was scored on part of validation ({self.log.partial} tokens): run it again with VAL_TOKENS_LIMIT=0")

    def read(self, name, limit):
        try:
            return read_bounded(self.path / name, limit)
        except Refused as error:
            raise UserError(f"{self.path / name} {error}") from None

    @property
    def configuration(self):
        return {name: value for name, value in self.log.settings.items() if name not in ("seed", "run_id", "resume")}


def read_runs(paths):
    """list of Run, the middle one by score first, then by seed. UserError: they are not seeds of one configuration."""
    runs = sorted((Run(path) for path in paths), key=lambda run: run.log.score()[1])
    first = runs[0]
    for run in runs[1:]:
        if run.code != first.code or run.script != first.script:
            raise UserError(f"{run.path} ran other code than {first.path}: pack runs of one code")
        if run.configuration != first.configuration:
            wrong = sorted(n for n in run.configuration | first.configuration if run.configuration.get(n) != first.configuration.get(n))
            raise UserError(f"{run.path} and {first.path} differ in {', '.join(wrong)}: pack runs that differ in the seed alone")
        if run.log.manifest_sha256 != first.log.manifest_sha256:
            raise UserError(f"{run.path} and {first.path} used different data")
    seeds = [run.log.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, sorted(seeds)))}: pack one run a seed")
    middle = runs.pop(len(runs) // 2)
    return [middle, *sorted(runs, key=lambda run: run.log.seed)]


def submission(runs, options, date):
    """The object of submission.json."""
    main, scores = runs[0].log, [run.log.score() for run in runs]
    fields = {
        "author": options.author, "github_id": options.github_id, "name": options.name, "blurb": options.blurb or options.name, "date": date,
        "track": TRACKS[options.track], "val_loss": scores[0][0], "val_bpb": scores[0][1], "pre_quant_val_loss": main.pre_quant[0],
        "pre_quant_val_bpb": main.pre_quant[1], "step_stop": main.last_step, "wallclock_seconds": round(main.train_ms / 1e3, 3),
        "bytes_total": main.total_bytes, "bytes_model_int8_zlib": main.model_bytes, "bytes_code": main.code_bytes, "dataset": main.dataset,
        "hardware": main.device, "max_wallclock_seconds": main.cap_seconds, "seeds": [run.log.seed for run in runs],
        "seed_results": {str(run.log.seed): {"val_loss": run.log.score()[0], "val_bpb": run.log.score()[1], "step_stop": run.log.last_step,
                                             "bytes_total": run.log.total_bytes} for run in runs},
    }
    if len(runs) > 1:
        bpbs = [bpb for _, bpb in scores]
        fields |= {"val_bpb_mean": round(statistics.mean(bpbs), 8), "val_bpb_std": round(statistics.stdev(bpbs), 8)}
    for name, limit in TEXT_FIELDS.items():
        if not fields[name].strip() or len(fields[name]) > limit:
            raise UserError(f"--{name.replace('_', '-')}: give 1 to {limit} characters")
    return fields


def requirements(log):
    """requirements.txt: the packages whose versions the log names."""
    pinned = re.findall(r"\b(numpy|sentencepiece|safetensors) (\d[\w.+-]*)", log.versions)
    framework = re.search(r"\b(torch|mlx) (\d[\w.]*)", log.device)
    lines = [f"{name}=={version}" for name, version in pinned] + ["tqdm"]
    if framework and framework[1] == "mlx":  # on Linux the backend and a fast BLAS are packages of their own
        lines += [f"mlx=={framework[2]}; sys_platform == 'darwin'", f"mlx[cpu]=={framework[2]}; sys_platform == 'linux'",
                  "scipy-openblas32; sys_platform == 'linux'"]
    elif framework:
        lines.append(f"torch=={framework[2]}")
    return "\n".join(lines) + "\n"


def command_of(run):
    """The shell command of a run, settings in front."""
    settings = {name: value for name, value in run.log.settings.items() if name not in ("run_id", "resume")}
    words = " ".join(f"{name.upper()}={int(value) if isinstance(value, bool) else value}" for name, value in sorted(settings.items()))
    ranks = run.log.world_size or 1
    start = "python" if ranks == 1 else f"torchrun --standalone --nproc_per_node={ranks}"
    if run.script == "train_gpt_mlx.py" and ranks > 1:
        start = f"mlx.launch -n {ranks} -- python"
    return f"{words} {start} train_gpt.py".strip()


def readme_draft(runs, fields):
    """README.md: what the logs say, and places for what they cannot say."""
    main = runs[0]
    log = main.log
    cap = "no limit of time" if not log.cap_seconds else f"at most {log.cap_seconds:g} s of training"
    rows = [f"| {run.log.seed} | {run.log.score()[1]:.8f} | {run.log.score()[0]:.8f} | {run.log.pre_quant[1]:.4f} | {run.log.last_step:,} | "
            f"{run.log.train_ms / 1e3:,.1f} | {run.log.total_bytes:,} |" for run in runs]
    spread = f"\n\nMean {fields['val_bpb_mean']:.6f}, standard deviation {fields['val_bpb_std']:.6f} bits per byte." if len(runs) > 1 else ""
    changed = ", ".join(f"`{name.upper()}={value}`" for name, value in sorted(main.configuration.items())) or "the defaults"
    chosen = "It" if len(runs) == 1 else "The run in the middle by score, the first row,"
    tokens = f"{log.last_step * log.batch_tokens:,} training tokens, " if log.batch_tokens else ""
    fineweb = "" if "fineweb" in log.dataset.lower() else " This is not FineWeb: do not compare it with scores on FineWeb."
    return f"""# {fields['name']}

val_bpb **{fields['val_bpb']:.4f}** on `{log.dataset}`, {fields['bytes_total']:,} bytes.{fineweb}

## The idea

{PLACEHOLDER}: what is new, in a paragraph.

## Why it should work, and what shows that it does

{PLACEHOLDER}: the reasoning, the ablation or the comparison with what came before.

## Results

| seed | val_bpb | val_loss | val_bpb before quantization | steps | seconds | bytes |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}{spread}

{chosen} is `train.log` and `{MODEL_FILE}`, and its numbers are those of `submission.json`.

## Compute

`MAX_WALLCLOCK_SECONDS={log.cap_seconds:g}`: {cap}. {tokens}{log.train_ms / 1e3:,.1f} s on {log.device}
({log.memory_mib:,} MiB at the peak). {log.versions}.

## Configuration

{changed}.

{log.params:,} parameters. Code {log.code_bytes:,} bytes, model {log.model_bytes:,} bytes.

## Command

From within this folder, after `pip install -r requirements.txt`; `DATA_PATH` is where the data lies as seen from here:

```
{command_of(main)}
```
"""


def run(options):
    """Exit code of verify on the new folder."""
    runs = read_runs(options.runs)
    date = options.date or datetime.date.today().isoformat()
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        raise UserError(f"--date {date} is no date: YYYY-MM-DD") from None
    slug = re.sub(r"[^a-z0-9]+", "_", options.name.lower()).strip("_")[:60]
    if not slug:
        raise UserError(f"--name {options.name}: give a name with letters or digits, the folder is named after it")
    target = options.records / TRACKS[options.track] / f"{date}_{slug}"
    if target.exists():
        raise UserError(f"{target} is there already: choose another --name, or remove it")
    fields = submission(runs, options, date)
    main = runs[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pack-") as temporary:
        made = Path(temporary, target.name)
        made.mkdir()
        (made / "train_gpt.py").write_bytes(main.code)
        (made / "train.log").write_bytes(main.log_bytes)
        for other in runs[1:]:
            (made / f"train_seed{other.log.seed}.log").write_bytes(other.log_bytes)
        (made / MODEL_FILE).write_bytes(main.model)
        (made / "submission.json").write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / "requirements.txt").write_text(requirements(main.log), encoding="utf-8")
        (made / "README.md").write_text(readme_draft(runs, fields), encoding="utf-8")
        made.rename(target)
    result = verify_folder(target)
    print(table(target, result))
    if status_of(result["layout"]) == FAIL and PLACEHOLDER in (target / "README.md").read_text(encoding="utf-8"):
        print(f"\n{target} is a draft. Write the idea and its justification where {target / 'README.md'} says {PLACEHOLDER}, then:\n"
              f"  python -m records verify {target}")
    return exit_code([result])
