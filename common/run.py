"""The training run: data checks, folder, warm-up, clock, cap, validation, artifact and the score read back from it. Backend-free."""
import dataclasses
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import signal
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Protocol, SupportsFloat

import numpy as np
from tqdm import tqdm

from common.artifact import BUDGET_BYTES, decode_model, encode_model
from common.batches import micro_batch_rows, rank_rows, step_rows
from common.bpb import evaluate
from common.bundle import bundle
from common.dataset import open_data
from common.params import count_params, flops_per_token, initial_weights
from common.runlog import log_line
from common.schedule import lr_scale, muon_momentum, run_progress
from common.settings import UserError, changed_settings, load_settings, settings_help
from common.shards import check_ids


class Trainer(Protocol):
    """What a trainer offers; all arrays are numpy, names are those of params.py. Built from (settings, float32 weights)."""

    backend: str
    settings_class: type
    rank: int
    world_size: int
    steps_ahead: int  # steps that may still be under way when train_step returns

    def train_step(self, tokens, lr_scale: float, momentum: float) -> SupportsFloat:
        """One update from this rank's int32 rows (rows, train_seq_len + 1); the mean nats per token of the global batch."""

    def token_nats(self, tokens):
        """(B, T) nats of the targets of int32 tokens (B, T + 1), T = train_seq_len."""

    def logits(self, tokens):
        """(B, T, V) float32, float64 in reference mode, of int32 tokens (B, T)."""

    def gradients(self, tokens):
        """(loss, dict) of the global mean loss, without an update."""

    def weights(self) -> dict:
        """Master weights: float32, float64 in reference mode."""

    def load_weights(self, weights): ...
    def optimizer_state(self) -> dict: ...
    def load_optimizer_state(self, state): ...

    def all_sum(self, array):
        """Sum over the ranks, the same on every rank."""

    def wait(self): ...  # until the device has finished
    def peak_memory(self) -> int: ...  # bytes
    def matmul_flops(self) -> float: ...  # measured peak, floating-point operations per second
    def describe(self) -> str: ...  # number and kind of devices, compute dtype, framework version
    def close(self): ...


class OverBudget(UserError):
    status = "over_budget"


class NonFinite(UserError):
    status = "nonfinite"


def main(trainer_class, script):
    """Entry of a trainer script: exit code 0, or 2 after one message."""
    speaks = int(os.environ.get("RANK") or os.environ.get("MLX_RANK") or 0) == 0
    kind = trainer_class.settings_class
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(settings_help(kind, f"usage: python {Path(script).name} [--setting value ...]"))
        return 0
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        settings = load_settings(kind, sys.argv[1:], os.environ, lambda text: speaks and print(f"warning: {text}", file=sys.stderr))
        run(trainer_class, settings, script)
        return 0
    except UserError as error:
        reason = str(error)
    except KeyboardInterrupt:
        reason = "interrupted"
    except OSError as error:
        reason = f"{error}: is the disk full, or the folder not yours?"
    except RuntimeError as error:  # the frameworks' own out-of-memory errors
        if "memory" not in str(error).lower():
            raise
        reason = f"{str(error).splitlines()[0]}: lower MICRO_BATCH_TOKENS, which never changes the result"
    if speaks:
        print(f"error: {reason}", file=sys.stderr)
    return 2


def run(trainer_class, settings, script):
    """A whole run. Raises UserError."""
    started = time.perf_counter()
    code = bundle(script)
    data = open_data(settings)
    settings = dataclasses.replace(settings, vocab_size=data.tokenizer.vocab_size)
    trainer = trainer_class(settings, initial_weights(settings))
    folder = RunFolder(settings, trainer, script, code) if trainer.rank == 0 else None
    log = folder.log if folder else lambda kind, **values: None
    try:
        if folder:
            describe_run(trainer, settings, data, code, log)
        warm_up(trainer, settings, data)
        log("warmup", steps=settings.warmup_steps, seconds=time.perf_counter() - started)
        status, summary = train(trainer, settings, data, log)
        summary += finish(trainer, settings, data, len(code), folder, log)
    except BaseException as error:
        if folder:
            stopped = isinstance(error, KeyboardInterrupt)
            folder.end("interrupted" if stopped else getattr(error, "status", "failed"), str(error) or type(error).__name__)
        raise
    if folder:
        folder.end(status, "the wall-clock cap was reached" if status == "capped" else "all steps were made")
        print(f"\n{summary}\n  {folder.path}/ holds the log, the code, the settings and the model")
    trainer.close()


# the run's folder ---------------------------------------------------------------------------------------------------


class RunFolder:
    """runs/<run_id>: train.log, the bundled trainer, settings.json, status.json and, at the end, model.int8.zlib."""

    def __init__(self, settings, trainer, script, code):
        need = 8 * count_params(settings) + (64 << 20)
        free = shutil.disk_usage(".").free
        if free < need:
            raise UserError(f"{os.getcwd()} has {free >> 20} MiB free, the run may need {need >> 20} MiB: free some space")
        self.path = Path("runs", settings.run_id or time.strftime("%Y%m%d-%H%M%S"))
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{self.path} is there already: choose another RUN_ID, or remove it") from None
        self.file = open(self.path / "train.log", "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.last = {}
        self.write(Path(script).name, code)
        self.write("settings.json", {"backend": trainer.backend} | dataclasses.asdict(settings))
        self.write("status.json", {"status": "running", "reason": ""})

    def log(self, kind, **values):
        self.last |= {"step": values["step"]} if "step" in values else {}
        line = log_line(kind, **values)
        print(line, file=self.file)
        tqdm.write(line)

    def write(self, name, data):
        """bytes, or a dict as JSON. The file is whole or as it was: temporary file, fsync, rename. Returns its path."""
        path, temporary = self.path / name, self.path / f".{name}.tmp"
        with open(temporary, "wb") as file:
            file.write(data if isinstance(data, bytes) else (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return path

    def end(self, status, reason):
        print(log_line("status", status=status, reason=reason), file=self.file)
        self.file.close()
        self.write("status.json", {"status": status, "reason": reason} | self.last)


def describe_run(trainer, settings, data, code, log):
    """The lines with which the run can be made again."""
    packages = [f"{name} {metadata.version(name)}" for name in ("numpy", "sentencepiece", "safetensors")]
    log("run", run_id=settings.run_id or "-", backend=trainer.backend, device=trainer.describe())
    log("versions", versions=", ".join([f"python {platform.python_version()}", *packages, platform.platform()]))
    log("command", command=" ".join(sys.argv))
    log("settings", settings=json.dumps(changed_settings(settings), sort_keys=True))
    log("data", train_tokens=data.train.length, val_tokens=data.val.length, manifest=data.manifest_sha256, path=settings.data_path)
    log("tokenizer", vocab_size=data.tokenizer.vocab_size, sha256=data.tokenizer_sha256, path=data.tokenizer_path)
    log("code", bytes=len(code), sha256=hashlib.sha256(code).hexdigest())
    log("params", params=count_params(settings), flops=flops_per_token(settings))
    rows = rank_rows(settings, 0, trainer.world_size)[1]
    log("batch", tokens=settings.train_batch_tokens, seq_len=settings.train_seq_len, world_size=trainer.world_size,
        micro_rows=micro_batch_rows(settings, rows))


# training -----------------------------------------------------------------------------------------------------------


def batch_of(trainer, settings, data, step):
    tokens = step_rows(data.train, settings, step, trainer.rank, trainer.world_size)
    if tokens.max() >= settings.vocab_size:
        for shard in data.train.shards:  # names the file and the place
            check_ids(shard, settings.vocab_size, shard.filename)
    return tokens


def warm_up(trainer, settings, data):
    """Compiles what the run will use. Leaves no trace in weights, optimizer, data position or clock."""
    if settings.warmup_steps:
        weights, state = trainer.weights(), trainer.optimizer_state()
        tokens = batch_of(trainer, settings, data, 0)
        for _ in range(settings.warmup_steps):
            trainer.train_step(tokens, 1.0, settings.muon_momentum)
        trainer.load_weights(weights)
        trainer.load_optimizer_state(state)
    trainer.wait()


def train(trainer, settings, data, log):
    """("finished" or "capped", summary text). Validation time is not training time; rank 0's clock is everybody's."""
    step, elapsed = 0, 0.0
    cap = settings.max_wallclock_seconds or math.inf
    bar = tqdm(total=1.0, disable=trainer.rank > 0 or not sys.stderr.isatty(), leave=False,
               bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
    shown, clock = -math.inf, time.perf_counter()
    while True:
        next_end = elapsed + (2 + trainer.steps_ahead) * elapsed / max(step, 1)  # one step to spare
        last = step == settings.iterations or next_end > cap
        if last or (settings.val_loss_every and step % settings.val_loss_every == 0):
            trainer.wait()
            elapsed = common_clock(trainer, elapsed + time.perf_counter() - clock)
            val_loss, val_bpb, _, _ = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens)
            log("val", step=step, iterations=settings.iterations, val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * elapsed,
                avg=1e3 * elapsed / max(step, 1), partial=data.partial)
            clock = time.perf_counter()
        if last:
            break
        scale = lr_scale(settings, run_progress(settings, step, elapsed))
        loss = trainer.train_step(batch_of(trainer, settings, data, step), scale, muon_momentum(settings, step))
        step += 1
        now = time.perf_counter()
        elapsed, clock = common_clock(trainer, elapsed + now - clock), now
        logged = step <= 10 or step % settings.train_log_every == 0
        if logged or (not bar.disable and elapsed - shown > 0.5):  # to look at the loss is to wait for the device
            shown = elapsed
            value, rate = float(loss), step * settings.train_batch_tokens / elapsed
            if not math.isfinite(value):
                raise NonFinite(f"the training loss is {value} at step {step}: lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR, or set "
                                "GRAD_CLIP_NORM=1")
            bar.n = run_progress(settings, step, elapsed)
            bar.set_postfix_str(f" step {step} loss {value:.3f} {rate:,.0f} tok/s")
            if logged:
                log("step", step=step, iterations=settings.iterations, train_loss=value, ms=1e3 * elapsed, avg=1e3 * elapsed / step,
                    rate=rate)
    bar.close()
    status = "finished" if step == settings.iterations else "capped"
    if status == "capped":
        log("stop", ms=1e3 * elapsed, step=step, iterations=settings.iterations)
    log("memory", mib=int(trainer.all_sum(np.array([float(trainer.peak_memory())]))[0] / trainer.world_size) >> 20)
    rate = step * settings.train_batch_tokens / elapsed if step else 0.0
    flops, peak = rate * flops_per_token(settings), trainer.matmul_flops() * trainer.world_size
    log("throughput", rate=rate, flops=flops / 1e9, share=100 * flops / peak, peak=peak / 1e9)
    return status, (f"  trained   {step:,} steps, {step * settings.train_batch_tokens:,} tokens in {elapsed:.1f} s, {rate:,.0f} tokens/s\n"
                    f"  before    val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}\n")


def common_clock(trainer, seconds):
    """Rank 0's seconds on every rank: learning rates and the cap must not differ by rank."""
    return seconds if trainer.world_size == 1 else float(trainer.all_sum(np.array([seconds if trainer.rank == 0 else 0.0]))[0])


def finish(trainer, settings, data, code_bytes, folder, log):
    """Writes the model file, reads it back, scores what was read, accounts for the bytes. Summary text. Raises OverBudget."""
    weights = {name: np.asarray(w, np.float32) for name, w in trainer.weights().items()}
    if not all((np.abs(w) < 8e6).all() for w in weights.values()):
        raise NonFinite("a weight is not finite or 8e6 and more: lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR")
    if folder:
        model, payload = encode_model(settings, weights)
        path = folder.write("model.int8.zlib", model)
        log("model", bytes=len(model), payload=len(payload), zlib9=len(zlib.compress(payload, 9)), sha256=hashlib.sha256(model).hexdigest())
        total = code_bytes + len(model)
        log("code_size", bytes=code_bytes)
        log("total", bytes=total, cap=BUDGET_BYTES, left=BUDGET_BYTES - 1 - total)
        _, weights = decode_model(path.read_bytes())
    trainer.load_weights({name: trainer.all_sum(weights[name] if folder else np.zeros_like(weights[name])) for name in sorted(weights)})
    clock = time.perf_counter()
    val_loss, val_bpb, tokens, num_bytes = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens)
    log("scored", tokens=tokens, bytes=num_bytes, partial=data.partial)
    log("final", val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * (time.perf_counter() - clock), partial=data.partial)
    log("final_exact", val_loss=val_loss, val_bpb=val_bpb, partial=data.partial)
    if not folder:
        return ""
    if total >= BUDGET_BYTES:
        raise OverBudget(f"code {code_bytes:,} + model {len(model):,} = {total:,} bytes, {total - BUDGET_BYTES + 1:,} too many: it must be "
                         f"less than {BUDGET_BYTES:,}. The model is kept in {path}; use fewer layers or a smaller width")
    return (f"  final     val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}  read back from the written file{data.partial}\n"
            f"  size      {total:,} bytes = model {len(model):,} + code {code_bytes:,}; {BUDGET_BYTES - 1 - total:,} left under the cap")


def host_peak_memory():
    """Bytes: the largest resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
