"""The training run: settings, data, folder, training (loop.py), model and score (finish.py), and its end."""
import contextlib
import dataclasses
import json
import os
import platform
import re
import sys
import time
import traceback
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.bundle import bundle, bundle_source
from common.checkpoint import Saver, checkpoints, resume, run_identity
from common.console import say, say_end
from common.dataset import open_data
from common.files import FULL, escape_in, open_streams, with_remedy, write_file, write_json
from common.finish import finish, sample_text
from common.folder import RunFolder, disk_free, disk_need, resume_folder, resume_hint, stored_settings
from common.loop import Run, train, training_summary, warm_up
from common.machine import compile_problem
from common.params import count_params, flops_per_token, initial_weights
from common.preflight import preflight
from common.ranks import Agreed, Interrupt, RankWatch, agree, launched_rank, rank_0_text, together
from common.runlog import log_line
from common.settings import (
    UserError,
    changed_settings,
    failing_as,
    parse_settings,
    read_settings,
    settings_help,
    with_tokenizer,
)


def main(trainer_class, script):
    """Exit code of a trainer: 0; 2 after one message and a line status=...; 1 with a traceback after both."""
    open_streams()
    kind, flags = trainer_class.settings_class, sys.argv[1:]
    if {"--help", "-h"} & set(flags):
        say(settings_help(kind, f"usage: python {Path(script).name} [--preflight | --source] [--setting value ...]"))
        return 0
    escape_in(sys.stdout, sys.stderr)
    run, rank, silent = None, 0, False
    with Interrupt() as interrupt:
        try:
            if "--source" in flags:
                escape_in(sys.stdout, encoding="utf-8")  # as a program is
                say(bundle_source(script).removesuffix("\n"))
                return 0
            rank = launched_rank(trainer_class.backend)[0]
            silent = rank > 0  # rank 0 reads the same settings, and reports what is wrong with them
            texts, wrong = read_settings(kind, [flag for flag in flags if flag != "--preflight"], os.environ,
                                         lambda text: None if rank else say(f"warning: {text}", sys.stderr))
            silent = silent and not texts.get("resume")  # of a folder that may lie on another machine
            with failing_as("bad_settings"):
                if texts.get("resume"):
                    folder = resume_folder(texts["resume"], texts.get("run_id", ""), trainer_class.backend)
                    texts = stored_settings(folder) | texts | {"resume": folder}
                settings = parse_settings(kind, texts, wrong)
            silent = False
            if "--preflight" in flags:
                preflight(trainer_class, settings, script)
            else:
                run = open_run(trainer_class, settings, script, interrupt)
                complete(run, script)
            return 0
        except BaseException as error:
            if fail(error, run, rank, silent):
                traceback.print_exc()
                return 1
            return 2


def open_run(trainer_class, settings, script, interrupt):
    """Run at the step that it goes on from. Raises UserError before it changes a folder."""
    started = time.perf_counter()
    with failing_as("bad_data"):
        data = open_data(settings)
    settings = with_tokenizer(settings, data.tokenizer)
    trainer = trainer_class(settings, initial_weights(settings))
    name = settings.run_id or time.strftime("%Y%m%d-%H%M%S")
    path, identity = Path(settings.resume or f"runs/{name}"), run_identity(settings, data, bundle_source(script))
    damage = []
    # what RESUME=auto finds may differ by rank; each may have a part of the state
    state = trainer.state() if agree(trainer, 0.0, bool(settings.resume))[1] else {}

    def resumed():
        return resume(trainer, state, path, identity, damage.append) if settings.resume else (0, 0.0, [])

    step, seconds, damaged = together(trainer, resumed)
    mine = np.array([step, zlib.crc32(repr(sorted(identity.items())).encode())], float)
    if agree(trainer, 0.0, (trainer.all_sum(mine) != trainer.world_size * mine).any())[1]:
        trainer.close()
        raise Agreed("the ranks do not make the same step of the same run: give all of them the same settings, code, "
                     "data and folder of the run")
    folder = together(trainer, lambda: RunFolder(path, settings) if trainer.rank == 0 else None)
    if not settings.resume:
        path = path.with_name(rank_0_text(trainer, folder.path.name if folder else ""))
    watch = RankWatch(path, trainer.rank, trainer.world_size, settings.rank_timeout)
    saver = Saver(path, identity, settings.checkpoint_every, folder.log, step, seconds, damaged) if folder else None
    watch.steps = step
    return Run(settings, data, trainer, folder, saver, watch, interrupt, step, seconds, started, tuple(damage))


def complete(run, script):
    """From an open run to its end. Raises UserError."""
    settings, watch, folder, code = run.settings, run.watch, run.folder, bundle(script)
    together(run.trainer, watch.hold)
    watch.start()
    for text in run.damage:
        run.log("checkpoint_damaged", reason=text)
    if settings.resume:
        run.log("resume", step=run.step, ms=1e3 * run.seconds, path=watch.path)
    if folder:
        write_file(folder.path / Path(script).name, code)
        stored = {"backend": run.trainer.backend, "identity": run.saver.identity} | dataclasses.asdict(settings)
        write_json(folder.path / "settings.json", stored)
        describe_run(run, code)
    compiles = settings.compile and settings.warmup_steps
    with run.phase("compile" if compiles else "warm up", "the steps and the evaluation, for this machine"):
        warm_up(run)
    run.log("warmup", steps=settings.warmup_steps, seconds=time.perf_counter() - run.started)
    train(run)
    with run.phase("score", "the model, compressed and read back"):
        summary = training_summary(run) + finish(run, len(code))
    capped = run.step < settings.iterations
    watch.close("capped" if capped else "finished", "")
    if folder:
        run.saver.collect()
        reason = "the wall-clock cap was reached" if capped else "all steps were made"
        say(folder.end("capped" if capped else "finished", reason, "", run.step))
        for old in checkpoints(folder.path):
            old.unlink()
        say(f"\n{summary}")
        with contextlib.suppress(KeyboardInterrupt):  # the run has ended
            say(sample_text(run), end="")
        say(f"  {folder.path}/ holds the log, the code, the settings and the model")
        folder.report.close()
    run.trainer.close()
    if folder:
        for file in folder.path.glob("rank*"):
            file.unlink()


def fail(error, run, rank, silent):
    """Report an error, once: rank 0 does, and other ranks what it cannot know. Whether the program is wrong."""
    status, reason, defect = explain(error)
    if defect and run and run.settings.compile and (problem := compile_problem(run.trainer)):
        reason, defect = problem, False
    silent = silent or (rank > 0 and isinstance(error, (Agreed, KeyboardInterrupt)))
    if run:
        run.watch.close(status, reason, not isinstance(error, UserError))
        silent = silent or (rank > 0 and run.watch.thread is not None)  # the watch of another rank reports it
        if run.saver:
            with contextlib.suppress(KeyboardInterrupt):
                run.saver.collect()
        if isinstance(error, Agreed):
            run.trainer.close()
    line = hint = ""
    if run and run.folder:
        hint = resume_hint(run.folder.path)
        line = run.folder.end(status, reason, hint, run.watch.steps)
    elif rank == 0:
        line = log_line("status", status=status, reason=reason, hint="")
    text = f"rank {rank}: {reason}" if rank else reason
    say_end("" if silent else text, line, hint)
    if run and run.folder:
        run.folder.report.close()
    return defect


def explain(error):
    """(status, reason, whether it is a defect of the program) of an error."""
    if isinstance(error, UserError):
        return error.status, str(error), False
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted by a signal", False
    if isinstance(error, OSError):
        text = with_remedy(error)
        return "disk_full" if FULL in text else "failed", text, False
    if isinstance(error, (RuntimeError, MemoryError)) and re.search("(?i)out of memory|allocate", str(error)):
        first = str(error).splitlines()[0]
        return "failed", f"{first}: lower MICRO_BATCH_TOKENS, which never changes the result", False
    return "failed", f"{type(error).__name__}: {error}", True


def describe_run(run, code):
    """The lines from which the run can be repeated."""
    s, data, trainer, path = run.settings, run.data, run.trainer, run.folder.path
    packages = [f"{name} {metadata.version(name)}" for name in ("numpy", "sentencepiece", "safetensors")]
    run.log("run", run_id=s.run_id or "-", backend=trainer.backend, device=trainer.describe())
    run.log("versions", versions=", ".join([f"python {platform.python_version()}", *packages, platform.platform()]))
    run.log("command", command=" ".join(sys.argv))
    run.log("settings", settings=json.dumps(changed_settings(s), sort_keys=True))
    run.log("data", train_tokens=data.train.length, val_tokens=data.val.length, manifest=data.manifest_sha256,
            path=s.data_path)
    run.log("tokenizer", vocab_size=data.tokenizer.vocab_size, sha256=data.tokenizer_sha256, path=data.tokenizer_path)
    run.log("code", bytes=len(code), sha256=run.saver.identity["code"])
    run.log("params", params=count_params(s), flops=flops_per_token(s))
    for text in data.warnings:
        say(f"warning: {text}", sys.stderr)
    rows = rank_rows(s, 0, trainer.world_size)[1]
    memory, need = (size >> 20 for size in trainer.memory())
    run.log("preflight", free=disk_free(path) >> 20, need=disk_need(s) >> 20, memory=memory, memory_need=need)
    run.log("batch", tokens=s.train_batch_tokens, seq_len=s.train_seq_len, world_size=trainer.world_size,
            micro_rows=micro_batch_rows(s, rows))
