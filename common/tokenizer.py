"""Tokenizers: ids, and the exact UTF-8 bytes each id stands for. Two kinds: a SentencePiece model, and plain bytes."""
from pathlib import Path

import numpy as np
import sentencepiece

from common.settings import UserError

SPACE_MARKER = "\u2581"  # stands for a space in SentencePiece's pieces
MODEL_LIMIT = 16 << 20  # bytes of a model file


class Tokenizer:
    """Ids below vocab_size, at most 65536, as shards hold uint16.

    token_bytes: what each id stands for, b"" for control ids. The rule for scoring is three arrays (vocab_size,):
    byte_counts int32; leading_space bool, one byte more unless the id before is a boundary; boundary bool.
    """

    def __init__(self, encode, bos_id, token_bytes, byte_counts, leading_space, boundary):
        self.encode = encode  # str -> list[int], without BOS
        self.bos_id, self.vocab_size, self.token_bytes = bos_id, len(token_bytes), token_bytes
        self.byte_counts = np.array(byte_counts, np.int32)
        self.leading_space, self.boundary = np.array(leading_space, bool), np.array(boundary, bool)


def count_bytes(t, previous_ids, ids):
    """Bytes that each of ids stands for after previous_ids, int32, all of one shape; sum them as int64."""
    return t.byte_counts[ids] + (t.leading_space[ids] & ~t.boundary[previous_ids])


def decode_ids(t, ids):
    """The bytes of ids (tokens,), as if they followed BOS."""
    ids = np.append(t.bos_id, ids).astype(int)
    parts = [t.token_bytes[i] for i in ids[1:].tolist()]
    for place in np.flatnonzero(t.leading_space[ids[1:]] & t.boundary[ids[:-1]]):
        parts[place] = parts[place][1:]  # no space at the start
    return b"".join(parts)


def load_tokenizer(path):
    """Tokenizer of a SentencePiece file, or the byte tokenizer where the path is "bytes". UserError: no usable model."""
    if str(path) == "bytes":  # 0 pad, 1 BOS, 2 EOS, 3 unknown, 4 + b for byte b
        token_bytes = [b""] * 4 + [bytes([b]) for b in range(256)]
        counts = [0] * 4 + [1] * 256
        return Tokenizer(lambda text: [4 + b for b in text.encode()], 1, token_bytes, counts, [False] * 260, [not n for n in counts])
    file = Path(path)
    try:
        if not file.is_file():
            raise UserError(f"{path}: no such file; a tokenizer is a SentencePiece .model file, or the word bytes")
        if file.stat().st_size > MODEL_LIMIT:
            raise UserError(f"{path}: more than {MODEL_LIMIT} bytes, which is no SentencePiece model")
        return _sentencepiece_tokenizer(file.read_bytes())
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a usable SentencePiece model: {error}") from error


def _sentencepiece_tokenizer(data):
    """Raises RuntimeError or ValueError where the model is malformed or its bytes could not be counted."""
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(data)
    ids = range(model.vocab_size())
    if not 0 < len(ids) <= 65536 or model.bos_id() < 0:
        raise ValueError(f"{len(ids)} ids, BOS {model.bos_id()}; 1 to 65536 and a BOS are needed")
    if model.piece_to_id(SPACE_MARKER) == model.unk_id():
        raise ValueError("there is no piece for the space, which would then count three bytes")
    boundary = [model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in ids]
    pieces = ["" if boundary[i] else model.id_to_piece(i) for i in ids]
    token_bytes = [bytes([int(piece[1:-1], 16)]) if model.is_byte(i) else piece.replace(SPACE_MARKER, " ").encode()
                   for i, piece in enumerate(pieces)]

    # Two families, told apart by what they do. Published models put a marker before the text (dummy prefix), so one
    # that begins a piece is a space only after text. Their rule is kept as it is: another marker counts three bytes.
    if model.encode("a", out_type=str)[0].startswith(SPACE_MARKER):
        leading = [piece.startswith(SPACE_MARKER) for piece in pieces]
        counts = [1 if model.is_byte(i) else len(piece.encode()) - 3 * leading[i] for i, piece in enumerate(pieces)]
        return Tokenizer(model.encode, model.bos_id(), token_bytes, counts, leading, boundary)

    # Ours change nothing in the text, so every marker is one space. SentencePiece would take a U+2581 of the text
    # itself for a space, so that character goes in as its three bytes.
    marker = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]

    def encode(text):
        ids = []
        for part in text.split(SPACE_MARKER):
            ids += marker + model.encode(part)
        return ids[len(marker):]

    tokenizer = Tokenizer(encode, model.bos_id(), token_bytes, [*map(len, token_bytes)], [False] * len(ids), boundary)
    probe = f"  a\t {SPACE_MARKER}\n\0 \ufb01\U0010fffd "
    if b"".join(token_bytes[i] for i in encode(probe)) != probe.encode():
        raise ValueError("it changes text (normalization, dropped spaces, no byte fallback): bytes cannot be counted")
    return tokenizer
