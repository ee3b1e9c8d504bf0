"""Documents from files, in order and in blocks of bounded size.

.jsonl, .jsonl.gz   one JSON object per line, the text under one key; empty lines are skipped
.parquet            one document per row, the text in one column
.txt                the file is one document, or several with a separator between them

A text is what its UTF-8 says. Invalid bytes, and halves of surrogate pairs in JSON, become U+FFFD; such documents are
counted.
"""
import argparse
import dataclasses
import gzip
import json
import re
import zlib
from pathlib import Path

from common.settings import UserError

SUFFIXES = ".jsonl", ".jsonl.gz", ".parquet", ".txt"
BLOCK_BYTES = 1 << 20  # about; at least one document
DOCUMENT_LIMIT = 8 << 20  # bytes of a document, or of its line: SentencePiece takes a hundred times as much memory


@dataclasses.dataclass(frozen=True)
class Block:
    """rows: whole lines of JSON, or a list of documents (bytes; None where there is none). first: number of its first
    line or row, from 1. place: how many bytes of all input files have been read."""

    file: str
    first: int
    rows: bytes | list
    place: int


def add_input(parser) -> None:
    parser.add_argument("--text-key", default="text", help="key or column that holds the text (default: %(default)s)")
    parser.add_argument("--separator", type=_separator, default=b"",
                        help=r"what stands between the documents of a .txt file, such as '\n\n' or '<|endoftext|>' "
                        "(default: nothing, the file is one document)")


def _separator(text: str) -> bytes:
    try:
        return text.encode().decode("unicode_escape").encode("latin-1")
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} has a broken escape") from error


def find_files(paths) -> list[Path]:
    """The files, those of a folder sorted by path. UserError: missing, of an unknown type, or none at all."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file()
                      and not any(part.startswith(".") for part in file.relative_to(path).parts)]
            if not inside:
                raise UserError(f"{path}: no file in it is {', '.join(SUFFIXES)}")
            found += sorted(inside, key=lambda file: file.relative_to(path).parts)
        elif not path.is_file():
            raise UserError(f"{path}: no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: documents are {', '.join(SUFFIXES)}, or a folder of them")
        else:
            found.append(path)
    return found


def read_blocks(files, text_key: str, separator: bytes):
    """The Blocks of the files, one after another. UserError: a file is damaged, or a document is too long."""
    before = 0
    for file in files:
        try:
            if file.name.endswith(".parquet"):
                parts = _parquet(file, text_key)
            elif file.name.endswith(".txt"):
                parts = _text(file, separator)
            else:
                parts = _lines(file)
            for first, rows, place in parts:
                yield Block(str(file), first, rows, before + place)
            before += file.stat().st_size
        except (OSError, EOFError, zlib.error, ValueError, NotImplementedError) as error:  # pyarrow's errors too
            reason = " ".join(str(error).split())
            raise UserError(f"{file}: cannot be read, cut short or damaged: {reason}") from error


def _lines(path):
    with open(path, "rb") as raw:
        file, number = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw, 1
        while rows := file.read(BLOCK_BYTES):
            rest = file.readline(DOCUMENT_LIMIT)
            if len(rest) == DOCUMENT_LIMIT:
                before = number + rows.count(b"\n") - 1
                raise UserError(f"{path}: the line after {before} is longer than {DOCUMENT_LIMIT:,} bytes: "
                                "split that document")
            yield number, rows + rest, raw.tell()
            number += (rows + rest).count(b"\n")


def _text(path, separator):
    with open(path, "rb") as file:
        number, rest = 1, b""
        while chunk := file.read(BLOCK_BYTES if separator else DOCUMENT_LIMIT + 1):
            *rows, rest = (rest + chunk).split(separator) if separator else [rest + chunk]
            if len(rest) > DOCUMENT_LIMIT:
                raise UserError(f"{path}: document {number + len(rows)} is longer than {DOCUMENT_LIMIT:,} bytes: "
                                "split it, or give the --separator of the documents in it")
            if rows:
                yield number, rows, file.tell()
            number += len(rows)
        if rest or number == 1:
            yield number, [rest], file.tell()


def _parquet(path, key):
    from pyarrow import binary, parquet
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if key not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {key}; there are: {', '.join(file.schema_arrow.names)}")
        kind = file.schema_arrow.field(key).type
        if not any(known in str(kind) for known in ("string", "binary")):
            raise UserError(f"{path}: column {key} is {kind}, not a string")
        size, rows, number = path.stat().st_size, max(1, file.metadata.num_rows), 1
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        mean = sum(group.total_byte_size for group in groups) / rows
        batch_rows = int(min(max(1, BLOCK_BYTES / max(mean, 1)), 1 << 14))
        for batch in file.iter_batches(batch_rows, columns=[key]):
            texts = batch.column(0).cast(binary()).to_pylist()  # bytes, valid UTF-8 or not
            if any(len(text or b"") > DOCUMENT_LIMIT for text in texts):
                raise UserError(f"{path}: a document in rows {number} to {number + len(texts) - 1} is longer than "
                                f"{DOCUMENT_LIMIT:,} bytes")
            number += len(texts)
            yield number - len(texts), texts, size * (number - 1) // rows


def block_texts(block: Block, text_key: str):
    """(number of the line or row, text or None, problem) of each document of a block. A text with a problem was
    repaired."""
    if isinstance(block.rows, list):
        for number, row in enumerate(block.rows, block.first):
            text, problem = (None, f"has no {text_key}: it is null") if row is None else _valid_text(row)
            yield number, text, problem
    else:
        for number, row in enumerate(block.rows.split(b"\n"), block.first):
            if row.strip():
                yield number, *_json_text(row, text_key)


def _json_text(row: bytes, text_key: str):
    line, problem = _valid_text(row.removeprefix(b"\xef\xbb\xbf"))
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON: {error}"
    if not isinstance(found, dict):
        return None, f"has no {text_key}: it is not an object"
    if text_key not in found:
        return None, f"has no {text_key}" + f"; its keys are: {', '.join(found)}"[:200]
    if not isinstance(found[text_key], str):
        return None, f"has no {text_key}: it is {json.dumps(found[text_key])[:40]}, not a string"
    text = re.sub("[\ud800-\udfff]", "\ufffd", found[text_key])
    if text != found[text_key] and not problem:
        problem = "has half a surrogate pair, replaced by U+FFFD"
    return text, problem


def _valid_text(raw: bytes):
    try:
        return raw.decode(), ""
    except UnicodeDecodeError as error:
        wrong = f"{error.start}: {raw[error.start]:#04x}"
        return raw.decode(errors="replace"), f"has bytes that are not UTF-8 (byte {wrong}), replaced by U+FFFD"
