"""Checkpoints: all that a run needs to go on as if it had never stopped.

Format 1. A file step-00000120.checkpoint is a safetensors file, followed by the SHA-256 of its bytes (32 bytes). The
tensors are those of Trainer.state(), wider dtypes first, then by name. The header has one metadata key, "parity_golf":
JSON with sorted keys, {"format": 1, "step": 120, "elapsed": seconds, "identity": {...}}. The reader takes untrusted
files: it executes nothing, bounds memory by the size that the settings imply, and refuses any flipped bit.
"""
import hashlib
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import safetensors.numpy

from common.files import read_json, write_file
from common.params import check_tensors
from common.settings import UserError, settings_of

CHECKPOINT_FORMAT = 1
HEADER_LIMIT = 1 << 20  # bytes


def run_identity(settings, data, source):
    """dict of what must be the same for a run to go on. source: text of the code."""
    names = [*settings_of("model", "training", of=settings)]
    if settings.qat_start < 1:  # training rounds to them
        names.append("quant_levels")
    identity = {name.upper(): getattr(settings, name) for name in names}
    code = hashlib.sha256(source.encode()).hexdigest()
    return identity | {"code": code, "data": data.sha256, "tokenizer": data.tokenizer_sha256}


def check_identity(identity, theirs, where=""):
    """Raises UserError where what is to be continued is another run."""
    keys = [key for key in sorted(identity | theirs) if identity.get(key) != theirs.get(key)]
    if keys:
        wrong = "; ".join(f"{key} is {identity.get(key)!s:.40}, there {theirs.get(key)!s:.40}" for key in keys)
        remedy = "use the settings and data of that run, and the code in its folder"
        raise UserError(f"{where}it is of another run: {wrong}: {remedy}", "bad_settings")


def write_checkpoint(folder, step, elapsed, identity, arrays):
    """Path of the new file in a folder, where one older file is kept. Raises OSError. The safetensors library would
    stop the training thread while it copies all arrays."""
    meta = {"format": CHECKPOINT_FORMAT, "step": step, "elapsed": elapsed, "identity": identity}
    header, parts, end = {"__metadata__": {"parity_golf": json.dumps(meta, sort_keys=True)}}, [], 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        place = end, end + array.nbytes
        header[name] = {"dtype": f"F{8 * array.itemsize}", "shape": array.shape, "data_offsets": place}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = [len(text).to_bytes(8, "little"), text, *parts]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    path = write_file(folder / f"step-{step:08}.checkpoint", *parts, digest.digest())
    for old in checkpoints(folder)[2:]:
        old.unlink()
    return path


def checkpoints(folder):
    """Paths, newest first."""
    paths = folder.glob("step-*.checkpoint")
    return sorted(paths, key=lambda path: (len(path.name), path.name), reverse=True)  # steps of more than 8 digits too


def decode_checkpoint(file, identity, expected):
    """(step, elapsed, arrays) of an open file; expected: name -> (shape, dtype as text). Raises ValueError if it is not
    whole, UserError if it is of another run."""
    size = file.seek(0, os.SEEK_END) - 32
    file.seek(0)
    digest, left = hashlib.sha256(), size
    while left > 0 and (part := file.read(min(left, 1 << 24))):
        digest.update(part)
        left -= len(part)
    if left or file.read() != digest.digest():
        raise ValueError("is damaged or cut short")
    file.seek(0)
    try:
        head = file.read(min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT))
        meta = json.loads(json.loads(head)["__metadata__"]["parity_golf"])
        found, step, elapsed, theirs = (meta[key] for key in ("format", "step", "elapsed", "identity"))
    except (LookupError, TypeError, ValueError, RecursionError):
        raise ValueError("has no readable header") from None
    if found != CHECKPOINT_FORMAT:
        raise ValueError(f"is of format {found}, this program reads {CHECKPOINT_FORMAT}")
    timed = type(step) is int and 0 <= step < 2**31 and type(elapsed) is float and 0 <= elapsed < math.inf
    if not timed or not isinstance(theirs, dict):
        raise ValueError("has no step, time or identity")
    check_identity(identity, theirs)
    if size > HEADER_LIMIT + sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in expected.values()):
        raise ValueError("is larger than its settings allow")
    file.seek(0)
    try:
        arrays = safetensors.numpy.load(file.read(size))
    except (LookupError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"is not a safetensors file ({error})") from None
    check_tensors(expected, {name: (array.shape, str(array.dtype)) for name, array in arrays.items()})
    return step, elapsed, arrays


def read_checkpoint(folder, identity, expected, warn):
    """(step, elapsed, arrays, damaged paths) of the newest whole file in a folder; warn(text) is called for damaged
    ones. Without files: step 0, no arrays. Raises UserError if none is whole, or of another run."""
    damaged = []
    if not checkpoints(folder):
        stored = read_json(folder / "settings.json").get("identity")
        if isinstance(stored, dict):  # else the run had not begun
            check_identity(identity, stored, f"{folder}: ")
        return 0, 0.0, {}, damaged
    for path in checkpoints(folder):
        try:
            with open(path, "rb") as file:
                return *decode_checkpoint(file, identity, expected), damaged
        except UserError as error:
            raise UserError(f"{path}: {error}", error.status) from None
        except (OSError, ValueError) as error:
            damaged.append(path)
            warn(f"{path} {error}")
    raise UserError(f"{folder} has no checkpoint that can be used: start a new run")


def resume(trainer, state, folder, identity, warn):
    """As read_checkpoint, and loads the arrays into the trainer. state: that of a new run. Raises UserError."""
    expected = {name: (array.shape, str(array.dtype)) for name, array in state.items()}
    step, elapsed, arrays, damaged = read_checkpoint(folder, identity, expected, warn)
    if arrays:
        trainer.load_state(arrays)
    return step, elapsed, damaged


class Saver:
    """Writes checkpoints while the run trains on, one at a time. A write that fails is only logged."""

    def __init__(self, folder, identity, every, log, step=0, elapsed=0.0, damaged=()):
        self.folder, self.identity, self.every, self.log, self.damaged = folder, identity, every, log, damaged
        self.saved, self.last, self.pending = step or -1, elapsed if every.in_seconds else step, None
        self.thread = ThreadPoolExecutor(1)

    def due(self, step, elapsed):
        self.collect(False)
        now = elapsed if self.every.in_seconds else step
        return 0 < self.every.number <= now - self.last and not self.pending

    def save(self, step, elapsed, state):
        if step != self.saved:
            self.collect()
            self.saved, self.last = step, elapsed if self.every.in_seconds else step
            self.pending = self.thread.submit(self.write, step, elapsed, state)

    def write(self, step, elapsed, state):
        start = time.perf_counter()
        for path in self.damaged:
            path.replace(path.with_suffix(".damaged"))
        self.damaged = ()
        path = write_checkpoint(self.folder, step, elapsed, self.identity, state)
        return {"step": step, "bytes": path.stat().st_size, "seconds": time.perf_counter() - start}

    def collect(self, wait=True):
        """Log how the pending write ended, if it has ended or `wait`."""
        if self.pending and (wait or self.pending.done()):
            try:
                self.log("checkpoint", **self.pending.result())
            except Exception as error:
                self.log("checkpoint_failed", step=self.saved, reason=f"{error}: the checkpoints before it stay")
                self.saved = -1
            self.pending = None
