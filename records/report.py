"""`python -m records report runs/<id>...`: curves, bytes and rounding errors of runs side by side, as one page and one picture."""
import math
from itertools import pairwise
from pathlib import Path

from common.challenge import BUDGET_BYTES as CAP_BYTES
from common.schedule import lr_scale, run_progress
from common.settings import UserError
from records.budget import GROUPS, group_bytes, model_budget
from records.folder import Refused, read_bounded
from records.logs import LOG_LIMIT, read_log
from records.page import write_page

MODEL_FILE, MOST_RUNS = "model.int8.zlib", 12
COLORS = {"embedding": "#2a6fd6", "attention": "#12895c", "mlp": "#7a4fc9", "head": "#b5336f", "controls": "#8a6d00", "scales": "#d9601f",
          "code": "#16181d"}


def read_run(path):
    """dict of what is drawn of one run folder. UserError: it has no readable log."""
    try:
        if not path.is_dir():
            raise Refused("is no folder: give runs/<id>")
        log = read_log("train.log", read_bounded(path / "train.log", LOG_LIMIT))
    except Refused as error:
        raise UserError(f"{path}: {error}") from None
    if not log.train and not log.val:
        raise UserError(f"{path}/train.log has no line of a training run")
    log.train = [row for row in log.train if math.isfinite(row[1]) and math.isfinite(row[2])]
    log.val = [row for row in log.val if math.isfinite(row[1]) and math.isfinite(row[2])]
    budget = []
    if (path / MODEL_FILE).is_file():
        try:
            budget = model_budget(read_bounded(path / MODEL_FILE, 1 << 28))
        except (Refused, UserError) as error:
            raise UserError(f"{path / MODEL_FILE}: {error}") from None
    figures = log.pre_quant and log.pre_quant[1], log.train_ms and log.train_ms / 1e3
    before, seconds = (x if x is not None and math.isfinite(x) else None for x in figures)
    score = log.score() if log.score() and math.isfinite(log.score()[1]) else None
    return {
        "name": path.resolve().name, "backend": log.backend, "device": log.device, "seed": log.seed, "status": log.status, "steps": log.last_step,
        "seconds": seconds and round(seconds, 3), "memory": log.memory_mib, "params": log.params,
        "bpb": score and score[1], "before": before, "total": log.total_bytes, "code": log.code_bytes,
        "data": log.dataset,
        "train": [[step, loss, round(ms / 1e3, 3)] for step, loss, ms in log.train], "val": [[step, bpb] for step, _, bpb, _ in log.val],
        "lr": learning_rates(log), "rate": throughput(log), "groups": group_bytes(budget) if budget else {},
        "tensors": [[t.name, t.group, t.numbers, round(t.bytes), t.error] for t in budget],
    }


def learning_rates(log):
    """[[step, scale]]: what the schedule gives at the logged steps and times; of our own trainers only, whose schedule is known."""
    if not log.backend:
        return []
    settings = log.run_settings
    return [[step, round(lr_scale(settings, run_progress(settings, step, ms / 1e3)), 5)] for step, _, ms in log.train]


def throughput(log):
    """[[step, tokens per second since the line before]]."""
    rows, tokens = [(0, 0.0, 0.0), *log.train], log.batch_tokens
    return [[step, round((step - before) * tokens / (ms - then) * 1e3)] for (before, _, then), (step, _, ms) in pairwise(rows)
            if tokens and ms > then and step > before]


def draw(path, runs):
    """The same as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    palette = ["#2a6fd6", "#d9601f", "#12895c", "#7a4fc9", "#b5336f", "#8a6d00"]
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e2e3e0", "axes.edgecolor": "#9aa0a8",
             "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "font.size": 9, "axes.axisbelow": True,
             "text.parse_math": False}
    with pyplot.rc_context(style):
        tensors = [t for run in runs for t in run["tensors"] if t[4] is not None]
        names = list(dict.fromkeys(t[0] for t in tensors))
        tall = max(2.6, 0.14 * len(names) + 0.8) if names else 0
        layout = [["loss", "val"], ["lr", "rate"], ["bytes", "memory"]] + ([["error", "error"]] if names else [])
        bars = 1.2 + 0.32 * len(runs)
        figure, axes = pyplot.subplot_mosaic(layout, figsize=(11, 6.2 + bars + tall), height_ratios=[3, 3, bars] + ([tall] if names else []),
                                             layout="constrained")
        for i, run in enumerate(runs):
            color, label = palette[i % len(palette)], run["name"] + ("" if run["bpb"] is None else f", {run['bpb']:.4f}")
            for key, column in (("loss", "train"), ("val", "val"), ("lr", "lr"), ("rate", "rate")):
                points = run[column]
                axes[key].plot([p[0] for p in points], [p[1] for p in points], color=color, linewidth=1.4, label=label,
                               marker="o" if key == "val" else None, markersize=3.5)
            left = 0
            for group, size in {**run["groups"], "code": run["code"] or 0}.items():
                axes["bytes"].barh(i, size / 1e6, left=left / 1e6, color=COLORS[group], height=0.6, label=group if not i else None, edgecolor="white")
                left += size
            axes["memory"].barh(i, run["memory"] or 0, color=color, height=0.6)
            for name, _, _, _, error in run["tensors"]:
                if error is not None:
                    axes["error"].plot(100 * error, names.index(name), "o", color=color, markersize=4.5, alpha=0.8)
        axes["loss"].set(title="Training loss", xlabel="step", ylabel="nats per token")
        losses = sorted(p[1] for run in runs for p in run["train"])
        if losses:
            axes["loss"].set_ylim(losses[0] - 0.1, 1.1 * losses[int(0.97 * (len(losses) - 1))])
        axes["val"].set(title="Validation", xlabel="step", ylabel="bits per byte")
        axes["val"].legend(fontsize="small", frameon=False)
        axes["lr"].set(title="Learning rate", xlabel="step", ylabel="scale")
        axes["rate"].set(title="Throughput", xlabel="step", ylabel="tokens/s")
        axes["rate"].set_ylim(bottom=0)
        for key, title, unit in (("bytes", "Bytes of the submission, by tensor group", "million bytes"), ("memory", "Peak memory", "MiB")):
            axes[key].set(title=title, xlabel=unit, yticks=range(len(runs)), yticklabels=[run["name"] for run in runs])
            axes[key].invert_yaxis()
            axes[key].grid(axis="y", visible=False)
        axes["bytes"].legend(fontsize="x-small", frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.55 / bars))
        if names:
            axes["error"].set(title="Expected rounding error, relative", xlabel="% of the tensor's root mean square",
                              yticks=range(len(names)), ylim=(len(names) - 0.3, -0.7))
            axes["error"].set_yticklabels(names, fontsize=7)
            axes["error"].set_xlim(left=0)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def run(options):
    if len(options.runs) > MOST_RUNS:
        raise UserError(f"{len(options.runs)} runs: a report shows at most {MOST_RUNS}")
    runs = [read_run(Path(path)) for path in options.runs]
    page = options.output if options.output.suffix == ".html" else options.output.with_suffix(".html")
    size = write_page(page, "Parity Golf runs", "report.js", {"runs": runs, "groups": GROUPS, "cap": CAP_BYTES})
    draw(page.with_suffix(".png"), runs)
    print(f"{page} ({size:,} bytes) and {page.with_suffix('.png')}: {len(runs)} runs")
    return 0
