"""`python -m records report RUN...`: curves, bytes and rounding errors of runs, as a page and a picture; of more than a
dozen runs a summary."""
import math
from itertools import pairwise
from pathlib import Path

from common.challenge import BUDGET_BYTES
from common.command import path_argument
from common.schedule import lr_scale, run_progress
from common.settings import UserError
from records.budget import MODEL_LIMIT, completed, group_bytes, model_budget
from records.comparable import score_group
from records.evaluation import MODEL_FILE
from records.folder import Refused, data_of, open_folder
from records.page import plain, write_page
from records.picture import draw_curves, draw_summary
from records.rules import TRACKS

MOST_RUNS = 12  # whose curves are drawn
SUMMARY = (
    "name", "seed", "device", "data", "group", "bpb", "before", "steps", "seconds", "memory", "total", "model", "code"
)


def read_runs(paths):
    """(list of dicts as read_run returns them, list of paths without a log). Raises UserError."""
    runs, without = [], []
    for path in {path.resolve(): path for path in paths}.values():
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give runs/<id>, or a record's folder")
        found = runs_of(path)
        runs += found
        if not found:
            without.append(path)
    if not runs:
        raise UserError(f"{without[0]} has no log to draw")
    names = [run["name"] for run in runs]
    for run in runs:
        if names.count(run["name"]) > 1:
            run["name"] = f"{run['parent']}/{run['name']}"
    return runs, without


def runs_of(path):
    """list of the runs in a folder: the one of runs/<id>, each seed of a record; empty for a record without a log.
    Raises UserError."""
    is_record = (path / "submission.json").is_file()
    if not is_record and not (path / "train.log").is_file() and (collection := collection_of(path)):
        raise UserError(f"{path} is a folder of {collection}")
    folder = open_folder(path)
    for problem, name in folder.log_errors:
        if is_record or name == "train.log":
            raise UserError(f"{path}/{name} {problem}")
    if not folder.logs and not is_record:
        raise UserError(f"{path} has no log of a run: give runs/<id>, or a record's folder")
    of_run = [log for log in folder.logs if log.file == "train.log"]
    logs = folder.seed_logs() if is_record or not of_run else of_run
    drawn = [log for log in logs if log.train or log.val]
    if logs and not drawn:
        raise UserError(f"{path}/{logs[0].name} has no line of a training run")
    label = folder.score_label if is_record else None
    model = read_model_file(path, folder)
    own = folder.log_of_model(model) or folder.logs[0] if model else None
    runs = [read_run(folder, log, label, model_budget_of(path, model) if log is own else []) for log in drawn]
    for run, log in zip(runs, drawn):
        if len(drawn) > 1:
            run["name"] += f" {log.name}" if log.seed is None else f" seed {log.seed}"
    return runs


def collection_of(path):
    """What a folder is a collection of, and what to give instead of it; empty where it is none."""
    inside = [entry for entry in path.iterdir() if entry.is_dir()]
    if any(entry.name in TRACKS.values() for entry in inside):
        return f"tracks, not a run: give {path}/*/*, or rank the records with `python -m records leaderboard`"
    if path.name in TRACKS.values() or any((entry / "submission.json").is_file() for entry in inside):
        return f"records, not a run: give {path}/*, or rank them with `python -m records leaderboard`"
    if any((entry / "train.log").is_file() for entry in inside):
        return f"runs, not a run: give {path}/*"
    return ""


def read_run(folder, log, label, budget):
    """dict of what is drawn of one run. label: of its score, None for the last one printed; budget: list of TensorBytes
    of its model, empty where there is none."""
    log.train = [row for row in log.train if math.isfinite(row[1]) and math.isfinite(row[2])]
    log.val = [row for row in log.val if math.isfinite(row[1]) and math.isfinite(row[2])]
    score, seconds = log.score(label), finite(log.train_ms and log.train_ms / 1e3)
    total, model, code = completed(log.total_bytes, log.model_bytes, log.code_bytes)
    return {
        "name": plain(folder.name),
        "parent": plain(folder.path.parent.name),
        "device": plain(log.device)[:120],
        "seed": log.seed,
        "steps": log.last_step,
        "seconds": seconds and round(seconds, 3),
        "memory": log.memory_mib,
        "bpb": finite(score and score[1]),
        "before": finite(log.pre_quant and log.pre_quant[1]),
        "total": total,
        "model": model,
        "code": code,
        "data": plain(data_of(folder, log))[:80],
        "group": score_group(folder, [log]),
        "train": [[step, loss, round(ms / 1e3, 3)] for step, loss, ms in log.train],
        "val": [[step, bpb] for step, _, bpb, _ in log.val],
        "lr": learning_rates(log),
        "rate": throughput(log),
        "groups": group_bytes(budget) if budget else {},
        "tensors": [[t.name, t.group, t.numbers, round(t.bytes), t.error] for t in budget],
    }


def finite(value):
    """The number, or None where there is none or it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def read_model_file(path, folder):
    """Bytes of the folder's model file, empty where there is none. Raises UserError."""
    try:
        return folder.read(MODEL_FILE, MODEL_LIMIT) if MODEL_FILE in folder.files else b""
    except Refused as error:
        raise UserError(f"{path}/{MODEL_FILE} {error}") from None


def model_budget_of(path, model):
    """list of TensorBytes of a model file's bytes. Raises UserError."""
    try:
        return model_budget(model)
    except UserError as error:
        raise UserError(f"{path}/{MODEL_FILE}: {error}") from None


def learning_rates(log):
    """[[step, scale]]: what the schedule gives at the logged steps and times. Empty for logs that are not our own,
    whose schedule is not known."""
    if not log.backend:
        return []
    settings = log.run_settings
    return [[step, round(lr_scale(settings, run_progress(settings, step, ms / 1e3)), 5)] for step, _, ms in log.train]


def throughput(log):
    """[[step, tokens per second since the line before]]."""
    found, tokens = [], log.batch_tokens
    for (before, _, then), (step, _, ms) in pairwise([(0, 0.0, 0.0), *log.train]):
        if tokens and ms > then and step > before:
            found.append([step, round((step - before) * tokens / (ms - then) * 1e3)])
    return found


def summary_of(runs):
    """The runs without curves: those whose scores can be compared together, the best score first."""
    def place(run):
        return run["group"], math.inf if run["bpb"] is None else run["bpb"], run["name"]
    return [{name: run[name] for name in SUMMARY} for run in sorted(runs, key=place)]


def run(options):
    runs, without = read_runs(options.runs)
    page = options.output.with_suffix(".html")
    picture = page.with_suffix(".png")
    in_full = len(runs) <= MOST_RUNS
    shown = runs if in_full else summary_of(runs)
    data = {"runs": shown, "summary": not in_full, "most": MOST_RUNS, "cap": BUDGET_BYTES}
    size = write_page(page, "Parity Golf runs", "report.js", data)
    draw = draw_curves if in_full else draw_summary
    draw(picture, shown)
    for path in without:
        print(f"{path} has no log, and is left out")
    kind = "" if in_full else f", a summary: curves are drawn of at most {MOST_RUNS}"
    print(f"{page} ({size:,} bytes) and {picture}: {len(runs)} runs{kind}")
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser(
        "report", help="plot curves and bytes of runs side by side, as a page and a picture; many runs give a summary"
    )
    words = "runs/<id>, or a record's folder, whose seeds are drawn as runs"
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help=words)
    words = "the page; the picture is written beside it, as .png (default: report.html)"
    parser.add_argument("-o", "--output", type=path_argument, default=Path("report.html"), metavar="FILE.html",
                        help=words)
    parser.set_defaults(run=run)
