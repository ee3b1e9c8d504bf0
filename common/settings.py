"""Every setting of a run, declared once.

A setting comes from its flag (--train-seq-len 512), else from the environment (TRAIN_SEQ_LEN=512), else from its
default.
"""
import contextlib
import dataclasses
import difflib
import math
import os
import re

from common.challenge import BUDGET_BYTES
from common.recipes import RECIPES
from common.values import ChunkLength, Interval, LayerRange, Levels, Tools

# What a setting decides. The model file carries those of the model; a resumed run may change those of the last three.
KINDS = {
    "model": "the model",
    "training": "training",
    "evaluation": "the model file and its score, after training",
    "memory": "memory and speed, never the result",
    "run": "data, folder and log of the run",
}
BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class UserError(Exception):
    """A problem that the user can fix: the message says how. status: for status.json."""

    def __init__(self, message, status="failed"):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def failing_as(status):
    """A UserError raised inside gets this status."""
    try:
        yield
    except UserError as error:
        error.status = status
        raise


def setting(default, meaning, low=None, high=None, choices=None, kind="training", sparse=False):
    """One field. low and high are inclusive; sparse: the model file names it only where it is not the default, so that
    older files keep their bytes."""
    rules = {"meaning": meaning, "low": low, "high": high, "choices": choices, "kind": kind, "sparse": sparse}
    return dataclasses.field(default=default, metadata=rules)


@dataclasses.dataclass(frozen=True)
class Settings:
    # the model
    vocab_size: int = setting(0, "token ids; 0: as many as the tokenizer has", 0, 65536, kind="model")
    num_layers: int = setting(9, "number of blocks", 1, 256, kind="model")
    model_dim: int = setting(512, "width of the residual stream", 4, 16384, kind="model")
    num_heads: int = setting(8, "query heads", 1, 256, kind="model")
    num_kv_heads: int = setting(4, "key and value heads", 1, 256, kind="model")
    mlp_mult: int = setting(2, "MLP hidden size as a multiple of MODEL_DIM", 1, 64, kind="model")
    tie_embeddings: bool = setting(True, "use the token embedding as the head", kind="model")
    rope_base: float = setting(10000.0, "base of the rotary frequencies", 1, 1e12, kind="model")
    logit_softcap: float = setting(30.0, "logits are c * tanh(logits / c)", 1e-3, 1e6, kind="model")
    rms_norm_eps: float = setting(1e-6, "epsilon of every RMSNorm", 0, 1, kind="model")
    train_seq_len: int = setting(1024, "tokens per row", 1, 2**20, kind="model")
    loop_layers: LayerRange = setting("", "blocks to apply LOOP_COUNT times with shared weights, as in 3-5, counted "
                                      "from 0; empty: none", kind="model", sparse=True)
    loop_count: int = setting(2, "how often LOOP_LAYERS are applied", 2, 16, kind="model", sparse=True)
    mlp_slope: float = setting(0.0, "slope below 0 of the relu that the MLP squares", 0, 1, kind="model", sparse=True)
    rope_dims: int = setting(0, "dimensions of a head that rotary embedding turns; 0: all", 0, 16384, kind="model",
                             sparse=True)
    norm_scale: bool = setting(False, "scale the normed inputs of block i, counted from 0, by 1 / sqrt(i + 1)",
                               kind="model", sparse=True)
    xsa_layers: int = setting(0, "last blocks whose attention output loses its component along the token's own "
                              "value", 0, 256, kind="model", sparse=True)
    parallel_layers: int = setting(0, "last blocks whose MLP has the same input as their attention", 0, 256,
                                   kind="model", sparse=True)
    smear_gate: bool = setting(False, "mix the embedding of the previous token into each, by a gate per channel",
                               kind="model", sparse=True)
    bigram_rows: int = setting(0, "rows of an embedding of pairs of tokens, by a hash; 0: none", 0, 2**20, kind="model",
                               sparse=True)
    bigram_dim: int = setting(128, "width of that embedding", 1, 16384, kind="model", sparse=True)
    bos_id: int = setting(-1, "token that begins a document, for SMEAR_GATE and BIGRAM_ROWS; -1: as the tokenizer says",
                          -1, 65535, kind="model", sparse=True)
    # training
    seed: int = setting(1337, "seed of the initial weights", 0, 2**63 - 1)
    qk_gain_init: float = setting(1.5, "initial gain of the normed queries, per head", -100, 100)
    tied_embed_init_std: float = setting(0.005, "standard deviation of the initial tied embedding", 0, 10)
    iterations: int = setting(20000, "optimizer steps", 0, 10**9)
    max_wallclock_seconds: float = setting(600.0, "limit of the training time, without validation; 0: none", 0, 1e9)
    warmdown_fraction: float = setting(1.0, "last fraction of the run, in which learning rates fall to 0", 0, 1)
    lr_floor: float = setting(0.0, "smallest factor of the learning rates in the warm-down", 0, 1)
    train_batch_tokens: int = setting(524288, "tokens per optimizer step, over all ranks", 1, 2**31)
    matrix_lr: float = setting(0.04, "learning rate of Muon, for the matrices", 0, 100)
    tied_embed_lr: float = setting(0.05, "learning rate of a tied embedding (Adam)", 0, 100)
    embed_lr: float = setting(0.6, "learning rate of the embedding when the head is untied (Adam)", 0, 100)
    head_lr: float = setting(0.008, "learning rate of an untied head (Adam)", 0, 100)
    scalar_lr: float = setting(0.04, "learning rate of scales, gains, mixes and skip weights (Adam)", 0, 100)
    muon_momentum: float = setting(0.95, "Muon momentum (Nesterov)", 0, 0.9999)
    muon_momentum_warmup_start: float = setting(0.85, "Muon momentum at step 0", 0, 0.9999)
    muon_momentum_warmup_steps: int = setting(500, "steps until MUON_MOMENTUM is reached", 0, 10**9)
    muon_backend_steps: int = setting(5, "Newton-Schulz iterations", 1, 50)
    weight_decay: float = setting(0.0, "decoupled weight decay of the matrices, times their learning rate", 0, 100)
    embed_weight_decay: float = setting(0.0, "decoupled weight decay of the embeddings, times theirs", 0, 100)
    beta1: float = setting(0.9, "Adam's decay of the mean gradient", 0, 0.9999)
    beta2: float = setting(0.95, "Adam's decay of the mean squared gradient", 0, 0.9999999)
    adam_eps: float = setting(1e-8, "Adam's epsilon", 1e-30, 1)
    grad_clip_norm: float = setting(0.0, "clip the global gradient norm to this; 0: off", 0, 1e9)
    compute_dtype: str = setting("auto", "dtype of the matrix products; float64: reference mode, on the CPU",
                                 choices=("auto", "float32", "bfloat16", "float64"))
    reduce_dtype: str = setting("auto", "dtype in which ranks sum the matrices' gradients; auto: that of the weights",
                                choices=("auto", "bfloat16"))
    qat_start: float = setting(1.0, "fraction of the run after which the forward pass rounds weights as the model file "
                               "does; 1: never", 0, 1)
    ema_decay: float = setting(0.0, "decay per step of the weights' average, which is validated and exported; 0: off",
                               0, 0.999999)
    # the model file and its score
    quant_levels: Levels = setting("127", "largest integer code of a stored weight, 2 to 127; int3 to int8; fp16; auto:"
                                   " as many as fit the budget; or per group: matrix=int5,embed=fp16,head=auto",
                                   kind="evaluation")
    quant_clip: float = setting(0.0, "where matrices are clipped, in root mean squares of a row; 0: at its largest "
                                "weight", 0, 1000, kind="evaluation")
    gptq_tokens: int = setting(0, "training tokens whose activations steer the rounding of matrices (GPTQ); 0: off", 0,
                               2**31, kind="evaluation")
    eval_seq_len: int = setting(0, "tokens per window of the final evaluation; 0: TRAIN_SEQ_LEN", 0, 2**20,
                                kind="evaluation")
    eval_stride: int = setting(0, "stride in tokens of the windows of the final evaluation; 0: EVAL_SEQ_LEN", 0, 2**20,
                               kind="evaluation")
    ttt_lr: float = setting(0.0, "learning rate of test-time training (SGD) in the final evaluation; 0: off", 0, 100,
                            kind="evaluation")
    ttt_chunk: ChunkLength = setting("32768", "tokens to score before each test-time step on them; 2048d: also restore "
                                     "the trained weights after each document", kind="evaluation")
    ttt_rank: int = setting(0, "rank of the adapters of the matrices that test-time training trains; 0: it trains all "
                            "weights themselves", 0, 1024, kind="evaluation")
    # memory and speed
    micro_batch_tokens: int = setting(65536, "tokens per forward and backward pass on one rank", 1, 2**31,
                                      kind="memory")
    loss_chunk: int = setting(0, "positions whose logits are in memory at once; 0: all", 0, 2**31, kind="memory")
    warmup_steps: int = setting(3, "steps that compile and are undone before the clock starts", 0, 1000, kind="memory")
    compile: bool = setting(True, "compile the step", kind="memory")
    deterministic: bool = setting(False, "equal runs give equal bytes on a GPU too, as they always do on the CPU",
                                  kind="memory")
    kernels: str = setting("none", "triton: Triton kernels for loss, relu^2 and Newton-Schulz, on CUDA",
                           choices=("none", "triton"), kind="memory")
    device: str = setting("auto", "which device to use", choices=("auto", "cpu", "gpu"), kind="memory")
    # data, folder and log
    recipe: str = setting("baseline", "settings to start from, in common/recipes.py; those given here replace them",
                          choices=tuple(RECIPES), kind="run")
    data_path: str = setting("data/fineweb10B_sp1024", "folder of the token shards *_train_*.bin and *_val_*.bin",
                             kind="run")
    tokenizer_path: str = setting("", "SentencePiece model, `bytes` or `table:FILE`; empty: what "
                                  "DATA_PATH/manifest.json names", kind="run")
    run_id: str = setting("", "the run's folder is runs/RUN_ID; empty: date and time", kind="run")
    val_loss_every: int = setting(1000, "steps between validations; 0: only at the end", 0, 10**9, kind="run")
    val_tokens_limit: int = setting(0, "tokens of a partial validation; 0: all", 0, 2**40, kind="run")
    train_log_every: int = setting(200, "steps between log lines after the first ten", 1, 10**9, kind="run")
    sample_tokens: int = setting(0, "tokens of text that the compressed model writes at the end", 0, 10**6,
                                 kind="run")
    resume: str = setting("", "run folder to continue, or auto: the newest that is not finished, if any", kind="run")
    checkpoint_every: Interval = setting("60s", "steps (500) or seconds (60s) between checkpoints; 0: only when "
                                         "interrupted and at the end", kind="run")
    report_to: Tools = setting("", "tools that show the curves live, as in tensorboard,wandb; or trackio; empty: none",
                               kind="run")
    rank_timeout: float = setting(60.0, "seconds, or ten steps if longer, until a rank without progress counts as hung",
                                  0.1, 1e6, kind="run")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            if issubclass(f.type, str):
                object.__setattr__(self, f.name, f.type(getattr(self, f.name)))  # text becomes a value with fields


def settings_of(*kinds, of=Settings):
    """dict name -> field of the settings of these kinds."""
    return {f.name: f for f in dataclasses.fields(of) if f.metadata["kind"] in kinds}


def with_tokenizer(settings, tokenizer):
    """The settings with what the tokenizer decides: the size of the vocabulary and, where the model needs it, BOS."""
    needed = (settings.smear_gate or settings.bigram_rows) and settings.bos_id < 0 and tokenizer.bos_id is not None
    bos_id = tokenizer.bos_id if needed else settings.bos_id
    return dataclasses.replace(settings, vocab_size=tokenizer.vocab_size, bos_id=bos_id)


def shown(text):
    """A value for a message: quoted where not every character can be seen."""
    return text if re.fullmatch("[!-~]*", text) else ascii(text)


def parse_setting(field, text):
    """The value of one field from text. Raises ValueError."""
    name, kind, rules = field.name.upper(), field.type, field.metadata
    if kind is bool:
        if text.strip().lower() not in BOOLS:
            raise ValueError(f"{name}={shown(text)} is not 0 or 1")
        return BOOLS[text.strip().lower()]
    if issubclass(kind, str):
        if rules["choices"] and text not in rules["choices"]:
            near = difflib.get_close_matches(text, rules["choices"], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name}={shown(text)} is not one of {', '.join(rules['choices'])}{hint}")
        try:
            return kind(text)
        except ValueError as error:
            raise ValueError(f"{name}={shown(text):.60}{error}") from None
    with contextlib.suppress(ValueError):
        if rules["low"] <= (value := kind(text)) <= rules["high"]:  # a NaN is not
            return value
    whole = "whole " if kind is int else ""
    raise ValueError(f"{name}={shown(text)} is not a {whole}number from {rules['low']} to {rules['high']}")


def group_levels(s):
    """dict group -> 2 to 127, "auto" or "fp16"; 127 if not named. Only an untied head is a group."""
    given = s.quant_levels.by_group
    groups = Levels.GROUPS if not s.tie_embeddings else Levels.GROUPS[:2]
    return {group: given.get(group, given.get("", 127)) for group in groups}


def model_conflicts(s):
    """list[str]: what cannot hold together in the settings of the model."""
    wrong = not_a_multiple(s, "model_dim", "num_heads") + not_a_multiple(s, "num_heads", "num_kv_heads")
    if s.model_dim // s.num_heads % 2:
        wrong.append(f"MODEL_DIM={s.model_dim} / NUM_HEADS={s.num_heads} must be even: rotary embedding turns pairs")
    if s.loop_layers.last >= s.num_layers:
        wrong.append(f"LOOP_LAYERS={s.loop_layers} is outside the model: NUM_LAYERS={s.num_layers} has blocks "
                     f"0-{s.num_layers - 1}")
    if not s.loop_layers and s.loop_count != Settings.loop_count:
        wrong.append(f"LOOP_COUNT={s.loop_count} has no effect without LOOP_LAYERS: name blocks, as in LOOP_LAYERS=3-5")
    if s.rope_dims % 2 or s.rope_dims > s.model_dim // s.num_heads:
        wrong.append(f"ROPE_DIMS={s.rope_dims} must be even and at most MODEL_DIM / NUM_HEADS = "
                     f"{s.model_dim // s.num_heads}; 0: all dimensions of a head")
    for name in "xsa_layers", "parallel_layers":
        if (layers := getattr(s, name)) > s.num_layers:
            wrong.append(f"{name.upper()}={layers} is more than NUM_LAYERS={s.num_layers}: use 0 to {s.num_layers}")
    return wrong + bigram_conflicts(s)


def bigram_conflicts(s):
    """list[str]: the same of the embedding of pairs and the gate of the token before."""
    wrong = []
    if s.bigram_rows == 1:
        wrong.append("BIGRAM_ROWS=1 has no row for a pair, as the last is for tokens without a predecessor: use 0 or 2 "
                     "and more")
    if not s.bigram_rows and s.bigram_dim != Settings.bigram_dim:
        wrong.append(f"BIGRAM_DIM={s.bigram_dim} has no effect without BIGRAM_ROWS, as in BIGRAM_ROWS=4096")
    if s.bos_id >= 0 and not s.bigram_rows and not s.smear_gate:
        wrong.append(f"BOS_ID={s.bos_id} has no effect without SMEAR_GATE or BIGRAM_ROWS")
    if s.vocab_size and s.bos_id >= s.vocab_size:
        wrong.append(f"BOS_ID={s.bos_id} is not a token: VOCAB_SIZE={s.vocab_size}")
    return wrong


def setting_conflicts(s):
    """list[str]: what cannot hold together."""
    wrong = model_conflicts(s) + not_a_multiple(s, "train_batch_tokens", "train_seq_len")
    if s.micro_batch_tokens < s.train_seq_len:
        wrong.append(f"MICRO_BATCH_TOKENS={s.micro_batch_tokens} is less than one row (TRAIN_SEQ_LEN="
                     f"{s.train_seq_len})")
    if 0 < s.loss_chunk < (least := -(-max(s.micro_batch_tokens, s.eval_seq_len) // 64)):
        wrong.append(f"LOSS_CHUNK={s.loss_chunk} cuts MICRO_BATCH_TOKENS or EVAL_SEQ_LEN into more than 64 chunks, "
                     f"each of them compiled: use {least} or more")
    if s.val_tokens_limit == 1:
        wrong.append("VAL_TOKENS_LIMIT=1 leaves nothing to score: use 0 (all) or more")
    if s.eval_stride > (window := s.eval_seq_len or s.train_seq_len):
        wrong.append(f"EVAL_STRIDE={s.eval_stride} would leave tokens out between windows of {window} (EVAL_SEQ_LEN, "
                     f"else TRAIN_SEQ_LEN): use 1 to {window}, or a longer EVAL_SEQ_LEN")
    if s.ttt_rank and not s.ttt_lr:
        wrong.append(f"TTT_RANK={s.ttt_rank} has no effect without test-time training: set TTT_LR")
    if not re.fullmatch(r"(?!\.)[\w.-]{0,60}", s.run_id):
        wrong.append(f"RUN_ID={shown(s.run_id)} must be a plain folder name: at most 60 letters, digits, _ - .")
    if s.compute_dtype == "float64" and s.device == "gpu":
        wrong.append("COMPUTE_DTYPE=float64 runs on the CPU: use DEVICE=cpu or auto")
    if "head" in s.quant_levels.by_group and s.tie_embeddings:
        wrong.append(f"QUANT_LEVELS={s.quant_levels}: head is not one of matrix, embed: the head is the embedding, "
                     "unless TIE_EMBEDDINGS=0")
    levels = {"fp16": 32768, "auto": 2}.get(found := group_levels(s)["embed"], found)
    most = int(8 * BUDGET_BYTES / math.log2(levels) / s.bigram_dim)  # of a normal row; zlib gets no further
    if s.bigram_rows > most:
        wrong.append(f"BIGRAM_ROWS={s.bigram_rows} with BIGRAM_DIM={s.bigram_dim} alone breaks the budget of "
                     f"{BUDGET_BYTES:,} bytes: use at most {most} rows, or fewer levels for embed in QUANT_LEVELS")
    if s.qat_start < 1 and "auto" in group_levels(s).values():
        wrong.append(f"QAT_START={s.qat_start} needs to know what to round to: instead of auto in QUANT_LEVELS="
                     f"{s.quant_levels} give numbers, such as those that --preflight or a run without QAT_START finds")
    if 0 < s.gptq_tokens < s.train_seq_len:
        wrong.append(f"GPTQ_TOKENS={s.gptq_tokens} is less than one row (TRAIN_SEQ_LEN={s.train_seq_len}): GPTQ needs "
                     f"tokens to calibrate on, as in GPTQ_TOKENS={64 * s.train_seq_len}; 0: off")
    if s.gptq_tokens and group_levels(s)["matrix"] == "fp16":
        wrong.append(f"GPTQ_TOKENS={s.gptq_tokens} has no effect on matrices in fp16: use fewer levels in QUANT_LEVELS")
    if s.qat_start < 1 and s.quant_clip:
        wrong.append(f"QUANT_CLIP={s.quant_clip} does not go with QAT_START={s.qat_start}: use 0 or QAT_START=1")
    return wrong


def not_a_multiple(s, a, b):
    """list[str]: empty, or what is wrong with two settings by name."""
    one, other = getattr(s, a), getattr(s, b)
    return [f"{a.upper()}={one} must be a multiple of {b.upper()}={other}"] if one % other else []


def read_settings(kind, flags, environment, warn):
    """(dict name -> text, list of problems) of the settings of class `kind` in the environment and the flags, which
    win. White space around a value goes; a leading ~ is the home folder. warn(text) is called for near misses."""
    names = [f.name for f in dataclasses.fields(kind)]
    known = {name.upper(): name for name in names}
    texts = {known[name]: value for name, value in environment.items() if name in known}
    for name in sorted(environment.keys() - known):
        for near in difflib.get_close_matches(name, known, 1, 0.9):
            warn(f"{name} is set but is not a setting; did you mean {near}?")
    wrong, flags = [], list(flags)
    while flags:
        flag, equals, value = flags.pop(0).partition("=")
        name = flag[2:].replace("-", "_").lower()
        if not equals:
            value = flags.pop(0) if flags and flags[0][:2] != "--" else None
        if flag[:2] != "--" or name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "--help lists all settings"
            wrong.append(f"{shown(flag)} is not a setting; {hint}")
        elif value is None:
            wrong.append(f"{flag} needs a value")
        else:
            texts[name] = value
    return {name: os.path.expanduser(text.strip()) for name, text in texts.items()}, wrong


def parse_settings(kind, texts, wrong=()):
    """Settings of class `kind` from a dict name -> text and, where it says nothing, the recipe that it names. Raises
    UserError with all problems, and `wrong`."""
    wrong, values = list(wrong), {}
    recipe = RECIPES.get(texts.get("recipe"), {})  # one that is unknown is a problem below
    texts = {name: as_text(value) for name, value in recipe.items()} | texts
    for field in dataclasses.fields(kind):
        try:
            if field.name in texts:
                values[field.name] = parse_setting(field, texts[field.name])
        except ValueError as error:
            wrong.append(str(error))
    settings = kind(**values)
    wrong += setting_conflicts(settings)
    if len(wrong) > 1:
        wrong.insert(0, "these settings cannot be used:")
    if wrong:
        raise UserError("\n  ".join(wrong))
    return settings


def load_settings(kind, flags, environment, warn):
    """Settings of class `kind` from flags, else the environment. Raises UserError."""
    return parse_settings(kind, *read_settings(kind, flags, environment, warn))


def as_text(value):
    """A setting's value as a flag takes it."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def changed_settings(settings):
    """dict of the settings that are not the defaults of their class."""
    return {name: value for name, value in vars(settings).items() if value != getattr(type(settings), name)}


def model_settings(settings):
    """dict of the settings that rebuild the model from its file."""
    return {name: value for name, field in settings_of("model").items()
            if (value := getattr(settings, name)) != field.default or not field.metadata["sparse"]}


def settings_table(kind):
    """list of (kind of setting, NAME, default, meaning), all str."""
    rows = []
    for group in KINDS:
        for name, field in settings_of(group, of=kind).items():
            choices = f" ({', '.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
            rows.append((group, name.upper(), as_text(field.default), field.metadata["meaning"] + choices))
    return rows


def settings_help(kind, usage):
    """The --help text, in groups."""
    lines = [usage, "Each setting is a flag, or an environment variable (ITERATIONS=200)."]
    for group, title in KINDS.items():
        lines += ["", f"{title}:"]
        for of, name, default, meaning in settings_table(kind):
            if of == group:
                lines.append(f"  {'--' + name.lower().replace('_', '-'):<30} {default:<24} {meaning}")
    return "\n".join(lines)
