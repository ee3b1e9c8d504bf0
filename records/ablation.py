"""`python -m records ablation`: the effect of each option on score and bytes, measured on this machine: of the first
ones at the size of the parity ladder, of the ingredients of the records at that of RECIPE=laptop.

Every trial runs with the same seeds and the same data, and is compared with the trial it builds on, by the test of
`python -m records significance` and per seed: a seed gives both the same initial weights. Training is equal in
floating-point operations, so that a busy machine decides nothing: an option that makes a step more expensive makes
fewer steps. A score in another vocabulary is compared per byte. Levels and rounding have more steps, because a model
of 200 steps loses next to nothing with few levels. Options that come after the training share it: its last steps are
made again from one checkpoint. Runs are kept in runs/ablation-BACKEND-TRIAL-SEED, and a finished one is not made
again: remove them after a change of code or data.
"""
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.checkpoint import checkpoints
from common.command import path_argument
from common.params import flops_per_token
from common.readlog import parse_log
from common.recipes import LAPTOP_SIZE, RECIPES
from common.settings import Settings, UserError, as_text, load_settings, settings_of
from parity import problem
from parity.options import option_settings
from parity.trainers import SCRIPTS
from records.significance import Side, compare

STEPS = 200
LADDER_SIZE = problem.SIZE | {"train_batch_tokens": 4096, "micro_batch_tokens": 4096, "train_log_every": 50,
                              "val_loss_every": 0, "max_wallclock_seconds": 0.0, "checkpoint_every": "0"}
DEMO = Settings(**LADDER_SIZE)
SIZE = {name.upper(): getattr(DEMO, name) for name in LADDER_SIZE}


def options(*names):
    """dict NAME -> value of rows of parity/options.py, at this size."""
    return {name.upper(): value for name, value in option_settings(DEMO, names).items()}


# name: (settings, among them those of the trial that it is compared with; that trial)
TRIALS = {
    "baseline": ({}, None),
    "stride": (options("sliding windows"), "baseline"),
    "window-512": (options("long windows"), "baseline"),
    "ttt": (options("test-time training"), "baseline"),
    "ttt-document": (options("test-time training by document"), "baseline"),
    "ttt-stride": (options("test-time training", "sliding windows"), "baseline"),
    "embed-fp16": (options("fp16 embedding"), "baseline"),
    "loop": (options("loops"), "baseline"),
    "ema": (options("average"), "baseline"),
    "rows-1024": ({"TRAIN_SEQ_LEN": 1024}, "baseline"),
    "narrow": ({"MODEL_DIM": 128}, "baseline"),
    "wide": ({"MODEL_DIM": 384}, "baseline"),
    "long": ({"ITERATIONS": 500}, "baseline"),
}
LEVELS = {
    "matrices-6-bit": "matrix=31",
    "matrices-5-bit": "matrix=15",
    "matrices-4-bit": "matrix=7",
    "all-5-bit": "15",
    "all-4-bit": "7",
}
for name, levels in LEVELS.items():
    fewer = TRIALS["long"][0] | {"QUANT_LEVELS": levels}
    TRIALS[name] = fewer, "long"
    TRIALS[f"{name}-qat"] = fewer | options("rounding in training"), name

# What the records added, at the size of RECIPE=laptop: each alone, and those of the recipe one after the other.
INGREDIENTS = {
    "bigrams": {"BIGRAM_ROWS": 2048, "BIGRAM_DIM": 64},
    "floor": {"LR_FLOOR": 0.1},
    "leaky-relu": {"MLP_SLOPE": 0.5},
    "vocabulary": {"VOCAB_SIZE": 2048, "DATA_PATH": "data/pydoc_sp2048"},
    "smear-gate": {"SMEAR_GATE": 1},
    "decay": {"WEIGHT_DECAY": 0.1},
    "strong-decay": {"WEIGHT_DECAY": 1.0},
    "embedding-decay": {"EMBED_WEIGHT_DECAY": 0.1},
    "xsa": {"XSA_LAYERS": 4},
    "norm-scale": {"NORM_SCALE": 1},
    "partial-rotary": {"ROPE_DIMS": 16},
    "parallel": {"PARALLEL_LAYERS": 2},
    "momentum": {"MUON_MOMENTUM": 0.98},
    "gain": {"QK_GAIN_INIT": 4.0},
    "warm-down": {"WARMDOWN_FRACTION": 0.5},
    "documents": {"TTT_LR": 0.1, "TTT_CHUNK": "1024d"},
    "adapters": {"TTT_LR": 30.0, "TTT_RANK": 8, "TTT_CHUNK": "1024d"},
}
LAPTOP = {name.upper(): value for name, value in LAPTOP_SIZE.items()} | {
    "MICRO_BATCH_TOKENS": 4096, "VAL_LOSS_EVERY": 0, "MAX_WALLCLOCK_SECONDS": 0, "CHECKPOINT_EVERY": "0",
    "ITERATIONS": 600}
TRIALS["laptop"] = LAPTOP, None
TRIALS |= {name: (LAPTOP | values, "laptop") for name, values in INGREDIENTS.items()}
# rounding, of a model twice as wide
TRIALS["wider"] = LAPTOP | {"MODEL_DIM": 256}, None
for bits, levels in (("6-bit", "matrix=31"), ("4-bit", "matrix=7")):
    TRIALS[bits] = TRIALS["wider"][0] | {"QUANT_LEVELS": levels}, "wider"
    TRIALS[f"{bits}-gptq"] = TRIALS[bits][0] | {"GPTQ_TOKENS": 262144}, bits
    TRIALS[f"{bits}-clip"] = TRIALS[bits][0] | {"QUANT_CLIP": 3.0}, bits
before = "laptop"
for name, values in INGREDIENTS.items():
    if {key.lower() for key in values} <= {"vocab_size", "data_path", *RECIPES["laptop"]}:
        TRIALS[f"and-{name}"] = TRIALS[before][0] | values, before
        before = f"and-{name}"


def trial_settings(trial, data_path):
    """dict NAME -> text of a trial, with steps for as many operations as those of the first trial that it builds on."""
    plain = {name: as_text(value) for name, value in SIZE.items()}
    first, values = ({"DATA_PATH": str(data_path)} | plain | {name: as_text(value) for name, value in settings.items()}
                     for settings in (TRIALS[ancestry(trial)[-1]][0], TRIALS[trial][0]))
    steps = int(values.get("ITERATIONS", STEPS)) * operations(first) / operations(values)
    return values | {"ITERATIONS": str(round(steps))}


def operations(values):
    """Floating-point operations per token of training with a dict NAME -> text."""
    return flops_per_token(load_settings(Settings, [], {"VOCAB_SIZE": "1024"} | values, print))


def ancestry(trial):
    """The trial and those that it builds on."""
    against = TRIALS[trial][1]
    return [trial, *ancestry(against)] if against else [trial]


def training(trial):
    """The trial whose training this one shares: itself, or the one it builds on where all that it adds comes after the
    training."""
    settings, against = TRIALS[trial]
    if not against:
        return trial
    added = {name.lower() for name in settings.keys() - TRIALS[against][0].keys()}
    return training(against) if added <= settings_of("evaluation", "memory", "run").keys() else trial


SHARED = {training(trial) for trial in TRIALS if training(trial) != trial}


def outcome(folder):
    """dict of what the table shows of a finished run, or None."""
    path = folder / "train.log"
    lines = parse_log(path.read_text("utf-8")) if path.exists() else []
    found = dict(lines)  # the last of each kind
    if found.get("status", {}).get("status") not in ("finished", "capped"):
        return None
    return {
        "loss": found["final_exact"]["val_loss"],
        "bpb": found["final_exact"]["val_bpb"],
        "before": found["val"]["val_bpb"],
        "bytes": found["total"]["bytes"],
        "steps": found["val"]["step"],
        "evaluation": found["final"]["ms"] / 1e3,
    }


def start(folder, values, backend, **more):
    """The process of a run that continues what is in its folder, or begins it."""
    named = {"RESUME": str(folder)} if folder.exists() else {"RUN_ID": folder.name}
    clean = {name: value for name, value in os.environ.items() if name.lower() not in vars(Settings())}
    return subprocess.Popen([sys.executable, SCRIPTS[backend]], env=clean | values | named | more, encoding="utf-8",
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def trained(trial, seed, backend, data_path):
    """Folder of a run that was stopped five steps before its end. Raises UserError."""
    values = trial_settings(trial, data_path) | {"SEED": str(seed)}
    folder = Path("runs") / f"ablation-{backend}-{trial}-trained-{seed}"
    stop, made = int(values["ITERATIONS"]) - 5, 0
    if found := checkpoints(folder):
        made = int(found[0].stem.removeprefix("step-"))
    if made < stop:
        process = start(folder, values, backend, CHECKPOINT_EVERY=str(stop - made))
        while process.poll() is None and not (folder / f"step-{stop:08}.checkpoint").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
        if not checkpoints(folder):
            raise UserError(f"{folder} left no checkpoint at step {stop}: {said.strip()[-500:]}")
    return folder


def run_trial(trial, seed, backend, data_path):
    """outcome() of one run, which is made unless it exists. Raises UserError."""
    folder = Path("runs") / f"ablation-{backend}-{trial}-{seed}"
    if not (found := outcome(folder)):
        values = trial_settings(trial, data_path) | {"SEED": str(seed)}
        if not folder.exists() and training(trial) in SHARED:
            copy = folder.with_name(f"{folder.name}-copy")
            shutil.copytree(trained(training(trial), seed, backend, data_path), copy, dirs_exist_ok=True)
            copy.rename(folder)
        process = start(folder, values, backend)
        said = process.communicate()[1]
        if process.returncode or not (found := outcome(folder)):
            raise UserError(f"{folder} ended with exit code {process.returncode}: {said.strip()[-500:]}")
    print(f"{folder.name}: val_bpb {found['bpb']:.4f}", file=sys.stderr)
    return found


def line(trial, runs):
    """One row of the table, in Markdown."""
    settings, against = TRIALS[trial]
    builds_on = TRIALS[against][0] if against else {}
    added = {name: value for name, value in settings.items() if builds_on.get(name) != value}
    mean = {key: statistics.mean(run[key] for run in runs[trial]) for key in runs[trial][0]}
    cells = [
        trial,
        " ".join(f"`{name}={value}`" for name, value in added.items()) or "defaults",
        f"{mean['bpb']:.4f} ± {statistics.stdev(run['bpb'] for run in runs[trial]):.4f}",
        f"{mean['bpb'] - mean['before']:+.4f}",
        f"{mean['bytes']:,.0f}",
        f"{mean['steps']:.0f}",
        f"{mean['evaluation']:.1f}",
    ]
    if against:
        pairs = [ours["bpb"] - theirs["bpb"] for ours, theirs in zip(runs[trial], runs[against])]
        found = compare(side(against, runs, against), side(trial, runs, against))
        p = found["readings"]["no margin"]["p"] if "readings" in found else float("nan")
        cells += [f"{statistics.mean(pairs):+.4f} ± {statistics.stdev(pairs):.4f} against {against}",
                  f"{found['decision']}, p = {p:.2g} without margin"]
    else:
        cells += ["", ""]
    return "| " + " | ".join(cells) + " |"


def side(trial, runs, against):
    """Losses count in tokens of the vocabulary of `against`."""
    loss_per_bpb = runs[against][0]["loss"] / runs[against][0]["bpb"]
    return Side(trial, [run["bpb"] * loss_per_bpb for run in runs[trial]], [run["bpb"] for run in runs[trial]])


def run(options):
    names = options.only or list(TRIALS)
    if unknown := set(names) - TRIALS.keys():
        raise UserError(f"--only {min(unknown)}: no such trial; there are {', '.join(TRIALS)}")
    if options.seeds < 2:
        raise UserError(f"--seeds {options.seeds}: a spread needs 2 or more")
    names = [name for name in TRIALS if any(name in ancestry(trial) for trial in names)]
    for path in {str(TRIALS[name][0].get("DATA_PATH", options.data)) for name in names}:
        problem.embedded_corpus(path)
    seeds = range(1337, 1337 + options.seeds)
    with ThreadPoolExecutor(options.jobs) as pool:
        def submit(act, name):
            return [pool.submit(act, name, seed, options.backend, options.data) for seed in seeds]

        first = [submit(trained, name) for name in names if name in SHARED]
        for job in [job for made in first for job in made]:
            job.result()
        jobs = {name: submit(run_trial, name) for name in names}
        try:
            runs = {name: [job.result() for job in made] for name, made in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print("| trial | settings that it adds | val_bpb | cost of the round trip | bytes | steps | evaluation, s "
          "| seed by seed | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in runs:
        print(line(name, runs))
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser("ablation", help="measure what each option does to score and bytes")
    words = "run only these, and the trials that they are compared with (default: all)"
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help=words)
    parser.add_argument("--backend", choices=SCRIPTS, default="torch", help="(default: torch)")
    words = "data folder (default: the embedded corpus)"
    parser.add_argument("--data", type=path_argument, default=Path("data/pydoc_sp1024"), metavar="DIR", help=words)
    parser.add_argument("--seeds", type=int, default=3, help="runs per trial, one per seed (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.set_defaults(run=run)
