"""Which tokens a rank sees at a step: a pure function of the step, so resuming needs no loader state.

Step s takes tokens [s*G, (s+1)*G], both ends included, of the endless train stream (the shards in order, again and
again), where G is train_batch_tokens. Ranks and micro-batches only split the G / train_seq_len rows of a step.
"""
import bisect
import math

import numpy as np

from common.settings import UserError
from common.shards import check_unchanged


class TokenStream:
    """The shards of a split, uint16 arrays of any length, as one sequence."""

    def __init__(self, shards):
        self.shards = shards
        self.ends = np.cumsum([*map(len, shards)]).tolist()
        self.length = self.ends[-1]

    def read(self, start, count):
        """int32 (count,): tokens [start, start + count) of the endless stream."""
        parts = [np.empty(0, np.int32)]
        while count:
            start %= self.length
            index = bisect.bisect_right(self.ends, start)
            shard = self.shards[index]
            first = len(shard) - (self.ends[index] - start)
            check_unchanged(shard, first)
            parts.append(shard[first:first + count])
            start += len(parts[-1])
            count -= len(parts[-1])
        return np.concatenate(parts)


def rank_rows(settings, rank, world_size):
    """(first row, number of rows) of this rank in a batch. Raises UserError if ranks cannot share the rows."""
    rows = settings.train_batch_tokens // settings.train_seq_len
    if rows % world_size:
        raise UserError(f"TRAIN_BATCH_TOKENS={settings.train_batch_tokens} is {rows} rows of TRAIN_SEQ_LEN="
                        f"{settings.train_seq_len}, which {world_size} ranks cannot share: use a number of ranks that "
                        f"divides {rows}")
    rows //= world_size
    return rank * rows, rows


def step_rows(stream, settings, step, rank=0, world_size=1):
    """int32 (rows, train_seq_len + 1): this rank's rows. Inputs are [:, :-1], targets [:, 1:]."""
    first, rows = rank_rows(settings, rank, world_size)
    length = settings.train_seq_len
    tokens = stream.read(step * settings.train_batch_tokens + first * length, rows * length + 1)
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]


def micro_batch_rows(settings, rows, seq_len=0):
    """Rows per forward and backward pass: the largest divisor of a rank's rows (for one shape) that MICRO_BATCH_TOKENS
    allows. seq_len: tokens per row; 0: train_seq_len."""
    most = max(1, settings.micro_batch_tokens // (seq_len or settings.train_seq_len))
    return max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)


def step_parts(settings, rows, seq_len):
    """Rows of each forward and backward pass of a test-time step on `rows` rows: three sizes at most, however many rows
    a step has, as each size is compiled. A step on a whole chunk takes the largest."""
    whole = math.ceil(settings.ttt_chunk.tokens / seq_len)
    passes = math.ceil(whole / max(1, settings.micro_batch_tokens // seq_len))
    parts, largest = [], math.ceil(whole / passes)
    for size in (largest, math.isqrt(largest), 1):
        parts += [size] * (rows // size)
        rows %= size
    return parts
