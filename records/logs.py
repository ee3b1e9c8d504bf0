"""Run logs as they are found: our own lines and those of the challenge's scripts and their descendants, among source
dumps, ANSI colours, warnings and the echoes of several ranks. loglines.py knows the lines; here they become runs."""
import codecs
import dataclasses
import functools
import hashlib
import io
import re

from common.settings import Settings
from records.loglines import BODY, HEADER, SETTINGS_BLOCK, parse, parse_setting
from records.prefixes import peeked, prefix_of

LOG_LIMIT = 32 << 20  # bytes: 300,000 lines; the longest published log has 130 kB
EARLY = 10  # steps, whose losses still are almost the same for every seed
RUNS_LIMIT = 64  # of one file, and of one record folder


@dataclasses.dataclass
class RunLog:
    """What a log says of one run; None or empty where it says nothing. Times are in milliseconds.

    name: the file's, with `#2` for the second run in it. scores: label without `_exact` -> (val_loss, val_bpb, eval ms
    or None), in order of appearance; problems: list[str], what no honest log shows."""
    name: str
    sha256: str = ""
    backend: str = ""
    device: str = ""
    versions: str = ""
    command: str = ""
    python: tuple | None = None  # (major, minor) that the script names, the newest
    dataset: str = ""
    manifest_sha256: str = ""
    status: str = ""
    partial: str = ""
    seed: int | None = None
    vocab_size: int | None = None  # of the tokenizer
    iterations: int | None = None
    cap_seconds: float | None = None
    code_bytes: int | None = None
    code_sha256: str = ""
    model_bytes: int | None = None
    model_sha256: str = ""
    total_bytes: int | None = None
    unlabelled_total: int | None = None  # bytes of a total without the name of its compressor
    val_tokens: int | None = None
    val_bytes: int | None = None
    evaluation_ms: float | None = None  # of the final evaluation of one of our runs
    memory_mib: int | None = None
    params: int | None = None
    batch_tokens: int | None = None
    world_size: int | None = None
    stop: tuple | None = None  # (step, ms)
    pre_quant: tuple | None = None  # (val_loss, val_bpb) before quantization
    settings: dict = dataclasses.field(default_factory=dict)  # those that differ from our trainers' defaults
    refused: dict = dataclasses.field(default_factory=dict)  # settings in the log -> why our trainers refuse them
    hyperparameters: dict = dataclasses.field(default_factory=dict)  # of any script: name -> text, as printed
    train: list = dataclasses.field(default_factory=list)  # (step, loss, ms)
    val: list = dataclasses.field(default_factory=list)  # (step, val_loss, val_bpb, ms or None)
    averages: list = dataclasses.field(default_factory=list)  # (step, ms, logged step_avg)
    scores: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)
    lines: list = dataclasses.field(default_factory=list)  # of loglines.Line, in order
    file: str = ""
    places: dict = dataclasses.field(default_factory=dict)  # (kind of line, step, label, name or None) -> "file:line"

    @property
    def last_step(self):
        """Optimizer steps made, or None."""
        steps = [row[0] for row in self.val + self.train]
        if self.stop:
            steps.append(self.stop[0])
        return max(steps, default=None)

    @property
    def train_ms(self):
        """Training time in milliseconds, or None."""
        times = [row[-1] for row in self.val + self.train if row[-1] is not None]
        if self.stop:
            times.append(self.stop[1])
        return max(times, default=None)

    @property
    def run_settings(self):
        """Settings of one of our runs: the defaults with what the log says was changed, without what is refused.
        VOCAB_SIZE is that of the tokenizer where it is not set."""
        known = {f.name for f in dataclasses.fields(Settings)} - self.refused.keys()
        settings = Settings(**{name: value for name, value in self.settings.items() if name in known})
        return settings if settings.vocab_size else dataclasses.replace(settings, vocab_size=self.vocab_size or 0)

    def score(self, label=None):
        """(val_loss, val_bpb) under a label, by default the last one printed; None where there is none."""
        if not self.scores:
            return None
        return self.scores.get(label or next(reversed(self.scores)), (None,))[:2]

    @functools.cached_property
    def late_losses(self):
        """dict (kind, step) -> loss, of all steps but the first EARLY."""
        rows = {("train", row[0]): row[1] for row in self.train} | {("val", row[0]): row[1] for row in self.val}
        return {place: loss for place, loss in rows.items() if place[1] > EARLY}

    @functools.cached_property
    def late_times(self):
        """dict step -> milliseconds of the training lines, of the same steps."""
        return {row[0]: row[2] for row in self.train if row[0] > EARLY and row[2] is not None}

    def where(self, kind, step=None):
        """`train.log:123`, the line of one kind; just the log's name where there is no such line.

        kind: as in loglines.py (train, val, score, pre_quant, model, total, code, seed, settings, stop, batch, ...).
        step: of a line with a step; the label of a score, the name of a hyperparameter. Without it: the last line."""
        place = self.places.get((kind, step))
        if not place and kind == "settings":  # one line holds all those of our runs
            place = self.places.get((kind, None))
        return place or self.name


def read_log(name, source):
    """RunLog of a log that may come from anyone; of several runs in it the last that has a score, else the last.
    source: bytes, or a binary file. Never raises for what is in it: what is wrong is in .problems."""
    logs = read_logs(name, source)
    return next((log for log in reversed(logs) if log.scores), logs[-1])


def read_logs(name, source):
    """list of the RunLogs in a log, at least one: `train.txt`, or `train.txt#1`, `train.txt#2` and so on."""
    stream = LogStream(source)
    runs = _split(list(_known_lines(stream)))
    logs = []
    for number, lines in enumerate(runs, 1):
        log = RunLog(f"{name}#{number}" if len(runs) > 1 else name, stream.sha256, problems=stream.problems, file=name)
        if len(runs) > 1:  # runs of one file are not copies of each other
            log.sha256 = hashlib.sha256("\n".join(line.text for line in lines).encode()).hexdigest()
        _take_lines(log, name, lines)
        logs.append(log)
    return logs


_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"\[?(?:rank|default)\s?\d{1,4}\]?:\s?")


class LogStream:
    """(number, line) of a log, read once from front to back, without colours, the name of the rank that printed it and
    what stands before every line (prefixes.py). A progress bar's returns make several lines of one number.

    source: bytes, or a binary file. When all has been read, .sha256 and .problems are those of the whole."""

    def __init__(self, source):
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source
        self._digest = hashlib.sha256()
        self._size, self._has_nul, self._not_utf8, self._is_utf16 = 0, False, None, False

    @property
    def sha256(self):
        return self._digest.hexdigest()

    @property
    def problems(self):
        if self._is_utf16:
            return ["is UTF-16, as PowerShell makes it of what it is given: save it as UTF-8"]
        problems = ["holds NUL bytes"] if self._has_nul else []
        return problems + ([f"is not UTF-8 at byte {self._not_utf8}"] if self._not_utf8 is not None else [])

    def __iter__(self):
        first, lines = peeked(self._lines())
        prefix = prefix_of([_NOISE.sub("", line) for line in first])
        for number, whole in enumerate(lines, 1):
            for line in whole.rstrip("\r").split("\r"):
                may_be_noisy = prefix or line[:1] in ("\x1b", "[", "r", "d")
                yield number, (_plain(line, prefix) if may_be_noisy else line).rstrip()

    def _lines(self):
        """Text without its newline."""
        for data in self._file:
            self._digest.update(data)
            if not self._size:
                self._is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            self._has_nul = self._has_nul or b"\0" in data
            try:
                line = data.decode()
            except UnicodeDecodeError as error:
                line = data.decode(errors="replace")
                if self._not_utf8 is None:
                    self._not_utf8 = self._size + error.start
            self._size += len(data)
            yield line.removesuffix("\n").removeprefix("\ufeff")  # a byte-order mark


def _plain(line, prefix):
    line = _NOISE.sub("", line)
    found = prefix and prefix.match(line)
    return _RANK.sub("", line[found.end():] if found else line, count=1)


def _known_lines(lines):
    """Those of known form, as loglines.Line. lines: (number, text)."""
    in_block = False
    for number, plain in lines:
        if plain == SETTINGS_BLOCK:
            in_block = True
            continue
        line = parse_setting(number, plain) if in_block else None
        in_block = bool(line)
        if line := line or parse(number, plain):
            yield line


def _split(lines):
    """list of lists of Line, one per run. A section goes on with the run before it where that was resumed, or where
    neither the seed nor the step says that training began anew: it may be an evaluation."""
    runs, last_step, seed = [], None, None
    for section in _sections(lines):
        steps = [int(line.values["step"]) for line in section if line.kind in ("train", "val")]
        named = next((line.values["seed"] for line in reversed(section) if "seed" in line.values), None)
        again = steps and last_step is not None and steps[0] <= last_step
        other = None not in (named, seed) and named != seed
        resumed = any(line.kind == "resume" for line in section)
        if runs and (resumed or not (again or other) or len(runs) == RUNS_LIMIT):
            runs[-1] += section
        else:
            runs.append(section)
            last_step, seed = None, None
        last_step = steps[-1] if steps else last_step
        seed = named or seed
    return runs or [[]]


def _sections(lines):
    """Lists of Line: a header (settings, seed, data) with what follows it, up to the next header."""
    section, in_body = [], False
    for line in lines:
        if in_body and line.kind in HEADER:
            yield section
            section, in_body = [], False
        section.append(line)
        in_body = in_body or line.kind in BODY
    yield section


def _take_lines(log, file, lines):
    """Fills a RunLog from its lines."""
    log.lines = lines
    for line in lines:
        line.take(log, line.values, line.text)
        place = f"{file}:{line.number}"
        log.places[line.kind, None] = place
        if line.detail is not None:
            log.places[line.kind, line.detail] = place
    if log.total_bytes is None:
        log.total_bytes = log.unlabelled_total
    if log.pre_quant is None and log.val and log.val[-1][0] == log.last_step:
        log.pre_quant = log.val[-1][1:3]
