"""The training loop: warm-up, clock, cap, validation, checkpoints, and a stop of all ranks together."""
import contextlib
import dataclasses
import math
import sys
import time

import numpy as np
from tqdm import tqdm

from common.batches import rank_rows, step_rows
from common.bpb import evaluate, rehearse
from common.calibration import calibrate, exported_weights, rehearse_calibration
from common.checkpoint import Saver
from common.console import phase, say
from common.dataset import Data
from common.folder import RunFolder
from common.params import flops_per_token
from common.ranks import PATIENCE, Agreed, Interrupt, RankWatch, agree
from common.schedule import ema_decay, lr_scale, muon_momentum, run_progress
from common.settings import Settings, failing_as
from common.shards import check_ids

FEW_STEPS = 150  # a run that the clock ends before has learned little


@dataclasses.dataclass
class Run:
    """A run and how far it is. Only rank 0 has a folder and a saver."""

    settings: Settings
    data: Data
    trainer: object  # common/trainer.py, Trainer
    folder: RunFolder | None
    saver: Saver | None
    watch: RankWatch
    interrupt: Interrupt
    step: int = 0  # optimizer steps made
    seconds: float = 0.0  # training time, without validation, by the clock of rank 0
    started: float = 0.0  # clock when the program opened the run
    damage: tuple = ()  # what was wrong with newer checkpoints

    def __post_init__(self):
        self.first_step, self.clock = self.step, self.started
        self.reserve, self.products = 0.0, None  # seconds of the calibration after the last step, and what it finds
        self.pending = []  # (step, tokens, loss) of steps whose loss is not checked yet
        self.val = None  # (val_loss, val_bpb) of the last validation
        self.shown = -math.inf  # training seconds when the bar was last drawn

    def log(self, kind, **values):
        if self.folder:
            self.folder.log(kind, **values)

    def phase(self, name, text):
        return phase(name, text) if self.folder else contextlib.nullcontext()

    def tick(self, *flags):
        """Add the time since the last tick. list: whether each flag is True on any rank."""
        now = time.perf_counter()
        self.seconds, *flags = agree(self.trainer, self.seconds + now - self.clock, *flags)
        self.clock = now
        return flags

    def step_limit(self):
        """Seconds that a rank may take for its next step: as ten take; more for the first, which may compile."""
        if self.step == self.first_step:
            return PATIENCE
        return max(self.settings.rank_timeout, 10 * self.seconds / self.step)

    def is_last(self):
        """True if no step is left, or the next one could end after the cap."""
        spare_steps = 2 + self.trainer.steps_ahead
        next_end = self.seconds + self.reserve + spare_steps * self.seconds / max(self.step, 1)
        return self.step == self.settings.iterations or next_end > (self.settings.max_wallclock_seconds or math.inf)

    def save(self):
        """Every rank calls it, since each may have a part of the state."""
        if self.saver or self.trainer.world_size > 1:
            state = self.trainer.state()
        if self.saver:
            self.saver.save(self.step, self.seconds, state)

    def batch(self):
        """This rank's rows of the next step. Raises UserError if a token is not in the vocabulary."""
        s, trainer = self.settings, self.trainer
        with failing_as("bad_data"):
            tokens = step_rows(self.data.train, s, self.step, trainer.rank, trainer.world_size)
            if tokens.max() >= s.vocab_size:
                for shard in self.data.train.shards:  # names the file and the place
                    check_ids(shard, s.vocab_size, shard.filename)
        return tokens


def warm_up(run):
    """Compile what the run will use, up to the final evaluation, without a trace in its state or clock."""
    s, trainer = run.settings, run.trainer
    if s.warmup_steps:
        state, tokens = trainer.state(), run.batch()
        for _ in run.watch.each([-1], "the warm-up", PATIENCE)(range(s.warmup_steps)):
            trainer.train_step(tokens, 1.0, s.muon_momentum, s.qat_start < 1)
            if s.ema_decay:
                trainer.update_average(s.ema_decay)
        rehearse(trainer, s)
        if s.gptq_tokens:
            run.reserve = agree(trainer, rehearse_calibration(trainer, s, run.data.train))[0]
        if run.reserve >= (s.max_wallclock_seconds or math.inf):
            raise Agreed(f"the calibration on GPTQ_TOKENS={s.gptq_tokens} takes {run.reserve:.1f} s, all of "
                         f"MAX_WALLCLOCK_SECONDS={s.max_wallclock_seconds:g}: use fewer tokens", "bad_settings")
        trainer.load_state(state)
    trainer.wait()


def train(run):
    """Train to the last step or the time cap. Raises Agreed on every rank."""
    s, trainer = run.settings, run.trainer
    if run.folder:
        cap = f"{s.max_wallclock_seconds:g} s" if s.max_wallclock_seconds else "no cap on the time"
        say(f"train     at most {s.iterations:,} steps, {cap}: {run.folder.path}/train.log", sys.stderr)
    with progress_bar(trainer) as bar:  # takes 7 ms, before the clock starts
        run.interrupt.waits, run.clock = True, time.perf_counter()
        while True:
            last = run.is_last()
            if last and s.gptq_tokens:
                trainer.wait()
                run.watch.mark([run.step, 1, 0], "the calibration", PATIENCE)
                start = time.perf_counter()
                run.products = calibrate(trainer, s, run.data.train)
                run.log("calibration", tokens=s.gptq_tokens, seconds=time.perf_counter() - start)
            if last or (s.val_loss_every and run.step % s.val_loss_every == 0):
                validate(run, last)
            if last:
                break
            run.watch.mark([run.step, 1, 0], f"step {run.step + 1}", run.step_limit())
            tokens = run.batch()
            run.watch.mark([run.step, 1, 1], f"step {run.step + 1}", run.step_limit())
            progress = run_progress(s, run.step, run.seconds + run.reserve)
            rounding = s.qat_start <= progress < 1
            loss = trainer.train_step(tokens, lr_scale(s, progress), muon_momentum(s, run.step), rounding)
            if s.ema_decay:
                trainer.update_average(ema_decay(s, run.step))
            after_step(run, tokens, loss, bar)


def validate(run, last):
    """Score the weights, or their average. Its time is not training time."""
    s, trainer, data, step = run.settings, run.trainer, run.data, run.step
    trainer.wait()
    check_losses(run)
    run.tick()
    limit = run.step_limit() if run.val else PATIENCE
    try:
        run.watch.mark([step, 0], f"the checkpoint of step {step}", PATIENCE)
        if last or (step > run.first_step and trainer.world_size > 1):  # ranks cannot stop together in a validation
            run.save()
        with exported_weights(trainer, s):
            run.interrupt.waits = False
            if run.interrupt.asked:
                raise KeyboardInterrupt
            marked = run.watch.each([step, 0], f"the validation after step {step}", limit)
            run.val = evaluate(trainer, s, data.val, data.tokenizer, data.val_tokens, marked)[:2]
            run.interrupt.waits = not last
    except KeyboardInterrupt:
        if trainer.world_size == 1:  # else it is saved
            run.save()
        raise
    run.log("val", step=step, iterations=s.iterations, val_loss=run.val[0], val_bpb=run.val[1], ms=1e3 * run.seconds,
            avg=1e3 * run.seconds / max(step, 1), partial=data.partial)
    run.clock = time.perf_counter()


def after_step(run, tokens, loss, bar):
    """Save, stop and log, as is due after a step. Raises Agreed where the run stops."""
    s = run.settings
    run.pending.append((run.step, tokens, loss))
    check_losses(run, run.trainer.steps_ahead)
    run.watch.steps = run.step = run.step + 1
    stop, due = run.tick(run.interrupt.asked > 0, run.saver is not None and run.saver.due(run.step, run.seconds))
    logged = run.step <= 10 or run.step % s.train_log_every == 0
    if stop or logged:
        check_losses(run)
    if stop:
        run.watch.mark([run.step, 0], f"the checkpoint of step {run.step}", PATIENCE)
    if (stop or due) and math.isfinite(float(loss)):
        run.save()
    if stop:
        raise Agreed(f"interrupted by a signal after step {run.step}", "interrupted")
    if not logged and (bar.disable or run.seconds - run.shown < 0.5):
        return  # reading the loss waits for the device
    run.shown, value, rate = run.seconds, float(loss), run.step * s.train_batch_tokens / run.seconds
    bar.n = run_progress(s, run.step, run.seconds)
    bar.set_postfix_str(f" step {run.step} loss {value:.3f} {rate:,.0f} tok/s")
    if logged:
        run.log("step", step=run.step, iterations=s.iterations, train_loss=value, ms=1e3 * run.seconds,
                avg=1e3 * run.seconds / run.step, rate=rate)


def check_losses(run, ahead=0):
    """Raises Agreed if a loss is not finite, but for the last `ahead` steps, which may still be running."""
    while len(run.pending) > ahead:
        step, tokens, loss = run.pending.pop(0)
        if not math.isfinite(value := float(loss)):
            run.watch.steps = step
            raise Agreed(nonfinite_reason(run, tokens, step, value), "nonfinite")


def nonfinite_reason(run, tokens, step, value):
    """Names the ranks whose own rows cause it, and these rows; all ranks if only the sum is not finite."""
    s, trainer, world = run.settings, run.trainer, run.trainer.world_size
    alone = np.ones(world)
    if world > 1:
        alone = trainer.all_sum(np.eye(world)[trainer.rank] * (not trainer.finite_alone(tokens)))
    places = []
    for rank in np.flatnonzero(alone).tolist() or range(world):
        row, rows = rank_rows(s, rank, world)
        start = step * s.train_batch_tokens + row * s.train_seq_len
        places.append(f"rank {rank}, tokens {start} to {start + rows * s.train_seq_len} of the train stream")
    where = "; ".join(places)
    return (f"the training loss or a gradient is {value} at step {step + 1} ({where}). Nothing was updated: "
            "lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR, or set GRAD_CLIP_NORM=1")


def progress_bar(trainer):
    form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(total=1.0, disable=trainer.rank > 0 or not sys.stderr.isatty(), leave=False, bar_format=form)


def training_summary(run):
    """Log what the training took; the same as text."""
    s, trainer = run.settings, run.trainer
    if run.step < s.iterations:
        run.log("stop", ms=1e3 * run.seconds, step=run.step, iterations=s.iterations)
    mean_peak = trainer.all_sum(np.array([float(trainer.peak_memory())]))[0] / trainer.world_size
    run.log("memory", mib=int(mean_peak) >> 20)
    tokens = run.step * s.train_batch_tokens
    rate = tokens / run.seconds if run.step else 0.0
    flops, peak = rate * flops_per_token(s), trainer.matmul_flops() * trainer.world_size
    run.log("throughput", rate=rate, flops=flops / 1e9, share=100 * flops / peak, peak=peak / 1e9)
    val_loss, val_bpb = run.val
    advice = ""
    if run.step < min(FEW_STEPS, s.iterations):
        advice = (f"  advice    {run.step:,} steps teach little: raise MAX_WALLCLOCK_SECONDS (now "
                  f"{s.max_wallclock_seconds:g}), lower MODEL_DIM (now {s.model_dim}), or stop what else runs here\n")
    return (f"  trained   {run.step:,} steps, {tokens:,} tokens in {run.seconds:.1f} s, {rate:,.0f} tokens/s\n{advice}"
            f"  before    val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}\n")
