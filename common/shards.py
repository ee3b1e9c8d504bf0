"""Token shards: a header of 256 little-endian int32 (magic, version, number of tokens, zeros), then uint16 tokens.
common/data/folder.py writes them."""
import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from common.settings import UserError

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024
SHARD_CHUNK = 1 << 24  # tokens that check_ids looks at together: 32 MiB


class Shard(np.ndarray):
    """Read-only uint16 memory map of shape (tokens,). filename: its path; stamp: what the file was when opened."""

    __array_priority__ = -100  # what is computed from it is a plain array


def open_shard(path):
    """A Shard. UserError: the file is missing, or is not one whole shard."""
    try:
        stamp, size = _stamp(path), os.stat(path).st_size
        if size < SHARD_HEADER_BYTES:
            raise UserError(f"{path}: {size} bytes, less than a shard's header: empty or truncated")
        with open(path, "rb") as file:
            magic, version, count = np.frombuffer(file.read(12), "<i4").tolist()
            data = _map(file, size)
        if (magic, version) != (SHARD_MAGIC, SHARD_VERSION) or count < 1:
            raise UserError(f"{path}: magic {magic}, version {version}, {count} tokens; "
                            f"a shard has {SHARD_MAGIC}, {SHARD_VERSION}, 1 or more")
        whole = SHARD_HEADER_BYTES + 2 * count
        if size != whole:
            raise UserError(f"{path}: the header says {count} tokens = {whole} bytes, the file has {size}: "
                            f"{'truncated' if size < whole else 'too long'}; make or fetch it again")
        shard = np.frombuffer(data, "<u2", count, SHARD_HEADER_BYTES).view(Shard)
        shard.flags.writeable = False
        shard.filename, shard.stamp = path, stamp
        return shard
    except (OSError, ValueError) as error:  # ValueError: the file shrank meanwhile
        raise UserError(f"{path}: cannot be read as a shard: {error}") from error


def _map(file, size):
    """ctypes array of a file's bytes. It keeps no descriptor, as mmap.mmap does: there may be more shards than a
    process may have files open."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    length, fd, start = ctypes.c_size_t(size), file.fileno(), ctypes.c_long(0)
    address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    data = (ctypes.c_char * size).from_address(address)
    weakref.finalize(data, libc.munmap, ctypes.c_void_p(address), length).atexit = False
    return data


def check_unchanged(shard, first):
    """UserError: the file of a shard from open_shard has changed, seen before token `first` is read. To read past the
    end of a file that was cut would kill the process."""
    stamp = getattr(shard, "stamp", None)
    if stamp and _stamp(shard.filename) != stamp:
        raise UserError(f"{shard.filename}: changed while it is used, seen at token {first} "
                        f"(byte {SHARD_HEADER_BYTES + 2 * first}): leave the data alone, and start again", "bad_data")


def _stamp(path):
    try:
        status = os.stat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns
    except OSError:
        return None


def find_shards(data_path, split):
    """Sorted paths of the shards of a split ("train" or "val") in a folder. UserError: there are none."""
    # The Mac keeps attributes of a file in one whose name begins with a dot.
    shards = sorted(path for path in Path(data_path).glob(f"*_{split}_*.bin") if path.name[0] != ".")
    if not shards:
        raise UserError(f"{data_path} has no *_{split}_*.bin: get data with `python -m common.data pydoc` "
                        "(embedded corpus) or `python -m common.data fineweb --variant sp1024` (the challenge)")
    return shards


def check_ids(tokens, vocab_size, path):
    """UserError: names the first of tokens (tokens,) that is not an id of the vocabulary, and its place in the file."""
    for start in range(0, len(tokens), SHARD_CHUNK):
        wrong = tokens[start:start + SHARD_CHUNK] >= vocab_size
        if wrong.any():
            first = start + int(wrong.argmax())
            raise UserError(f"{path}: token {first} (byte {SHARD_HEADER_BYTES + 2 * first}) is {tokens[first]}, "
                            f"not an id of a vocabulary of {vocab_size}: made with another tokenizer")
