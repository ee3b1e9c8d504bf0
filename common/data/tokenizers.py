"""Our own SentencePiece tokenizers, which keep every byte of a text; and models of unknown origin, tried with care."""
import functools
import io
import re
from pathlib import Path

import numpy as np
import sentencepiece

from common.data.workers import Died, worker_pool
from common.settings import UserError
from common.tokenizer import SPACE_MARKER, TOKENIZER_KINDS, Tokenizer, count_bytes, load_tokenizer

MODEL_TYPES = "bpe", "unigram"  # of the SentencePiece models that we train
SMALLEST, LARGEST = 260, 65536  # vocabulary sizes
SIZES = f"{SMALLEST} (control ids, bytes) to {LARGEST} (16 bits)"


def train_tokenizer(texts: list, vocab_size: int, model_type: str = "bpe", required: str = "") -> bytes:
    """A lossless SentencePiece model of one of MODEL_TYPES; equal texts give equal bytes. UserError: vocab_size does
    not suit the texts. required: characters that become pieces however rare."""
    if not SMALLEST <= vocab_size <= LARGEST:
        raise UserError(f"vocabulary size {vocab_size}: must be {SIZES}")
    # SentencePiece skips texts with a character that it uses itself (NUL, tab, U+2581, U+2585). It gets whole
    # documents, because line ends become part of pieces only inside a text: 3 % fewer tokens than from single lines.
    # Of the settings tried, split_digits and this coverage are within 0.005 bits per byte of the best bigram model at
    # 1024 and at 4096 ids. One thread: with two, the bytes of a unigram model differ.
    reserved = str.maketrans("\0\t\u2581\u2585", "\n\n\n\n")
    file = io.BytesIO()
    if not any(" " in text for text in texts):
        required = SPACE_MARKER
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.translate(reserved) for text in texts), model_writer=file, model_type=model_type,
            vocab_size=vocab_size, pad_id=0, bos_id=1, eos_id=2, unk_id=3, normalization_rule_name="identity",
            byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, character_coverage=0.995, split_digits=True,
            max_sentence_length=1 << 30, num_threads=1, minloglevel=2,
            **{"required_chars": required} if required else {})
    except RuntimeError as error:
        reason = str(error)
        if limit := re.search(r"required_chars\. \d+ vs (\d+)", reason):
            reason = f"the texts need at least {limit[1]}"
        elif limit := re.search(r"to a value <= (\d+)", reason):
            reason = f"the texts give at most {limit[1]}"
        elif "sentences_.empty()" in reason:
            reason = "the texts have no characters to make pieces of"
        raise UserError(f"vocabulary size {vocab_size}: {reason}") from error
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    if not required and model.piece_to_id(SPACE_MARKER) == model.unk_id():  # spaces are rare in the texts
        return train_tokenizer(texts, vocab_size, model_type, SPACE_MARKER)
    return file.getvalue()


def parse_tokenizer(text: str) -> tuple[str, int]:
    """(one of MODEL_TYPES, vocabulary size) of TYPE:SIZE; ("", 0) for a tokenizer that exists. UserError: neither, or
    it cannot be used."""
    model_type, _, size = text.partition(":")
    if model_type in MODEL_TYPES:
        if not size.isdecimal() or not SMALLEST <= int(size) <= LARGEST:
            raise UserError(f"--tokenizer {text}: the size must be {SIZES}")
        return model_type, int(size)
    if text not in TOKENIZER_KINDS and not text.endswith(".model") and model_type != "table":
        raise UserError(f"--tokenizer {text} is none of bpe:SIZE, unigram:SIZE, bytes, table:FILE or a file that ends "
                        "in .model")
    try_model(text)
    return "", 0


def try_model(path, published=False) -> None:
    """UserError: the tokenizer cannot be used. A file is loaded and run in another process, as a bad model may crash
    the library."""
    if path in TOKENIZER_KINDS:
        return
    with worker_pool(1) as pool:
        try:
            pool.submit(_use, path, published).result()
        except Died:
            raise UserError(f"{path}: the SentencePiece library crashes on this model; get it again from where it was "
                            "made") from None


def _use(path, published) -> None:
    tokenizer = load_tokenizer(path, published)
    if tokenizer.encode:
        decode_ids(tokenizer, tokenizer.encode("A text, \u4e2d\u6587 \U0001f600\n\n  and 42."))


@functools.cache
def cached_tokenizer(path, published=False) -> Tokenizer:
    """For workers, which use one tokenizer for many blocks."""
    return load_tokenizer(path, published)


def tokenizer_entry(path, tokenizer: Tokenizer) -> dict:
    """The entry of a manifest for the tokenizer at a path: a file in the folder, or the name of a kind."""
    return {"kind": tokenizer.kind, "file": Path(path).name, "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size}


def is_lossless(tokenizer: Tokenizer) -> bool:
    """Our own and bytes keep every text. Published models, known by their leading spaces, may normalize it."""
    return not tokenizer.leading_space.any()


def decode_ids(tokenizer: Tokenizer, ids) -> bytes:
    """The bytes of ids (tokens,) by the tables that scoring uses, as if the ids followed BOS."""
    ids = np.append(tokenizer.bos_id, ids).astype(int)
    parts = [tokenizer.token_bytes[i] for i in ids[1:].tolist()]
    for place in np.flatnonzero(tokenizer.leading_space[ids[1:]] & tokenizer.boundary[ids[:-1]]):
        parts[place] = parts[place][1:]  # no space at the start
    return b"".join(parts)


def longest_match(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    """Ids of a table: at each place the one that stands for the most bytes. UserError: there is none."""
    known = tokenizer.__dict__.setdefault("known", {part: i for i, part in enumerate(tokenizer.token_bytes) if part})
    lengths = sorted(set(map(len, known)), reverse=True)
    ids, place = [], 0
    while place < len(raw):
        part = next((raw[place:place + n] for n in lengths if raw[place:place + n] in known), b"")
        if not part:
            raise UserError(f"the table has no id for byte {place} of this document, {raw[place:place + 1]!r}")
        ids.append(known[part])
        place += len(part)
    return ids


def encode_document(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, int, bool]:
    """BOS and the ids of a document, uint16 (tokens,); the bytes that scoring counts for them; whether they stand for
    exactly the text's UTF-8 bytes. UserError: they do not, although the tokenizer promises it."""
    raw = text.encode()
    ids = tokenizer.encode(text) if tokenizer.encode else longest_match(tokenizer, raw)
    tokens = np.array([tokenizer.bos_id, *ids], np.uint16)
    size = int(count_bytes(tokenizer, tokens[:-1], tokens[1:]).sum(dtype=np.int64))
    kept = size == len(raw) and decode_ids(tokenizer, tokens[1:]) == raw
    if not kept and is_lossless(tokenizer):
        raise UserError(f"the tokenizer does not keep this document: {text[:60]!r}...")
    return tokens, size, kept
