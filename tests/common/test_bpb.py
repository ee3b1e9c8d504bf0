"""Validation windows and bits per byte: `python -m pytest tests/common/test_bpb.py`."""
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.batches import TokenStream
from common.bpb import bits_per_byte, eval_batch, eval_plan, eval_windows, evaluate
from common.settings import Settings
from common.tokenizer import Tokenizer

VOCAB = 13
IDS = np.arange(VOCAB)
RUN = Settings(train_batch_tokens=48, train_seq_len=8, micro_batch_tokens=32)  # 6 rows: 3 at a time, or 2 on 3 ranks
TOKENS = (np.arange(101) ** 2 * 7 % VOCAB).astype(np.uint16)
STREAM = TokenStream(np.split(TOKENS, [17, 60]))


def tokenizer(leading_space):
    made = Tokenizer(None, None, 1, [b"?" * int(i % 4) for i in IDS], (IDS % 4).tolist(), leading_space.tolist())
    made.boundary = IDS % 5 == 1
    return made


EXACT = tokenizer(IDS < 0)  # our own kind: each id has its bytes
SPACED = tokenizer(IDS % 3 == 0)  # the published kind: a leading space counts unless the id before is a boundary


class FakeTrainer:
    """Nats of the two tokens, in eighths, so that sums are exact in any order; never 0, so that padding would show."""

    def __init__(self, rank=0, world_size=1, others=0):
        self.rank, self.world_size, self.others = rank, world_size, others
        self.shapes, self.own, self.done = set(), None, []

    def token_nats(self, tokens):
        self.shapes.add((tokens.shape, tokens.dtype.name))
        return ((tokens[:, :-1] * 5 + tokens[:, 1:] * 3) % 31 + 1).astype(np.float32) / 8

    def sgd_step(self, tokens, lr):
        assert lr == 1.0 and tokens.dtype == np.int32
        self.done += ["step", tokens.tolist()]

    def undo_sgd(self):
        self.done.append("restored")

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
    windows = eval_windows(num_tokens, seq_len, seq_len)
    assert windows.dtype == np.int64
    scored = [start + 1 + i for start, count, _ in windows.tolist() for i in range(count)]
    assert scored == list(range(1, num_tokens)) and (windows[:, 1] == windows[:, 2]).all()
    assert all(count == seq_len for count in windows[:-1, 1]) and 1 <= windows[-1, 1] <= seq_len


@settings(deadline=None, database=None, derandomize=True)
@given(st.integers(2, 300), st.integers(1, 60), st.data())
def test_sliding_windows_score_once_and_see_what_they_should(num_tokens, seq_len, data):
    stride, first = data.draw(st.integers(1, seq_len)), data.draw(st.integers(1, num_tokens - 1))
    context = {}  # target -> how many tokens before it are seen
    for start, count, scored in eval_windows(num_tokens, seq_len, stride, first).tolist():
        assert start >= 0 and 1 <= scored <= min(stride, count) and count <= seq_len
        for target in range(start + 1 + count - scored, start + 1 + count):
            assert target not in context
            context[target] = target - start
    assert list(context) == list(range(first, num_tokens))
    assert all(min(target, seq_len - stride + 1) <= seen <= seq_len for target, seen in context.items())


def plan_of(tokens, seq_len, stride, chunk, bos_id):
    return [*eval_plan(TokenStream([np.array(tokens, np.uint16)]), len(tokens), seq_len, stride, chunk, bos_id)]


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.integers(1, 9), st.booleans(), st.data())
def test_a_plan_scores_first(tokens, seq_len, by_document, data):
    """Every token once, in order; steps on scored tokens alone, all of one length; weights are restored after a BOS and
    only then."""
    stride, chunk = data.draw(st.integers(1, seq_len)), data.draw(st.integers(1, 20))
    scored, trained, since = 0, False, 1
    for act, what in plan_of(tokens, seq_len, stride, chunk, 0 if by_document else None):
        if act == "score":
            for start, count, last in what.tolist():
                assert start + count - last == scored
                scored += last
            assert not (by_document and trained and 0 in tokens[since:scored])  # no weights of another document
        elif act == "train":
            assert (np.diff(what) == seq_len).all() and what[0] >= 0 and what[-1] + seq_len == scored
            assert 0 < len(what) == min(math.ceil(chunk / seq_len), scored // seq_len)  # the chunk is whole
            trained, since = True, scored + 1
        else:
            assert by_document and trained and tokens[scored] == 0
            trained, since = False, scored + 1
    assert scored == len(tokens) - 1


def test_a_plan_in_full():
    """Chunks of 4 within documents, BOS 0: [1-4] trained on; [5, 6] end with a BOS; [7-9] too, and [10-13], whose
    weights are the same."""
    tokens = [0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    plan = [(act, what if what is None else what.tolist()) for act, what in plan_of(tokens, 4, 2, 4, 0)]
    assert plan == [
        ("score", [[0, 2, 2], [0, 4, 2]]), ("train", [0]),
        ("score", [[2, 4, 2]]), ("restore", None),
        ("score", [[4, 4, 2], [6, 3, 1], [7, 4, 2], [9, 4, 2]]), ("train", [9]),
        ("score", [[11, 4, 2]])]
    assert [act for act, _ in plan_of(tokens, 4, 4, 4, None)] == ["score", "train"] * 3 + ["score"]
    assert [act for act, _ in plan_of(tokens, 4, 4, 0, None)] == ["score"]


@pytest.mark.parametrize("by_document", [False, True])
@pytest.mark.parametrize("seq_len, stride, chunk", [(4, 4, 4), (4, 1, 6), (8, 3, 4), (2, 2, 7)])
def test_what_is_done_up_to_a_token_does_not_depend_on_it(by_document, seq_len, stride, chunk):
    """Whichever token stands at a place, a BOS or not: its window begins at one place and has one row of its batch."""
    random = np.random.Generator(np.random.Philox(3))
    tokens = random.integers(0, 6, 60)

    def until(tokens, place):
        seen = []
        for act, what in plan_of(tokens, seq_len, stride, chunk, 0 if by_document else None):
            if act != "score":
                seen.append((act, what if what is None else what.tolist()))
                continue
            for row, (start, count, last) in enumerate(what.tolist()):
                for target in range(start + 1 + count - last, start + 1 + count):
                    seen.append((target, start, row))
                    if target == place:
                        return seen
        raise AssertionError("never scored")

    for place in range(1, 60):
        ways = [until([*tokens[:place], token, *tokens[place + 1:]], place) for token in range(6)]
        assert all(way == ways[0] for way in ways)


def test_padding_is_not_scored():
    windows = eval_windows(101, 8, 8)[-2:]  # 8 tokens, then a tail of 4
    tokens, scored = eval_batch(STREAM, windows, 3, 8)
    assert tokens.dtype == np.int32 and scored.dtype == bool
    assert tokens[0].tolist() == TOKENS[88:97].tolist() and scored[0].all()
    assert tokens[1].tolist() == [*TOKENS[96:101].tolist(), 0, 0, 0, 0]
    assert scored[1].tolist() == [True] * 4 + [False] * 4
    assert not tokens[2].any() and not scored[2].any()


def test_only_the_end_of_a_sliding_window_is_scored():
    tokens, scored = eval_batch(STREAM, [(3, 7, 2), (0, 8, 8)], 2, 8)
    assert tokens[0].tolist() == [*TOKENS[3:11].tolist(), 0] and scored[0].tolist() == [False] * 5 + [True] * 2 + [
        False
    ]
    assert scored[1].all()


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


OPTIONS = [
    {"eval_stride": 3},
    {"eval_seq_len": 20},
    {"eval_seq_len": 5, "eval_stride": 5},
    {"ttt_lr": 1.0, "ttt_chunk": "16"},
    {"ttt_lr": 1.0, "ttt_chunk": "11d", "eval_stride": 2, "eval_seq_len": 10},
]


@pytest.mark.parametrize("values", OPTIONS, ids=str)
@pytest.mark.parametrize("ranks", [1, 3])
def test_options_of_the_final_evaluation_change_no_count(values, ranks):
    """The same sums as by plain windows; every rank makes all steps; and a validation during training takes no
    notice."""
    run = dataclasses.replace(RUN, **values)
    trainers = [FakeTrainer(rank, ranks, others=1) for rank in range(ranks)]
    for trainer in trainers:
        evaluate(trainer, run, STREAM, SPACED, 101, final=True)
    nats, count, num_bytes = sum(trainer.own for trainer in trainers)
    assert (nats / count, bits_per_byte(nats, num_bytes), count, num_bytes) == direct(SPACED, 101)
    assert len({*map(str, [trainer.done for trainer in trainers])}) == 1 and ("ttt_lr" in values) == (
        "step" in trainers[0].done
    )
    assert not trainers[0].done or trainers[0].done[-1] == "restored"
    if "ttt_lr" in values:  # one or two windows an act
        assert min(trainer.own[1] for trainer in trainers) > 60 / ranks  # of 100 tokens
    longest = max(tokens[1] for tokens, _ in trainers[0].shapes) - 1
    assert longest == values.get("eval_seq_len", 8) and len(trainers[0].shapes) == 1
    trainer = FakeTrainer()
    assert (
        evaluate(trainer, run, STREAM, SPACED, 101) == direct(SPACED, 101)
        and not trainer.done
        and trainer.shapes == {((3, 9), "int32")}
    )
