"""The training loop: warm-up, clock, cap, validation, checkpoints, and the stop that all ranks make together. Backend-free."""
import math
import sys
import time

import numpy as np
from tqdm import tqdm

from common.batches import rank_rows, step_rows
from common.bpb import evaluate
from common.params import flops_per_token
from common.ranks import PATIENCE
from common.schedule import ema_decay, lr_scale, muon_momentum, run_progress
from common.settings import UserError, failing_as
from common.shards import check_ids


class Agreed(UserError):
    """Raised on every rank at the same place."""


def batch_of(trainer, settings, data, step):
    with failing_as("bad_data"):
        tokens = step_rows(data.train, settings, step, trainer.rank, trainer.world_size)
        if tokens.max() >= settings.vocab_size:
            for shard in data.train.shards:  # names the file and the place
                check_ids(shard, settings.vocab_size, shard.filename)
    return tokens


def warm_up(trainer, settings, data, watch):
    """Compiles what the run will use. Leaves no trace in weights, optimizer, data position or clock."""
    if settings.warmup_steps:
        weights, state = trainer.weights(), trainer.optimizer_state()
        tokens = batch_of(trainer, settings, data, 0)
        for _ in watch.each([-1], "the warm-up", PATIENCE)(range(settings.warmup_steps)):
            trainer.train_step(tokens, 1.0, settings.muon_momentum)
        trainer.load_weights(weights)
        trainer.load_optimizer_state(state)
    trainer.wait()


def train(trainer, settings, data, log, saver, watch, interrupt, step=0, elapsed=0.0):
    """("finished" or "capped", summary text). Validation time is not training time; rank 0's clock is everybody's."""
    first, cap, begun, val_bpb = step, settings.max_wallclock_seconds or math.inf, [], None

    def look_at_losses(ahead=0):
        """Raises Agreed where one is not finite. Those of the last steps, which may still be under way, are left for later."""
        while len(begun) > ahead:
            at, tokens, loss = begun.pop(0)
            if not math.isfinite(value := float(loss)):
                watch.steps = at
                raise Agreed(nonfinite_reason(trainer, settings, tokens, at, value), "nonfinite")

    bar = tqdm(total=1.0, disable=trainer.rank > 0 or not sys.stderr.isatty(), leave=False,
               bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
    shown, clock, interrupt.waits = -math.inf, time.perf_counter(), True
    while True:
        next_end = elapsed + (2 + trainer.steps_ahead) * elapsed / max(step, 1)  # one step to spare
        last = step == settings.iterations or next_end > cap
        limit = max(settings.rank_timeout, 10 * elapsed / step) if step > first else PATIENCE
        if last or (settings.val_loss_every and step % settings.val_loss_every == 0):
            trainer.wait()
            look_at_losses()
            elapsed, _ = agree(trainer, elapsed + time.perf_counter() - clock)
            own = None  # the weights that are trained, while their average is validated
            try:
                watch.mark([step, 0], f"the checkpoint of step {step}", PATIENCE)
                if saver and (last or (step > first and trainer.world_size > 1)):  # validation has no place where all ranks could stop
                    saver.save(step, elapsed, trainer)
                if settings.ema_decay:
                    own = trainer.snapshot()
                    trainer.load_weights(trainer.average())
                interrupt.waits = False
                if interrupt.asked:
                    raise KeyboardInterrupt
                val_loss, val_bpb, _, _ = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens,
                                                   watch.each([step, 0], f"the validation after step {step}", limit if val_bpb else PATIENCE))
                interrupt.waits = not last
            except KeyboardInterrupt:
                if own:
                    trainer.restore(own)
                if saver:
                    saver.save(step, elapsed, trainer)
                raise
            if own:
                trainer.restore(own)
            log("val", step=step, iterations=settings.iterations, val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * elapsed,
                avg=1e3 * elapsed / max(step, 1), partial=data.partial)
            clock = time.perf_counter()
        if last:
            break
        watch.mark([step, 1, 0], f"step {step + 1}", limit)
        progress = run_progress(settings, step, elapsed)
        trainer.rounding = settings.qat_start <= progress < 1
        tokens = batch_of(trainer, settings, data, step)
        watch.mark([step, 1, 1], f"step {step + 1}", limit)
        loss = trainer.train_step(tokens, lr_scale(settings, progress), muon_momentum(settings, step))
        begun.append((step, tokens, loss))
        look_at_losses(trainer.steps_ahead)
        if settings.ema_decay:
            trainer.update_average(ema_decay(settings, step))
        watch.steps = step = step + 1
        now = time.perf_counter()
        (elapsed, stop), clock = agree(trainer, elapsed + now - clock, interrupt.asked > 0), now
        logged = step <= 10 or step % settings.train_log_every == 0
        if stop or logged:
            look_at_losses()
        if stop:
            watch.mark([step, 0], f"the checkpoint of step {step}", PATIENCE)
        if saver and (stop or saver.due(step, elapsed)) and math.isfinite(float(loss)):
            saver.save(step, elapsed, trainer)
        if stop:
            raise Agreed(f"interrupted by a signal after step {step}", "interrupted")
        if logged or (not bar.disable and elapsed - shown > 0.5):  # to look at the loss is to wait for the device
            shown, value, rate = elapsed, float(loss), step * settings.train_batch_tokens / elapsed
            bar.n = run_progress(settings, step, elapsed)
            bar.set_postfix_str(f" step {step} loss {value:.3f} {rate:,.0f} tok/s")
            if logged:
                log("step", step=step, iterations=settings.iterations, train_loss=value, ms=1e3 * elapsed, avg=1e3 * elapsed / step,
                    rate=rate)
    bar.close()
    trainer.rounding = False
    status = "finished" if step == settings.iterations else "capped"
    if status == "capped":
        log("stop", ms=1e3 * elapsed, step=step, iterations=settings.iterations)
    log("memory", mib=int(trainer.all_sum(np.array([float(trainer.peak_memory())]))[0] / trainer.world_size) >> 20)
    rate = step * settings.train_batch_tokens / elapsed if step else 0.0
    flops, peak = rate * flops_per_token(settings), trainer.matmul_flops() * trainer.world_size
    log("throughput", rate=rate, flops=flops / 1e9, share=100 * flops / peak, peak=peak / 1e9)
    return status, (f"  trained   {step:,} steps, {step * settings.train_batch_tokens:,} tokens in {elapsed:.1f} s, {rate:,.0f} tokens/s\n"
                    f"  before    val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}\n")


def agree(trainer, seconds=0.0, failed=False):
    """(rank 0's seconds, whether any rank says True) on every rank: rates, the cap and a stop must not differ by rank."""
    if trainer.world_size == 1:
        return seconds, failed
    total = trainer.all_sum(np.array([seconds if trainer.rank == 0 else 0.0, float(failed)]))
    return float(total[0]), bool(total[1])


def together(trainer, act):
    """What act() gives. Raises UserError or OSError on every rank where it does so on one."""
    made = problem = None
    try:
        made = act()
    except (UserError, OSError) as error:
        problem = error
    if agree(trainer, failed=problem is not None)[1]:
        trainer.close()
        raise problem or Agreed("another rank cannot go on, and says why")
    return made


def nonfinite_reason(trainer, settings, tokens, step, value):
    """Names the ranks whose own rows do it, and those rows' place in the train stream; all ranks where only the sum does."""
    world, alone = trainer.world_size, np.ones(trainer.world_size)
    if world > 1:
        alone = trainer.all_sum(np.eye(world)[trainer.rank] * (not trainer.finite_alone(tokens)))
    places = []
    for rank in np.flatnonzero(alone).tolist() or range(world):
        row, rows = rank_rows(settings, rank, world)
        start = step * settings.train_batch_tokens + row * settings.train_seq_len
        places.append(f"rank {rank}, tokens {start} to {start + rows * settings.train_seq_len} of the train stream")
    return (f"the training loss or a gradient is {value} at step {step + 1} ({'; '.join(places)}). Nothing was updated: lower MATRIX_LR, "
            "TIED_EMBED_LR and SCALAR_LR, or set GRAD_CLIP_NORM=1")
