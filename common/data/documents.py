"""Documents from files, in order and in blocks of bounded size.

.jsonl, .ndjson          one JSON object per line, the text under one key; empty lines are skipped
.txt                     the file is one document, or several with a separator between them
.parquet                 one document per row, the text in one column

Lines and text may be compressed (.gz, .bz2, .xz or .zst after the ending; .json.gz is lines, too). Endings may be in
upper case. A text is what its UTF-8 says, or the encoding of a byte-order mark. Invalid bytes, and halves of surrogate
pairs in JSON, become U+FFFD; such documents are counted.
"""
import argparse
import bz2
import codecs
import dataclasses
import functools
import gzip
import io
import json
import lzma
import re
import zlib
from pathlib import Path

from common.files import warn_once
from common.settings import UserError


def _zstandard(raw):
    import pyarrow
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")


LINES, TEXT, TABLE = (".jsonl", ".ndjson"), ".txt", ".parquet"
COMPRESSED = {"": lambda raw: raw, ".gz": lambda raw: gzip.GzipFile(fileobj=raw), ".bz2": bz2.BZ2File,
              ".xz": lzma.LZMAFile, ".zst": _zstandard}
SUFFIXES = {TABLE, *(base + suffix for base in (*LINES, TEXT, ".json") for suffix in COMPRESSED)}
SUFFIXES = tuple(SUFFIXES - {".json"})  # beside the documents it may describe them
KNOWN = f"{', '.join(LINES)}, {TEXT}, these with {', '.join(filter(None, COMPRESSED))}, or {TABLE}"
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
         codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # that of UTF-32 begins as one of UTF-16
BLOCK_BYTES = 1 << 20  # about; at least one document
DOCUMENT_LIMIT = 8 << 20  # bytes of a document, or of its line: SentencePiece takes a hundred times as much memory
TOO_LONG = -1  # stands for a document that is longer


@dataclasses.dataclass(frozen=True)
class Block:
    """rows: whole lines of JSON, or a list of documents (bytes; None where there is none, TOO_LONG where it is longer
    than DOCUMENT_LIMIT). first: number of its first line or row, from 1. place: how many bytes of all input files have
    been read."""

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
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode()
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} has a broken escape") from error


def find_files(paths) -> list[Path]:
    """The files, those of a folder sorted by path. UserError: missing, of an unknown type, or none at all."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES) and file.is_file()
                      and not any(part.startswith(".") for part in file.relative_to(path).parts)]
            if not inside:
                raise UserError(f"{path}: no file in it is {KNOWN}")
            found += sorted(inside, key=lambda file: file.relative_to(path).parts)
        elif not path.is_file():
            raise UserError(f"{path}: no such file or folder")
        elif not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path}: documents are {KNOWN}, or a folder of them")
        else:
            found.append(path)
    return found


def read_blocks(files, text_key: str, separator: bytes):
    """The Blocks of the files, one after another. UserError: a file is damaged."""
    before, found, texts = 0, False, []
    for file in files:
        try:
            name = file.name.lower()
            if name.endswith(TABLE):
                parts = _parquet(file, text_key)
            else:
                parts = _opened(file, functools.partial(_text, separator) if _is_text(file) else _lines)
            for first, rows, place in parts:
                yield Block(str(file), first, rows, before + place)
                found = found or (_is_text(file) and first + len(rows) > 2)
            before += file.stat().st_size
        # those of pyarrow too
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file}: cannot be read, cut short or damaged: {reason}") from error
        texts += [file] * _is_text(file)
    if separator and texts and not found:
        # once, as documents are read more than once
        warn_once(f"--separator {separator.decode()!r} occurs in none of {len(texts)} .txt files, "
                   f"the first {texts[0]}: each is one document; give what stands between documents, or leave it out")


def _is_text(path):
    return path.name.lower().endswith(tuple(TEXT + suffix for suffix in COMPRESSED))


def _opened(path, read):
    """What read(file) yields of the plain UTF-8 of a file, (number, rows), and how many of its own bytes were read."""
    with open(path, "rb") as raw:
        suffix = path.suffix.lower()
        file = io.BufferedReader(COMPRESSED[suffix](raw)) if suffix in COMPRESSED else raw
        start = file.peek(16)[:16]
        mark = next((mark for mark in MARKS if start.startswith(mark)), b"")
        if not mark and len(start) > 3 and any(any(start[i::2]) and not any(start[1 - i::2]) for i in (0, 1)):
            raise UserError(f"{path}: looks like UTF-16 without a byte-order mark: save it as UTF-8")
        file.read(len(mark))
        if mark and MARKS[mark] != "utf-8":
            file = _Recoded(file, MARKS[mark])
        for number, rows in read(file):
            yield number, rows, raw.tell()


class _Recoded:
    """The UTF-8 of a file in another encoding; halves of surrogate pairs stay, which is not valid UTF-8."""

    def __init__(self, file, encoding: str):
        self.text = io.TextIOWrapper(file, encoding, "surrogatepass", newline="\n")

    def read(self, size: int) -> bytes:
        return self.text.read(size).encode(errors="surrogatepass")

    def readline(self, size: int) -> bytes:
        """At most `size` characters, and a whole number of them."""
        return self.text.readline(size).encode(errors="surrogatepass")


def _lines(file):
    number = 1
    while rows := file.read(BLOCK_BYTES):
        rest = file.readline(DOCUMENT_LIMIT)
        if long := len(rest) >= DOCUMENT_LIMIT:
            rows, rest, tail = rows[:rows.rfind(b"\n") + 1], b"", rest
            while tail and not tail.endswith(b"\n"):
                tail = file.readline(BLOCK_BYTES)
        if rows:
            yield number, rows + rest
            number += (rows + rest).count(b"\n")
        if long:
            yield number, [TOO_LONG]
            number += 1


def _text(separator, file):
    # A line end in the separator is that of Windows too. A file that ends inside a match is read on before it is split.
    between = re.compile(re.escape(separator).replace(b"\\\n", b"\r?\n"))
    number, rest, long = 1, b"", False
    while chunk := file.read(BLOCK_BYTES if separator else DOCUMENT_LIMIT + 1):
        *rows, rest = between.split(rest + chunk) if separator else [rest + chunk]
        if rows and long:
            rows[0], long = TOO_LONG, False
        if long or len(rest) > DOCUMENT_LIMIT:
            rest, long = rest[-2 * len(separator):] if separator else b"", True  # what a separator may begin in
        if rows:
            yield number, rows
        number += len(rows)
    if rest or long or number == 1:
        yield number, [TOO_LONG if long else rest]


def _parquet(path, key):
    from pyarrow import binary, parquet, types
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if key not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {key}; there are: {', '.join(file.schema_arrow.names)}")
        kind = file.schema_arrow.field(key).type
        plain = kind.value_type if types.is_dictionary(kind) else kind
        if not any(check(plain) for check in (types.is_string, types.is_large_string, types.is_string_view,
                                              types.is_binary, types.is_large_binary, types.is_binary_view,
                                              types.is_fixed_size_binary)):
            raise UserError(f"{path}: column {key} is {kind}, not a string: give a column of strings as --text-key")
        size, rows, number = path.stat().st_size, max(1, file.metadata.num_rows), 1
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        mean = sum(group.total_byte_size for group in groups) / rows
        batch_rows = int(min(max(1, BLOCK_BYTES / max(mean, 1)), 1 << 14))
        for batch in file.iter_batches(batch_rows, columns=[key]):
            column = batch.column(0)
            column = column.dictionary_decode() if types.is_dictionary(kind) else column
            texts = column.cast(binary()).to_pylist()  # bytes, valid UTF-8 or not
            texts = [TOO_LONG if len(text or b"") > DOCUMENT_LIMIT else text for text in texts]
            number += len(texts)
            yield number - len(texts), texts, size * (number - 1) // rows


def block_texts(block: Block, text_key: str):
    """(number of the line or row, text or None, problem) of each document of a block. A text with a problem was
    repaired."""
    if isinstance(block.rows, list):
        none = {None: f"has no {text_key}: it is null",
                TOO_LONG: f"is longer than {DOCUMENT_LIMIT:,} bytes: split it, or give the --separator of a .txt file"}
        for number, row in enumerate(block.rows, block.first):
            yield number, *(_valid_text(row) if isinstance(row, bytes) else (None, none[row]))
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
