"""Parity of real training: both backends side by side in their normal dtype, several seeds, in one picture."""
import dataclasses
import statistics
import sys
from pathlib import Path

import numpy as np

from common import batches, bpb, params, schedule
from common.command import path_argument
from common.settings import UserError
from parity.climb import at_least
from parity.problem import DATA_PATH, embedded_corpus, known_settings, ladder_settings, make_problem
from parity.trainers import load_trainer


def add_command(subparsers):
    parser = subparsers.add_parser("curves", help="train both side by side and draw the losses")
    parser.add_argument("--data", type=path_argument, default=Path(DATA_PATH), metavar="DIR",
                        help="data folder (default: the embedded corpus)")
    parser.add_argument("--steps", type=at_least(1), default=100, help="optimizer steps of each run (default: 100)")
    parser.add_argument("--seeds", type=at_least(3), default=3, help="at least 3 (default: 3)")
    parser.add_argument("-o", "--output", type=path_argument, default=Path("parity_curves.png"),
                        help="a .png, .svg or .pdf (default: parity_curves.png)")
    parser.set_defaults(run=run)


def train_curve(trainer_class, problem, seed, progress):
    """(float array (steps,) of training losses, final val_bpb) of one run in the backend's normal dtype."""
    s = known_settings(trainer_class.settings_class, dataclasses.replace(problem.settings, seed=seed))
    trainer, stream, losses = trainer_class(s, params.initial_weights(s)), batches.TokenStream([problem.train]), []
    for step in range(problem.steps):
        scale = schedule.lr_scale(s, schedule.run_progress(s, step, 0.0))
        rows = batches.step_rows(stream, s, step)
        losses.append(float(trainer.train_step(rows, scale, schedule.muon_momentum(s, step))))
        progress(f"seed {seed}, {trainer.backend}: step {step + 1}/{problem.steps} loss {losses[-1]:.3f}")
    val = batches.TokenStream([problem.val])
    return np.array(losses), bpb.evaluate(trainer, s, val, problem.table, len(problem.val))[1]


def pyplot_for(path):
    """matplotlib.pyplot. Raises UserError where it is missing or could not write that file."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        raise UserError("the picture needs matplotlib: pip install '.[records]'") from None
    if path.suffix not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: name a .png, .svg or .pdf in a folder that exists")
    return pyplot


def draw(pyplot, path, seeds, losses):
    """losses: dict (backend, seed) -> curve."""
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(2, 1),
                                            layout="constrained")
    for number, seed in enumerate(seeds):
        torch, mlx = losses["torch", seed], losses["mlx", seed]
        steps, color = range(1, len(torch) + 1), f"C{number}"
        top.plot(steps, torch, "-", color=color, linewidth=1.2, label=f"torch, seed {seed}")
        top.plot(steps, mlx, "--", color=color, linewidth=1.2, label=f"mlx, seed {seed}")
        bottom.plot(steps, mlx - torch, color=color, linewidth=1)
    title = "Same settings, seed and data on both backends, normal dtypes"
    top.set(ylabel="training loss (nats per token)", title=title)
    top.legend(ncols=len(seeds), fontsize="small")
    bottom.axhline(0, color="black", linewidth=0.6)
    bottom.set(xlabel="optimizer step", ylabel="MLX - torch (nats)")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def run(options):
    """Trains, draws and reports the difference. Raises UserError."""
    pyplot = pyplot_for(options.output)
    flags = [f"--data-path={embedded_corpus(options.data)}", f"--iterations={options.steps}", "--warmdown-fraction=1",
             "--compile=1", "--device=auto"]  # as a run trains
    problem = make_problem(ladder_settings(flags))
    seeds, losses, scores = range(1, options.seeds + 1), {}, {}

    def progress(text):
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    for seed in seeds:
        for backend in ("torch", "mlx"):
            trainer = load_trainer(backend)
            losses[backend, seed], scores[backend, seed] = train_curve(trainer, problem, seed, progress)
        progress("")
        print(f"seed {seed}: val_bpb torch {scores['torch', seed]:.4f}  mlx {scores['mlx', seed]:.4f}", flush=True)
    draw(pyplot, options.output, seeds, losses)
    report(options, seeds, scores)


def report(options, seeds, scores):
    """scores: dict (backend, seed) -> bits per byte."""
    differences = [scores["mlx", seed] - scores["torch", seed] for seed in seeds]
    spread = statistics.stdev(scores["torch", seed] for seed in seeds)
    mean, most = statistics.mean(differences), max(map(abs, differences))
    print(f"MLX - torch after {options.steps} steps: {mean:+.4f} bits per byte on average over {options.seeds} seeds, "
          f"{most:.4f} at most; from seed to seed torch differs by {spread:.4f} (standard deviation)\n{options.output}")
