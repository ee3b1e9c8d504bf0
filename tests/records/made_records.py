"""Record folders for the tests of records/: runs as a trainer leaves them, with chosen scores, and what `pack` makes of
them."""
import hashlib
import json
import math
import shutil
from pathlib import Path
from random import Random

from common.artifact import encode_model
from common.challenge import BUDGET_BYTES
from common.params import count_params, flops_per_token, initial_weights
from common.published import VAL_BYTES, VAL_TOKENS
from common.runlog import log_line
from common.settings import Settings, changed_settings
from records.__main__ import main
from records.checks import PLACEHOLDER
from records.rules import TRACKS

SIZES = {"vocab_size": 260, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "train_seq_len": 16}
SCRIPT = b'''import math
import os
from pathlib import Path

import numpy as np


def read(split):
    paths = sorted(Path(os.environ["DATA_PATH"]).glob(f"*_{split}_*.bin"))
    return np.concatenate([np.fromfile(path, "<u2")[512:] for path in paths]).astype(np.int64)


def nats(logits, tokens):
    rows = logits[tokens[:-1]]
    return np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), tokens[1:]]


train, val, steps = read("train")[:4096], read("val"), int(os.environ["ITERATIONS"])
random = np.random.default_rng(int(os.environ.get("SEED", 1)))
vocab = 1 + int(max(train.max(), val.max()))
logits = random.normal(0, 0.1, (vocab, vocab))
for step in range(steps):
    share = np.exp(logits[train[:-1]])
    share /= share.sum(1, keepdims=True)
    share[np.arange(len(share)), train[1:]] -= 1
    gradient = np.zeros_like(logits)
    np.add.at(gradient, train[:-1], share)
    logits -= 0.1 * gradient
loss = nats(logits, val).mean()
print(f"step:{steps}/{steps} val_loss:{loss:.4f} val_bpb:{loss / math.log(2):.4f} train_time:5ms step_avg:2.50ms")
print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{loss / math.log(2):.8f}")
'''
MANIFEST = "ab" * 32  # SHA-256 of the data's manifest
PYDOC = {"path": "data/pydoc_sp1024", "tokens": 87_737, "bytes": 216_636, "processes": 1}
FINEWEB = {"path": "data/fineweb10B_sp1024", "tokens": VAL_TOKENS["sp1024"], "bytes": VAL_BYTES, "processes": 8}


def log_text(seed, bpb, code, model, payload, data, cap=600.0, ms_a_step=100.0, every=None):
    """A whole log in the words of common/runlog.py, VOCAB_SIZE unset, as a run with these times would print it. every:
    steps between lines; by default there are twenty lines."""
    steps = int(cap * 1e3 // ms_a_step) - 2
    settings = Settings(**SIZES, data_path=data["path"], seed=seed, max_wallclock_seconds=cap, run_id=f"made{seed}",
                        train_batch_tokens=4096, micro_batch_tokens=4096, train_log_every=every or max(1, steps // 20))
    changed = changed_settings(settings) | {"max_wallclock_seconds": cap}
    del changed["vocab_size"]
    loss = bpb * math.log(2) * data["bytes"] / data["tokens"]
    lines = [*header(settings, changed, data, code), *training_lines(settings, data, loss, steps, ms_a_step)]
    model_sha256 = hashlib.sha256(model).hexdigest()
    total = len(code) + len(model)
    rate = 1e3 / ms_a_step * settings.train_batch_tokens
    flops = rate * flops_per_token(settings) / 1e9
    lines += [
        ("stop", {"ms": steps * ms_a_step, "step": steps, "iterations": settings.iterations}),
        ("memory", {"mib": 700}),
        ("throughput", {"rate": rate, "flops": flops, "share": 100 * flops / 200, "peak": 200}),
        ("model", {"bytes": len(model), "payload": len(payload), "zlib9": len(model) + 5, "sha256": model_sha256}),
        ("code_size", {"bytes": len(code)}),
        ("total", {"bytes": total, "cap": BUDGET_BYTES, "left": BUDGET_BYTES - 1 - total}),
        ("scored", {"tokens": data["tokens"], "bytes": data["bytes"], "partial": ""}),
        ("final", {"val_loss": loss, "val_bpb": bpb, "ms": 1000, "partial": ""}),
        ("final_exact", {"val_loss": loss, "val_bpb": bpb, "partial": ""}),
        ("evaluation", {"seconds": 1.0, "limit": 600.0, "seq_len": 16, "stride": 16, "ttt": "off"}),
        ("status", {"status": "capped", "reason": "the wall-clock cap was reached", "hint": "none"}),
    ]
    return "".join(log_line(kind, **values) + "\n" for kind, values in lines)


def header(settings, changed, data, code):
    """(kind, values) of the lines before training. changed: settings that differ from the defaults."""
    world = data["processes"]
    device = f"{world} x {'cpu' if world == 1 else 'NVIDIA H100 80GB HBM3'}, float32, torch 2.13.0"
    versions = "python 3.11.7, numpy 2.4.6, sentencepiece 0.2.3, safetensors 0.8.0, Linux"
    val_tokens = data["tokens"] + 1  # the first is not scored
    tokenizer = {"vocab_size": settings.vocab_size, "sha256": "cd" * 32, "path": data["path"] + "/tokenizer.model"}
    return [
        ("run", {"run_id": settings.run_id, "backend": "torch", "device": device}),
        ("versions", {"versions": versions}),
        ("command", {"command": "train_gpt.py"}),
        ("settings", {"settings": json.dumps(changed, sort_keys=True)}),
        ("data", {"train_tokens": 9_000_523, "val_tokens": val_tokens, "manifest": MANIFEST, "path": data["path"]}),
        ("tokenizer", tokenizer),
        ("code", {"bytes": len(code), "sha256": hashlib.sha256(code).hexdigest()}),
        ("params", {"params": count_params(settings), "flops": flops_per_token(settings)}),
        ("batch", {"tokens": settings.train_batch_tokens, "seq_len": settings.train_seq_len, "world_size": world,
                   "micro_rows": 256 // world}),
        ("warmup", {"steps": settings.warmup_steps, "seconds": 1.0}),
    ]


def training_lines(settings, data, loss, steps, ms_a_step):
    """(kind, values) of the lines of training and validation. loss: the final score in nats per token."""
    random = Random(settings.seed)
    bpb_a_nat = data["tokens"] / data["bytes"] / math.log(2)
    for step in range(steps + 1):
        ms = step * ms_a_step + random.uniform(0, ms_a_step / 2) * (0 < step < steps)
        at = {"step": step, "iterations": settings.iterations, "ms": ms, "avg": ms / max(step, 1)}
        expected = loss + (math.log(settings.vocab_size) - loss) * math.exp(-40 * step / steps) * (step < steps)
        if 1 <= step <= 10 or (step and step % settings.train_log_every == 0):
            rate = 1e3 * step * settings.train_batch_tokens / ms
            yield "step", at | {"train_loss": expected + random.gauss(0.01, 0.03), "rate": rate}
        if step % settings.val_loss_every == 0 or step == steps:
            value = expected - 0.001
            yield "val", at | {"val_loss": value, "val_bpb": value * bpb_a_nat, "partial": ""}


def make_run(folder, seed, bpb, data=PYDOC, script=SCRIPT, **changes):
    """A run's folder as a trainer leaves it; its path."""
    settings = Settings(**SIZES, seed=seed)
    model, payload = encode_model(settings, initial_weights(settings))
    path = Path(folder, f"made{seed}")
    path.mkdir(parents=True)
    (path / "train_gpt.py").write_bytes(script)
    (path / "model.int8.zlib").write_bytes(model)
    (path / "train.log").write_text(log_text(seed, bpb, script, model, payload, data, **changes))
    (path / "status.json").write_text(json.dumps({"status": "capped", "reason": "", "step": 5998}))
    return path


def make_record(folder, bpbs, track="non-record", name="Made", date="2026-05-01", data=PYDOC, written=True, **changes):
    """The record folder that `pack` makes of runs with these scores, one per seed. It passes where `written`."""
    runs_folder = Path(folder, f"runs_{date}_{track}")
    runs = [make_run(runs_folder, seed, bpb, data, **changes) for seed, bpb in enumerate(bpbs, 1)]
    records = Path(folder, "records")
    main(["pack", *map(str, runs), "--track", track, "--name", name, "--author", "A. Author", "--github-id", "author",
          "--date", date, "--records", str(records)])
    shutil.rmtree(runs_folder)
    path = records / TRACKS[track] / f"{date}_{name.lower()}"
    if written:
        readme = path / "README.md"
        readme.write_text(readme.read_text().replace(PLACEHOLDER, "Written"))
    return path
