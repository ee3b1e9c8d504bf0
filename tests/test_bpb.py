"""Validation windows and bits per byte: `python -m pytest tests/test_bpb.py`."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.batches import TokenStream
from common.bpb import bits_per_byte, eval_batch, eval_windows, evaluate
from common.settings import Settings
from common.tokenizer import Tokenizer

VOCAB = 13
IDS = np.arange(VOCAB)
RUN = Settings(train_batch_tokens=48, train_seq_len=8, micro_batch_tokens=32)  # 6 rows: 3 at a time, or 2 on 3 ranks
TOKENS = (np.arange(101) ** 2 * 7 % VOCAB).astype(np.uint16)
STREAM = TokenStream(np.split(TOKENS, [17, 60]))


def tokenizer(leading_space):
    return Tokenizer(None, 1, [b"?" * int(i % 4) for i in IDS], IDS % 4, leading_space, IDS % 5 == 1)


EXACT = tokenizer(IDS < 0)  # our own kind: each id has its bytes
SPACED = tokenizer(IDS % 3 == 0)  # the published kind: a leading space counts unless the id before is a boundary


class FakeTrainer:
    """Nats of the two tokens, in eighths, so that sums are exact in any order; never 0, so that padding would show."""

    def __init__(self, rank=0, world_size=1, others=0):
        self.rank, self.world_size, self.others = rank, world_size, others
        self.shapes, self.own = set(), None

    def token_nats(self, tokens):
        self.shapes.add((tokens.shape, tokens.dtype.name))
        return ((tokens[:, :-1] * 5 + tokens[:, 1:] * 3) % 31 + 1).astype(np.float32) / 8

    def all_sum(self, array):
        self.own = array
        return array + self.others


def direct(tok, num_tokens):
    nats = num_bytes = 0
    for before, token in zip(TOKENS[:num_tokens - 1].tolist(), TOKENS[1:num_tokens].tolist(), strict=True):
        nats += ((before * 5 + token * 3) % 31 + 1) / 8
        num_bytes += token % 4 + bool(tok.leading_space[token] and before % 5 != 1)
    count = num_tokens - 1
    return nats / count, nats / math.log(2) / num_bytes, count, num_bytes


def test_bits_per_byte_of_a_published_run():
    assert bits_per_byte(2.05945460 * 62_021_632, 151_080_891) == pytest.approx(1.21972502, rel=1e-5)
    assert bits_per_byte(8 * math.log(2), 4) == 2


@settings(deadline=None, database=None, derandomize=True)
@given(st.integers(2, 300), st.integers(1, 60))
def test_every_token_after_the_first_is_scored_once(num_tokens, seq_len):
    windows = eval_windows(num_tokens, seq_len)
    assert windows.dtype == np.int64
    scored = [start + 1 + i for start, count in windows.tolist() for i in range(count)]
    assert scored == list(range(1, num_tokens))
    assert all(count == seq_len for count in windows[:-1, 1]) and 1 <= windows[-1, 1] <= seq_len


def test_padding_is_not_scored():
    windows = eval_windows(101, 8)[-2:]  # 8 tokens, then a tail of 4
    tokens, scored = eval_batch(STREAM, windows, 3, 8)
    assert tokens.dtype == np.int32 and scored.dtype == bool
    assert tokens[0].tolist() == TOKENS[88:97].tolist() and scored[0].all()
    assert tokens[1].tolist() == [*TOKENS[96:101].tolist(), 0, 0, 0, 0]
    assert scored[1].tolist() == [True] * 4 + [False] * 4
    assert not tokens[2].any() and not scored[2].any()


@pytest.mark.parametrize("tok", [EXACT, SPACED], ids=["exact", "spaced"])
@pytest.mark.parametrize("num_tokens", [2, 9, 10, 33, 49, 100, 101])
def test_evaluate_is_the_sum_over_the_tokens(tok, num_tokens):
    trainer = FakeTrainer()
    assert evaluate(trainer, RUN, STREAM, tok, num_tokens) == direct(tok, num_tokens)
    assert trainer.shapes == {((3, 9), "int32")}  # training's shape, for the tail too


@pytest.mark.parametrize("num_tokens", [9, 50, 101])  # 1 window for 3 ranks, 7 windows, 13 windows
def test_ranks_share_the_windows(num_tokens):
    ranks = [FakeTrainer(rank, 3, others=1) for rank in range(3)]  # 1: a rank without a window divides by this
    for trainer in ranks:
        evaluate(trainer, RUN, STREAM, SPACED, num_tokens)
    assert sum(trainer.own[1] for trainer in ranks) == num_tokens - 1
    for trainer in ranks:
        trainer.others = sum(other.own for other in ranks if other is not trainer)
        assert evaluate(trainer, RUN, STREAM, SPACED, num_tokens) == direct(SPACED, num_tokens)
        assert trainer.shapes <= {((2, 9), "int32")}
