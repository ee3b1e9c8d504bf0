"""The training run: settings, data, folder, training (loop.py), model and score (finish.py), and every way to end."""
import contextlib
import dataclasses
import errno
import hashlib
import importlib
import json
import os
import platform
import resource
import signal
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Protocol, SupportsFloat

import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.bundle import bundle
from common.checkpoint import Saver, checkpoints, read_checkpoint, run_identity
from common.dataset import open_data
from common.finish import finish
from common.folder import (
    RunFolder,
    disk_free,
    disk_need,
    resume_folder,
    resume_hint,
    say,
    stored_settings,
    write_file,
    write_json,
)
from common.loop import Agreed, agree, together, train, warm_up
from common.params import count_params, flops_per_token, initial_weights
from common.ranks import Interrupt, RankWatch
from common.runlog import log_line
from common.settings import UserError, changed_settings, failing_as, load_settings, settings_help


class Trainer(Protocol):
    """What a trainer offers; all arrays are numpy, names are those of params.py. Built from (settings, float32 weights)."""

    backend: str
    settings_class: type
    rank: int
    world_size: int
    steps_ahead: int  # steps that may still be under way when train_step returns
    rounding: bool  # whether steps round the weights of the forward pass as the model file does (with QAT_START)

    def train_step(self, tokens, lr_scale: float, momentum: float) -> SupportsFloat:
        """One update from this rank's int32 rows (rows, train_seq_len + 1); the mean nats per token of the global batch. Where that or
        the gradient's norm is not finite, the result is not, and nothing is updated until weights are loaded again."""

    def finite_alone(self, tokens) -> bool:
        """Whether loss and gradient of this rank's rows alone are finite. Leaves nothing but gradients changed."""

    def update_average(self, decay: float): ...  # of the weights, with EMA_DECAY; part of the optimizer's state

    def average(self) -> dict:
        """Like weights()."""

    def token_nats(self, tokens):
        """(B, T) nats of the targets of int32 tokens (B, T + 1), T at most the longer of train_seq_len and eval_seq_len."""

    def sgd_step(self, tokens, lr: float):
        """Plain SGD of every parameter on the mean nats of int32 rows (rows, T + 1), on this rank alone and without its optimizers."""

    def logits(self, tokens):
        """(B, T, V) float32, float64 in reference mode, of int32 tokens (B, T)."""

    def gradients(self, tokens):
        """(loss, dict) of the global mean loss, without an update."""

    def weights(self) -> dict:
        """Master weights: float32, float64 in reference mode."""

    def load_weights(self, weights): ...
    def snapshot(self): ...  # the weights as they are, on the device
    def restore(self, snapshot): ...
    def optimizer_state(self) -> dict: ...
    def load_optimizer_state(self, state): ...

    def all_sum(self, array):
        """Sum over the ranks, the same on every rank."""

    def wait(self): ...  # until the device has finished
    def peak_memory(self) -> int: ...  # bytes

    def memory(self):
        """Bytes that the device has, and that training will take, roughly."""

    def matmul_flops(self) -> float: ...  # measured peak, floating-point operations per second
    def describe(self) -> str: ...  # number and kind of devices, compute dtype, framework version
    def close(self): ...


def main(trainer_class, script):
    """Entry of a trainer script: exit code 0, or 2 after one message and a line status=... reason=... hint=..."""
    rank = int(os.environ.get("RANK") or os.environ.get("MLX_RANK") or 0)
    kind, flags = trainer_class.settings_class, sys.argv[1:]
    if {"--help", "-h"} & set(flags):
        print(settings_help(kind, f"usage: python {Path(script).name} [--preflight] [--setting value ...]"))
        return 0
    interrupt = Interrupt()
    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                if signal.getsignal(number) != signal.SIG_IGN}  # nohup
    flags, preflight = [flag for flag in flags if flag != "--preflight"], "--preflight" in flags
    settings, folder = None, ""

    def warn(text):
        if not rank:
            say(f"warning: {text}", sys.stderr)

    def stored(resume, run_id):
        nonlocal folder
        folder = resume_folder(resume, run_id, trainer_class.backend)
        return stored_settings(folder)

    try:
        with failing_as("bad_settings"):
            settings = dataclasses.replace(load_settings(kind, flags, os.environ, warn, stored), resume=folder)
        if preflight:
            try:
                report = importlib.import_module("common.preflight").report  # not in the one file that is counted
            except ImportError:
                raise UserError("--preflight is not part of the one-file trainer: use it in the repository") from None
            report(trainer_class, settings, script)
        else:
            run(trainer_class, settings, script, interrupt)
        return 0
    except BaseException as error:
        status, reason, defect = explain(error)
        if rank:  # rank 0 says what it knows too
            if not (isinstance(error, (Agreed, KeyboardInterrupt)) or (not settings and not folder) or getattr(error, "told", False)):
                say(f"error: rank {rank}: {reason}", sys.stderr)
        else:
            say(f"error: {reason}", sys.stderr)
            if not getattr(error, "told", False):
                say(log_line("status", status=status, reason=reason, hint=""))
        if defect:
            raise  # with a traceback
        return 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def explain(error):
    """(status, reason, whether it is a defect of the program) of whatever ended a run."""
    if isinstance(error, UserError):
        return error.status, str(error), False
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted by a signal", False
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return "disk_full", f"{error}: is the disk full? Free some space", False
        return "failed", f"{error}" + ": is the folder yours?" * isinstance(error, PermissionError), False
    words = str(error).lower()
    if isinstance(error, (RuntimeError, MemoryError)) and any(w in words for w in ("out of memory", "allocate")):  # the frameworks' own
        return "failed", f"{str(error).splitlines()[0]}: lower MICRO_BATCH_TOKENS, which never changes the result", False
    return "failed", f"{type(error).__name__}: {error}", True


def run(trainer_class, settings, script, interrupt):
    """A whole run. Raises UserError."""
    started = time.perf_counter()
    code = bundle(script)
    with failing_as("bad_data"):
        data = open_data(settings)
    settings = dataclasses.replace(settings, vocab_size=data.tokenizer.vocab_size)
    trainer = trainer_class(settings, initial_weights(settings))
    name = settings.run_id or time.strftime("%Y%m%d-%H%M%S", time.localtime(agree(trainer, time.time())[0]))
    path, identity, damage = Path(settings.resume or f"runs/{name}"), run_identity(settings, data, code), []
    step, elapsed, damaged = together(trainer, lambda: resume(trainer, path, identity, damage.append) if settings.resume else (0, 0.0, []))
    mine = np.array([step, zlib.crc32(repr(sorted(identity.items())).encode())], float)
    if agree(trainer, failed=(trainer.all_sum(mine) != trainer.world_size * mine).any())[1]:
        trainer.close()
        raise Agreed("the ranks do not make the same step of the same run: give all of them the same settings, code, data and folder of the run")
    folder = together(trainer, lambda: RunFolder(path, settings) if trainer.rank == 0 else None)
    log = folder.log if folder else lambda kind, **values: None
    watch = RankWatch(path, trainer.rank, trainer.world_size, settings.rank_timeout)
    watch.steps, saver = step, None
    try:
        together(trainer, watch.hold)
        watch.start()
        for text in damage:
            log("checkpoint_damaged", reason=text)
        if settings.resume:
            log("resume", step=step, ms=1e3 * elapsed, path=path)
        saver = Saver(path, identity, settings.checkpoint_every, log, step, elapsed, damaged) if folder else None
        if folder:
            write_file(path / Path(script).name, code)
            write_json(path / "settings.json", {"backend": trainer.backend, "identity": identity} | dataclasses.asdict(settings))
            describe_run(trainer, settings, data, code, path, log)
        warm_up(trainer, settings, data, watch)
        log("warmup", steps=settings.warmup_steps, seconds=time.perf_counter() - started)
        status, summary = train(trainer, settings, data, log, saver, watch, interrupt, step, elapsed)
        summary += finish(trainer, settings, data, len(code), folder, log, watch)
    except BaseException as error:
        status, reason, _ = explain(error)
        watch.close(status, reason, not isinstance(error, UserError))
        if saver:
            with contextlib.suppress(KeyboardInterrupt):
                saver.collect()
        error.told = folder or watch.thread
        if folder:
            folder.end(status, reason, resume_hint(path), watch.steps)
        if isinstance(error, Agreed):
            trainer.close()
        raise
    watch.close(status, "")
    if folder:
        saver.collect()
        folder.end(status, "the wall-clock cap was reached" if status == "capped" else "all steps were made", "", watch.steps)
        for old in checkpoints(path):
            old.unlink()
        say(f"\n{summary}\n  {path}/ holds the log, the code, the settings and the model")
    trainer.close()
    if folder:
        for file in path.glob("rank*"):
            file.unlink()


def resume(trainer, path, identity, warn):
    """(step, training seconds, damaged files) of the newest whole checkpoint, which the trainer then has; warn(text) tells of others."""
    names, state = trainer.weights(), trainer.optimizer_state()
    expected = {name: (array.shape, str(array.dtype)) for name, array in (names | state).items()}
    step, elapsed, arrays, damaged = read_checkpoint(path, identity, expected, warn)
    if arrays:
        trainer.load_weights({name: arrays[name] for name in names})
        trainer.load_optimizer_state(arrays)
    return step, elapsed, damaged


def describe_run(trainer, settings, data, code, path, log):
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
    memory, memory_need = trainer.memory()
    log("preflight", free=disk_free(path) >> 20, need=disk_need(settings) >> 20, memory=memory >> 20, memory_need=memory_need >> 20)
    log("batch", tokens=settings.train_batch_tokens, seq_len=settings.train_seq_len, world_size=trainer.world_size,
        micro_rows=micro_batch_rows(settings, rows))


def host_peak_memory():
    """Bytes: the largest resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def host_memory():
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
