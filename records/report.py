"""`python -m records report runs/<id>...`: curves, bytes and rounding errors of runs, as a page and a picture."""
import math
from itertools import pairwise
from pathlib import Path

from common.challenge import BUDGET_BYTES
from common.schedule import lr_scale, run_progress
from common.settings import UserError
from records.budget import GROUPS, MODEL_LIMIT, group_bytes, model_budget
from records.evaluation import MODEL_FILE
from records.folder import Refused, read_bounded
from records.logs import LOG_LIMIT, read_log
from records.page import write_page

MOST_RUNS = 12
RUN_COLORS = ("#2a6fd6", "#d9601f", "#12895c", "#7a4fc9", "#b5336f", "#8a6d00")
GROUP_COLORS = {
    "embedding": "#2a6fd6",
    "attention": "#12895c",
    "mlp": "#7a4fc9",
    "head": "#b5336f",
    "controls": "#8a6d00",
    "scales": "#d9601f",
    "code": "#16181d",
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e3e0",
    "axes.edgecolor": "#9aa0a8",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 9,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a run's name may hold a $
}


def read_run(path):
    """dict of what is drawn of one run folder. UserError: it has no readable log."""
    try:
        if not path.is_dir():
            raise Refused("is not a folder: give runs/<id>")
        log = read_log("train.log", read_bounded(path / "train.log", LOG_LIMIT))
    except Refused as error:
        raise UserError(f"{path}: {error}") from None
    if not log.train and not log.val:
        raise UserError(f"{path}/train.log has no line of a training run")
    log.train = [row for row in log.train if math.isfinite(row[1]) and math.isfinite(row[2])]
    log.val = [row for row in log.val if math.isfinite(row[1]) and math.isfinite(row[2])]
    budget = read_budget(path / MODEL_FILE)
    score, seconds = log.score(), finite(log.train_ms and log.train_ms / 1e3)
    return {
        "name": path.resolve().name,
        "backend": log.backend,
        "device": log.device,
        "seed": log.seed,
        "status": log.status,
        "steps": log.last_step,
        "seconds": seconds and round(seconds, 3),
        "memory": log.memory_mib,
        "params": log.params,
        "bpb": finite(score and score[1]),
        "before": finite(log.pre_quant and log.pre_quant[1]),
        "total": log.total_bytes,
        "code": log.code_bytes,
        "data": log.dataset,
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


def read_budget(file):
    """list of TensorBytes of a model file, empty where there is none. Raises UserError."""
    if not file.is_file():
        return []
    try:
        return model_budget(read_bounded(file, MODEL_LIMIT))
    except (Refused, UserError) as error:
        raise UserError(f"{file}: {error}") from None


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


def draw(path, runs):
    """The same as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    names = list(dict.fromkeys(t[0] for run in runs for t in run["tensors"] if t[4] is not None))
    layout = [["loss", "val"], ["lr", "rate"], ["bytes", "memory"]]
    heights = [3, 3, bar_height(runs)]
    if names:
        layout.append(["error", "error"])
        heights.append(max(2.6, 0.14 * len(names) + 0.8))
    size = 11, 0.2 + sum(heights)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplot_mosaic(layout, figsize=size, height_ratios=heights, layout="constrained")
        for i, run in enumerate(runs):
            draw_run(axes, i, run, names)
        label_curves(axes, runs)
        label_bars(axes, runs)
        if names:
            label_errors(axes["error"], names)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def bar_height(runs):
    """Inches of the row with one bar per run."""
    return 1.2 + 0.32 * len(runs)


def draw_run(axes, i, run, names):
    """What all panels show of the run number i. names: of the tensors that are rounded, one row each."""
    color = RUN_COLORS[i % len(RUN_COLORS)]
    label = run["name"] if run["bpb"] is None else f"{run['name']}, {run['bpb']:.4f}"
    for panel, column in {"loss": "train", "val": "val", "lr": "lr", "rate": "rate"}.items():
        x, y = [p[0] for p in run[column]], [p[1] for p in run[column]]
        marker = "o" if panel == "val" else None
        axes[panel].plot(x, y, color=color, linewidth=1.4, label=label, marker=marker, markersize=3.5)
    left = 0
    for group, size in {**run["groups"], "code": run["code"] or 0}.items():
        look = {"color": GROUP_COLORS[group], "height": 0.6, "edgecolor": "white"}
        axes["bytes"].barh(i, size / 1e6, left=left / 1e6, label=None if i else group, **look)
        left += size
    axes["memory"].barh(i, run["memory"] or 0, color=color, height=0.6)
    for name, _, _, _, error in run["tensors"]:
        if error is not None:
            axes["error"].plot(100 * error, names.index(name), "o", color=color, markersize=4.5, alpha=0.8)


def label_curves(axes, runs):
    axes["loss"].set(title="Training loss", xlabel="step", ylabel="nats per token")
    losses = sorted(p[1] for run in runs for p in run["train"])
    if losses:  # the first few are far above the rest
        axes["loss"].set_ylim(losses[0] - 0.1, 1.1 * losses[int(0.97 * (len(losses) - 1))])
    axes["val"].set(title="Validation", xlabel="step", ylabel="bits per byte")
    axes["val"].legend(fontsize="small", frameon=False)
    axes["lr"].set(title="Learning rate", xlabel="step", ylabel="scale")
    axes["rate"].set(title="Throughput", xlabel="step", ylabel="tokens/s")
    axes["rate"].set_ylim(bottom=0)


def label_bars(axes, runs):
    titles = {"bytes": ("Bytes of the submission, by tensor group", "million bytes"), "memory": ("Peak memory", "MiB")}
    for key, (title, unit) in titles.items():
        axes[key].set(title=title, xlabel=unit, yticks=range(len(runs)), yticklabels=[run["name"] for run in runs])
        axes[key].invert_yaxis()
        axes[key].grid(axis="y", visible=False)
    below = 0.5, -0.55 / bar_height(runs)
    axes["bytes"].legend(fontsize="x-small", frameon=False, ncols=4, loc="upper center", bbox_to_anchor=below)


def label_errors(axis, names):
    unit = "% of the tensor's root mean square"
    rows = {"yticks": range(len(names)), "ylim": (len(names) - 0.3, -0.7)}
    axis.set(title="Expected rounding error, relative", xlabel=unit, **rows)
    axis.set_yticklabels(names, fontsize=7)
    axis.set_xlim(left=0)


def run(options):
    if len(options.runs) > MOST_RUNS:
        raise UserError(f"{len(options.runs)} runs: a report shows at most {MOST_RUNS}")
    runs = [read_run(path) for path in options.runs]
    page = options.output.with_suffix(".html")
    picture = page.with_suffix(".png")
    size = write_page(page, "Parity Golf runs", "report.js", {"runs": runs, "groups": GROUPS, "cap": BUDGET_BYTES})
    draw(picture, runs)
    print(f"{page} ({size:,} bytes) and {picture}: {len(runs)} runs")
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser("report", help="plot curves and bytes of runs side by side, as a page and a picture")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs/<id>, or another folder with train.log")
    words = "the page; the picture is written beside it, as .png (default: report.html)"
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE.html", help=words)
    parser.set_defaults(run=run)
