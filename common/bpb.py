"""Validation: which windows are scored, how many raw UTF-8 bytes they stand for, and bits per byte.

The final evaluation may slide its windows, use longer ones, and train at test time: the targets are cut into chunks,
and SGD steps on each after it is scored. What a score depends on (windows, weights, cuts) never depends on the scored
token or a later one, so that the probabilities of all tokens at a position sum to 1.
"""
import math

import numpy as np

from common.batches import micro_batch_rows, rank_rows, step_parts
from common.tokenizer import count_bytes


def bits_per_byte(nats, num_bytes):
    return nats / math.log(2) / num_bytes


def eval_windows(num_tokens, seq_len, stride, first=1):
    """int64 (windows, 3): start, n, m of each window, which reads the inputs [start, start + n) and scores the last m
    of the targets [start + 1, start + n]. m is at most stride. Each of the tokens [first, num_tokens) is scored exactly
    once. All but the first begin with seq_len - stride scored inputs."""
    targets = np.arange(first, num_tokens, stride)
    scored = np.minimum(stride, num_tokens - targets)
    starts = np.maximum(0, targets - 1 - (seq_len - stride))
    return np.stack([starts, targets - 1 + scored - starts, scored], axis=1)


def eval_batch(stream, windows, rows, seq_len):
    """(tokens int32 (rows, seq_len + 1), scored bool (rows, seq_len)) of at most `rows` windows. The rest is token 0,
    which is not scored: all batches have one shape."""
    tokens, scored = np.zeros((rows, seq_len + 1), np.int32), np.zeros((rows, seq_len), bool)
    for row, (start, count, last) in enumerate(windows):
        tokens[row, :count + 1] = stream.read(start, count + 1)
        scored[row, count - last:count] = True
    return tokens, scored


def eval_chunks(stream, num_tokens, length, bos_id):
    """(first, end, whether a document ends there) of each chunk of at most `length` targets [first, end). A BOS ends a
    chunk: else weights would be restored because of a token that is yet to be scored."""
    first = 1
    while first < num_tokens:
        borders, end = [], min(first + length, num_tokens)
        if bos_id is not None and len(borders := np.flatnonzero(stream.read(first, end - first) == bos_id)):
            end = first + int(borders[0]) + 1
        yield first, end, len(borders) > 0
        first = end


def eval_plan(stream, num_tokens, seq_len, stride, chunk=0, bos_id=None):
    """What an evaluation does: ("score", windows), ("train", starts of rows of seq_len inputs), ("restore", None).
    chunk: targets scored between two steps; 0: all. bos_id: restore the weights after each document; None: never. Rows
    end with the chunk; the first may begin before it. A step without a whole row, or the last, is left out."""
    pending, adapted = [], False
    for first, end, border in eval_chunks(stream, num_tokens, chunk or num_tokens, bos_id):
        pending.append(eval_windows(end, seq_len, stride, first))
        starts = np.arange(end - 1 - seq_len, max(-1, first - 1 - seq_len), -seq_len)[::-1]
        last, step = end == num_tokens, not border and len(starts) > 0
        if last or step or (border and adapted):  # until then the weights stay as they are
            yield "score", np.concatenate(pending)
            pending = []
        if step and not last:
            yield "train", starts
        elif border and adapted:
            yield "restore", None
        adapted = step


def eval_lengths(settings):
    """(tokens of a window, tokens between windows) of the final evaluation."""
    seq_len = settings.eval_seq_len or settings.train_seq_len
    return seq_len, settings.eval_stride or seq_len


def eval_shape(trainer, settings, final):
    """(rows, tokens of a window) of the batches of an evaluation: those of training where that is possible, so that no
    other shape is compiled."""
    seq_len, stride = eval_lengths(settings) if final else (settings.train_seq_len, settings.train_seq_len)
    rows = micro_batch_rows(settings, rank_rows(settings, trainer.rank, trainer.world_size)[1])
    if seq_len != settings.train_seq_len:
        rows = max(1, rows * settings.train_seq_len // seq_len)
    if final and settings.ttt_lr:
        rows = min(rows, math.ceil(math.ceil(settings.ttt_chunk.tokens / stride) / trainer.world_size))
    return rows, seq_len


def rehearse(trainer, settings):
    """Run whatever evaluations will, once in each shape, so that it is compiled. The weights stay as they are."""
    for rows, seq_len in {eval_shape(trainer, settings, final) for final in (False, True)}:
        trainer.token_nats(np.zeros((rows, seq_len + 1), np.int32))
    if settings.ttt_lr:
        seq_len = eval_lengths(settings)[0]
        whole = math.ceil(settings.ttt_chunk.tokens / seq_len)  # the first chunk may have a row less
        for rows in {size for n in (whole, whole - 1) for size in step_parts(settings, n, seq_len)}:
            trainer.sgd_step(np.zeros((rows, seq_len + 1), np.int32), 0.0)
        trainer.undo_sgd()


def evaluate(trainer, settings, stream, tokenizer, num_tokens, each=iter, final=False):
    """(nats per token, bits per byte, tokens scored, bytes) over the first num_tokens of a stream. each: passes on the
    parts of the work. final: as EVAL_SEQ_LEN, EVAL_STRIDE, TTT_LR and TTT_CHUNK say. Every rank makes all test-time
    steps (GPUs sum in any order, so their last digits may differ), which are undone at the end."""
    seq_len, stride = eval_lengths(settings) if final else (settings.train_seq_len, settings.train_seq_len)
    rows, chunk, bos_id = eval_shape(trainer, settings, final)[0], 0, None
    if final and settings.ttt_lr:
        chunk = settings.ttt_chunk.tokens
        bos_id = tokenizer.bos_id if settings.ttt_chunk.per_document else None
    total = np.zeros(3)  # nats, tokens, bytes
    plan = eval_plan(stream, num_tokens, seq_len, stride, chunk, bos_id)
    for act, what in each(own_part(plan, trainer.rank, trainer.world_size, rows)):
        if act == "train":
            trainer.sgd_step(np.stack([stream.read(start, seq_len + 1) for start in what]), settings.ttt_lr)
        elif act == "restore":
            trainer.undo_sgd()
        else:
            tokens, scored = eval_batch(stream, what, rows, seq_len)
            nats = np.asarray(trainer.token_nats(tokens), np.float64)
            num_bytes = count_bytes(tokenizer, tokens[:, :-1], tokens[:, 1:])
            total += nats[scored].sum(), scored.sum(), num_bytes[scored].sum()
    if chunk:
        trainer.undo_sgd()
    nats, count, num_bytes = trainer.all_sum(total)
    return nats / count, bits_per_byte(nats, num_bytes), int(count), int(num_bytes)


def own_part(plan, rank, world_size, rows):
    """A rank's part of a plan: its windows, at most `rows` at a time, and all the rest."""
    dealt = 0
    for act, what in plan:
        if act == "score":
            mine = what[(rank - dealt) % world_size::world_size]
            dealt += len(what)
            yield from ((act, mine[first:first + rows]) for first in range(0, len(mine), rows))
        else:
            yield act, what
