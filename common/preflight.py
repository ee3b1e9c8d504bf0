"""`python train_gpt.py --preflight`: what a run with these settings would meet, without running it. Writes nothing that stays.

The checks are those that every run makes before step 0: settings, data, tokenizer, folder, disk, and the checkpoint to go on from. The
forecast, and the memory with it, is rougher: a step is taken to run at SHARE of the matrix products that this machine is measured to
make, and the int8 codes of a trained matrix to spread as those of a normal one do.
"""
import dataclasses
import time
from pathlib import Path

import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.bundle import bundle
from common.challenge import BUDGET_BYTES
from common.checkpoint import run_identity
from common.dataset import open_data
from common.fit import LEAST_LEVELS, bit_bytes, search_levels, with_auto
from common.folder import check_free, checkpoints_bytes, disk_free, disk_need
from common.params import count_params, flops_per_token, initial_weights, param_table
from common.quantize import MOST_LEVELS, store_matrix
from common.run import host_memory, resume
from common.settings import UserError, changed_settings, failing_as, group_levels
from common.zstream import zlib_size

SHARE = 0.3  # of the measured matmul peak; the published baseline on 8xH100 and torch on two CPU cores reach 0.2 to 0.4


def report(trainer_class, settings, script):
    """Prints the report. Raises UserError, as the run would, with all that is wrong."""
    start = time.perf_counter()
    path, problems = Path(settings.resume or f"runs/{settings.run_id or '(date and time)'}"), []
    try:
        with failing_as("bad_data"):
            data = open_data(settings)
        settings = dataclasses.replace(settings, vocab_size=data.tokenizer.vocab_size)
        if (need := 20 * count_params(settings)) > (have := host_memory()):  # weights, gradients and moments alone
            problems.append(UserError(f"{count_params(settings):,} parameters need {need >> 30} GiB of memory, this machine has {have >> 30}: "
                                      "use fewer layers or a smaller width"))
    except UserError as error:
        problems.append(error)
    try:
        check_free(path, settings)
    except UserError as error:
        problems.append(error)
    if problems:
        raise UserError("\n  ".join(map(str, problems)), problems[0].status)
    trainer, code = trainer_class(settings, initial_weights(settings)), bundle(script)
    if settings.resume:
        step, elapsed, _ = resume(trainer, path, run_identity(settings, data, code), print)
        if trainer.rank == 0:
            print(f"{'resume':<10}step {step:,}, after {elapsed:,.0f} s")
    step_seconds = settings.train_batch_tokens * flops_per_token(settings) / (SHARE * trainer.matmul_flops() * trainer.world_size)
    levels, words = expected_levels(settings, BUDGET_BYTES - 1 - len(code))
    model = artifact_bytes(settings, levels)
    if trainer.rank == 0:
        found = [f"{name:<10}{text}" for name, text in lines(trainer, settings, data, path, step_seconds, model, words, len(code))]
        print("\n".join(found))
        wrong = [line.partition(":")[0].split()[0] for line in found if ": TOO " in line]
        if wrong:
            raise UserError(f"the estimate of {' and '.join(wrong)} says that this run would fail: see above")
        print(f"all checks passed in {time.perf_counter() - start:.1f} s; what is marked ~ is an estimate")
    trainer.close()


def lines(trainer, settings, data, path, step_seconds, model, levels, code):
    """(name, text) of each line of the report."""
    cap, total = settings.max_wallclock_seconds, model + code
    steps = min(settings.iterations, int(cap / step_seconds) if cap else settings.iterations)
    tokens = steps * settings.train_batch_tokens
    have, need = trainer.memory()
    rows = rank_rows(settings, 0, trainer.world_size)[1]
    yield "settings", ", ".join(f"{name.upper()}={value}" for name, value in changed_settings(settings).items()) or "the defaults"
    yield "device", trainer.describe()
    yield "model", f"{count_params(settings):,} parameters, {flops_per_token(settings):,} FLOP a token"
    yield "data", (f"{data.train.length:,} tokens for training, {data.val_tokens:,} for validation{data.partial}; "
                   f"tokenizer {data.tokenizer_path}, {data.tokenizer.vocab_size} ids")
    yield "folder", f"{path}/, {disk_free(path) >> 20:,} MiB free, at most {disk_need(settings) >> 20:,} MiB needed"
    yield "memory", (f"~{need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB with micro-batches of {micro_batch_rows(settings, rows)} rows"
                     + (": TOO LITTLE, it seems; lower MICRO_BATCH_TOKENS" if need > have else ""))
    yield "step", f"~{step_seconds:.3g} s, ~{settings.train_batch_tokens / step_seconds:,.0f} tokens/s, at {SHARE:.0%} of the measured matmul peak"
    yield "run", (f"~{steps:,} of {settings.iterations:,} steps in ~{steps * step_seconds:,.0f} s (cap: {f'{cap:,.0f} s' if cap else 'none'}), "
                  f"~{tokens:,} tokens, ~{tokens / data.train.length:.2g} times the training data")
    yield "artifact", (f"~{total:,} bytes = model ~{model:,} + code {code:,} of {BUDGET_BYTES:,}{levels}"
                       + (": TOO LARGE, it seems; use " + "QUANT_LEVELS=auto, " * (not levels) + "fewer layers or a smaller width"
                          if total >= BUDGET_BYTES else ""))
    yield "keeps", f"a checkpoint of {checkpoints_bytes(settings) >> 20:,} MiB every {settings.checkpoint_every}, the two newest, until the end"


def expected_levels(settings, budget):
    """(dict group -> number or "fp16", what the report says of it): what QUANT_LEVELS=auto is expected to find."""
    groups = group_levels(settings)
    if "auto" not in groups.values():
        return groups, ""
    found = search_levels(lambda number: artifact_bytes(settings, with_auto(groups, number)), budget, bit_bytes(settings, groups))
    found = found or LEAST_LEVELS
    return with_auto(groups, found), f" at ~{round(found, 2):,} levels, which can be {LEAST_LEVELS} to {MOST_LEVELS:,}"


def artifact_bytes(settings, levels=None):
    """Bytes of the model file, estimated: rows of each length of normal numbers are quantized and encoded, up to 2**18 numbers. levels:
    as quantize_weights has them."""
    levels, random, total, ratios = levels or group_levels(settings), np.random.Generator(np.random.Philox(0)), 2000, {}
    for p in param_table(settings).values():
        if p.group == "scalar":
            total += 4 * int(np.prod(p.shape))
            continue
        (rows, columns), number = p.shape, levels[p.group]
        if (columns, number) not in ratios:
            weight = random.standard_normal((max(1, 2**18 // columns), columns)).astype(np.float32)
            stored = store_matrix("w", weight, number)
            scale = stored.pop("w.scale").itemsize if "w.scale" in stored else 0
            ratios[columns, number] = sum(zlib_size(tensor.tobytes()) for tensor in stored.values()) / weight.size, scale
        ratio, scale = ratios[columns, number]
        total += int(ratio * rows * columns) + scale * rows
    return total
