"""One file with a problem and what one backend showed of it: written on one machine, compared with on another.

Format 1: a safetensors file. Tensors: "train", "val" (uint16), the byte table as "table.NAME", and what was shown as
"RUNG/NAME". One metadata key, "parity": JSON with the format, settings, steps, backend, dtype, machine, where there are
some bos_id and options (the settings of the rung of options), and the SHA-256 of all of that and the tensors. The file
may come from anyone: it is bounded, checked against its digest, and never executed.
"""
import argparse
import dataclasses
import hashlib
import json
import platform
import sys
import time
from importlib import metadata

import numpy as np
import safetensors
import safetensors.numpy

from common.command import path_argument
from common.files import with_remedy
from common.params import count_params, layer_order, param_table
from common.settings import Settings, UserError, as_text, load_settings, parse_setting, settings_of
from parity import ladder
from parity.climb import SETTINGS, add_problem, problem_of
from parity.options import option_settings
from parity.problem import DTYPES, ByteTable, Problem
from parity.rungs import RUNGS, observe_aloud
from parity.trainers import load_trainer

FIXTURE_FORMAT = 1
FIXTURE_LIMIT = 1 << 30  # bytes
TABLE_TYPES = {"byte_counts": "int32", "leading_space": "bool", "boundary": "bool"}
AGAIN = "export it again, or compare with the version that wrote it"


def add_command(subparsers):
    exporter = subparsers.add_parser("export", help="write what one backend shows", description=SETTINGS,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    comparer = subparsers.add_parser("compare", help="climb against such a file", allow_abbrev=False)
    for command in (exporter, comparer):
        command.add_argument("file", type=path_argument)
        command.add_argument("--backend", choices=("torch", "mlx"), required=True)
    add_problem(exporter)
    exporter.add_argument("--dtype", choices=DTYPES, help="default: float32")
    exporter.set_defaults(run=export)
    comparer.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    comparer.add_argument("--compile", type=truth, default=False, metavar="0|1", help="compiled, as training is")
    comparer.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    comparer.set_defaults(run=compare_file)


def truth(text):
    return parse_setting(settings_of("memory")["compile"], text)


def export(options):
    if not options.file.parent.is_dir():
        raise UserError(f"{options.file.parent} is not a folder: make it, or name another file")
    options.given = ["--device=auto", *(options.given or [])]  # the fastest device here, unless a flag says otherwise
    task, _ = problem_of(options)
    asked = task.settings.compute_dtype
    dtype = options.dtype or ("float32" if asked == "auto" else asked)
    shown, device, _ = observe_aloud(load_trainer(options.backend), task, dtype)
    write_fixture(options.file, task, shown, options.backend, dtype, described(device, task.settings.compile))
    size = options.file.stat().st_size
    print(f"{options.file}: {size:,} bytes, what {options.backend} shows in {dtype} on {device}")


def compare_file(options):
    started = time.perf_counter()
    task, theirs, meta = read_fixture(options.file)
    ours, device, left_out = observe_aloud(load_trainer(options.backend), task, meta["dtype"], device=options.device,
                                           compile=options.compile)
    if meta["options"] != options_text(task.settings):
        left_out["options"] = "the file was written with other options"
    sides = f"{meta['backend']} (file)", f"{options.backend} (here)"
    rows = ladder.climb(meta["dtype"], theirs, ours, sides, left_out)
    title = f"{sides[0]} against {sides[1]}, {meta['dtype']}, {task.steps} steps"
    here = described(device, options.compile)
    held = ladder.report(title, rows, options.json, started, left_out, file=meta["machine"], here=here)
    if not options.json and not on_cpu(meta["machine"], here):
        print(ladder.unmeasured(rows, meta["dtype"]))
    return 0 if held else 1


def on_cpu(*devices):
    """Whether the trainers of these descriptions, "1 x cpu (OpenBLAS), float32, ...", ran on CPUs."""
    return all(device.partition(" x ")[2].startswith("cpu") for device in devices)


def described(device, compiled):
    return f"{device}, compiled" if compiled else device


def options_text(settings):
    """dict NAME -> text of the settings of the rung of options."""
    return {name: as_text(value) for name, value in option_settings(settings).items()}


def write_fixture(path, problem, shown, backend, dtype, device):
    """device: text. Raises UserError where the file cannot be written."""
    tensors = {"train": problem.train, "val": problem.val}
    tensors |= {f"table.{name}": np.asarray(getattr(problem.table, name)) for name in TABLE_TYPES}
    tensors |= {f"{rung}/{name}": np.asarray(value) for rung, values in shown.items() for name, value in values.items()}
    tensors = {name: np.array(value, order="C") for name, value in tensors.items()}  # ascontiguousarray makes () a (1,)
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in (backend, "numpy"))
    meta = {
        "format": FIXTURE_FORMAT,
        "settings": {name: as_text(value) for name, value in vars(problem.settings).items()},
        "steps": problem.steps,
        "backend": backend,
        "dtype": dtype,
        "machine": f"{device}, python {platform.python_version()}, {packages}, {platform.platform()}",
        "options": options_text(problem.settings),
    }
    if problem.table.bos_id is not None:
        meta["bos_id"] = int(problem.table.bos_id)
    meta["sha256"] = fixture_digest(meta, tensors)
    try:
        path.write_bytes(safetensors.numpy.save(tensors, metadata={"parity": json.dumps(meta, sort_keys=True)}))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {with_remedy(error)}, or name another file") from None


def read_fixture(path):
    """(Problem, what was shown, the metadata). Raises UserError."""
    try:
        meta, tensors = read_tensors(path)
        settings = read_problem_settings(path, meta["settings"])
        bos_id, options = meta.get("bos_id"), meta.get("options")
        meta = {key: ascii(str(meta[key]))[1:-1][:300] for key in ("backend", "dtype", "machine")} | {
            "steps": meta["steps"], "options": options}
        check_problem(path, settings, meta, tensors)
        if bos_id is not None and not (type(bos_id) is int and 0 <= bos_id < settings.vocab_size):
            raise UserError(f"{path}: its BOS {bos_id!a:.20} is not in its vocabulary: {AGAIN}")
        table = ByteTable(*(tensors[f"table.{name}"] for name in TABLE_TYPES), bos_id)
        problem = Problem(settings, tensors["train"], tensors["val"], table, meta["steps"])
        shown = {rung: {} for rung in RUNGS}
        for name, value in tensors.items():
            rung, slash, rest = name.partition("/")
            if slash and rung in RUNGS:
                shown[rung][rest] = value
        check_shown(path, settings, shown, tensors)
        return problem, shown, meta
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a file that `python -m parity export` wrote") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError,
            safetensors.SafetensorError) as error:
        found = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{path} is not a file of `python -m parity export`, or is cut short ({found})") from None


def read_tensors(path):
    """(metadata, tensors) of a file whose digest is right. Raises UserError, OSError, and what a malformed file
    causes."""
    with open(path, "rb") as file:
        data = file.read(FIXTURE_LIMIT + 1)
    if len(data) > FIXTURE_LIMIT:
        raise UserError(f"{path} has more than {FIXTURE_LIMIT} bytes: it is not a file of `python -m parity export`")
    tensors = safetensors.numpy.load(data)
    meta = json.loads(json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]["parity"])
    if meta["format"] != FIXTURE_FORMAT:
        raise UserError(f"{path} is of format {meta['format']!a:.20}, this program reads {FIXTURE_FORMAT}: {AGAIN}")
    claimed, found = str(meta.pop("sha256")), fixture_digest(meta, tensors)
    if found != claimed:
        digests = f"its contents have SHA-256 {found[:12]}, its header says {claimed[:12]!a}"
        raise UserError(f"{path} is damaged: {digests}: copy it again")
    return meta, tensors


def read_problem_settings(path, texts):
    """Settings of a dict name -> text. Raises UserError."""
    names = {f.name for f in dataclasses.fields(Settings)}
    if unknown := sorted(texts.keys() - names):
        which = f"its settings {', '.join(unknown)!a:.200} are unknown here"
        raise UserError(f"{path} was written by another version, {which}: {AGAIN}")
    for name in sorted(names - texts.keys()):
        print(f"note: {path} does not have {name}: its default is used", file=sys.stderr)
    try:
        return load_settings(Settings, [f"--{name}={value}" for name, value in texts.items()], {}, print)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_problem(path, s, meta, tensors):
    """What the ladder relies on, and its cost. Raises UserError."""
    if meta["dtype"] not in DTYPES or meta["backend"] not in ("torch", "mlx"):
        raise UserError(f"{path}: dtype {meta['dtype']} or backend {meta['backend']} is unknown here: {AGAIN}")
    if too_costly(s, meta["steps"]):
        size = f"{count_params(s):,} parameters, {meta['steps']!a:.20} steps"
        raise UserError(f"{path}: a problem of this size is not tried ({size}): export a smaller one")
    if s.train_batch_tokens // s.train_seq_len % 8 or s.tied_embed_init_std <= 0 or s.rms_norm_eps <= 0:
        needed = "TRAIN_BATCH_TOKENS must be a multiple of 8 rows, TIED_EMBED_INIT_STD and RMS_NORM_EPS above 0"
        raise UserError(f"{path}: {needed}")
    for t in (tensors["train"], tensors["val"]):
        fits = t.dtype == np.uint16 and t.ndim == 1 and s.train_seq_len < len(t) < 1 << 28
        if not fits or t.max() >= s.vocab_size:
            raise UserError(f"{path}: its tokens do not fit its settings: {AGAIN}")
    for name, kind in TABLE_TYPES.items():
        column = tensors[f"table.{name}"]
        fits = column.dtype == kind and column.shape == (s.vocab_size,)
        if not fits or column.min() < 0 or column.max() > 1 << 16 or (kind == "int32" and not column.any()):
            raise UserError(f"{path}: its byte table does not fit its vocabulary: {AGAIN}")


def too_costly(s, steps):
    """Whether a problem would take too much memory or time."""
    if type(steps) is not int or not 0 < steps <= 10_000 or max(s.train_seq_len, s.eval_seq_len) > 4096:
        return True
    params = count_params(s) * len(layer_order(s)) // s.num_layers  # as often as they are applied, for their cost
    longest = max(s.train_seq_len, s.eval_seq_len)
    positions = max(s.micro_batch_tokens, 4 * longest)
    width = max(s.vocab_size, s.mlp_mult * s.model_dim, longest * s.num_heads)
    return params > 1 << 25 or steps * s.train_batch_tokens * params > 1 << 48 or positions * width > 1 << 30


def check_shown(path, settings, shown, tensors):
    """Every rung is there and every parameter in it, and nothing else. Raises UserError."""
    rungs = "initial weights", "gradients", "one step"
    missing = [rung for rung in RUNGS if not shown[rung]]
    missing += [f"{rung}/{name}" for rung in rungs for name in param_table(settings) if f"{rung}/{name}" not in tensors]
    known = *RUNGS, "train", "val"
    unknown = [name for name in tensors if name.partition("/")[0] not in known and not name.startswith("table.")]
    for what, names in (("lacks", missing), ("has something that is unknown here,", unknown)):
        if names:
            raise UserError(f"{path} {what} {', '.join(names)!a:.200}: {AGAIN}")


def fixture_digest(meta, tensors):
    """SHA-256 over the metadata and, in order of names, the tensors' names, dtypes, shapes and contents."""
    total = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + value.tobytes())
    return total.hexdigest()
