"""A record folder as evidence from a stranger: what is in it, read with bounds, and its submission.json in one spelling. Nothing is run."""
import dataclasses
import json
import math
import os
import stat
from pathlib import Path

from records.challenge import NUMBER_FIELDS, SPELLINGS, TEXT_FIELDS
from records.logs import LOG_LIMIT, read_log

ENTRIES_LIMIT, DEPTH_LIMIT, FOLDER_LIMIT = 1000, 6, 256 << 20
JSON_LIMIT, TEXT_LIMIT, CODE_LIMIT = 1 << 20, 1 << 20, 2 << 20
LOGS_LIMIT = 32


class Refused(Exception):
    """A file that is not read. The message is what the file is, to come after its name."""


class Decimal(float):
    """A JSON number that remembers how it was written, hence how many digits were meant."""
    text = ""

    @property
    def half_unit(self):
        """Half of one unit of the last digit that was written."""
        mantissa, _, exponent = self.text.lower().partition("e")
        return 0.5 * 10.0 ** min(300, int(exponent[:6] or 0) - len(mantissa.partition(".")[2]))


def read_bounded(path, limit):
    """Bytes of a regular file of at most `limit` bytes. Raises Refused. Pipes and devices are not opened for reading."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise Refused("is no plain file")
            if info.st_size > limit:
                raise Refused(f"has {info.st_size:,} bytes, more than the {limit:,} that are read")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise Refused("is missing") from None
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > limit:
        raise Refused(f"grew past {limit:,} bytes while it was read")
    return data


def load_json(data):
    """The object in bytes of strict JSON: no duplicate keys, no NaN, no infinite number, no NUL or lone surrogate in a string.
    Numbers with a fraction become Decimal. Raises ValueError."""
    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            seen = set()
            name = next(n for n, _ in pairs if n in seen or seen.add(n))
            raise ValueError(f"has the key {name[:60]!r} twice")
        return found

    def number(text):
        value = Decimal(text)
        value.text = text
        if not math.isfinite(value):
            raise ValueError(f"holds {text[:40]}, which is no finite number")
        return value

    def no_constant(text):
        raise ValueError(f"holds {text}, which is no JSON")

    def walk(value):
        if isinstance(value, str):
            if any(0xD800 <= ord(c) < 0xE000 or (c < " " and c not in "\t\n\r") for c in value):
                raise ValueError("holds a string with a control character or half of a surrogate pair")
        elif isinstance(value, dict | list):
            for item in [*value, *value.values()] if isinstance(value, dict) else value:
                walk(item)

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_float=number, parse_constant=no_constant)
        walk(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


@dataclasses.dataclass
class Folder:
    """A record folder. files: relative name -> bytes on disk, of plain files that lie inside; problems: (what, where) of those that are
    not; fields: submission.json under the names that we write; spelled: (their name, ours) where those differ; invalid: (what, expected)
    of fields; logs: the main log first."""
    path: Path
    track: str
    files: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)
    raw: dict = dataclasses.field(default_factory=dict)
    json_error: str = ""
    fields: dict = dataclasses.field(default_factory=dict)
    spelled: list = dataclasses.field(default_factory=list)
    invalid: list = dataclasses.field(default_factory=list)
    logs: list = dataclasses.field(default_factory=list)
    log_errors: list = dataclasses.field(default_factory=list)  # (what, log name)

    @property
    def name(self):
        return self.path.name

    def read(self, name, limit):
        """Bytes of one of .files. Raises Refused."""
        if name not in self.files:
            raise Refused("is missing")
        return read_bounded(self.path / name, limit)

    def text(self, name):
        """Text of one of .files, "" where it cannot be read."""
        try:
            return self.read(name, TEXT_LIMIT).decode()
        except (Refused, UnicodeDecodeError):
            return ""

    @property
    def score_label(self):
        """The last score that every log prints, or None."""
        if not self.logs:
            return None
        return next((label for label in reversed(self.logs[0].scores) if all(label in log.scores for log in self.logs)), None)

    def seed_logs(self):
        """One log per run: of logs with equal bytes only the first."""
        return list({log.sha256: log for log in reversed(self.logs)}.values())[::-1]

    def seed_scores(self):
        """list of (val_loss, val_bpb), one per run."""
        label = self.score_label
        return [log.score(label) for log in self.seed_logs()] if label else []


def open_folder(path, with_logs=True):
    """Folder of a path. Whatever is in it, this returns: what is wrong is written down for the checks to report."""
    path = Path(path).resolve()
    folder = Folder(path, path.parent.name)
    _list_files(folder)
    try:
        folder.raw = load_json(folder.read("submission.json", JSON_LIMIT))
    except (Refused, ValueError) as error:
        folder.json_error = str(error)
    take_fields(folder)
    if not with_logs:
        return folder
    names = sorted((n for n in folder.files if "/" not in n and n.endswith((".log", ".log.txt"))), key=lambda n: (n != "train.log", n))
    for name in names[:LOGS_LIMIT]:
        try:
            folder.logs.append(read_log(name, folder.read(name, LOG_LIMIT)))
        except Refused as error:
            folder.log_errors.append((str(error), name))
    if len(names) > LOGS_LIMIT:
        folder.log_errors.append((f"are {len(names)} logs; {LOGS_LIMIT} are read", "."))
    return folder


def _list_files(folder):
    root, pending, count, total = str(folder.path), [("", 0)], 0, 0
    while pending:
        inside, depth = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, inside)), key=lambda e: e.name)
        except OSError as error:
            folder.problems.append((f"cannot be listed: {error.strerror}", inside or "."))
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            shown = name.encode(errors="replace").decode()
            count += 1
            if count > ENTRIES_LIMIT:
                folder.problems.append((f"more than {ENTRIES_LIMIT} files and folders", "."))
                return
            if shown != name or any(c < " " for c in name):
                folder.problems.append(("a name that is not plain text", ascii(shown)))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                folder.problems.append(("a symbolic link to nothing", name))
            elif entry.is_symlink() and not os.path.realpath(entry.path).startswith(root + os.sep):
                folder.problems.append(("a symbolic link that leaves the folder", name))
            elif entry.is_symlink() and entry.is_dir():
                folder.problems.append(("a symbolic link to a folder", name))
            elif entry.is_dir():
                if depth == DEPTH_LIMIT:
                    folder.problems.append((f"folders more than {DEPTH_LIMIT} deep", name))
                else:
                    pending.append((name, depth + 1))
            elif entry.is_file():
                folder.files[name] = size = entry.stat().st_size
                total += size
            else:
                folder.problems.append(("neither file nor folder", name))
    if total > FOLDER_LIMIT:
        folder.problems.append((f"{total:,} bytes in all, more than {FOLDER_LIMIT:,}", "."))


def take_fields(folder):
    """Fills .fields, .spelled and .invalid from .raw."""
    for name, spellings in SPELLINGS.items():
        found = next((s for s in spellings if s in folder.raw), None)
        if found is None:
            continue
        value = folder.raw[found]
        if found != name:
            folder.spelled.append((found, name))
        if name in TEXT_FIELDS:
            if not isinstance(value, str) or not value.strip():
                folder.invalid.append((f"{found} = {_short(value)}", "text"))
            elif len(value) > TEXT_FIELDS[name]:
                folder.invalid.append((f"{found} has {len(value)} characters", f"at most {TEXT_FIELDS[name]}"))
            else:
                folder.fields[name] = value
            continue
        low, high = NUMBER_FIELDS[name]
        whole = isinstance(low, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            folder.invalid.append((f"{found} = {_short(value)}", "a whole number" if whole else "a number"))
        elif not low <= value <= high:
            folder.invalid.append((f"{found} = {_short(value)}", f"{low:,} to {high:,}"))
        else:
            folder.fields[name] = value


def _short(value):
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = "a value that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "..."


def data_of(folder, log=None):
    """Name of the data set that a log names (by default the first that does), else submission.json; "" where none does."""
    logs = [log] if log else folder.logs
    found = next((log.dataset for log in logs if log.dataset), "") or folder.raw.get("dataset")
    return found if isinstance(found, str) else ""


def on_fineweb(folder, log=None):
    return "fineweb" in data_of(folder, log).lower()


def declared_seeds(folder):
    """set of the seeds that submission.json names, in whatever place; None where it names none."""
    found = folder.raw.get("seeds", folder.raw.get("seed", folder.raw.get("seed_results")))
    found = list(found) if isinstance(found, dict | list) else [found]
    seeds = {int(s) for s in found if isinstance(s, int) or (isinstance(s, str) and s.isdecimal() and len(s) < 19)}
    return seeds or None

