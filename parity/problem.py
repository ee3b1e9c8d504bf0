"""What both sides are given: settings, tokens and byte table; and what each of them shows, rung by rung."""
import contextlib
import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from common import artifact, batches, bpb, params, quantize, schedule
from common.dataset import open_data
from common.settings import Settings, UserError

RUNGS = ("initial weights", "batches", "bytes and windows", "logits", "token nats", "loss", "gradients", "one step", "training losses",
         "validation", "options", "quantized payload", "compressed bytes")
DTYPES = ("float64", "float32", "bfloat16")
# the model of `make train` on a CPU; half its batch, so that the ladder takes three minutes on slow cores too
CPU_SIZE = {"num_layers": 4, "model_dim": 256, "num_heads": 4, "num_kv_heads": 2, "train_seq_len": 256, "train_batch_tokens": 2048,
            "micro_batch_tokens": 2048, "muon_momentum_warmup_steps": 100, "max_wallclock_seconds": 0.0}


def trainer_class(backend):
    """The trainer of a backend. Raises UserError where it is not installed."""
    with contextlib.suppress(ModuleNotFoundError):  # MLX first in either case: its OpenBLAS must be loaded before torch's libraries
        import train_gpt_mlx
    try:
        if backend == "mlx":
            import train_gpt_mlx
            return train_gpt_mlx.MlxTrainer
        import train_gpt
        return train_gpt.TorchTrainer
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: `make install BACKEND={backend}` or `pip install '.[{backend}]'` provides it") from None


def embedded_corpus(path):
    """The data folder; builds the embedded corpus where it is the default and not there."""
    if path == Path("data/pydoc_sp1024") and not path.exists():
        from common.data.__main__ import main as data_command
        data_command(["pydoc"])
    return path


@dataclasses.dataclass
class ByteTable:
    """What scoring needs of a tokenizer: see common/tokenizer.py."""

    byte_counts: np.ndarray
    leading_space: np.ndarray
    boundary: np.ndarray


@dataclasses.dataclass
class Problem:
    """settings: of class Settings; train, val: uint16 tokens; steps: optimizer steps of the training rung."""

    settings: Settings
    train: np.ndarray
    val: np.ndarray
    table: ByteTable
    steps: int

    def shards(self):
        """The training tokens as two shards of unequal length, so that a step crosses a border and another the end."""
        cut = len(self.train) * 3 // 8
        return batches.TokenStream([self.train[:cut], self.train[cut:]])


def make_problem(data_path, steps, **changes):
    """A problem at the CPU size on the first tokens of a data folder: about `steps` steps of training and 16 windows of validation.
    Raises UserError."""
    settings = dataclasses.replace(Settings(), **CPU_SIZE | {"data_path": str(data_path), "iterations": steps} | changes)
    data = open_data(settings)
    settings = dataclasses.replace(settings, vocab_size=data.tokenizer.vocab_size)
    length = min(data.train.length, (steps + 2) * settings.train_batch_tokens + 333)  # no multiple of a row
    if length < 2 * settings.train_batch_tokens:
        raise UserError(f"{data_path} has {data.train.length} training tokens, fewer than two steps")
    t = data.tokenizer
    val = data.val.read(0, min(data.val.length, 16 * settings.train_seq_len + 77))
    return Problem(settings, data.train.read(0, length).astype(np.uint16), val.astype(np.uint16),
                   ByteTable(t.byte_counts, t.leading_space, t.boundary), steps)


def first_rows(problem):
    """int32 (4, T + 1): the rows of the logits and loss rungs."""
    return batches.step_rows(problem.shards(), problem.settings, 0)[:4]


def full_weights(settings):
    """float32 weights with no zero tensor and no two equal rows, so that everything in the model can be seen to count."""
    weights = params.initial_weights(dataclasses.replace(settings, seed=settings.seed + 1))
    for number, name in enumerate(sorted(weights)):
        w = weights[name]
        noise = np.random.Generator(np.random.Philox(key=[7, number])).standard_normal(w.shape)
        weights[name] = (w + noise * (0.2 if w.ndim == 1 or "mix" in name or "skip" in name else w.shape[-1] ** -0.5)).astype(np.float32)
    return weights


def full_state(trainer):
    """An optimizer state in which every part counts in the next step: as after ten steps, but drawn."""
    state = {name: array for name, array in trainer.state().items() if name not in trainer.weights()}
    for number, name in enumerate(sorted(state)):
        noise = 1e-3 * np.random.Generator(np.random.Philox(key=[8, number])).standard_normal(state[name].shape)
        state[name] = (noise**2 + 1e-8 if name.endswith("exp_avg_sq") else noise).astype(state[name].dtype)
    return state | {"adam_step": np.float32(10)}


def with_options(s):
    """The settings of a trainer with every option that a run has, each so that it counts within four steps."""
    length = s.train_seq_len
    return dataclasses.replace(s, loop_layers=f"{s.num_layers // 3}-{s.num_layers // 2}", loss_chunk=length + length // 4, ema_decay=0.9,
                               qat_start=0.5, quant_levels="matrix=31,embed=fp16", eval_seq_len=length + length // 2,
                               eval_stride=max(1, length // 2), ttt_lr=0.01, ttt_chunk=str(4 * length))


def observe(trainer_class, problem, dtype, progress=lambda rung: None, **changes):
    """(dict rung -> dict name -> array of what one backend shows, the trainer's description of its device); changes: of the settings.
    progress(rung) is called before each rung. Raises UserError where the trainer cannot be built, ValueError where weights diverge."""
    s = dataclasses.replace(problem.settings, compute_dtype=dtype, **changes)
    own = trainer_class.settings_class(**{f.name: getattr(s, f.name) for f in dataclasses.fields(s)})
    shown, stream, val = {}, problem.shards(), batches.TokenStream([problem.val])
    first = params.initial_weights(s)
    trainer = trainer_class(own, first)

    progress("initial weights")
    shown["initial weights"] = {name: w.astype(np.float32) for name, w in trainer.weights().items()}

    progress("batches")
    steps = {0, 1, *(end // s.train_batch_tokens for end in stream.ends)}
    shown["batches"] = {f"step {step}, {ranks} ranks": np.concatenate([batches.step_rows(stream, s, step, rank, ranks) for rank in range(ranks)])
                        for step in sorted(steps) for ranks in (1, 2, 4, 8)}

    progress("bytes and windows")
    windows = bpb.eval_windows(len(problem.val), s.train_seq_len, s.train_seq_len)
    tokens = problem.val.astype(np.int64)
    shown["bytes and windows"] = {"windows": windows, "bytes": bpb.count_bytes(problem.table, tokens[:-1], tokens[1:])}

    progress("logits")
    full = full_weights(s)
    trainer.load_state(full)
    rows = batches.step_rows(stream, s, 0)
    shown["logits"] = {"logits": trainer.logits(rows[:4, :-1])}

    progress("token nats")
    shown["token nats"] = {"nats": trainer.token_nats(rows[:4])}

    progress("loss")
    loss, grads = trainer.gradients(rows)
    shown["loss"] = {"mean": np.array(loss)}

    progress("gradients")
    shown["gradients"] = grads

    progress("one step")
    trainer.load_state(full | full_state(trainer))
    trainer.train_step(rows, 0.5, 0.9)
    shown["one step"] = {name: value - full[name] if name in full else value for name, value in trainer.state().items()}

    progress("training losses")
    trainer = trainer_class(own, first)
    losses = []
    for step in range(problem.steps):
        scale = schedule.lr_scale(s, schedule.run_progress(s, step, 0.0))
        losses.append(float(trainer.train_step(batches.step_rows(stream, s, step), scale, schedule.muon_momentum(s, step))))
    shown["training losses"] = {"loss": np.array(losses)}

    progress("validation")
    shown["validation"] = {name: np.array(value) for name, value in zip(
        ("val_loss", "val_bpb", "tokens", "bytes"), bpb.evaluate(trainer, s, val, problem.table, len(problem.val)))}

    progress("options")
    optional, losses = with_options(own), []
    other = trainer_class(optional, full_weights(optional))
    for step in range(4):
        losses.append(float(other.train_step(batches.step_rows(stream, s, step), 0.1, 0.9, step >= 2)))
        other.update_average(schedule.ema_decay(optional, step))
    averaged = {name: w.astype(np.float32) for name, w in other.weights(averaged=True).items()}
    other.load_state(averaged)
    shown["options"] = {"loss": np.array(losses)}
    for name, ttt_lr in {"sliding windows": 0.0, "test-time training": optional.ttt_lr}.items():
        shown["options"][f"val_loss, {name}"] = np.array(
            bpb.evaluate(other, dataclasses.replace(optional, ttt_lr=ttt_lr), val, problem.table, len(problem.val), final=True)[0])

    progress("quantized payload")
    trained = {name: w.astype(np.float32) for name, w in trainer.weights().items()}
    trainer.load_state(full)
    equal = {name: w.astype(np.float32) for name, w in trainer.weights().items()}
    shown["quantized payload"] = quantize.quantize_weights(s, equal)

    progress("compressed bytes")
    shown["compressed bytes"] = {"SHA-256 of equal weights": digest(s, equal)}
    if dtype == "float64":
        shown["compressed bytes"][f"SHA-256 after {problem.steps} steps"] = digest(s, trained)
        shown["compressed bytes"]["SHA-256 with options"] = digest(optional, averaged)
    return shown, trainer.describe()


def digest(settings, weights):
    """uint8 (32,): SHA-256 of the model file."""
    return np.frombuffer(hashlib.sha256(artifact.encode_model(settings, weights)[0]).digest(), np.uint8)
