"""One file with a problem and what one backend showed of it: written on one machine, compared with on another.

Format 1: a safetensors file. Tensors: "train", "val" (uint16), the byte table as "table.NAME", and what was shown as "RUNG/NAME".
One metadata key, "parity": JSON with the format, settings, steps, backend, dtype, machine and the SHA-256 of all tensors. The file may come
from anyone: it is bounded, checked against its digest, and never executed.
"""
import dataclasses
import hashlib
import json
import platform
from importlib import metadata

import numpy as np
import safetensors
import safetensors.numpy

from common.settings import Settings, UserError, load_settings
from parity.problem import DTYPES, RUNGS, ByteTable, Problem

FIXTURE_FORMAT = 1
FIXTURE_LIMIT = 1 << 30  # bytes


def write_fixture(path, problem, shown, backend, dtype, device):
    """Raises UserError where the file cannot be written."""
    tensors = {"train": problem.train, "val": problem.val}
    tensors |= {f"table.{f.name}": np.asarray(getattr(problem.table, f.name)) for f in dataclasses.fields(ByteTable)}
    tensors |= {f"{rung}/{name}": np.asarray(value) for rung, values in shown.items() for name, value in values.items()}
    tensors = {name: np.array(value, order="C") for name, value in tensors.items()}  # ascontiguousarray makes () a (1,)
    versions = " ".join(f"{name} {metadata.version(name)}" for name in (backend, "numpy"))
    meta = {"format": FIXTURE_FORMAT, "settings": {k: str(int(v) if isinstance(v, bool) else v)
            for k, v in dataclasses.asdict(problem.settings).items()}, "steps": problem.steps, "backend": backend, "dtype": dtype,
            "machine": f"{platform.platform()}, device {device}, {versions}", "sha256": tensors_digest(tensors)}
    try:
        path.write_bytes(safetensors.numpy.save(tensors, metadata={"parity": json.dumps(meta, sort_keys=True)}))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def read_fixture(path):
    """(Problem, what was shown, the metadata). Raises UserError."""
    try:
        if path.stat().st_size > FIXTURE_LIMIT:
            raise UserError(f"{path} has more than {FIXTURE_LIMIT} bytes: it is no file of `python -m parity export`")
        data = path.read_bytes()
        tensors = safetensors.numpy.load(data)
        meta = json.loads(json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]["parity"])
        if meta["format"] != FIXTURE_FORMAT:
            raise UserError(f"{path} is of format {meta['format']}, this program reads {FIXTURE_FORMAT}: export it again")
        found = tensors_digest(tensors)
        if found != meta["sha256"]:
            raise UserError(f"{path} is damaged: its tensors have SHA-256 {found[:12]}, its header says {meta['sha256'][:12]}")
        unknown = set(meta["settings"]) ^ {f.name for f in dataclasses.fields(Settings)}
        if unknown:
            raise UserError(f"{path} was written by another version: settings {', '.join(sorted(unknown))} are on one side only")
        settings = load_settings(Settings, [f"--{name}={value}" for name, value in meta["settings"].items()], {}, print)
        table = ByteTable(*(tensors[f"table.{f.name}"] for f in dataclasses.fields(ByteTable)))
        problem = Problem(settings, tensors["train"], tensors["val"], table, int(meta["steps"]))
        shown = {rung: {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{rung}/")} for rung in RUNGS}
        text = {key: str(meta[key]) for key in ("backend", "dtype", "machine")}
        missing = [rung for rung in RUNGS if not shown[rung]]
        if missing:
            raise UserError(f"{path} lacks the rungs {', '.join(missing)}")
        check_problem(path, problem, text)
        return problem, shown, text
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no file of `python -m parity export`, or is cut short ({type(error).__name__}: {error})") from None


def check_problem(path, problem, meta):
    """What the ladder relies on. Raises UserError."""
    s, tokens = problem.settings, (problem.train, problem.val)
    if meta["dtype"] not in DTYPES:
        raise UserError(f"{path}: dtype {meta['dtype']} is unknown")
    if not 0 < problem.steps <= 10_000 or s.num_layers * s.model_dim**2 > 1 << 28 or s.train_batch_tokens > 1 << 22:
        raise UserError(f"{path}: a problem of this size is not tried")
    if any(t.dtype != np.uint16 or t.ndim != 1 or not s.train_seq_len < len(t) < 1 << 28 or t.max() >= s.vocab_size for t in tokens):
        raise UserError(f"{path}: its tokens do not fit its settings")
    if any(getattr(problem.table, f.name).shape != (s.vocab_size,) for f in dataclasses.fields(ByteTable)):
        raise UserError(f"{path}: its byte table does not fit its vocabulary")


def tensors_digest(tensors):
    """SHA-256 over names, dtypes, shapes and contents, in order of names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + value.tobytes())
    return total.hexdigest()
