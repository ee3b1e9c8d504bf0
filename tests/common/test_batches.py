"""Batches: `python -m pytest tests/common/test_batches.py`."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.batches import TokenStream, micro_batch_rows, rank_rows, step_parts, step_rows
from common.settings import Settings, UserError

TOKENS = (np.arange(150) * 60_013 % 65_536).astype(np.uint16)  # all different, half of them above 2**15
SHARDS = np.split(TOKENS, [1, 40, 40, 127])  # 1, 39, 0, 87 and 23 tokens: a batch of 64 crosses two borders
RUN = Settings(train_batch_tokens=64, train_seq_len=8)


def endless(start, count):
    return TOKENS[np.array([(start + i) % len(TOKENS) for i in range(count)])].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 10**9])  # the second epoch begins in step 2
def test_the_ranks_share_the_batch_of_the_stream(step, world_size):
    stream = TokenStream(SHARDS)
    rows = np.concatenate([step_rows(stream, RUN, step, rank, world_size) for rank in range(world_size)])
    assert rows.shape == (8, 9) and rows.dtype == np.int32
    assert rows[:, :-1].ravel().tolist() == endless(64 * step, 64)
    assert rows[:, 1:].ravel().tolist() == endless(64 * step + 1, 64)


def test_a_step_ends_with_the_token_that_begins_the_next():
    stream = TokenStream(SHARDS)
    assert step_rows(stream, RUN, 0)[-1, -1] == step_rows(stream, RUN, 1)[0, 0]


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(0, 10**15), st.integers(0, 60))
def test_read_repeats_the_shards_in_order(lengths, start, count):
    shards = np.split(TOKENS[:sum(lengths)], np.cumsum(lengths)[:-1])
    stream = TokenStream(shards)
    found = stream.read(start, count)
    assert stream.length == sum(lengths) and found.dtype == np.int32
    assert found.tolist() == [int(TOKENS[(start + i) % stream.length]) for i in range(count)]


def test_shards_on_disk_stay_there(tmp_path):
    """A shard of the challenge has 200 MB: a step reads only its own tokens."""
    TOKENS.tofile(tmp_path / "shard")
    shard = np.memmap(tmp_path / "shard", np.uint16, "r")
    stream = TokenStream([shard])
    assert all(np.shares_memory(shard, kept) for kept in stream.shards)
    assert step_rows(stream, RUN, 2).ravel()[:8].tolist() == endless(128, 8)


@pytest.mark.parametrize("world_size", [3, 5, 16])
def test_ranks_that_cannot_share_equally(world_size):
    with pytest.raises(UserError, match=f"TRAIN_BATCH_TOKENS=64 is 8 rows.*{world_size} ranks"):
        step_rows(TokenStream(SHARDS), RUN, 0, 0, world_size)


def test_rank_rows():
    assert [rank_rows(RUN, rank, 4) for rank in range(4)] == [(0, 2), (2, 2), (4, 2), (6, 2)]


@settings(deadline=None, database=None, derandomize=True)
@given(st.integers(1, 600), st.integers(8, 8 * 700))
def test_micro_batches_have_one_shape_and_fit(rows, tokens):
    n = micro_batch_rows(Settings(train_seq_len=8, micro_batch_tokens=tokens), rows)
    assert n == max(d for d in range(1, rows + 1) if rows % d == 0 and d * 8 <= tokens)


def test_a_micro_batch_has_at_least_a_row():
    assert micro_batch_rows(Settings(train_seq_len=1024, micro_batch_tokens=1), 6) == 1


@settings(deadline=None, database=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 40))
def test_test_time_steps_have_three_sizes_that_fit(micro, chunk, seq_len):
    run = Settings(train_seq_len=8, micro_batch_tokens=8 * micro, ttt_chunk=str(chunk))
    whole, fits = -(-chunk // seq_len), max(1, 8 * micro // seq_len)
    steps = {rows: step_parts(run, rows, seq_len) for rows in {*range(1, 33), whole}}
    assert all(sum(parts) == rows for rows, parts in steps.items())
    sizes = {size for parts in steps.values() for size in parts}
    assert len(sizes) <= 3 and max(sizes) <= fits
    assert steps[whole][0] == -(-whole // -(-whole // fits))  # as few passes as fit, of one size but for the last


def test_a_whole_chunk_takes_few_passes():
    """32 rows at once, or what fits; a row more or less is not 31 passes of one row."""
    run = Settings(train_seq_len=1024, micro_batch_tokens=65_536, ttt_chunk="32768d")
    assert [step_parts(run, rows, 1024) for rows in (32, 31, 1)] == [[32], [5] * 6 + [1], [1]]
    assert step_parts(run, 16, 2048) == [16]
    assert step_parts(Settings(micro_batch_tokens=16_384, ttt_chunk="31744"), 31, 1024) == [16, 4, 4, 4, 1, 1, 1]
