"""Every setting of a run: name, type, default, meaning and check, in frozen dataclasses.

A setting comes from its flag (--train-seq-len 512), else from the environment (TRAIN_SEQ_LEN=512), else from its default.
Nothing is read at import. All problems are reported together.
"""
import contextlib
import dataclasses
import difflib
import re


class UserError(Exception):
    """Something the person who runs the program can mend: the message names the value and the remedy. Exit code 2, no traceback.
    status: what status.json says of a run that ends so."""

    def __init__(self, message, status="failed"):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def failing_as(status):
    """A UserError inside means this status."""
    try:
        yield
    except UserError as error:
        error.status = status
        raise


def setting(default, meaning, low=None, high=None, choices=None):
    """One dataclass field. low and high are inclusive."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What rebuilds the model from its artifact."""
    vocab_size: int = setting(0, "token ids; 0: as many as the tokenizer has", 0, 65536)
    num_layers: int = setting(9, "blocks", 1, 256)
    model_dim: int = setting(512, "width", 4, 16384)
    num_heads: int = setting(8, "query heads", 1, 256)
    num_kv_heads: int = setting(4, "key and value heads", 1, 256)
    mlp_mult: int = setting(2, "hidden width of the MLP over the width", 1, 64)
    tie_embeddings: bool = setting(True, "the head is the token embedding")
    rope_base: float = setting(10000.0, "base of the rotary frequencies", 1, 1e12)
    logit_softcap: float = setting(30.0, "logits are c * tanh(logits / c)", 1e-3, 1e6)
    rms_norm_eps: float = setting(1e-6, "epsilon of every RMSNorm", 0, 1)
    train_seq_len: int = setting(1024, "tokens of one row", 1, 2**20)
    loop_layers: str = setting("", "blocks 3-5, say, that are applied LOOP_COUNT times with shared weights, counted from 0; empty: none")
    loop_count: int = setting(2, "times that LOOP_LAYERS are applied", 2, 16)


LATER = "loop_layers", "loop_count"  # fields of ModelSettings that an artifact names only where they are used


@dataclasses.dataclass(frozen=True)
class Settings(ModelSettings):
    # data
    data_path: str = setting("data/fineweb10B_sp1024", "folder of the token shards *_train_*.bin and *_val_*.bin")
    tokenizer_path: str = setting("", "SentencePiece model or `bytes`; empty: what DATA_PATH/manifest.json names")
    run_id: str = setting("", "the run's folder is runs/RUN_ID; empty: date and time")
    seed: int = setting(1337, "key of the initial weights", 0, 2**63 - 1)
    # initial values
    qk_gain_init: float = setting(1.5, "initial gain of the normed queries, per head", -100, 100)
    tied_embed_init_std: float = setting(0.005, "standard deviation of the initial tied embedding", 0, 10)
    # length of the run
    iterations: int = setting(20000, "optimizer steps", 0, 10**9)
    max_wallclock_seconds: float = setting(600.0, "limit of the training time, validation not counted; 0: none", 0, 1e9)
    warmdown_fraction: float = setting(1.0, "last part of the run, in which learning rates fall to 0", 0, 1)
    warmup_steps: int = setting(3, "steps that only warm up, undone before the clock starts", 0, 1000)
    # batch
    train_batch_tokens: int = setting(524288, "tokens of one optimizer step, over all ranks", 1, 2**31)
    micro_batch_tokens: int = setting(65536, "tokens of one pass on one rank: memory only, never the result", 1, 2**31)
    # optimizers: Muon for the matrices, Adam for the rest
    matrix_lr: float = setting(0.04, "Muon", 0, 100)
    tied_embed_lr: float = setting(0.05, "Adam: embedding when it is the head too", 0, 100)
    embed_lr: float = setting(0.6, "Adam: embedding when the head is untied", 0, 100)
    head_lr: float = setting(0.008, "Adam: untied head", 0, 100)
    scalar_lr: float = setting(0.04, "Adam: scales, gains, mixes and skip weights", 0, 100)
    muon_momentum: float = setting(0.95, "momentum of Muon (Nesterov)", 0, 0.9999)
    muon_momentum_warmup_start: float = setting(0.85, "its value at step 0", 0, 0.9999)
    muon_momentum_warmup_steps: int = setting(500, "steps until muon_momentum is reached", 0, 10**9)
    muon_backend_steps: int = setting(5, "Newton-Schulz iterations", 1, 50)
    beta1: float = setting(0.9, "Adam", 0, 0.9999)
    beta2: float = setting(0.95, "Adam", 0, 0.9999999)
    adam_eps: float = setting(1e-8, "Adam", 1e-30, 1)
    grad_clip_norm: float = setting(0.0, "global gradient norm is cut to this; 0: off", 0, 1e9)
    # validation and logging
    val_loss_every: int = setting(1000, "steps between validations; 0: only at the end", 0, 10**9)
    val_tokens_limit: int = setting(0, "tokens of a partial validation; 0: all", 0, 2**40)
    train_log_every: int = setting(200, "steps between log lines after the first ten", 1, 10**9)
    # options
    eval_seq_len: int = setting(0, "tokens of a window of the final evaluation; 0: TRAIN_SEQ_LEN", 0, 2**20)
    eval_stride: int = setting(0, "tokens that the windows of the final evaluation advance by; 0: EVAL_SEQ_LEN", 0, 2**20)
    ttt_lr: float = setting(0.0, "test-time training: SGD's learning rate in the final evaluation; 0: off", 0, 100)
    ttt_chunk: str = setting("32768", "tokens scored before each step on them; 2048d: and trained weights restored after a document")
    qat_start: float = setting(1.0, "share of the run after which the forward pass rounds weights as the model file does; 1: never", 0, 1)
    ema_decay: float = setting(0.0, "decay per step of the average of the weights that is validated and exported; 0: none", 0, 0.999999)
    quant_levels: str = setting("127", "largest code of a stored weight, 2 to 127; auto: as many as fit the budget; or by group: "
                                       "matrix=15,embed=fp16,head=auto")
    loss_chunk: int = setting(0, "positions whose logits are in memory at once: memory only, never the result; 0: all", 0, 2**31)
    # what may go wrong
    resume: str = setting("", "run folder to continue, or auto: the newest that is not finished, if any")
    checkpoint_every: str = setting("60s", "steps (500) or seconds (60s) between checkpoints; 0: only when interrupted and at the end")
    rank_timeout: float = setting(60.0, "seconds, or ten steps, after which a rank that makes no step hangs", 0.1, 1e6)
    # device
    compute_dtype: str = setting("auto", "dtype of the matrix products; float64: reference mode, on the CPU",
                                 choices=("auto", "float32", "bfloat16", "float64"))
    compile: bool = setting(True, "compile the step")
    device: str = setting("auto", "which device to use", choices=("auto", "cpu", "gpu"))


def parse_setting(field, text):
    """The value of one field from text. Raises ValueError in plain words."""
    kind, low, high, choices = field.type, *(field.metadata[key] for key in ("low", "high", "choices"))
    try:
        value = ("0", "1", "false", "true", "no", "yes").index(text.strip().lower()) % 2 == 1 if kind is bool else kind(text)
        valid = value in choices if choices else low is None or low <= value <= high  # a NaN is not
    except ValueError:
        valid = False
    if not valid:
        numbers = f"number from {low} to {high}"
        words = {bool: "0 or 1", int: f"a whole {numbers}", float: f"a {numbers}", str: f"one of {', '.join(choices or ())}"}
        raise ValueError(f"{field.name.upper()}={text} is not {words[kind]}")
    return value


def group_levels(s):
    """dict group -> levels: 2 to 127, "auto" or "fp16". QUANT_LEVELS is one value, or some by group; 127 where it says nothing. There is
    a head only where it is untied. Raises ValueError in plain words."""
    found = dict.fromkeys(["matrix", "embed"] + ["head"] * (not s.tie_embeddings), 127)
    named = set()
    for part in s.quant_levels.split(","):
        name, equals, value = (word.strip() for word in part.rpartition("="))
        if not (value in ("auto", "fp16") or (re.fullmatch("[0-9]{1,3}", value) and 2 <= int(value) <= 127)):
            raise ValueError(f"QUANT_LEVELS={s.quant_levels}: {value or 'nothing'} is not a whole number from 2 to 127, auto or fp16")
        if equals and name not in found:
            hint = ": the head is the embedding, unless TIE_EMBEDDINGS=0" * (name == "head")
            raise ValueError(f"QUANT_LEVELS={s.quant_levels}: {name or 'nothing'} is not one of {', '.join(found)}{hint}")
        if named & {name, ""} or (named and not equals):
            raise ValueError(f"QUANT_LEVELS={s.quant_levels}: give one value for all, or one for each group, as in matrix=15,embed=fp16")
        named.add(name)
        found |= dict.fromkeys([name] if equals else found, value if value in ("auto", "fp16") else int(value))
    return found


def setting_conflicts(s):
    """list[str]: what cannot hold together, in plain words."""
    wrong = [f"{a.upper()}={getattr(s, a)} must be a multiple of {b.upper()}={getattr(s, b)}"
             for a, b in (("model_dim", "num_heads"), ("num_heads", "num_kv_heads"), ("train_batch_tokens", "train_seq_len"))
             if getattr(s, a) % getattr(s, b)]
    if s.model_dim // s.num_heads % 2:
        wrong.append(f"MODEL_DIM={s.model_dim} / NUM_HEADS={s.num_heads} must be even: rotary embedding turns pairs")
    if s.loop_layers:
        ends = re.fullmatch(r"(0|[1-9]\d{0,3})-(0|[1-9]\d{0,3})", s.loop_layers)
        if not ends:
            wrong.append(f"LOOP_LAYERS={ascii(s.loop_layers)[1:-1]:.60} is no range of blocks: write the first and the last, as in 3-5 (or 3-3)")
        elif int(ends[1]) > int(ends[2]):
            wrong.append(f"LOOP_LAYERS={s.loop_layers} is reversed: write the first block and then the last, {ends[2]}-{ends[1]}")
        elif int(ends[2]) >= s.num_layers:
            wrong.append(f"LOOP_LAYERS={s.loop_layers} is outside the model: NUM_LAYERS={s.num_layers} has blocks 0-{s.num_layers - 1}")
    elif s.loop_count != ModelSettings.loop_count:
        wrong.append(f"LOOP_COUNT={s.loop_count} applies nothing again without LOOP_LAYERS: name blocks, as in LOOP_LAYERS=3-5")
    if s.micro_batch_tokens < s.train_seq_len:
        wrong.append(f"MICRO_BATCH_TOKENS={s.micro_batch_tokens} is less than one row (TRAIN_SEQ_LEN={s.train_seq_len})")
    if 0 < s.loss_chunk < (least := -(-max(s.micro_batch_tokens, s.eval_seq_len) // 64)):
        wrong.append(f"LOSS_CHUNK={s.loss_chunk} cuts MICRO_BATCH_TOKENS or EVAL_SEQ_LEN into more than 64 chunks, each of them compiled: use "
                     f"{least} or more")
    if s.val_tokens_limit == 1:
        wrong.append("VAL_TOKENS_LIMIT=1 leaves nothing to score: use 0 (all) or more")
    if s.eval_stride > (window := s.eval_seq_len or s.train_seq_len):
        wrong.append(f"EVAL_STRIDE={s.eval_stride} would leave tokens out between windows of {window} (EVAL_SEQ_LEN, else TRAIN_SEQ_LEN): "
                     f"use 1 to {window}, or a longer EVAL_SEQ_LEN")
    if not re.fullmatch(r"[1-9]\d{0,8}d?", s.ttt_chunk, re.ASCII):
        wrong.append(f"TTT_CHUNK={s.ttt_chunk} is neither tokens (32768) nor tokens within a document (2048d)")
    if not re.fullmatch(r"(?!\.)[\w.-]{0,60}", s.run_id):
        wrong.append(f"RUN_ID={s.run_id} must be a plain folder name: at most 60 letters, digits, _ - .")
    if not re.fullmatch(r"\d{1,9}|\d{1,9}(\.\d{1,9})?s", s.checkpoint_every):
        wrong.append(f"CHECKPOINT_EVERY={s.checkpoint_every} is neither steps (500) nor seconds (60s)")
    if s.compute_dtype == "float64" and s.device == "gpu":
        wrong.append("COMPUTE_DTYPE=float64 runs on the CPU: use DEVICE=cpu or auto")
    try:
        if "auto" in group_levels(s).values() and s.qat_start < 1:
            wrong.append(f"QAT_START={s.qat_start} needs to know what to round to: instead of auto in QUANT_LEVELS={s.quant_levels} give numbers, "
                         "such as those that --preflight or a run without QAT_START finds")
    except ValueError as error:
        wrong.append(str(error))
    return wrong


def load_settings(kind, flags, environment, warn, stored=None):
    """Settings of class `kind` from command-line flags, then the environment, then, where RESUME is given, stored(resume, run_id), a dict
    of texts by field, then the defaults. warn(text) tells of near misses. Raises UserError with every problem at once."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    known = {name.upper(): name for name in fields}
    text = {known[name]: value for name, value in environment.items() if name in known}
    for name in sorted(environment.keys() - known):
        for near in difflib.get_close_matches(name, known, 1, 0.9):
            warn(f"{name} is set but is no setting; did you mean {near}?")
    wrong, values, flags = [], {}, list(flags)
    while flags:
        flag, equals, value = flags.pop(0).partition("=")
        name = flag[2:].replace("-", "_").lower()
        if not equals:
            value = flags.pop(0) if flags and flags[0][:2] != "--" else None
        if flag[:2] != "--" or name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "--help lists all settings"
            wrong.append(f"{flag} is no setting; {hint}")
        elif value is None:
            wrong.append(f"{flag} needs a value")
        else:
            text[name] = value
    if stored and text.get("resume"):
        text = {name: value for name, value in stored(text["resume"], text.get("run_id", "")).items() if name in fields} | text
    for name, given in text.items():
        try:
            values[name] = parse_setting(fields[name], given)
        except ValueError as error:
            wrong.append(str(error))
    settings = kind(**values)
    wrong += setting_conflicts(settings)
    if wrong:
        raise UserError("\n  ".join(["these settings cannot be used:"] * (len(wrong) > 1) + wrong))
    return settings


def changed_settings(settings):
    """dict of the settings that differ from the defaults of their class."""
    return {name: value for name, value in vars(settings).items() if value != getattr(type(settings), name)}


def model_settings(settings):
    """dict of the settings that rebuild the model from its artifact. Those that came later are in it where they are used, so that older
    models keep their bytes."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(ModelSettings)}
    return {name: value for name, value in values.items() if name not in LATER or value != getattr(ModelSettings, name)}


def settings_table(kind):
    """list of (NAME, default, meaning) rows, all str: the source of --help and of the README's table."""
    return [(f.name.upper(), str(int(f.default) if f.type is bool else f.default),
             f.metadata["meaning"] + (f" ({', '.join(choices)})" if (choices := f.metadata["choices"]) else ""))
            for f in dataclasses.fields(kind)]


def settings_help(kind, usage):
    """The --help text."""
    lines = [f"  {'--' + name.lower().replace('_', '-'):<30} {default:<24} {meaning}" for name, default, meaning in settings_table(kind)]
    return "\n".join([usage, "Each setting is a flag, or an environment variable (ITERATIONS=200).", "", *lines])
