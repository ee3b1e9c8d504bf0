"""A data folder: its manifest, and its documents read from the shards in pieces.

A folder is complete if it has a manifest.json. The manifest says what the files hold and nothing else, so that equal
data give equal bytes.
"""
import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from common.batches import TokenStream
from common.command import path_argument
from common.data.tokenizers import try_model
from common.dataset import MANIFEST_FORMAT, is_challenge, read_manifest
from common.files import hold_lock, write_file
from common.settings import UserError
from common.shards import SHARD_HEADER_BYTES, SHARD_MAGIC, SHARD_VERSION, find_shards, open_shard
from common.tokenizer import Tokenizer, load_tokenizer, locate_tokenizer

PIECE_TOKENS = 1 << 20
DOCUMENT_TOKENS = 1 << 24  # so many tokens without a BOS are not documents
WINDOW_TOKENS = 1024  # of the windows in which the challenge's numbers count validation


def write_shard(path, tokens) -> None:
    """Write ids 0 to 65535 of shape (tokens,). The file is complete or as it was. UserError: unfit ids or folder."""
    path, tokens = Path(path), np.asarray(tokens)
    if tokens.ndim != 1 or not 0 < tokens.size < 2**31:
        raise UserError(f"{path}: a shard holds 1 to {2**31 - 1} tokens in one row, not shape {tokens.shape}")
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() > 65535:
        raise UserError(f"{path}: a shard holds integers 0 to 65535, not {tokens.dtype} {tokens.min()}..{tokens.max()}")
    header = np.zeros(SHARD_HEADER_BYTES // 4, "<i4")
    header[:3] = SHARD_MAGIC, SHARD_VERSION, tokens.size
    try:
        write_file(path, header, tokens.astype("<u2"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def add_folder(parser) -> None:
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="data folder")
    parser.add_argument("--tokenizer", type=os.path.expanduser,
                        help="SentencePiece model, `bytes` or table:FILE, for shards without a manifest.json of ours")


def file_sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def alone(folder: Path):
    """Hold the lock of a folder, which also ends with the process. UserError: another command holds it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not hold_lock(lock, folder):
            raise UserError(f"another command that writes to {folder} is under way: wait until it ends, or stop it")
        yield
    finally:
        os.close(lock)


def write_manifest(folder: Path, manifest: dict) -> None:
    """The file is complete or as it was."""
    text = json.dumps({"format": MANIFEST_FORMAT} | manifest, indent=2, sort_keys=True) + "\n"
    write_file(folder / "manifest.json", text.encode())


def manifest_named(folder: Path, name: str) -> dict:
    """The manifest of a data set that an earlier run made. UserError: the folder holds something else."""
    try:
        manifest, _ = read_manifest(folder)
        problem = "" if manifest.get("name") == name else "it has no manifest.json with this name"
    except UserError as error:
        problem = error
    if problem:
        raise UserError(f"{folder} is not a {name} data set ({problem}); choose another --out, or remove it")
    return manifest


class DataFolder:
    """manifest: {} where a tokenizer was given instead; tokenizer_path: a file or "bytes"; load_as: the arguments of
    load_tokenizer. UserError: not readable."""

    def __init__(self, path, tokenizer_path=None):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{path}: no such folder")
        self.manifest = {} if tokenizer_path else self._read_manifest()
        self.tokenizer_path = tokenizer_path or locate_tokenizer(self.path, self.manifest["tokenizer"]["file"])
        self.load_as = self.tokenizer_path, is_challenge(self.manifest)
        try_model(*self.load_as)
        self.tokenizer: Tokenizer = load_tokenizer(*self.load_as)

    def _read_manifest(self) -> dict:
        try:
            manifest, _ = read_manifest(self.path)
            if manifest:
                return manifest
            problem = f"{self.path / 'manifest.json'}: No such file or directory; make the data again"
        except UserError as error:
            problem = error
        raise UserError(f"{problem}, or give --tokenizer if its shards come from elsewhere")

    def table(self, split: str) -> dict:
        """What the manifest says of a split; empty without a manifest."""
        return self.manifest.get("splits", {}).get(split, {})

    def stream(self, split: str) -> TokenStream:
        return cached_stream(str(self.path), split)

    def pieces(self, split: str):
        """Jobs for the workers, which together see each document of a split once: (folder, load_as, split, start,
        end)."""
        length = self.stream(split).length
        for start in range(0, length, PIECE_TOKENS):
            yield str(self.path), self.load_as, split, start, min(start + PIECE_TOKENS, length)


@functools.cache
def cached_stream(folder: str, split: str) -> TokenStream:
    """The shards of a split as one sequence. UserError: there are none, or one is broken."""
    return TokenStream([open_shard(path) for path in find_shards(folder, split)])


def read_documents(stream: TokenStream, bos_id: int, start: int, end: int):
    """(position of the first token, tokens int32, borders) of the documents that begin in [start, end). Document i is
    tokens[borders[i]:borders[i + 1]]. What stands before the first BOS of the stream is a document too. UserError: no
    BOS for too long."""
    length = stream.length
    last = end
    while last < length and stream.read(last, 1)[0] != bos_id:  # the last document goes on after the end
        found = np.flatnonzero(stream.read(last, min(1 << 16, length - last)) == bos_id)
        last += int(found[0]) if len(found) else min(1 << 16, length - last)
        if last - end > DOCUMENT_TOKENS:
            raise UserError(f"{where(stream, end)}: no BOS (id {bos_id}) in {DOCUMENT_TOKENS:,} tokens: "
                            "made with another tokenizer")
    tokens = stream.read(start, last - start)
    starts = np.flatnonzero(tokens[:end - start] == bos_id)
    if start == 0 and (not len(starts) or starts[0]):
        starts = np.append(0, starts)
    if not len(starts):
        return start, tokens[:0], np.zeros(1, int)
    return start + int(starts[0]), tokens[starts[0]:], np.append(starts, len(tokens)) - starts[0]


def where(stream: TokenStream, position: int) -> str:
    """The place of a token, as its file and its number in it."""
    index = int(np.searchsorted(stream.ends, position, side="right"))
    shard = stream.shards[index]
    return f"{Path(shard.filename).name} token {position - stream.ends[index] + len(shard):,}"


def in_whole_windows(tokens: int) -> int:
    """How many tokens of a validation split are scored in whole windows, as the challenge's numbers count them."""
    return (tokens - 1) // WINDOW_TOKENS * WINDOW_TOKENS
