"""Run logs as they are found: our own lines and those of the challenge's scripts and their descendants, among source
dumps, ANSI colours, warnings and the echoes of several ranks. A line counts only where all of it has a known form."""
import dataclasses
import hashlib
import json
import math
import re

from common.readlog import parse_line
from common.runlog import LOG_LINES
from common.settings import Settings, parse_setting

LOG_LIMIT = 4 << 20  # bytes; the longest published log has 130 kB
LINE_LIMIT = 20_000


@dataclasses.dataclass
class RunLog:
    """What one log says; None or empty where it says nothing. Times are in milliseconds. scores: label without `_exact`
    -> (val_loss, val_bpb, eval ms or None), in order of appearance; problems: list[str], what no honest log shows."""
    name: str
    sha256: str = ""
    backend: str = ""
    device: str = ""
    versions: str = ""
    command: str = ""
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
    train: list = dataclasses.field(default_factory=list)  # (step, loss, ms)
    val: list = dataclasses.field(default_factory=list)  # (step, val_loss, val_bpb, ms or None)
    averages: list = dataclasses.field(default_factory=list)  # (step, ms, logged step_avg)
    scores: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)

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


def read_log(name, data):
    """RunLog of bytes, which may come from anyone. Never raises: what is wrong is in .problems."""
    log = RunLog(name, hashlib.sha256(data).hexdigest())
    in_settings = False
    for line in _plain_lines(_decoded(log, data)):
        if line == "Hyperparameters:":
            in_settings = True
            continue
        found = _SETTING.fullmatch(line) if in_settings else None
        in_settings = bool(found)
        if found:
            _take_hyperparameter(log, found[1], found[2] or "")
        else:
            _take_line(log, line)
    if log.total_bytes is None:
        log.total_bytes = log.unlabelled_total
    if log.pre_quant is None and log.val and log.val[-1][0] == log.last_step:
        log.pre_quant = log.val[-1][1:3]
    return log


def _take_line(log, line):
    if len(line) > LINE_LIMIT or not _STARTS.match(line):
        return  # most lines of a log are source code
    for pattern, take in _PATTERNS:
        if found := pattern.fullmatch(line):
            take(log, found.groupdict(), line)
            return
    kind, values = parse_line(line) or ("", {})
    if kind in _OWN_LINES:
        _OWN_LINES[kind](log, values)


def _decoded(log, data):
    if b"\0" in data:
        log.problems.append("holds NUL bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        log.problems.append(f"is not UTF-8 at byte {error.start}")
        return data.decode(errors="replace")


_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"\[?(?:rank|default)\s?\d{1,4}\]?:\s?")


def _plain_lines(text):
    """Lines without colours and the name of the rank that printed them."""
    for line in re.split(r"[\r\n]+", text):
        may_be_noisy = line[:1] in ("\x1b", "[", "r", "d")
        plain = _RANK.sub("", _NOISE.sub("", line), count=1) if may_be_noisy else line
        yield plain.rstrip()


_SETTING = re.compile(r"  (\w{1,60}):(?: (.{0,400}))?")  # under the heading "Hyperparameters:"


def _take_hyperparameter(log, name, value):
    if name == "seed" and value.isdecimal():
        log.seed = int(value[:18])
    elif name == "max_wallclock_seconds" and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value):
        log.cap_seconds = float(value)
    elif name == "datasets_dir":
        log.dataset = _last_part(value)
    elif name == "world_size" and value.isdecimal():
        log.world_size = int(value[:6])


def _last_part(path):
    return path.rstrip("/").rsplit("/", 1)[-1]


# Lines that the challenge's scripts and their descendants print too. A handler takes the log, the named groups of the
# line's pattern, and the line.

def _take_train(log, f, line):
    step, ms = int(f["step"]), _milliseconds(f)
    _append(log, log.train, (step, float(f["loss"]), ms), f["of"])
    _take_average(log, step, ms, line)


def _take_val(log, f, line):
    step, ms = int(f["step"]), None
    if f["time"]:
        ms = _milliseconds(f)
    _append(log, log.val, (step, float(f["loss"]), float(f["bpb"]), ms), f["of"])
    if f["time"]:
        _take_average(log, step, ms, line)
    log.partial = log.partial or _partial(f["rest"])


def _take_stop(log, f, line):
    log.stop = int(f["step"]), _milliseconds(f)


def _take_score(log, f, line):
    """An `_exact` line gives the digits, the line without it the time of the evaluation, in either order."""
    label = f["label"].removesuffix("_exact")
    known = log.scores.pop(label, None)  # so that it becomes the last
    if known and label == f["label"]:
        loss, bpb = known[:2]
    else:
        loss, bpb = float(f["loss"]), float(f["bpb"])
    eval_ms = known[2] if known else None
    if found := re.search(r"eval_time:(\d{1,12}(?:\.\d+)?)ms", f["rest"]):
        eval_ms = float(found[1])
    log.scores[label] = loss, bpb, eval_ms
    log.partial = log.partial or _partial(f["rest"])


def _take_pre_quant(log, f, line):
    log.pre_quant = float(f["loss"]), float(f["bpb"])


def _take_model(log, f, line):
    log.model_bytes = int(f["bytes"])
    own = parse_line(line)
    log.model_sha256 = own[1]["sha256"] if own else ""


def _take_total(log, f, line):
    if f["label"]:
        log.total_bytes = int(f["bytes"])
    else:
        log.unlabelled_total = int(f["bytes"])


def _take_batch(log, f, line):
    _take_numbers(log, f, line)
    if found := re.search(r"max_wallclock_seconds:(\d{1,9}(?:\.\d{1,6})?)", line):
        log.cap_seconds = float(found[1])
    if own := parse_line(line):
        log.world_size = own[1]["world_size"]


def _take_numbers(log, f, line):
    """Groups named after fields of the log."""
    for name, value in f.items():
        setattr(log, name, int(value))


def _take_words(log, f, line):
    for name, value in f.items():
        setattr(log, name, value)


def _milliseconds(f):
    """Minutes are rounded to a tenth: the earliest time that they can mean."""
    number = float(f["time"])
    if f["unit"] == "m":
        return max(0.0, 6e4 * (number - 0.05))
    return number * 1e3 if f["unit"] == "s" else number


def _partial(rest):
    found = re.search(r"partial:(\d{1,15}/\d{1,15})", rest)
    return found[1] if found else ""


def _append(log, rows, row, of):
    if rows and row == rows[-1]:
        return  # another rank's echo
    if rows and _is_back(row, rows[-1]) and not any("order" in problem for problem in log.problems):
        log.problems.append(f"steps or times are out of order at step {row[0]}, after {rows[-1][0]}")
    log.iterations = log.iterations or int(of)
    rows.append(row)


def _is_back(row, before):
    """Whether a row repeats a step or goes back in steps or time. The first column is the step, the last the time."""
    times_known = row[-1] is not None and before[-1] is not None
    return row[0] <= before[0] or (times_known and row[-1] < before[-1])


def _take_average(log, step, ms, line):
    if found := re.search(r"step_avg:(\d{1,12}(?:\.\d{1,6})?)ms", line):
        log.averages.append((step, ms, float(found[1])))


_NUM = r"(?:-?\d{1,15}(?:\.\d{1,15})?|nan|-?inf)"
_TIME = rf"train_time: ?(?P<time>{_NUM})(?P<unit>ms|s|m)"
_PAIR = rf"val_loss: ?(?P<loss>{_NUM}) val_bpb: ?(?P<bpb>{_NUM})"
_AT = r"(?P<step>\d{1,9})/(?P<of>\d{1,9})"
_STEP = r"(?:step:)?(?=\d{1,9}/\d)"
_BYTES = r"(?P<bytes>\d{1,12}) bytes"
_REST = r"(?P<rest>(?: .*)?)"
_COMMON_LINES = [  # how a line starts, how it goes on to its end, what takes it
    (_STEP, rf"{_AT} train_loss: ?(?P<loss>{_NUM}) {_TIME}{_REST}", _take_train),
    (_STEP, rf"{_AT} {_PAIR}(?: {_TIME})?{_REST}", _take_val),
    (r"stopping_early:", rf" wallclock_cap {_TIME} step: ?{_AT}", _take_stop),
    (r"(?=final_[\w+-]|quantized|legal_ttt)", rf"(?P<label>[\w+-]+) {_PAIR}{_REST}", _take_score),
    (r"(?:DIAGNOSTIC|pre-quantization) ", rf"\S+ {_PAIR}{_REST}", _take_pre_quant),
    (r"Serialized model ", rf"(?P<label>[\w+-]+): {_BYTES}{_REST}", _take_model),
    (r"Total submission size", rf"(?P<label>(?: [\w+-]+)?): {_BYTES}{_REST}", _take_total),
    (r"train_batch_tokens:", r"(?P<batch_tokens>\d{1,12}) .*", _take_batch),
    (r"Code size", r"(?: [\w+-]+)?: (?P<code_bytes>\d{1,12}) bytes", _take_numbers),
    (r"seed:", r"(?P<seed>\d{1,18})", _take_numbers),
    (r"val_(?=loader:|tokens:)", r"(?:loader:.* )?tokens: ?(?P<val_tokens>\d{1,12})", _take_numbers),
    (r"peak memory allocated: ", r"(?P<memory_mib>\d{1,9}) MiB(?: .*)?", _take_numbers),
    (r"model_params:", r"(?P<params>\d{1,12})(?: .*)?", _take_numbers),
    (r"world_size:", r"(?P<world_size>\d{1,6})(?: .*)?", _take_numbers),
    (r"train_loader:dataset:", r"(?P<dataset>\S+).*", _take_words),
    (r"status=", r"(?P<status>\S+) reason=.*", _take_words),  # not in _OWN_LINES: older runs give no hint
]


# Lines that only our trainers print, as common/runlog.py parses them.

def _take_run(log, values):
    log.backend, log.device = values["backend"], values["device"]


def _take_versions(log, values):
    log.versions = values["versions"]


def _take_command(log, values):
    log.command = values["command"]


def _take_settings(log, values):
    log.settings = {}
    log.refused = {}
    try:
        log.settings = _typed_settings(json.loads(values["settings"]))
    except (AttributeError, ValueError, TypeError, RecursionError):
        log.problems.append("its line of settings cannot be read")
        return
    for name, value in log.settings.items():
        field = Settings.__dataclass_fields__.get(name)
        try:
            if field and field.type is not str and isinstance(value, str):  # text with a grammar
                parse_setting(field, value)
        except ValueError as error:
            log.refused[name] = str(error)
    settings = log.run_settings
    log.seed, log.cap_seconds = int(settings.seed), float(settings.max_wallclock_seconds)


def _typed_settings(settings):
    """The same dict, whose known names have values of their type. Raises AttributeError, TypeError or ValueError."""
    for name, value in settings.items():
        default = getattr(Settings, name, None)
        whole_number = type(default) is float and type(value) is int
        if default is not None and type(value) is not type(default) and not whole_number:
            raise TypeError(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(name)
    return settings


def _take_data(log, values):
    log.dataset, log.manifest_sha256 = _last_part(values["path"]), values["manifest"]


def _take_tokenizer(log, values):
    log.vocab_size = values["vocab_size"]


def _take_code(log, values):
    log.code_sha256 = values["sha256"]


def _take_resume(log, values):
    """What was made after the checkpoint is made again."""
    log.train = [row for row in log.train if row[0] <= values["step"]]
    log.val = [row for row in log.val if row[0] <= values["step"]]
    log.averages = [row for row in log.averages if row[0] <= values["step"]]
    log.stop = None


def _take_evaluation(log, values):
    log.evaluation_ms = 1e3 * values["seconds"]


def _take_scored(log, values):
    log.val_tokens, log.val_bytes = values["tokens"], values["bytes"]
    log.partial = log.partial or _partial(values["partial"])


_OWN_LINES = {
    "run": _take_run,
    "versions": _take_versions,
    "command": _take_command,
    "settings": _take_settings,
    "data": _take_data,
    "tokenizer": _take_tokenizer,
    "code": _take_code,
    "resume": _take_resume,
    "evaluation": _take_evaluation,
    "scored": _take_scored,
}

_PATTERNS = [(re.compile(start + rest), take) for start, rest, take in _COMMON_LINES]
_STARTS = re.compile("|".join([start for start, _, _ in _COMMON_LINES] +
                              [re.escape(LOG_LINES[kind].partition("{")[0]) for kind in _OWN_LINES]))
