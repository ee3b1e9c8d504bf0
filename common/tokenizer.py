"""Tokenizers: ids, and the exact UTF-8 bytes that each id stands for. TOKENIZER_KINDS is the table of their kinds."""
import hashlib
import os
from pathlib import Path

import numpy as np
import sentencepiece

from common.settings import UserError

SPACE_MARKER = "\u2581"  # stands for a space in SentencePiece's pieces
MODEL_LIMIT = 16 << 20  # bytes of a model file
TABLE_MAGIC = b"parity-golf-table 1 "  # begins a byte table


class Tokenizer:
    """Ids below vocab_size, at most 65536, as shards hold uint16.

    token_bytes: what each id stands for, b"" for control ids. The rule for scoring is three arrays (vocab_size,):
    byte_counts int32; leading_space bool, one byte more unless the id before is a boundary; boundary bool.
    kind, sha256: as in a manifest.
    """

    def __init__(self, encode, decode, bos_id, token_bytes, byte_counts=None, leading_space=None):
        self.encode = encode  # str -> list[int], without BOS; None for a table, which does not know
        self.decode = decode  # list[int] -> bytes, without these tables
        self.bos_id, self.vocab_size, self.token_bytes = bos_id, len(token_bytes), token_bytes
        self.byte_counts = np.array(byte_counts or [*map(len, token_bytes)], np.int32)
        self.leading_space = np.array(leading_space or [False] * len(token_bytes))
        self.boundary = np.array([not part for part in token_bytes])


def count_bytes(t, previous_ids, ids):
    """Bytes that each of ids stands for after previous_ids: int32, all of one shape; sum them as int64."""
    return t.byte_counts[ids] + (t.leading_space[ids] & ~t.boundary[previous_ids])


def load_tokenizer(path, published=False):
    """Tokenizer of a SentencePiece file or of a table ("table:FILE"), or the byte tokenizer where the path is "bytes".
    published: count as the challenge's published scores do. UserError: not usable."""
    kind, file = str(path), Path(os.path.expanduser(str(path).removeprefix("table:")))
    try:
        if kind in TOKENIZER_KINDS:
            data = kind.encode()
        elif not file.is_file():
            raise UserError(f"{path}: no such file; a tokenizer is a SentencePiece .model file, a table:FILE, or bytes")
        elif file.stat().st_size > MODEL_LIMIT:
            raise UserError(f"{path}: more than {MODEL_LIMIT} bytes, which is not a tokenizer")
        else:
            data = file.read_bytes()
            kind = "table" if data.startswith(TABLE_MAGIC) or kind.startswith("table:") else "sentencepiece"
        tokenizer = TOKENIZER_KINDS[kind](data, published)
    except (OSError, RuntimeError, ValueError) as error:
        what = "table" if kind == "table" else "SentencePiece model"
        raise UserError(f"{path}: not a usable {what}: {error}") from error
    tokenizer.kind, tokenizer.sha256 = kind, hashlib.sha256(data).hexdigest()
    return tokenizer


def locate_tokenizer(folder, name):
    """Path of the tokenizer that a manifest names: a file in its folder, or a kind without a file."""
    return name if name in TOKENIZER_KINDS else str(folder / name)


def _byte_tokenizer(*_):
    token_bytes = [b""] * 4 + [bytes([b]) for b in range(256)]  # 0 pad, 1 BOS, 2 EOS, 3 unknown, 4 + b for byte b
    return Tokenizer(lambda text: [4 + b for b in text.encode()], lambda ids: bytes(i - 4 for i in ids if i > 3), 1,
                     token_bytes)


def _table_tokenizer(data, _):
    """A table is ASCII text: TABLE_MAGIC and the id of BOS in the first line, then a line per id from 0, the bytes that
    it stands for in hexadecimal; an empty line for a control id. Such a tokenizer may be of any make."""
    if not data.startswith(TABLE_MAGIC):
        raise ValueError(f"its first line must be {TABLE_MAGIC.decode()!r} and the id of BOS")
    head, *rows = data.decode("ascii").split("\n")
    bos, token_bytes = int(head.removeprefix(TABLE_MAGIC.decode())), [*map(bytes.fromhex, rows)]
    if not 0 <= bos < len(rows) <= 65537 or token_bytes[bos] or token_bytes.pop():
        raise ValueError(f"BOS {bos} of {len(rows)} lines: 1 to 65536, each with its end, that of BOS empty")
    return Tokenizer(None, lambda ids: b"".join(token_bytes[i] for i in ids), bos, token_bytes)


def _sentencepiece_tokenizer(data, published):
    """Raises RuntimeError or ValueError where the model is malformed or its bytes could not be counted."""
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(data)
    ids, bos_id = range(model.vocab_size()), model.bos_id()
    if not 0 < len(ids) <= 65536 or bos_id < 0:
        raise ValueError(f"{len(ids)} ids, BOS {bos_id}; 1 to 65536 and a BOS are needed")
    if model.piece_to_id(SPACE_MARKER) == model.unk_id():
        raise ValueError("there is no piece for the space, which would then count three bytes")
    pieces = ["" if model.is_control(i) or model.is_unknown(i) or model.is_unused(i) else model.id_to_piece(i)
              for i in ids]
    token_bytes = [bytes([int(piece[1:-1], 16)]) if model.is_byte(i) else piece.replace(SPACE_MARKER, " ").encode()
                   for i, piece in enumerate(pieces)]

    def decode(ids):
        return model.decode(ids).encode()

    # A model that puts a marker before the text (dummy prefix): one that begins a piece is a space only after text, any
    # other is one space. The challenge's scores count any other as three bytes, and are compared by that rule.
    if "".join(model.encode("a", out_type=str)).startswith(SPACE_MARKER):
        leading = [piece.startswith(SPACE_MARKER) for piece in pieces]
        counts = [len(part) - first for part, first in zip(token_bytes, leading)]
        if published:
            counts = [count + 2 * piece[1:].count(SPACE_MARKER) for count, piece in zip(counts, pieces)]
        else:
            shown = [i for i in ids if pieces[i] and not model.is_byte(i)]
            shown.sort(key=lambda i: not token_bytes[i].strip())  # spaces alone would be dropped at the start
            counted = sum(len(token_bytes[i]) for i in shown) - sum(leading[i] for i in shown[:1])
            if counted > (decoded := len(decode(shown))):
                raise ValueError(f"its ids count {counted} bytes, but decode to {decoded}")
            if SPACE_MARKER in model.decode(model.encode("a \U0010fffd")):
                raise ValueError("it encodes some spaces as three bytes")
        return Tokenizer(model.encode, decode, bos_id, token_bytes, counts, leading)

    # Ours keep the text, so every marker is one space. A U+2581 of the text itself would become one too: it is encoded
    # as its three bytes.
    marker = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]

    def encode(text):
        ids = []
        for part in text.split(SPACE_MARKER):
            ids += marker + model.encode(part)
        return ids[len(marker):]

    probe = f"  a\t {SPACE_MARKER}\n\0 \ufb01\U0010fffd "
    if b"".join(token_bytes[i] for i in encode(probe)) != probe.encode():
        raise ValueError("it changes text (normalization, dropped spaces, no byte fallback): bytes cannot be counted")
    return Tokenizer(encode, decode, bos_id, token_bytes)


# What a manifest calls a kind -> its loader. "bytes" is a path too; any other path is a file.
TOKENIZER_KINDS = {"bytes": _byte_tokenizer, "sentencepiece": _sentencepiece_tokenizer, "table": _table_tokenizer}
