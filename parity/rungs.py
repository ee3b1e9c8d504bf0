"""What one backend shows, rung by rung: one function each, in the order in which the ladder is climbed."""
import dataclasses
import functools
import hashlib
import sys
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from common.challenge import BUDGET_BYTES
from common.settings import UserError
from parity.options import option_settings
from parity.problem import RANKS, full_weights, own_settings
from parity.trainers import Code, errors_of


class LeftOut(Exception):
    """Raised by a rung that a script cannot show: the reason."""


class Observed(NamedTuple):
    """shown: dict rung -> dict name -> array; device: the trainer's description; left_out: dict rung -> reason."""

    shown: dict
    device: str
    left_out: dict


class Side:
    """One backend at work on a problem: the trainer and what several rungs need. Raises UserError where the trainer
    cannot be built."""

    def __init__(self, trainer_class, problem, dtype, **changes):
        """changes: of the settings."""
        settings = dataclasses.replace(problem.settings, compute_dtype=dtype, **changes)
        self.problem, self.dtype, self.code = problem, dtype, Code(trainer_class)
        self.s = own_settings(trainer_class.settings_class, settings, self.code.name)
        self.stream = problem.shards(self.code.TokenStream)
        self.rows = self.code.step_rows(self.stream, self.s, 0)
        self.trainer = trainer_class(self.s, self.code.initial_weights(self.s))
        self.fresh = self.trainer.state()
        self.full = full_weights(self.s, self.code)

    def full_state(self):
        """A state in which every part counts in the next step: as after ten steps, but drawn."""
        state = {name: array for name, array in self.fresh.items() if name not in self.full}
        for number, name in enumerate(sorted(state)):
            noise = 1e-3 * np.random.Generator(np.random.Philox(key=[8, number])).standard_normal(state[name].shape)
            state[name] = (noise**2 + 1e-8 if name.endswith("exp_avg_sq") else noise).astype(state[name].dtype)
        return self.full | state | {"adam_step": np.float32(10)}

    @functools.cached_property
    def trained(self):
        """(losses, weights) after the problem's steps from the initial weights: the average, where there is one."""
        s, code, losses = self.s, self.code, []
        qat_start, average = getattr(s, "qat_start", 1.0), getattr(s, "ema_decay", 0.0)  # not in older records
        self.trainer.load_state(self.fresh)
        for step in range(self.problem.steps):
            progress = code.run_progress(s, step, 0.0)
            scale, momentum = code.lr_scale(s, progress), code.muon_momentum(s, step)
            rows = code.step_rows(self.stream, s, step)
            losses.append(float(self.trainer.train_step(rows, scale, momentum, qat_start <= progress < 1)))
            if average:
                self.trainer.update_average(code.ema_decay(s, step))
        return losses, self.trainer.weights(averaged=bool(average))

    @functools.cached_property
    def optional(self):
        """(settings with every option, trainer with the average after four steps, losses); the last two steps round."""
        changes = option_settings(self.s) | {"ttt_rank": 0}  # adapters have an evaluation of their own
        if missing := sorted(changes.keys() - vars(self.s).keys()):
            raise LeftOut(f"{self.code.name} has no setting {', '.join(missing).upper()}")
        s, losses = dataclasses.replace(self.s, **changes), []
        trainer = type(self.trainer)(s, full_weights(s, self.code))
        for step in range(4):
            rows = self.code.step_rows(self.stream, s, step)
            losses.append(float(trainer.train_step(rows, 0.1, 0.9, step >= 2)))
            trainer.update_average(self.code.ema_decay(s, step))
        trainer.load_state(as_float32(trainer.weights(averaged=True)))
        return s, trainer, losses

    def evaluate(self, trainer, settings, num_tokens):
        """(nats per token, bits per byte, tokens, bytes) of the final evaluation of the first tokens."""
        val = self.code.TokenStream([self.problem.val])
        return self.code.evaluate(trainer, settings, val, self.problem.table, num_tokens, final=True)

    @functools.cached_property
    def backward(self):
        """(loss, gradients) of the first batch."""
        self.trainer.load_state(self.full)
        return self.trainer.gradients(self.rows)

    @functools.cached_property
    def equal_model(self):
        """(model file, payload) of weights that are the same on both sides, as the trainer gives them back."""
        self.trainer.load_state(self.full)
        return self.encode(self.trainer, self.s, self.trainer.weights())

    def encode(self, trainer, settings, weights):
        """(model file, payload); levels that are "auto" fit the challenge's budget, of which code takes nothing."""
        more = []
        if getattr(settings, "gptq_tokens", 0):  # not in older records
            trainer.load_state(weights)
            more.append(self.code.calibrate(trainer, settings, self.stream))
        return self.code.encode_within(settings, as_float32(weights), BUDGET_BYTES - 1, lambda kind, **values: None,
                                       *more)


# ----------------------------------------------------------------------------------------------------------------------
# Rungs: Side -> dict name -> array
# ----------------------------------------------------------------------------------------------------------------------


def initial_weights(side):
    return as_float32({name: side.fresh[name] for name in side.trainer.weights()})


def batches(side):
    shown = {}
    crossing = [end // side.s.train_batch_tokens for end in side.stream.ends]  # steps with the end of a shard in them
    for step in sorted({0, 1, *crossing}):
        for ranks in RANKS:
            parts = [side.code.step_rows(side.stream, side.s, step, rank, ranks) for rank in range(ranks)]
            shown[f"step {step}, {ranks} ranks"] = np.concatenate(parts)
    return shown


def bytes_and_windows(side):
    length, tokens = side.s.train_seq_len, side.problem.val.astype(np.int64)
    return {"windows": side.code.eval_windows(len(tokens), length, length),
            "bytes": side.code.count_bytes(side.problem.table, tokens[:-1], tokens[1:])}


def logits(side):
    side.trainer.load_state(side.full)
    return {"logits": side.trainer.logits(side.rows[:4, :-1])}


def token_nats(side):
    side.trainer.load_state(side.full)
    return {"nats": side.trainer.token_nats(side.rows[:4])}


def loss(side):
    return {"mean": np.array(side.backward[0])}


def gradients(side):
    return side.backward[1]


def one_step(side):
    side.trainer.load_state(side.full_state())
    side.trainer.train_step(side.rows, 0.5, 0.9)
    state = side.trainer.state()
    return state | {name: state[name] - w for name, w in side.full.items()}  # of the weights, the change


def training_losses(side):
    return {"loss": np.array(side.trained[0])}


def validation(side):
    side.trainer.load_state(side.trained[1])
    found = side.evaluate(side.trainer, side.s, len(side.problem.val))
    return {name: np.array(value) for name, value in zip(("val_loss", "val_bpb", "tokens", "bytes"), found)}


def options(side):
    s, trainer, losses = side.optional
    shown = {"loss": np.array(losses)}
    num_tokens = len(side.problem.val) // 2  # windows that overlap take their time
    for name, ttt_lr in {"sliding windows": 0.0, "test-time training": s.ttt_lr}.items():
        found = side.evaluate(trainer, dataclasses.replace(s, ttt_lr=ttt_lr), num_tokens)
        shown[f"val_loss, {name}"] = np.array(found[0])
    s = dataclasses.replace(s, **option_settings(side.s, ["adapters"]))
    trainer = type(trainer)(s, as_float32(trainer.weights()))
    shown["val_loss, adapters"] = np.array(side.evaluate(trainer, s, num_tokens)[0])
    return shown


def quantized_payload(side):
    return safetensors.numpy.load(side.equal_model[1])


def compressed_bytes(side):
    shown = {"SHA-256 of equal weights": digest(side.equal_model[0])}
    if side.dtype == "float64":
        trained = side.encode(side.trainer, side.s, side.trained[1])
        shown[f"SHA-256 after {side.problem.steps} steps"] = digest(trained[0])
        if "options" not in side.left_out:
            s, trainer, _ = side.optional
            shown[OPTIONS_DIGEST] = digest(side.encode(trainer, s, trainer.weights())[0])
    return shown


OPTIONS_DIGEST = "SHA-256 with options"  # part of the rung of compressed bytes
RUNGS = {
    "initial weights": initial_weights,
    "batches": batches,
    "bytes and windows": bytes_and_windows,
    "logits": logits,
    "token nats": token_nats,
    "loss": loss,
    "gradients": gradients,
    "one step": one_step,
    "training losses": training_losses,
    "validation": validation,
    "options": options,
    "quantized payload": quantized_payload,
    "compressed bytes": compressed_bytes,
}


def observe(trainer_class, problem, dtype, progress=lambda rung: None, **changes):
    """Observed: all that one backend shows; changes: of the settings. progress(rung) is called before each rung. Raises
    UserError where the trainer cannot be built, ValueError where weights diverge."""
    side = Side(trainer_class, problem, dtype, **changes)
    side.left_out, shown = {}, {}
    for rung, show in RUNGS.items():
        progress(rung)
        try:
            shown[rung] = show(side)
        except LeftOut as reason:
            side.left_out[rung] = str(reason)
    return Observed(shown, side.trainer.describe(), side.left_out)


def observe_aloud(trainer_class, problem, dtype, **changes):
    """observe() with its progress in a line on a terminal. Raises UserError."""
    def progress(rung):
        if sys.stderr.isatty():
            text = f"{trainer_class.backend} {dtype}: {rung} ..." if rung else ""
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    try:
        with errors_of(Code(trainer_class)):
            return observe(trainer_class, problem, dtype, progress, **changes)
    except ValueError as error:  # weights that are not finite cannot be quantized
        raise UserError(f"{trainer_class.backend} in {dtype}: {error}") from None
    finally:
        progress("")


def digest(model):
    """uint8 (32,): SHA-256 of a model file."""
    return np.frombuffer(hashlib.sha256(model).digest(), np.uint8)


def as_float32(weights):
    return {name: w.astype(np.float32) for name, w in weights.items()}
