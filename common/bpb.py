"""Validation: which windows are scored, how many raw UTF-8 bytes they stand for, and bits per byte."""
import math

import numpy as np

from common.batches import micro_batch_rows, rank_rows
from common.tokenizer import count_bytes


def bits_per_byte(nats, num_bytes):
    return nats / math.log(2) / num_bytes


def eval_windows(num_tokens, seq_len):
    """int64 (windows, 2): start and number of scored tokens of each window. Window w reads inputs [start, start + n) and
    scores tokens [start + 1, start + n]; every token after the first is scored exactly once, the short tail too."""
    starts = np.arange(0, num_tokens - 1, seq_len)
    return np.stack([starts, np.minimum(seq_len, num_tokens - 1 - starts)], axis=1)


def eval_batch(stream, windows, rows, seq_len):
    """(tokens int32 (rows, seq_len + 1), scored bool (rows, seq_len)) for at most `rows` windows; missing rows and the part of
    a row after a short window are token 0 and not scored, so that every batch has one shape. A causal model cannot see them."""
    tokens, scored = np.zeros((rows, seq_len + 1), np.int32), np.zeros((rows, seq_len), bool)
    for row, (start, count) in enumerate(windows):
        tokens[row, :count + 1] = stream.read(start, count + 1)
        scored[row, :count] = True
    return tokens, scored


def evaluate(trainer, settings, stream, tokenizer, num_tokens, each=iter):
    """(nats per token, bits per byte, tokens scored, bytes) over the first num_tokens of the stream. The windows are dealt
    to the ranks in turn; each rank counts the bytes of its own. `each` hands on the numbers of the batches as they begin."""
    seq_len = settings.train_seq_len
    rows = micro_batch_rows(settings, rank_rows(settings, trainer.rank, trainer.world_size)[1])  # training's shape: no second compilation
    mine = eval_windows(num_tokens, seq_len)[trainer.rank::trainer.world_size]
    total = np.zeros(3)  # nats, tokens, bytes
    for first in each(range(0, len(mine), rows)):
        tokens, scored = eval_batch(stream, mine[first:first + rows], rows, seq_len)
        nats = np.asarray(trainer.token_nats(tokens), np.float64)
        num_bytes = count_bytes(tokenizer, tokens[:, :-1], tokens[:, 1:])
        total += nats[scored].sum(), scored.sum(), num_bytes[scored].sum()
    nats, count, num_bytes = trainer.all_sum(total)
    return nats / count, bits_per_byte(nats, num_bytes), int(count), int(num_bytes)
