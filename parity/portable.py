"""One file with a problem and what one backend showed of it: written on one machine, compared with on another.

Format 1: a safetensors file. Tensors: "train", "val" (uint16), the byte table as "table.NAME", and what was shown as "RUNG/NAME".
One metadata key, "parity": JSON with the format, settings, steps, backend, dtype, machine and the SHA-256 of all of that and the tensors.
The file may come from anyone: it is bounded, checked against its digest, and never executed.
"""
import dataclasses
import hashlib
import json
import platform
import sys
from importlib import metadata

import numpy as np
import safetensors
import safetensors.numpy

from common.params import count_params, layer_order, param_table
from common.settings import Settings, UserError, load_settings
from parity.problem import DTYPES, RUNGS, ByteTable, Problem

FIXTURE_FORMAT = 1
FIXTURE_LIMIT = 1 << 30  # bytes
TABLE_TYPES = {"byte_counts": "int32", "leading_space": "bool", "boundary": "bool"}
AGAIN = "export it again, or compare with the version that wrote it"


def write_fixture(path, problem, shown, backend, dtype, device):
    """device: text. Raises UserError where the file cannot be written."""
    tensors = {"train": problem.train, "val": problem.val}
    tensors |= {f"table.{f.name}": np.asarray(getattr(problem.table, f.name)) for f in dataclasses.fields(ByteTable)}
    tensors |= {f"{rung}/{name}": np.asarray(value) for rung, values in shown.items() for name, value in values.items()}
    tensors = {name: np.array(value, order="C") for name, value in tensors.items()}  # ascontiguousarray makes () a (1,)
    versions = f"python {platform.python_version()}, {', '.join(f'{name} {metadata.version(name)}' for name in (backend, 'numpy'))}"
    settings = {name: str(int(value) if isinstance(value, bool) else value) for name, value in vars(problem.settings).items()}
    meta = {"format": FIXTURE_FORMAT, "settings": settings, "steps": problem.steps, "backend": backend, "dtype": dtype,
            "machine": f"{device}, {versions}, {platform.platform()}"}
    meta["sha256"] = fixture_digest(meta, tensors)
    try:
        path.write_bytes(safetensors.numpy.save(tensors, metadata={"parity": json.dumps(meta, sort_keys=True)}))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}: free some space, or name another file") from None


def read_fixture(path):
    """(Problem, what was shown, the metadata). Raises UserError."""
    try:
        with open(path, "rb") as file:
            data = file.read(FIXTURE_LIMIT + 1)
        if len(data) > FIXTURE_LIMIT:
            raise UserError(f"{path} has more than {FIXTURE_LIMIT} bytes: it is no file of `python -m parity export`")
        tensors = safetensors.numpy.load(data)
        meta = json.loads(json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]["parity"])
        if meta["format"] != FIXTURE_FORMAT:
            raise UserError(f"{path} is of format {meta['format']!a:.20}, this program reads {FIXTURE_FORMAT}: {AGAIN}")
        claimed, found = str(meta.pop("sha256")), fixture_digest(meta, tensors)
        if found != claimed:
            raise UserError(f"{path} is damaged: its contents have SHA-256 {found[:12]}, its header says {claimed[:12]!a}: copy it again")
        names, theirs = {f.name for f in dataclasses.fields(Settings)}, meta["settings"]
        if unknown := sorted(theirs.keys() - names):
            raise UserError(f"{path} was written by another version, its settings {', '.join(unknown)!a:.200} are unknown here: {AGAIN}")
        for name in sorted(names - theirs.keys()):
            print(f"note: {path} knows no {name}, the default is taken", file=sys.stderr)
        try:
            settings = load_settings(Settings, [f"--{name}={value}" for name, value in theirs.items()], {}, print)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        meta = {key: ascii(str(meta[key]))[1:-1][:300] for key in ("backend", "dtype", "machine")} | {"steps": meta["steps"]}
        check_problem(path, settings, meta, tensors)
        table = ByteTable(*(tensors[f"table.{f.name}"] for f in dataclasses.fields(ByteTable)))
        problem = Problem(settings, tensors["train"], tensors["val"], table, meta["steps"])
        shown = {rung: {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{rung}/")} for rung in RUNGS}
        check_shown(path, settings, shown, tensors)
        return problem, shown, meta
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a file that `python -m parity export` wrote") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no file of `python -m parity export`, or is cut short ({type(error).__name__}: {error!s:.200})") from None


def check_problem(path, s, meta, tensors):
    """What the ladder relies on, and its cost. Raises UserError."""
    if meta["dtype"] not in DTYPES or meta["backend"] not in ("torch", "mlx"):
        raise UserError(f"{path}: dtype {meta['dtype']} or backend {meta['backend']} is unknown here: {AGAIN}")
    steps, rows = meta["steps"], s.train_batch_tokens // s.train_seq_len
    params = count_params(s) * len(layer_order(s)) // s.num_layers  # as often as they are applied, for their cost
    micro = max(s.micro_batch_tokens, s.train_seq_len, 4 * s.train_seq_len)
    if type(steps) is not int or not 0 < steps <= 10_000 or params > 1 << 25 or steps * s.train_batch_tokens * params > 1 << 48 or (
            s.train_seq_len > 4096 or micro * max(s.vocab_size, s.mlp_mult * s.model_dim, s.train_seq_len * s.num_heads) > 1 << 30):
        raise UserError(f"{path}: a problem of this size is not tried ({count_params(s):,} parameters, {steps!a:.20} steps): export a smaller one")
    if rows % 8 or s.tied_embed_init_std <= 0 or s.rms_norm_eps <= 0:
        raise UserError(f"{path}: TRAIN_BATCH_TOKENS must be a multiple of 8 rows, TIED_EMBED_INIT_STD and RMS_NORM_EPS above 0")
    for t in (tensors["train"], tensors["val"]):
        if t.dtype != np.uint16 or t.ndim != 1 or not s.train_seq_len < len(t) < 1 << 28 or t.max() >= s.vocab_size:
            raise UserError(f"{path}: its tokens do not fit its settings: {AGAIN}")
    for name, kind in TABLE_TYPES.items():
        column = tensors[f"table.{name}"]
        if column.dtype != kind or column.shape != (s.vocab_size,) or column.min() < 0 or column.max() > 1 << 16 or (
                kind == "int32" and not column.any()):
            raise UserError(f"{path}: its byte table does not fit its vocabulary: {AGAIN}")


def check_shown(path, settings, shown, tensors):
    """Every rung is there and every parameter in it, and nothing else. Raises UserError."""
    parameters = [f"{rung}/{name}" for rung in ("initial weights", "gradients", "one step") for name in param_table(settings)]
    missing = [rung for rung in RUNGS if not shown[rung]] + [name for name in parameters if name not in tensors]
    unknown = [name for name in tensors if name.partition("/")[0] not in RUNGS and name not in ("train", "val") and name[:6] != "table."]
    for what, names in (("lacks", missing), ("has what is unknown here,", unknown)):
        if names:
            raise UserError(f"{path} {what} {', '.join(names)!a:.200}: {AGAIN}")


def fixture_digest(meta, tensors):
    """SHA-256 over the metadata and, in order of names, the tensors' names, dtypes, shapes and contents."""
    total = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + value.tobytes())
    return total.hexdigest()
