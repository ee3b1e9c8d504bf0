"""Record folders for the tests of records/: runs as a trainer leaves them, with chosen scores, and what `pack` makes of
them."""
import hashlib
import json
import math
import shutil
from pathlib import Path

from common.artifact import encode_model
from common.challenge import BUDGET_BYTES
from common.params import initial_weights
from common.published import VAL_BYTES, VAL_TOKENS
from common.runlog import log_line
from common.settings import Settings
from records.__main__ import main
from records.checks import PLACEHOLDER
from records.rules import TRACKS

SIZES = {"vocab_size": 260, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "train_seq_len": 16}
SCRIPT = b'''import os
print("step:0/2 val_loss:5.0000 val_bpb:7.0000 train_time:0ms step_avg:0.00ms", os.environ["ITERATIONS"])
print("final_int8_zlib_roundtrip_exact val_loss:5.00000000 val_bpb:7.00000000")
'''
MANIFEST = "ab" * 32  # SHA-256 of the data's manifest
PYDOC = {"path": "data/pydoc_sp1024", "tokens": 87_737, "bytes": 216_636}
FINEWEB = {"path": "data/fineweb10B_sp1024", "tokens": VAL_TOKENS["sp1024"], "bytes": VAL_BYTES}


def log_text(seed, bpb, code, model, payload, data, cap=600.0, ms_a_step=100.0):
    """A whole log in the words of common/runlog.py, VOCAB_SIZE unset."""
    settings = {**SIZES, "data_path": data["path"], "seed": seed, "max_wallclock_seconds": cap, "run_id": f"made{seed}"}
    del settings["vocab_size"]
    steps = int(cap * 1e3 // ms_a_step) - 2
    loss = bpb * math.log(2) * data["bytes"] / data["tokens"]
    total = len(code) + len(model)
    code_sha256, model_sha256 = (hashlib.sha256(part).hexdigest() for part in (code, model))
    versions = "python 3.11.7, numpy 2.4.6, sentencepiece 0.2.3, safetensors 0.8.0, Linux"
    tokenizer = {"vocab_size": SIZES["vocab_size"], "sha256": "cd" * 32, "path": data["path"] + "/tokenizer.model"}
    val_tokens = data["tokens"] + 1  # the first is not scored
    val = {"iterations": 20000, "partial": ""}
    lines = [
        ("run", {"run_id": f"made{seed}", "backend": "torch", "device": "1 x cpu, float32, torch 2.13.0"}),
        ("versions", {"versions": versions}),
        ("command", {"command": "train_gpt.py"}),
        ("settings", {"settings": json.dumps(settings, sort_keys=True)}),
        ("data", {"train_tokens": 900_523, "val_tokens": val_tokens, "manifest": MANIFEST, "path": data["path"]}),
        ("tokenizer", tokenizer),
        ("code", {"bytes": len(code), "sha256": code_sha256}),
        ("params", {"params": 12_345, "flops": 1000}),
        ("batch", {"tokens": 4096, "seq_len": 256, "world_size": 1, "micro_rows": 16}),
        ("warmup", {"steps": 3, "seconds": 1.0}),
        ("val", {"step": 0, "val_loss": 6.9, "val_bpb": 4.0, "ms": 0, "avg": 0, **val}),
    ]
    for step in range(steps // 20, steps, steps // 20):
        time = {"ms": step * ms_a_step, "avg": ms_a_step, "rate": 40_960}
        train_loss = loss + 2 * math.exp(-4 * step / steps)
        lines.append(("step", {"step": step, "iterations": 20000, "train_loss": train_loss, **time}))
    time = {"ms": steps * ms_a_step, "avg": ms_a_step}
    lines += [
        ("val", {"step": steps, "val_loss": loss - 0.001, "val_bpb": bpb - 0.0005, **time, **val}),
        ("stop", {"ms": steps * ms_a_step, "step": steps, "iterations": 20000}),
        ("memory", {"mib": 700}),
        ("throughput", {"rate": 40_960, "flops": 10, "share": 5, "peak": 200}),
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
