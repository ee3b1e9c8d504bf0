"""The report's picture: panels of curves and bytes, or of many runs a summary. No legend lies over a panel.

matplotlib is imported where it is needed: it takes longer than the rest of a command.
"""
RUN_COLORS = ("#2a6fd6", "#d9601f", "#12895c", "#7a4fc9", "#b5336f", "#8a6d00")
GROUP_COLORS = {
    "embedding": "#2a6fd6",
    "attention": "#12895c",
    "mlp": "#7a4fc9",
    "head": "#b5336f",
    "controls": "#8a6d00",
    "scales": "#d9601f",
    "model": "#8b93a1",
    "code": "#16181d",
}
MOST_CHARS = 28  # of a run's name beside a bar; twice that in the legend
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
    "axes.formatter.useoffset": False,
    "text.parse_math": False,  # a run's name may hold a $
}


def draw_curves(path, runs):
    """Write the picture of up to a dozen runs, dicts of report.py's read_run."""
    import matplotlib
    with matplotlib.rc_context(STYLE):
        curves_figure(runs).savefig(path, dpi=130)


def draw_summary(path, runs):
    """Write the picture of many runs."""
    import matplotlib
    with matplotlib.rc_context(STYLE):
        summary_figure(runs).savefig(path, dpi=130)


def curves_figure(runs):
    """matplotlib Figure: curves, bytes, memory and rounding errors of each run."""
    from matplotlib.figure import Figure
    names = list(dict.fromkeys(t[0] for run in runs for t in run["tensors"] if t[4] is not None))
    layout = [["loss", "val"], ["lr", "rate"], ["bytes", "memory"], ["key", "key"]]
    heights = [3, 3, bar_height(runs), 0.3]
    if names:
        layout.append(["error", "error"])
        heights.append(max(2.6, 0.14 * len(names) + 0.8))
    figure = Figure(figsize=(11, 0.2 + sum(heights) + 0.2 * len(runs)), layout="constrained")
    axes = figure.subplot_mosaic(layout, height_ratios=heights)
    labels = [run_label(run) for run in runs]
    for i, run in enumerate(runs):
        draw_run(axes, i, run, names)
    label_curves(axes, runs)
    label_bars(axes, runs)
    if names:
        label_errors(axes["error"], names)
    for columns in range(len(runs), 0, -1):  # as many as fit side by side
        legend = figure.legend(axes["loss"].get_lines(), labels, loc="outside upper left", ncols=columns, frameon=False)
        if legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return figure


def bar_height(runs):
    """Inches of the row with one bar per run."""
    return 1.2 + 0.32 * len(runs)


def run_label(run):
    name = shortened(run["name"], 2 * MOST_CHARS)
    return name if run["bpb"] is None else f"{name}, {run['bpb']:.4f}"


def shortened(text, most):
    """The text, or its first and last characters: names of runs differ at their ends."""
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - tail - 1]}\u2026{text[-tail:]}"


def draw_run(axes, i, run, names):
    """What all panels show of the run number i. names: of the tensors that are rounded, one row each."""
    color = RUN_COLORS[i % len(RUN_COLORS)]
    dashes = "-" if i < len(RUN_COLORS) else "--"
    for panel, column in {"loss": "train", "val": "val", "lr": "lr", "rate": "rate"}.items():
        x, y = [p[0] for p in run[column]], [p[1] for p in run[column]]
        look = {"color": color, "linewidth": 1.4, "linestyle": dashes}
        axes[panel].plot(x, y, marker="o" if panel == "val" else None, markersize=3.5, **look)
    left = 0
    for part, size in parts_of(run).items():
        look = {"color": GROUP_COLORS[part], "height": 0.6, "edgecolor": "white", "linewidth": 0.5}
        axes["bytes"].barh(i, size / 1e6, left=left / 1e6, **look)
        left += size
    for panel, known in {"bytes": left, "memory": run["memory"]}.items():
        if not known:
            axes[panel].text(0, i, " not stated", va="center", color="#5c6370")
    axes["memory"].barh(i, run["memory"] or 0, color=color, height=0.6)
    for name, _, _, _, error in run["tensors"]:
        if error is not None:
            fill = "full" if i < len(RUN_COLORS) else "none"
            look = {"color": color, "fillstyle": fill, "markersize": 4.5, "alpha": 0.8}
            axes["error"].plot(100 * error, names.index(name), "o", **look)


def parts_of(run):
    """dict part -> bytes: groups of the model file where it is there, else the model; and the code."""
    parts = dict(run["groups"]) or {"model": run["model"] or 0}
    return {part: size for part, size in {**parts, "code": run["code"] or 0}.items() if size}


def label_curves(axes, runs):
    axes["loss"].set(title="Training loss", xlabel="step", ylabel="nats per token")
    losses = sorted(p[1] for run in runs for p in run["train"])
    if losses:  # the first few are far above the rest
        axes["loss"].set_ylim(losses[0] - 0.1, 1.1 * losses[int(0.97 * (len(losses) - 1))])
    axes["val"].set(title="Validation", xlabel="step", ylabel="bits per byte")
    axes["lr"].set(title="Learning rate", xlabel="step", ylabel="scale")
    axes["rate"].set(title="Throughput", xlabel="step", ylabel="tokens/s")
    axes["rate"].set_ylim(bottom=0)


def label_bars(axes, runs):
    """Names stand at the bars of bytes, and hold for memory beside them; the colours of the bytes are below."""
    from matplotlib.patches import Patch
    titles = {"bytes": ("Bytes of the submission", "million bytes"), "memory": ("Peak memory", "MiB")}
    names = [shortened(run["name"], MOST_CHARS) for run in runs]
    for key, (title, unit) in titles.items():
        axes[key].set(title=title, xlabel=unit, yticks=range(len(runs)), ylim=(len(runs) - 0.4, -0.6))
        axes[key].set_yticklabels(names if key == "bytes" else [])
        axes[key].grid(axis="y", visible=False)
        axes[key].set_xlim(left=0)
    used = {part for run in runs for part in parts_of(run)}
    patches = [Patch(color=color, label=part) for part, color in GROUP_COLORS.items() if part in used]
    axes["key"].axis("off")
    axes["key"].legend(handles=patches, loc="center", ncols=len(GROUP_COLORS), frameon=False, borderaxespad=0)


def label_errors(axis, names):
    unit = "% of the tensor's root mean square"
    rows = {"yticks": range(len(names)), "ylim": (len(names) - 0.3, -0.7)}
    axis.set(title="Expected rounding error, relative", xlabel=unit, **rows)
    axis.set_yticklabels(names, fontsize=7)
    axis.set_xlim(left=0)


def summary_figure(runs):
    """matplotlib Figure: two panels for each group of scores that can be compared, in order and against bytes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    groups = {}
    for run in runs:
        groups.setdefault(run["group"], []).append(run)
    figure = Figure(figsize=(11, 3.4 * len(groups)), layout="constrained")
    rows = figure.subplots(len(groups), 2, squeeze=False)
    for row, (group, here) in zip(rows, groups.items()):
        scored = sorted((run for run in here if run["bpb"] is not None), key=lambda run: run["bpb"])
        sized = [run for run in scored if run["total"] is not None]
        look = {"color": RUN_COLORS[0], "marker": "o", "linestyle": "", "markersize": 4.5, "alpha": 0.8}
        row[0].plot(range(1, len(scored) + 1), [run["bpb"] for run in scored], **look)
        row[1].plot([run["total"] / 1e6 for run in sized], [run["bpb"] for run in sized], **look)
        title = f"{shortened(group, 2 * MOST_CHARS)}: {len(scored)} of {len(here)} runs have a score"
        row[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        row[0].set(title=title, xlabel="place", ylabel="bits per byte")
        row[1].set(title="Score against bytes", xlabel="million bytes", ylabel="bits per byte")
    return figure
