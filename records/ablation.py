"""`python -m records ablation`: what each option does to score and bytes, measured on this machine at the size of `make train` on a CPU.

Every trial is run with the same seeds and the same data, and compared with the trial it builds on by the test of
`python -m records significance`, and seed by seed: a seed gives both the same initial weights. Training is equal in floating-point
operations, so that a busy machine decides nothing: an option that makes a step dearer makes fewer steps. Levels and rounding have more
steps, for a model of 200 steps loses next to nothing with few levels. Options that come after the training share it: its last steps
are made again from one checkpoint. Runs are kept in runs/ablation-BACKEND-TRIAL-SEED, and one that is finished is not made again: remove
them after a change of code or data.
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
from common.params import flops_per_token
from common.readlog import parse_log
from common.settings import Settings, UserError, load_settings, settings_of
from records.significance import Side, compare

STEPS, TRAINERS = 200, {"torch": "train_gpt.py", "mlx": "train_gpt_mlx.py"}
SIZE = {"NUM_LAYERS": 4, "MODEL_DIM": 256, "NUM_HEADS": 4, "NUM_KV_HEADS": 2, "TRAIN_SEQ_LEN": 256, "TRAIN_BATCH_TOKENS": 4096,
        "MICRO_BATCH_TOKENS": 4096, "MATRIX_LR": 0.02, "MUON_MOMENTUM_WARMUP_STEPS": 100, "VAL_LOSS_EVERY": 0, "MAX_WALLCLOCK_SECONDS": 0,
        "CHECKPOINT_EVERY": 0}
# name: (settings, those of the trial that it is compared with among them; that trial)
TRIALS = {
    "baseline": ({}, None),
    "stride": ({"EVAL_STRIDE": 64}, "baseline"),
    "window-512": ({"EVAL_SEQ_LEN": 512, "EVAL_STRIDE": 256}, "baseline"),
    "ttt": ({"TTT_LR": 0.05, "TTT_CHUNK": "4096"}, "baseline"),
    "ttt-document": ({"TTT_LR": 0.05, "TTT_CHUNK": "1024d"}, "baseline"),
    "ttt-stride": ({"TTT_LR": 0.05, "TTT_CHUNK": "4096", "EVAL_STRIDE": 64}, "baseline"),
    "embed-fp16": ({"QUANT_LEVELS": "embed=fp16"}, "baseline"),
    "loop": ({"LOOP_LAYERS": "1-2"}, "baseline"),
    "ema": ({"EMA_DECAY": 0.95}, "baseline"),
    "rows-1024": ({"TRAIN_SEQ_LEN": 1024}, "baseline"),
    "narrow": ({"MODEL_DIM": 128}, "baseline"),
    "wide": ({"MODEL_DIM": 384}, "baseline"),
    "long": ({"ITERATIONS": 500}, "baseline"),
}
for name, levels in {"matrices-6-bit": "matrix=31", "matrices-5-bit": "matrix=15", "matrices-4-bit": "matrix=7", "all-5-bit": "15",
                     "all-4-bit": "7"}.items():
    TRIALS[name] = {"ITERATIONS": 500, "QUANT_LEVELS": levels}, "long"
    TRIALS[f"{name}-qat"] = {**TRIALS[name][0], "QAT_START": 0.5}, name


def trial_settings(trial, data_path):
    """dict NAME -> text of a trial, with steps for as many operations as the baseline's."""
    values, plain = ({name: str(value) for name, value in found.items()} for found in (SIZE | TRIALS[trial][0], SIZE))
    cost, plain_cost = (flops_per_token(load_settings(Settings, [], found | {"VOCAB_SIZE": "1024"}, print)) for found in (values, plain))
    return values | {"DATA_PATH": str(data_path), "ITERATIONS": str(round(int(values.get("ITERATIONS", STEPS)) * plain_cost / cost))}


def ancestry(trial):
    """The trial and those that it builds on."""
    return [trial, *(ancestry(TRIALS[trial][1]) if TRIALS[trial][1] else [])]


def training(trial):
    """The trial that trains as this one does: itself, or the one it builds on where all that it adds comes after the training."""
    settings, against = TRIALS[trial]
    added = {name.lower() for name in settings.keys() - TRIALS[against][0].keys()} if against else {""}
    return training(against) if added <= settings_of("evaluation", "memory", "run").keys() else trial


SHARED = {training(trial) for trial in TRIALS if training(trial) != trial}


def outcome(folder):
    """dict of what is shown of a finished run, or None."""
    path = folder / "train.log"
    lines = parse_log(path.read_text()) if path.exists() else []
    found = dict(lines)  # the last of each kind
    if found.get("status", {}).get("status") not in ("finished", "capped"):
        return None
    return {"loss": found["final_exact"]["val_loss"], "bpb": found["final_exact"]["val_bpb"], "before": found["val"]["val_bpb"],
            "bytes": found["total"]["bytes"], "steps": found["val"]["step"], "evaluation": found["final"]["ms"] / 1e3}


def start(folder, values, backend, **more):
    """The process of a run that goes on with what is in its folder, or begins it."""
    named = {"RESUME": str(folder)} if folder.exists() else {"RUN_ID": folder.name}
    clean = {name: value for name, value in os.environ.items() if name.lower() not in vars(Settings())}
    return subprocess.Popen([sys.executable, TRAINERS[backend]], env=clean | values | named | more, text=True, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)


def trained(trial, seed, backend, data_path):
    """Folder of a run, stopped some steps before its end."""
    values = trial_settings(trial, data_path) | {"SEED": str(seed)}
    folder = Path("runs") / f"ablation-{backend}-{trial}-trained-{seed}"
    stop, made = int(values["ITERATIONS"]) - 5, int(checkpoints(folder)[0].stem[5:]) if checkpoints(folder) else 0
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
    """outcome() of one run, which is made where it is not there. Raises UserError."""
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
    mean = {key: statistics.mean(run[key] for run in runs[trial]) for key in runs[trial][0]}
    cells = [trial, " ".join(f"`{name}={value}`" for name, value in settings.items()) or "defaults",
             f"{mean['bpb']:.4f} ± {statistics.stdev(run['bpb'] for run in runs[trial]):.4f}",
             f"{mean['bpb'] - mean['before']:+.4f}", f"{mean['bytes']:,.0f}", f"{mean['steps']:.0f}", f"{mean['evaluation']:.1f}"]
    if against:
        pairs = [ours["bpb"] - theirs["bpb"] for ours, theirs in zip(runs[trial], runs[against])]
        sides = [Side(name, [run["loss"] for run in runs[name]], [run["bpb"] for run in runs[name]]) for name in (against, trial)]
        found = compare(*sides)
        p = found["readings"]["no margin"]["p"] if "readings" in found else float("nan")
        cells += [f"{statistics.mean(pairs):+.4f} ± {statistics.stdev(pairs):.4f} against {against}",
                  f"{found['decision']}, p = {p:.2g} without margin"]
    return "| " + " | ".join([*cells, *[""] * (9 - len(cells))]) + " |"


def run(options):
    names = options.only or list(TRIALS)
    if unknown := set(names) - TRIALS.keys():
        raise UserError(f"--only {min(unknown)}: no such trial; there are {', '.join(TRIALS)}")
    if options.seeds < 2:
        raise UserError(f"--seeds {options.seeds}: a spread needs 2 or more")
    names = [name for name in TRIALS if any(name in ancestry(trial) for trial in names)]
    seeds = range(1337, 1337 + options.seeds)
    with ThreadPoolExecutor(options.jobs) as pool:
        first = [pool.submit(trained, name, seed, options.backend, options.data) for name in names if name in SHARED for seed in seeds]
        for job in first:
            job.result()
        jobs = {name: [pool.submit(run_trial, name, seed, options.backend, options.data) for seed in seeds] for name in names}
        try:
            runs = {name: [job.result() for job in made] for name, made in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print("| trial | settings | val_bpb | cost of the round trip | bytes | steps | evaluation, s | seed by seed | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in runs:
        print(line(name, runs))
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser("ablation", help="measure what each option does to score and bytes")
    words = "run only these, and the trials that they are compared with (default: all)"
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help=words)
    parser.add_argument("--backend", choices=("torch", "mlx"), default="torch", help="(default: torch)")
    words = "data folder (default: the embedded corpus)"
    parser.add_argument("--data", type=Path, default=Path("data/pydoc_sp1024"), metavar="DIR", help=words)
    parser.add_argument("--seeds", type=int, default=3, help="runs per trial, one per seed (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.set_defaults(run=run)
