"""Parity of real training: both backends side by side in their normal dtype, several seeds, one picture and one sentence."""
import dataclasses
import statistics
import sys

import numpy as np

from common import batches, bpb, params, schedule
from common.settings import UserError
from parity.problem import embedded_corpus, make_problem, trainer_class


def train_curve(trainer_class, problem, seed, progress):
    """(float array (steps,) of training losses, final val_bpb) of one run in the backend's normal dtype."""
    s = dataclasses.replace(problem.settings, seed=seed)
    own = trainer_class.settings_class(**{f.name: getattr(s, f.name) for f in dataclasses.fields(s)})
    trainer, stream, losses = trainer_class(own, params.initial_weights(s)), batches.TokenStream([problem.train]), []
    for step in range(problem.steps):
        scale = schedule.lr_scale(s, schedule.run_progress(s, step, 0.0))
        losses.append(float(trainer.train_step(batches.step_rows(stream, s, step), scale, schedule.muon_momentum(s, step))))
        progress(f"seed {seed}, {trainer.backend}: step {step + 1}/{problem.steps} loss {losses[-1]:.3f}")
    val = batches.TokenStream([problem.val])
    return np.array(losses), bpb.evaluate(trainer, s, val, problem.table, len(problem.val))[1]


def pyplot_for(path):
    """matplotlib.pyplot. Raises UserError where it is missing or could not write that file."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError("the picture needs matplotlib: pip install '.[records]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    if path.suffix not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: name a .png, .svg or .pdf in a folder that is there")
    return pyplot


def draw(pyplot, path, seeds, losses):
    """losses: dict (backend, seed) -> curve."""
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(2, 1), layout="constrained")
    for number, seed in enumerate(seeds):
        for backend, style in (("torch", "-"), ("mlx", "--")):
            top.plot(range(1, len(losses[backend, seed]) + 1), losses[backend, seed], style, color=f"C{number}", linewidth=1.2,
                     label=f"{backend}, seed {seed}")
        bottom.plot(range(1, len(losses["torch", seed]) + 1), losses["mlx", seed] - losses["torch", seed], color=f"C{number}", linewidth=1)
    top.set(ylabel="training loss (nats per token)", title="Same settings, seed and data on both backends, normal dtypes")
    top.legend(ncols=len(seeds), fontsize="small")
    bottom.axhline(0, color="black", linewidth=0.6)
    bottom.set(xlabel="optimizer step", ylabel="MLX - torch (nats)")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def run(options):
    """Trains, draws and tells the difference. Raises UserError."""
    pyplot = pyplot_for(options.output)
    problem = make_problem(embedded_corpus(options.data), options.steps, warmdown_fraction=1.0)
    seeds, losses, scores = range(1, options.seeds + 1), {}, {}

    def progress(text):
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    for seed in seeds:
        for backend in ("torch", "mlx"):
            losses[backend, seed], scores[backend, seed] = train_curve(trainer_class(backend), problem, seed, progress)
        progress("")
        print(f"seed {seed}: val_bpb torch {scores['torch', seed]:.4f}  mlx {scores['mlx', seed]:.4f}", flush=True)
    draw(pyplot, options.output, seeds, losses)
    differences = [scores["mlx", seed] - scores["torch", seed] for seed in seeds]
    spread = statistics.stdev(scores["torch", seed] for seed in seeds)
    print(f"MLX - torch after {options.steps} steps: {statistics.mean(differences):+.4f} bits per byte on average over {options.seeds} seeds, "
          f"{max(map(abs, differences)):.4f} at most; from seed to seed torch differs by {spread:.4f} (standard deviation)\n{options.output}")
    return True
