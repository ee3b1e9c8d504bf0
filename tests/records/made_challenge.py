"""Record folders in the manner of the challenge: a script of its own, logs that begin with its source, lines as its
scripts and their descendants print them, and no model file. All figures are made up."""
import json
import math
import re
import statistics
from pathlib import Path
from random import Random

from common.published import VAL_BYTES, VAL_TOKENS
from records.rules import TRACKS

TOKENS = VAL_TOKENS["sp1024"]
BPB_A_NAT = TOKENS / VAL_BYTES / math.log(2)
BATCH, STEPS, ITERATIONS, CAP, PARAMS = 524_288, 11_950, 20_000, 600.0, 17_059_912
MODEL_BYTES = 15_801_234
SCRIPT = '''"""A small language model of bytes: trains on the shards of DATA_PATH, validates, prints the score."""
import glob
import math
import os
import time

import numpy as np


class Hyperparameters:
    iterations = int(os.environ.get("ITERATIONS", 20000))
    seed = int(os.environ.get("SEED", 1337))
    train_files = os.path.join(os.environ.get("DATA_PATH", "data"), "fineweb_train_*.bin")
    val_files = os.path.join(os.environ.get("DATA_PATH", "data"), "fineweb_val_*.bin")


def load(pattern):
    parts = [np.fromfile(name, np.uint16)[512:] for name in sorted(glob.glob(pattern))]
    return np.concatenate(parts).astype(np.int64)


def loss_and_gradient(weights, tokens):
    inputs, targets = tokens[:-1], tokens[1:]
    logits = weights[inputs]
    logits = logits - logits.max(1, keepdims=True)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(chances[np.arange(len(targets)), targets]).mean()
    chances[np.arange(len(targets)), targets] -= 1
    gradient = np.zeros_like(weights)
    np.add.at(gradient, inputs, chances / len(targets))
    return loss, gradient


def main():
    args = Hyperparameters()
    train, val = load(args.train_files), load(args.val_files)
    weights = np.random.default_rng(args.seed).normal(0, 0.01, (1024, 1024))
    started = time.perf_counter()
    for step in range(1, args.iterations + 1):
        place = step * 512 % (len(train) - 512)
        loss, gradient = loss_and_gradient(weights, train[place:place + 512])
        weights -= 10 * gradient
        ms = 1e3 * (time.perf_counter() - started)
        print(f"step:{step}/{args.iterations} train_loss:{loss:.4f} train_time:{ms:.0f}ms step_avg:{ms / step:.2f}ms")
    loss = loss_and_gradient(weights, val)[0]
    bpb = loss / math.log(2) * len(val) / os.path.getsize(glob.glob(args.val_files)[0])
    print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}")


if __name__ == "__main__":
    main()
'''
GPU = "|   {} {:<30}  On  |   00000000:{:02X}:00.0 Off |                    0 |"
LATE = {  # printed under "Hyperparameters:" by later scripts
    "datasets_dir": "./data/datasets/fineweb10B_sp1024", "ema_decay": "0.997", "gptq_reserve_seconds": "12.0",
    "iterations": str(ITERATIONS), "logfile": "logs/{seed}.txt", "matrix_lr": "0.02", "max_wallclock_seconds": "600.0",
    "model_dim": "512", "num_layers": "9", "run_id": "run-{seed}", "seed": "{seed}",
    "train_batch_tokens": str(BATCH), "train_files": "./data/datasets/fineweb10B_sp1024/fineweb_train_*.bin",
    "train_log_every": "500", "train_seq_len": "1024",
    "val_files": "./data/datasets/fineweb10B_sp1024/fineweb_val_*.bin", "vocab_size": "1024", "world_size": "8",
}


def pair(loss, digits=4):
    return f"val_loss:{loss:.{digits}f} val_bpb:{loss * BPB_A_NAT:.{digits}f}"


def training(seed, loss, every, validate):
    """(step, ms, training loss or None, validation loss or None) of a run. loss: the last validation's."""
    random = Random(seed)
    for step in range(STEPS + 1):
        ms = step * 50.2 + random.uniform(0, 20) * (0 < step < STEPS)
        expected = loss + (math.log(1024) - loss) * math.exp(-step / 600) * (step < STEPS)
        noise = random.gauss(0.005, 0.05)
        logged = step and (step <= 10 or step % every == 0)
        validated = step % validate == 0 or step == STEPS
        if logged or validated:
            yield step, ms, expected + noise if logged else None, expected if validated else None


def early_log(seed, bpb):
    """A log as the challenge's first scripts print it: times in milliseconds."""
    final = bpb / BPB_A_NAT
    lines = [SCRIPT, "=" * 100, "Running Python 3.12.3 (main) [GCC 13.3.0]", "Running PyTorch 2.9.1+cu128"]
    lines += [GPU.format(i, "NVIDIA H100 80GB HBM3", 24 + i) for i in range(8)]
    lines += [
        "=" * 100,
        "val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./data/tokenizers/fineweb_1024_bpe.model",
        "train_loader:dataset:fineweb10B_sp1024 train_shards:80",
        f"val_loader:shards pattern=./data/datasets/fineweb10B_sp1024/fineweb_val_*.bin tokens:{TOKENS}",
        f"model_params:{PARAMS}",
        "world_size:8 grad_accum_steps:1",
        "tie_embeddings:True embed_lr:0.05 head_lr:0.0 matrix_lr:0.04 scalar_lr:0.04",
        f"train_batch_tokens:{BATCH} train_seq_len:1024 iterations:{ITERATIONS} warmup_steps:20 "
        f"max_wallclock_seconds:{CAP:.3f}",
        f"seed:{seed}",
        *(f"warmup_step:{i}/20" for i in range(1, 21)),
    ]
    for step, ms, train, val in training(seed, final - 0.012, 200, 1000):
        time = f"train_time:{ms:.0f}ms step_avg:{ms / max(step, 1):.2f}ms"
        if train is not None:
            lines.append(f"step:{step}/{ITERATIONS} train_loss:{train:.4f} {time}")
        if val is not None:
            lines.append(f"step:{step}/{ITERATIONS} {pair(val)} {time}")
    total = MODEL_BYTES + seed + len(SCRIPT)
    return "\n".join([
        *lines,
        f"stopping_early: wallclock_cap train_time:{ms:.0f}ms step:{STEPS}/{ITERATIONS}",
        "peak memory allocated: 10184 MiB reserved: 10200 MiB",
        "Serialized model: 67224983 bytes",
        f"Code size: {len(SCRIPT)} bytes",
        f"Total submission size: {67224983 + len(SCRIPT)} bytes",
        f"Serialized model int8+zlib: {MODEL_BYTES + seed} bytes (payload:17178912 raw_torch:17224025)",
        f"Total submission size int8+zlib: {total} bytes",
        f"final_int8_zlib_roundtrip {pair(final)} eval_time:1401ms",
        f"final_int8_zlib_roundtrip_exact {pair(final, 8)}",
        "",
    ])


def late_log(seed, bpb):
    """A log as later scripts print it: hyperparameters, minutes, tokens/s, an average of the weights, GPTQ, windows."""
    final = bpb / BPB_A_NAT
    lines = ["Hyperparameters:", *(f"  {name}: {value.format(seed=seed)}" for name, value in LATE.items())]
    lines += ["train_shards: 80", f"val_tokens: {TOKENS}", f"model_params:{PARAMS}"]
    scale = 588.0 / (STEPS * 50.2 / 1e3)
    for step, ms, train, val in training(seed, final + 0.035, 500, 4000):
        seconds = scale * ms / 1e3
        if train is not None:
            speed = f"train_time: {seconds / 60:.1f}m tok/s: {step * BATCH / seconds:.0f}"
            lines.append(f"{step}/{ITERATIONS} train_loss: {train:.4f} {speed}")
        if val is not None:
            lines.append(f"{step}/{ITERATIONS} {pair(val).replace(':', ': ')}")
    return "\n".join([
        *lines,
        f"stopping_early: wallclock_cap train_time: {1e3 * seconds:.0f}ms step: {STEPS}/{ITERATIONS}",
        "peak memory allocated: 34604 MiB reserved: 34634 MiB",
        "ema:applying EMA weights",
        f"pre-quantization post-ema {pair(final + 0.033, 8)} eval_time:2054ms",
        "Serialized model: 135426937 bytes",
        f"Code size: {len(SCRIPT)} bytes",
        "GPTQ:collecting Hessians from calibration data...",
        "GPTQ:collected 67 Hessians in 11.3s",
        f"Serialized model int6+brotli: {MODEL_BYTES + seed} bytes",
        f"Total submission size int6+brotli: {MODEL_BYTES + seed + len(SCRIPT)} bytes",
        f"final_int6_roundtrip {pair(final + 0.044, 8)} eval_time:8134ms",
        f"final_int8_zlib_roundtrip_exact {pair(final, 8)} eval_time:82837ms",
        "",
    ])


def make_challenge_record(folder, bpbs, name, date, log=early_log, author="B. Builder"):
    """A record folder of runs with these scores, seeds 1, 2 and so on. It passes where it beats what lies beside it."""
    path = Path(folder, TRACKS["10min"], f"{date}_{name}")
    path.mkdir(parents=True)
    (path / "train_gpt.py").write_text(SCRIPT)
    logs = {seed: log(seed, bpb) for seed, bpb in enumerate(bpbs, 1)}
    middle = sorted(logs, key=lambda seed: bpbs[seed - 1])[len(logs) // 2]
    (path / "train.log").write_text(logs[middle])
    for seed, text in logs.items():
        if seed != middle:
            (path / f"train_seed{seed}.log").write_text(text)
    times = [int(1.401 if log is early_log else 8.134 + 82.837)] * len(bpbs)
    fields = {
        "author": author, "github_id": author.lower().replace(". ", "-"), "name": name, "blurb": "A small model.",
        "date": date, "track": TRACKS["10min"], "val_loss": round(bpbs[middle - 1] / BPB_A_NAT, 8),
        "val_bpb": bpbs[middle - 1], **before_quantization(logs[middle]), "step_stop": STEPS,
        "wallclock_seconds": 599.89 if log is early_log else 588.0,
        "bytes_total": MODEL_BYTES + middle + len(SCRIPT), "bytes_model_int8_zlib": MODEL_BYTES + middle,
        "bytes_code": len(SCRIPT), "hardware": "8xH100 80GB SXM", "seeds": list(logs), "seed_scores": list(bpbs),
        "eval_time_seconds": times, "val_bpb_std": round(statistics.stdev(bpbs), 8),
    }
    (path / "submission.json").write_text(json.dumps(fields, indent=1))
    (path / "README.md").write_text(
        f"# {name}\n\nval_bpb {bpbs[middle - 1]:.4f} after the round trip, mean {statistics.mean(bpbs):.4f} of "
        f"{len(bpbs)} seeds, on 8xH100 SXM.\n\nBetter learning rates than the baseline's, found in twenty runs.\n"
    )
    return path


def before_quantization(text):
    """The two fields of submission.json, from the last validation of a log."""
    found = re.findall(rf"{STEPS}/{ITERATIONS} val_loss: ?(\S+) val_bpb: ?(\S+)", text)[-1]
    return {"pre_quant_val_loss": float(found[0]), "pre_quant_val_bpb": float(found[1])}
