"""A record folder as evidence from a stranger: its files, read with bounds, and its submission.json under our names.
Nothing is run."""
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import weakref
from pathlib import Path

from records.kinds import HEAD, kind_of
from records.line_ends import changed_line_ends, restore
from records.litter import is_litter
from records.logs import LOG_LIMIT, RUNS_LIMIT, LogStream, read_logs
from records.rules import NUMBER_FIELDS, SPELLINGS, TEXT_FIELDS
from records.runs import common_label, runs_of
from records.strict_json import load_json

ENTRIES_LIMIT, DEPTH_LIMIT, FOLDER_LIMIT = 1000, 6, 256 << 20
JSON_LIMIT, TEXT_LIMIT, CODE_LIMIT = 1 << 20, 1 << 20, 2 << 20
LOGS_LIMIT, LOGS_BYTES = 32, 128 << 20  # of one folder
PER_SEED = ("seed_results", "seeds", "per_seed", "per_seed_results")  # what submission.json calls them
# what a run prints; a file that may be a log is one where this is in it
_LOG_WORDS = re.compile(rb"(train_loss|val_loss|val_bpb)[:=]")
_LOG_NAMES = re.compile(r".*\.(log|txt|out|err)|(.*/)?logs/.*|[^/.]+")
_SURE_LOG_NAMES = re.compile(r"train[^/]*\.(log|log\.txt)")


class Refused(Exception):
    """A file that is not read. The message continues the file's name, as in `is missing`."""


@contextlib.contextmanager
def open_bounded(path, limit):
    """A regular file of at most `limit` bytes, open for reading. Never waits for a pipe or a device. Raises Refused."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise Refused("is not a regular file")
            if info.st_size > limit:
                raise Refused(f"has {info.st_size:,} bytes, more than the limit of {limit:,}")
            yield file
    except FileNotFoundError:
        raise Refused("is missing") from None
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_bounded(path, limit):
    """Bytes of such a file. Raises Refused."""
    with open_bounded(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused(f"grew past {limit:,} bytes while it was read")
    return data


@dataclasses.dataclass
class Folder:
    """A record folder.

    files: relative name -> bytes on disk, of plain files inside it; litter: names of what litter.py knows, of which
    nothing is read; problems: (what, where) of anything else.
    raw: submission.json; fields: its valid fields under our names; spelled: (their name, ours) where those differ;
    invalid: (what, expected) of the other fields.
    logs: list of RunLog, those of the record's runs, the main log first; other_logs: (RunLog, status, what it is) of
    the others, as runs.py sorts them; log_errors: (what, log name) of those that are not read.
    root: where the bytes are read: path, or a copy with the line ends of the run; line_ends: then (names of those
    files, what their line ends are in path)."""
    path: Path
    track: str
    files: dict = dataclasses.field(default_factory=dict)
    litter: list = dataclasses.field(default_factory=list)
    problems: list = dataclasses.field(default_factory=list)
    raw: dict = dataclasses.field(default_factory=dict)
    json_error: str = ""
    fields: dict = dataclasses.field(default_factory=dict)
    spelled: list = dataclasses.field(default_factory=list)
    invalid: list = dataclasses.field(default_factory=list)
    logs: list = dataclasses.field(default_factory=list)
    other_logs: list = dataclasses.field(default_factory=list)
    log_errors: list = dataclasses.field(default_factory=list)
    root: Path | None = None
    line_ends: tuple = ()

    def __post_init__(self):
        self.root = self.root or self.path

    @property
    def name(self):
        return self.path.name

    def read(self, name, limit):
        """Bytes of one of .files. Raises Refused."""
        if name not in self.files:
            raise Refused("is missing")
        return read_bounded(self.root / name, limit)

    def log_lines(self, name):
        """(number, line) of a log, as logs.LogStream gives them. Raises Refused."""
        with open_bounded(self.root / name, LOG_LIMIT) as file:
            yield from LogStream(file)

    def text(self, name):
        """Text of one of .files; empty where it cannot be read."""
        try:
            return self.read(name, TEXT_LIMIT).decode()
        except (Refused, UnicodeDecodeError):
            return ""

    @functools.cached_property
    def kinds(self):
        """dict name -> log, or the kind that kinds.py gives."""
        logs = {log.file for log in self.all_logs()} | {name for _, name in self.log_errors}
        return {name: "log" if name in logs else kind_of(name, self._head(name)) for name in self.files}

    def _head(self, name):
        try:
            with open(os.open(self.root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return file.read(HEAD)
        except OSError:
            return b""

    @property
    def score_label(self):
        """The last score that every log prints, of those that are claimed where one is; or None."""
        return common_label(self.logs, self.fields.get("val_bpb"))

    def all_logs(self):
        """Those of the record's runs and the others."""
        return self.logs + [log for log, _, _ in self.other_logs]

    def seed_logs(self):
        """One log per run: of logs with equal bytes only the first."""
        first = {}
        for log in self.logs:
            first.setdefault(log.sha256, log)
        return list(first.values())

    def seed_scores(self):
        """list of (val_loss, val_bpb), one per run."""
        label = self.score_label
        return [log.score(label) for log in self.seed_logs()] if label else []

    def stated_bytes(self):
        """(total, model, code) of submission.json, else of the main log; None where neither says it."""
        log = self.logs[0] if self.logs else None
        names = {"bytes_total": "total_bytes", "bytes_model_int8_zlib": "model_bytes", "bytes_code": "code_bytes"}
        return tuple(self.fields.get(claim, log and getattr(log, logged)) for claim, logged in names.items())

    def log_of_model(self, data):
        """The log that names the SHA-256 of a model file's bytes, or None."""
        digest = hashlib.sha256(data).hexdigest()
        return next((log for log in self.logs if log.model_sha256 == digest), None)


def open_folder(path, with_logs=True):
    """Folder of a path. Returns whatever is in it: what is wrong is kept for the checks to report."""
    path = Path(path).resolve()
    folder = Folder(path, path.parent.name)
    _list_files(folder)
    try:
        folder.raw = load_json(folder.read("submission.json", JSON_LIMIT))
    except (Refused, ValueError) as error:
        folder.json_error = str(error)
    take_fields(folder)
    if with_logs:
        _read_logs(folder)
        _restore_line_ends(folder)
    return folder


def _restore_line_ends(folder):
    """Fills .root and .line_ends where the line ends were changed after the run."""
    code = {}
    for name in folder.files:
        if name == "submission.json" or name.endswith(".py"):
            with contextlib.suppress(Refused):
                code[name] = folder.read(name, CODE_LIMIT)
    now = changed_line_ends(code, f"{folder.track}/{folder.name}", folder.logs, folder.fields.get("bytes_code"))
    if now:
        try:
            folder.root, names = restore(folder.path, folder.files, now)
        except OSError as error:  # no place for a copy
            folder.problems.append((f"line ends were changed to {now}, and no copy can be made: {error}", "."))
            return
        weakref.finalize(folder, shutil.rmtree, folder.root, ignore_errors=True)
        folder.line_ends = names, now
        folder.files = {name: (folder.root / name).stat().st_size for name in folder.files}
        _read_logs(folder)


def _read_logs(folder):
    """Fills .logs, .other_logs and .log_errors. Whether a file is a log is decided by what is in it."""
    folder.log_errors.clear()
    names = [name for name in folder.files if _LOG_NAMES.fullmatch(name)]
    names.sort(key=lambda name: (name != "train.log", not _SURE_LOG_NAMES.fullmatch(name), name))
    found, count, left = [], 0, LOGS_BYTES
    for name in names:
        sure = bool(_SURE_LOG_NAMES.fullmatch(name))
        if folder.files[name] > LOG_LIMIT and not sure and not name.endswith(".log"):
            continue  # of another kind, and accounted for as such
        try:
            with open_bounded(folder.root / name, LOG_LIMIT) as file:
                if not sure and not any(map(_LOG_WORDS.search, file)):
                    continue
                left -= folder.files[name]
                if left < 0:
                    raise Refused(f"is beyond the limit of {LOGS_BYTES:,} bytes for all logs")
                file.seek(0)
                logs = [log for log in read_logs(name, file) if sure or log.train or log.val or log.scores]
        except Refused as error:
            folder.log_errors.append((str(error), name))
            continue
        count += bool(logs)
        if count > LOGS_LIMIT or len(found) + len(logs) > RUNS_LIMIT:
            what = f"more than {LOGS_LIMIT} logs or {RUNS_LIMIT} runs: the others are not read"
            folder.log_errors.append((what, "."))
            break
        found += logs
    folder.logs, folder.other_logs = runs_of(found, folder.fields.get("val_bpb"), declared_seeds(folder) or set())


def _list_files(folder):
    """Fills .files, .litter and .problems."""
    pending = [("", 0)]
    count = 0
    while pending:
        inside, depth = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(folder.path, inside)), key=lambda e: e.name)
        except OSError as error:
            folder.problems.append((f"cannot be listed: {error.strerror}", inside or "."))
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            count += 1
            if count > ENTRIES_LIMIT:
                folder.problems.append((f"more than {ENTRIES_LIMIT} files and folders", "."))
                return
            if is_litter(entry.name):
                folder.litter.append(name)
            elif problem := _problem_of(entry, name, folder.path, depth):
                folder.problems.append((problem, ascii(name) if _is_odd(name) else name))
            elif entry.is_dir():
                pending.append((name, depth + 1))
            else:
                folder.files[name] = entry.stat().st_size
    total = sum(folder.files.values())
    if total > FOLDER_LIMIT:
        folder.problems.append((f"{total:,} bytes in all, more than {FOLDER_LIMIT:,}", "."))


def _problem_of(entry, name, root, depth):
    """Why an entry of a record folder is neither read nor entered; empty for a plain file or folder."""
    if _is_odd(name):
        return "a name that is not plain text"
    if entry.is_symlink():
        if not os.path.exists(entry.path):
            return "a symbolic link to nothing"
        if not os.path.realpath(entry.path).startswith(f"{root}{os.sep}"):
            return "a symbolic link that leaves the folder"
        if entry.is_dir():
            return "a symbolic link to a folder"
    if entry.is_dir():
        return f"folders more than {DEPTH_LIMIT} deep" if depth == DEPTH_LIMIT else ""
    return "" if entry.is_file() else "neither file nor folder"


def _is_odd(name):
    """Whether a file name holds bytes that are not UTF-8, or control characters."""
    return name.encode(errors="replace").decode() != name or any(c < " " for c in name)


def take_fields(folder):
    """Fills .fields, .spelled and .invalid from .raw."""
    for name, spellings in SPELLINGS.items():
        found = next((s for s in spellings if s in folder.raw), None)
        if found is None:
            continue
        if found != name:
            folder.spelled.append((found, name))
        value = folder.raw[found]
        wrong = _wrong_text(name, found, value) if name in TEXT_FIELDS else _wrong_number(name, found, value)
        if wrong:
            folder.invalid.append(wrong)
        elif isinstance(NUMBER_FIELDS.get(name, ("",))[0], int):
            folder.fields[name] = int(value)  # 200.0 steps are 200
        else:
            folder.fields[name] = value


def _wrong_text(name, found, value):
    """(what, expected), or None where the value is as it must be."""
    limit = TEXT_FIELDS[name]
    if not isinstance(value, str) or not value.strip():
        return f"{found} = {_short(value)}", "text"
    if len(value) > limit:
        return f"{found} has {len(value)} characters", f"at most {limit}"
    return None


def _wrong_number(name, found, value):
    """(what, expected), or None where the value is as it must be."""
    low, high = NUMBER_FIELDS[name]
    whole = isinstance(low, int)
    fraction = isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and fraction):
        return f"{found} = {_short(value)}", "a whole number" if whole else "a number"
    if not low <= value <= high:
        return f"{found} = {_short(value)}", f"{low:,} to {high:,}"
    return None


def _short(value):
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = "a value that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "..."


def data_of(folder, log=None):
    """Name of the data set in a log, by default the first that names one, else in submission.json; else empty."""
    logs = [log] if log else folder.logs
    found = next((log.dataset for log in logs if log.dataset), "") or folder.raw.get("dataset")
    return found if isinstance(found, str) else ""


def on_fineweb(folder, log=None):
    return "fineweb" in data_of(folder, log).lower()


def declared_seeds(folder):
    """set of the seeds that submission.json names, wherever it does; None where it names none."""
    found = folder.raw.get("seeds", folder.raw.get("seed"))
    found = found if isinstance(found, list) else [found]
    seeds = {seed for seed in map(_seed, found) if seed is not None}
    return seeds | claims_per_seed(folder).keys() or None


def _seed(value):
    """A seed as submission.json writes it: 42, "42" or "seed_42"; else None."""
    if isinstance(value, str):
        text = re.fullmatch(r"(?:seed[_ -]?)?(\d{1,18})", value)
        return int(text[1]) if text else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def claims_per_seed(folder):
    """dict seed -> dict of what submission.json says of that run, under its names: from seed_results and the like, by
    seed or as a list with the seed in each, and from lists beside `seeds` (seed_scores is a list of val_bpb)."""
    found = {}
    for name in PER_SEED:
        for seed, claims in _by_seed(folder.raw.get(name)):
            if seed is not None:
                found[seed] = dict(claims) if isinstance(claims, dict) else {"val_bpb": claims}
    seeds = folder.raw.get("seeds")
    for name, values in folder.raw.items() if isinstance(seeds, list) else ():
        if name != "seeds" and isinstance(values, list) and len(values) == len(seeds):
            for seed, value in zip(map(_seed, seeds), values):
                if seed is not None:
                    found.setdefault(seed, {}).setdefault("val_bpb" if name == "seed_scores" else name, value)
    return found


def _by_seed(results):
    """Pairs (seed or None, what is said of it) of an object whose names are seeds or a list of objects that name it."""
    if isinstance(results, dict):
        return [(_seed(name), claims) for name, claims in results.items()]
    if isinstance(results, list):
        return [(_seed(claims.get("seed")), claims) for claims in results if isinstance(claims, dict)]
    return []
