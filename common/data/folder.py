"""A data folder: its manifest, and its documents read from the shards in pieces.

A folder is whole if it has a manifest.json. It tells what the files hold and no more, so that equal data give equal bytes.
"""
import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from common.batches import TokenStream
from common.data.tokenizers import try_model
from common.files import try_lock, write_file
from common.settings import UserError
from common.shards import find_shards, open_shard
from common.tokenizer import Tokenizer, load_tokenizer

FORMAT = "parity-golf-data 1"
PIECE_TOKENS = 1 << 20
DOCUMENT_TOKENS = 1 << 24  # without a BOS for so long there are no documents


def add_folder(parser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="data folder")
    parser.add_argument("--tokenizer", help="SentencePiece model or `bytes`, for shards without a manifest.json of ours")


def file_sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def alone(folder: Path):
    """Keeps other commands that ask so out of a folder. It goes with the process. UserError: one is at work there."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(lock):
            raise UserError(f"another command that writes to {folder} is under way: wait for its end, or stop it")
        yield
    finally:
        os.close(lock)


def write_manifest(folder: Path, manifest: dict) -> None:
    """The file is whole or as it was."""
    text = json.dumps({"format": FORMAT} | manifest, indent=2, sort_keys=True) + "\n"
    write_file(folder / "manifest.json", text.encode())


def read_manifest(folder: Path) -> dict:
    """UserError: there is none of this format."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] == FORMAT:
            files = [shard["file"] for split in ("train", "val") for shard in manifest["splits"][split]["shards"]]
            texts = [manifest["tokenizer"]["file"], manifest["name"], *files]
            if all(isinstance(text, str) for text in texts) and isinstance(manifest.get("source", {}), dict):
                return manifest
            raise TypeError
        problem = f"is of format {manifest['format']}, not {FORMAT}"
    except OSError as error:
        problem = str(error.strerror)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        problem = "is no data manifest"
    raise UserError(f"{path}: {problem}; make the data again, or give --tokenizer if its shards are of other origin")


class DataFolder:
    """manifest: {} where a tokenizer was given instead; tokenizer_path: a file or "bytes". UserError: not readable."""

    def __init__(self, path, tokenizer_path=None):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{path}: no such folder")
        self.manifest = {} if tokenizer_path else read_manifest(self.path)
        named = tokenizer_path or self.manifest["tokenizer"]["file"]
        self.tokenizer_path = named if tokenizer_path or named == "bytes" else str(self.path / named)
        if named != "bytes":
            try_model(self.tokenizer_path)
        self.tokenizer: Tokenizer = load_tokenizer(self.tokenizer_path)

    def stream(self, split: str) -> TokenStream:
        return cached_stream(str(self.path), split)

    def pieces(self, split: str):
        """Jobs for the workers, which together see each document of a split once: (folder, tokenizer, split, start, end)."""
        length = self.stream(split).length
        for start in range(0, length, PIECE_TOKENS):
            yield str(self.path), self.tokenizer_path, split, start, min(start + PIECE_TOKENS, length)


@functools.cache
def cached_stream(folder: str, split: str) -> TokenStream:
    """The shards of a split as one sequence. UserError: none, or a broken one."""
    return TokenStream([open_shard(path) for path in find_shards(folder, split)])


def read_documents(stream: TokenStream, bos_id: int, start: int, end: int):
    """(position of the first, tokens int32, borders): the documents that begin in [start, end); document i is
    tokens[borders[i]:borders[i + 1]]. What stands before the first BOS of the stream is a document too. UserError: no BOS in sight."""
    length = stream.length
    last = end
    while last < length and stream.read(last, 1)[0] != bos_id:  # the last document goes on behind the end
        found = np.flatnonzero(stream.read(last, min(1 << 16, length - last)) == bos_id)
        last += int(found[0]) if len(found) else min(1 << 16, length - last)
        if last - end > DOCUMENT_TOKENS:
            raise UserError(f"{where(stream, end)}: no BOS (id {bos_id}) in {DOCUMENT_TOKENS:,} tokens: made with another tokenizer")
    tokens = stream.read(start, last - start)
    starts = np.flatnonzero(tokens[:end - start] == bos_id)
    if start == 0 and (not len(starts) or starts[0]):
        starts = np.append(0, starts)
    if not len(starts):
        return start, tokens[:0], np.zeros(1, int)
    return start + int(starts[0]), tokens[starts[0]:], np.append(starts, len(tokens)) - starts[0]


def where(stream: TokenStream, position: int) -> str:
    """A token's place, as file and number in it."""
    index = int(np.searchsorted(stream.ends, position, side="right"))
    shard = stream.shards[index]
    return f"{Path(shard.filename).name} token {position - stream.ends[index] + len(shard):,}"
