"""What both sides are given: settings, tokens and byte table."""
import dataclasses
import re
from pathlib import Path

import numpy as np

from common import batches, params
from common.dataset import open_data
from common.recipes import RECIPES
from common.settings import Settings, UserError, as_text, changed_settings, load_settings, read_settings, with_tokenizer

DTYPES = "float64", "float32", "bfloat16"
RANKS = 1, 2, 4, 8  # that share a batch in the rung of batches
DATA_PATH = "data/pydoc_sp1024"  # the embedded corpus
BATCH = 2048  # tokens: the ladder then takes three minutes on slow cores
SIZE = {  # of the ladder's model, of benches and of records' ablation; not that of a recipe, which may change
    "num_layers": 4,
    "model_dim": 256,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": 256,
    "matrix_lr": 0.02,
    "muon_momentum_warmup_steps": 100,
}
DEFAULTS = {"iterations": 20, "max_wallclock_seconds": 0.0, "train_batch_tokens": BATCH, "micro_batch_tokens": BATCH,
            "compile": False, "device": "cpu", "data_path": DATA_PATH}


def embedded_corpus(path):
    """The data folder; builds the embedded corpus where a folder of it is named and does not exist."""
    size = re.fullmatch(r"data/pydoc_sp(\d+)", str(path))
    if size and not Path(path).exists():
        from common.data.__main__ import main as data_command
        data_command(["pydoc", "--vocab-size", size[1]])
    return path


@dataclasses.dataclass
class ByteTable:
    """What scoring needs of a tokenizer: see common/tokenizer.py."""

    byte_counts: np.ndarray
    leading_space: np.ndarray
    boundary: np.ndarray
    bos_id: int | None = None


@dataclasses.dataclass
class Problem:
    """settings: of class Settings, or of a script's own; train, val: uint16 tokens; steps: of the training rung."""

    settings: Settings
    train: np.ndarray
    val: np.ndarray
    table: ByteTable
    steps: int

    def shards(self, kind=batches.TokenStream):
        """The training tokens as two shards of unequal length, so that a step crosses a border and another the end."""
        cut = len(self.train) * 3 // 8
        return kind([self.train[:cut], self.train[cut:]])


def ladder_settings(flags, kind=Settings, load=load_settings):
    """Settings of class `kind`: what the flags say, else DEFAULTS, else the recipe that the flags name, else SIZE.
    Without flags for them, a batch is a multiple of 8 rows and one micro-batch. Environment variables are not read.
    Raises UserError."""
    given, _ = read_settings(kind, flags, {}, print)
    values = SIZE | RECIPES.get(given.get("recipe"), {}) | DEFAULTS
    values = {name: as_text(value) for name, value in values.items()}
    row = given.get("train_seq_len", values["train_seq_len"])
    if re.fullmatch("[1-9][0-9]{0,8}", row):
        eight_rows = max(RANKS) * int(row)
        values["train_batch_tokens"] = str(max(1, BATCH // eight_rows) * eight_rows)
    values["micro_batch_tokens"] = given.get("train_batch_tokens", values["train_batch_tokens"])
    s = load(kind, [*(f"--{name}={text}" for name, text in values.items()), *flags], {}, print)
    if s.iterations < 1:
        raise UserError("ITERATIONS=0 leaves nothing to train: the ladder needs at least 1 step")
    if s.train_batch_tokens // s.train_seq_len % max(RANKS):
        rows = f"a multiple of {max(RANKS)} rows of TRAIN_SEQ_LEN={s.train_seq_len}"
        raise UserError(f"TRAIN_BATCH_TOKENS={s.train_batch_tokens} must be {rows}: 1, 2, 4 and 8 ranks share a batch")
    return s


def known_settings(kind, s):
    """The settings `s`, as far as class `kind` has them, as an instance of it."""
    names = {f.name for f in dataclasses.fields(kind)}
    # as plain text, which `kind` parses into values of its own
    values = {name: str(value) if isinstance(value, str) else value for name, value in vars(s).items()}
    return kind(**{name: value for name, value in values.items() if name in names})


def own_settings(kind, s, owner):
    """The settings `s` as an instance of class `kind`, whose script is called `owner`. Raises UserError where it lacks
    one that is changed."""
    if unknown := sorted(changed_settings(s).keys() - {f.name for f in dataclasses.fields(kind)}):
        raise UserError(f"{owner} has no setting {', '.join(unknown).upper()}")
    return known_settings(kind, s)


def make_problem(settings):
    """A problem on the first tokens of a data folder: about ITERATIONS steps of training and 16 rows of validation.
    Raises UserError."""
    size = settings.vocab_size if "vocab_size" in changed_settings(settings) else 0  # older scripts: 1024 by default
    data = open_data(dataclasses.replace(settings, vocab_size=size))
    t = data.tokenizer
    older = not hasattr(settings, "bos_id")  # of a script from before smear gate and bigrams
    settings = dataclasses.replace(settings, vocab_size=t.vocab_size) if older else with_tokenizer(settings, t)
    length = min(data.train.length, (settings.iterations + 2) * settings.train_batch_tokens + 333)  # not whole rows
    if length < 2 * settings.train_batch_tokens:
        raise UserError(f"{settings.data_path} has {data.train.length} training tokens, fewer than two steps")
    val = data.val.read(0, min(data.val_tokens, 16 * settings.train_seq_len + 77))
    return Problem(settings, data.train.read(0, length).astype(np.uint16), val.astype(np.uint16),
                   ByteTable(t.byte_counts, t.leading_space, t.boundary, t.bos_id), settings.iterations)


def first_rows(problem):
    """int32 (4, T + 1): the rows of the logits and loss rungs."""
    return batches.step_rows(problem.shards(), problem.settings, 0)[:4]


def full_weights(settings, code=params):
    """float32 weights with no zero tensor and no two equal rows, so that every part of the model counts; `code` gives
    the initial weights."""
    weights = code.initial_weights(dataclasses.replace(settings, seed=settings.seed + 1))
    for number, name in enumerate(sorted(weights)):
        w = weights[name]
        noise = np.random.Generator(np.random.Philox(key=[7, number])).standard_normal(w.shape)
        small = w.ndim == 1 or "mix" in name or "skip" in name
        weights[name] = (w + noise * (0.2 if small else w.shape[-1] ** -0.5)).astype(np.float32)
    return weights
