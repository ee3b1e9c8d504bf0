"""`python train_gpt.py --preflight`: what a run with these settings would meet, without running it. Leaves no files.

The checks are those that every run makes before step 0: settings, data, tokenizer, folder, disk, and the checkpoint to
go on from. Time and bytes are estimates: a step is taken to run at SHARE of the matmul peak that is measured on this
machine, and the int8 codes of a trained matrix to be distributed like those of a normal one.
"""
import time
from pathlib import Path

import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.bundle import bundle, bundle_source
from common.challenge import BUDGET_BYTES
from common.checkpoint import resume, run_identity
from common.console import say
from common.dataset import open_data
from common.fit import LEAST_LEVELS, bit_bytes, search_levels, with_auto
from common.folder import check_free, checkpoints_bytes, disk_free, disk_need
from common.machine import compile_problem, host_memory
from common.params import count_params, flops_per_token, initial_weights, param_table
from common.quantize import MOST_LEVELS, store_matrix
from common.settings import UserError, changed_settings, failing_as, group_levels, with_tokenizer
from common.zstream import zlib_size

SHARE = 0.3  # of the measured matmul peak; the published baseline on 8xH100 and torch on two CPU cores reach 0.2 to 0.4


def preflight(trainer_class, settings, script):
    """Print the report. Raises UserError, as the run would, with everything that is wrong."""
    start = time.perf_counter()
    path = Path(settings.resume or f"runs/{settings.run_id or '(date and time)'}")
    settings, data = check_run(settings, path)
    trainer, code = trainer_class(settings, initial_weights(settings)), bundle(script)
    if settings.compile and (problem := compile_problem(trainer)):
        raise UserError(problem)
    resumed = ""
    if settings.resume:
        step, elapsed, _ = resume(trainer, path, run_identity(settings, data, bundle_source(script)), say)
        resumed = f"step {step:,}, after {elapsed:,.0f} s"
    peak = trainer.matmul_flops() * trainer.world_size
    if trainer.rank == 0:
        rows = [("resume", resumed, "")] if resumed else []
        rows += run_rows(trainer, settings, data, path)
        rows += forecast_rows(settings, data, settings.train_batch_tokens * flops_per_token(settings) / (SHARE * peak))
        rows.append(artifact_row(settings, len(code)))
        size = f"{checkpoints_bytes(settings) >> 20:,} MiB every {settings.checkpoint_every}"
        rows.append(("keeps", f"a checkpoint of {size}, the two newest, until the end", ""))
        for name, text, problem in rows:
            say(f"{name:<10}{text}{problem}")
        if wrong := [name for name, _, problem in rows if problem]:
            raise UserError(f"the estimate of {' and '.join(wrong)} says that this run would fail: see above")
        say(f"all checks passed in {time.perf_counter() - start:.1f} s; what is marked ~ is an estimate")
    trainer.close()


def check_run(settings, path):
    """(settings with the vocabulary's size, Data). Raises UserError with the problems of data, memory and folder."""
    problems, data = [], None
    try:
        with failing_as("bad_data"):
            data = open_data(settings)
        settings = with_tokenizer(settings, data.tokenizer)
        need, have = 20 * count_params(settings), host_memory()  # weights, gradients and moments alone
        if need > have:
            raise UserError(f"{count_params(settings):,} parameters need {need >> 30} GiB of memory, this machine or "
                            f"container has {have >> 30}: use fewer layers or a smaller width")
    except UserError as error:
        problems.append(error)
    try:
        check_free(path, settings)
    except UserError as error:
        problems.append(error)
    if problems:
        raise UserError("\n  ".join(map(str, problems)), problems[0].status)
    return settings, data


def run_rows(trainer, settings, data, path):
    """(name, text, problem) of what the run begins with."""
    changed = changed_settings(settings).items()
    have, need = trainer.memory()
    rows = micro_batch_rows(settings, rank_rows(settings, 0, trainer.world_size)[1])
    yield "settings", ", ".join(f"{name.upper()}={value}" for name, value in changed) or "the defaults", ""
    yield "device", trainer.describe(), ""
    yield "model", f"{count_params(settings):,} parameters, {flops_per_token(settings):,} FLOP per token", ""
    yield "data", (f"{data.train.length:,} tokens for training, {data.val_tokens:,} for validation{data.partial}; "
                   f"tokenizer {data.tokenizer_path}, {data.tokenizer.vocab_size} ids"), ""
    yield from (("warning", text, "") for text in data.warnings)
    free, most = disk_free(path) >> 20, disk_need(settings) >> 20
    yield "folder", f"{path}/, {free:,} MiB free, at most {most:,} MiB needed", ""
    short = ": TOO LITTLE, it seems; lower MICRO_BATCH_TOKENS" if need > have else ""
    yield "memory", f"~{need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB with micro-batches of {rows} rows", short


def forecast_rows(settings, data, step_seconds):
    """(name, text, problem) of how far the run comes."""
    cap, steps = settings.max_wallclock_seconds, settings.iterations
    if cap:
        steps = min(steps, int(cap / step_seconds))
    tokens = steps * settings.train_batch_tokens
    rate = settings.train_batch_tokens / step_seconds
    limit = f"{cap:,.0f} s" if cap else "none"
    yield "step", f"~{step_seconds:.3g} s, ~{rate:,.0f} tokens/s, at {SHARE:.0%} of the measured matmul peak", ""
    yield "run", (f"~{steps:,} of {settings.iterations:,} steps in ~{steps * step_seconds:,.0f} s (cap: {limit}), "
                  f"~{tokens:,} tokens, ~{tokens / data.train.length:.2g} times the training data"), ""


def artifact_row(settings, code):
    """(name, text, problem) of the bytes; code: those of the code."""
    levels, words = expected_levels(settings, BUDGET_BYTES - 1 - code)
    model = artifact_bytes(settings, levels)
    text, problem = f"~{model + code:,} bytes = model ~{model:,} + code {code:,} of {BUDGET_BYTES:,}{words}", ""
    if model + code >= BUDGET_BYTES:
        remedy = "" if words else "QUANT_LEVELS=auto, "
        problem = f": TOO LARGE, it seems; use {remedy}fewer layers or a smaller width"
    return "artifact", text, problem


def expected_levels(settings, budget):
    """(dict group -> number or "fp16", text about it): what QUANT_LEVELS=auto is expected to find."""
    groups = group_levels(settings)
    if "auto" not in groups.values():
        return groups, ""

    def size(number):
        return artifact_bytes(settings, with_auto(groups, number))

    found = search_levels(size, budget, bit_bytes(settings, groups)) or LEAST_LEVELS
    text = f" at ~{round(found, 2):,} levels, which can be {LEAST_LEVELS} to {MOST_LEVELS:,}"
    return with_auto(groups, found), text


def artifact_bytes(settings, levels):
    """Bytes of the model file, estimated: rows of each length of normal numbers are quantized and encoded, up to 2**18
    numbers. levels: as quantize_weights takes them."""
    random, total, ratios = np.random.Generator(np.random.Philox(0)), 2000, {}
    for p in param_table(settings).values():
        if p.group == "scalar":
            total += 4 * int(np.prod(p.shape))
            continue
        rows, columns = p.shape
        kind = columns, levels[p.group], settings.quant_clip if p.group == "matrix" else 0
        if kind not in ratios:
            weight = random.standard_normal((max(1, 2**18 // columns), columns)).astype(np.float32)
            stored = store_matrix("w", weight, *kind[1:])
            scale = stored.pop("w.scale").itemsize if "w.scale" in stored else 0
            size = sum(zlib_size(tensor.tobytes()) for tensor in stored.values())
            ratios[kind] = size / weight.size, scale
        ratio, scale = ratios[kind]
        total += int(ratio * rows * columns) + scale * rows
    return total
