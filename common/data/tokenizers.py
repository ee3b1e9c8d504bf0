"""Tokenizers of our own from SentencePiece, which keep every byte of a text; and models from anywhere, tried with care."""
import functools
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import sentencepiece

from common.data.workers import Died, worker_pool
from common.settings import UserError
from common.tokenizer import Tokenizer, count_bytes, decode_ids, load_tokenizer

KINDS = "bpe", "unigram"


def train_tokenizer(texts, vocab_size: int, kind: str = "bpe") -> bytes:
    """A lossless SentencePiece model of one of KINDS; equal texts give equal bytes. UserError: vocab_size does not suit them."""
    if not 260 <= vocab_size <= 65536:
        raise UserError(f"vocabulary size {vocab_size}: must be 260 (control ids, bytes) to 65536 (16 bits)")
    # SentencePiece skips texts with a character that it uses itself (NUL, tab, U+2581, U+2585). Whole documents go in,
    # because only line ends inside a text become part of pieces: 3 % fewer tokens than from single lines. Of the
    # settings tried, split_digits and this coverage are within 0.005 bits per byte of the best bigram model at 1024 and
    # at 4096 ids. One thread: with two, a unigram model's bytes differ.
    reserved = str.maketrans("\0\t\u2581\u2585", "\n\n\n\n")
    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.translate(reserved) for text in texts), model_writer=file, model_type=kind,
            vocab_size=vocab_size, pad_id=0, bos_id=1, eos_id=2, unk_id=3, normalization_rule_name="identity",
            byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, character_coverage=0.995, split_digits=True,
            max_sentence_length=1 << 30, num_threads=1, minloglevel=2)
    except RuntimeError as error:
        reason = str(error)
        if limit := re.search(r"required_chars\. \d+ vs (\d+)", reason):
            reason = f"the texts need at least {limit[1]}"
        elif limit := re.search(r"to a value <= (\d+)", reason):
            reason = f"the texts give at most {limit[1]}"
        raise UserError(f"vocabulary size {vocab_size}: {reason}") from error
    return file.getvalue()


def try_model(path) -> None:
    """UserError: the model cannot be used. It is loaded and run in another process, as a bad one may crash the library."""
    with worker_pool(1) as pool:
        try:
            pool.submit(_use, path).result()
        except Died:
            raise UserError(f"{path}: the SentencePiece library crashes on this model; get it again from where it was made") from None


def _use(path) -> None:
    tokenizer = load_tokenizer(path)
    decode_ids(tokenizer, tokenizer.encode("A text, \u4e2d\u6587 \U0001f600\n\n  and 42."))


@functools.cache
def cached_tokenizer(path) -> Tokenizer:
    """For workers, which use one tokenizer for many blocks."""
    return load_tokenizer(path)


def tokenizer_entry(path, tokenizer: Tokenizer) -> dict:
    """What a manifest says of a tokenizer at a path, or of "bytes"."""
    kind, data = ("bytes", b"bytes") if path == "bytes" else ("sentencepiece", Path(path).read_bytes())
    return {"kind": kind, "file": Path(path).name, "sha256": hashlib.sha256(data).hexdigest(), "vocab_size": tokenizer.vocab_size}


def is_lossless(tokenizer: Tokenizer) -> bool:
    """Our own and bytes keep every text. Published models, told by their leading spaces, may normalize it."""
    return not tokenizer.leading_space.any()


def encode_document(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, int, bool]:
    """BOS and the ids of a document, uint16 (tokens,); the bytes that scoring counts for them; whether they stand for just the
    text's UTF-8 bytes. UserError: they do not, and the tokenizer promises it."""
    raw, tokens = text.encode(), np.array([tokenizer.bos_id, *tokenizer.encode(text)], np.uint16)
    size = int(count_bytes(tokenizer, tokens[:-1], tokens[1:]).sum(dtype=np.int64))
    kept = size == len(raw) and decode_ids(tokenizer, tokens[1:]) == raw
    if not kept and is_lossless(tokenizer):
        raise UserError(f"the tokenizer does not keep this document: {text[:60]!r}...")
    return tokens, size, kept
