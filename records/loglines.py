"""The lines of run logs: how each kind looks, and what it says of a run. A line counts only where all of it has a known
form."""
import json
import math
import re
from typing import NamedTuple

from common.readlog import parse_line
from common.runlog import LOG_LINES
from common.settings import Settings
from common.settings import parse_setting as parse_own_setting

LINE_LIMIT = 20_000
SETTINGS_BLOCK = "Hyperparameters:"  # its lines have the kind "settings"
HEADER = {"run", "settings", "seed", "batch", "data", "params"}  # kinds that a script prints before it trains
BODY = {"train", "val", "stop", "score", "pre_quant"}


class Line(NamedTuple):
    """One line of known form. values: the text of its parts; take: function of (RunLog, values, text)."""
    number: int
    kind: str
    values: dict
    text: str
    take: object

    @property
    def detail(self):
        """The step of a line of training, the label of a score, the name of a hyperparameter; else None."""
        if self.kind in ("train", "val"):
            return int(self.values["step"])
        if self.kind == "score":
            return label_of(self.values)
        return self.values.get("name")


def parse(number, text):
    """Line, or None for a line of no known form. Most lines of a log are source code."""
    if len(text) > LINE_LIMIT or not _STARTS.match(text):
        return None
    for kind, pattern, take in _PATTERNS:
        if found := pattern.fullmatch(text):
            return Line(number, kind, found.groupdict(), text, take)
    kind, values = parse_line(text) or ("", {})
    if kind in _OWN_LINES:
        return Line(number, "source" if kind == "code" else kind, values, text, _OWN_LINES[kind])
    if _OPTIONS.fullmatch(text):
        return Line(number, "options", {}, text, _take_options)
    return None


def parse_setting(number, text):
    """Line of a setting under the heading, or None where the block ends."""
    found = _SETTING.fullmatch(text)
    if not found:
        return None
    values = {"name": found[1], "value": found[2] or ""}
    if found[1] == "seed" and values["value"].isdecimal():
        values["seed"] = values["value"][:18]
    return Line(number, "settings", values, text, _take_hyperparameter)


_SETTING = re.compile(r"  (\w{1,60}):(?: (.{0,400}))?")


def _take_hyperparameter(log, f, line):
    name, value = f["name"], f["value"]
    log.hyperparameters[name] = value
    if "seed" in f:
        log.seed = int(f["seed"])
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


def label_of(f):
    """`final_int6_sliding` of "final int6_sliding_exact"."""
    return f["label"].strip().replace(" ", "_").removesuffix("_exact")


def _take_score(log, f, line):
    """An `_exact` line gives the digits, the line without it the time of the evaluation, in either order."""
    label = label_of(f)
    known = log.scores.pop(label, None)  # so that it becomes the last
    if known and not f["label"].endswith("_exact"):
        loss, bpb = known[:2]
    else:
        loss, bpb = float(f["loss"]), float(f["bpb"])
    eval_ms = known[2] if known else None
    if found := re.search(r"eval_time[:=] ?(?P<time>\d{1,12}(?:\.\d{1,6})?)(?P<unit>ms|s)", line):
        eval_ms = float(found["time"]) * (1e3 if found["unit"] == "s" else 1.0)
    log.scores[label] = loss, bpb, eval_ms
    log.partial = log.partial or _partial(line)


def _take_pre_quant(log, f, line):
    log.pre_quant = float(f["loss"]), float(f["bpb"])


def _take_model(log, f, line):
    log.model_bytes = _number(f["bytes"])
    own = parse_line(line)
    log.model_sha256 = own[1]["sha256"] if own else ""


def _take_total(log, f, line):
    if f["label"]:
        log.total_bytes = _number(f["bytes"])
    else:
        log.unlabelled_total = _number(f["bytes"])


def _take_options(log, f, line):
    """`matrix_lr:0.04 scalar_lr:0.04`, as long as training has not begun."""
    if not log.train and not log.val:
        log.hyperparameters |= dict(word.split(":", 1) for word in line.split(" ") if ":" in word)


def _take_batch(log, f, line):
    _take_numbers(log, f, line)
    _take_options(log, f, line)
    if found := re.search(r"max_wallclock_seconds:(\d{1,9}(?:\.\d{1,6})?)", line):
        log.cap_seconds = float(found[1])
    if own := parse_line(line):
        log.world_size = own[1]["world_size"]


def _take_numbers(log, f, line):
    """Groups named after fields of the log."""
    for name, value in f.items():
        setattr(log, name, _number(value))


def _number(text):
    return int(text.replace(",", ""))


def _take_words(log, f, line):
    for name, value in f.items():
        setattr(log, name, value)


def _take_python(log, f, line):
    version = int(f["major"]), int(f["minor"])
    log.python = max(log.python or version, version)


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
_WORDS = r"(?: [^:]{1,80})?"  # they may name a file or a compressor
_NOT_RAW = r"(?! ?\(?(?i:raw|fp32|bf16|uncompressed|torch))"
_REST = r"(?P<rest>(?: .*)?)"
_BEFORE = r"(?i:diagnostic )?(?i:[\w-]{0,40}(?:pre[-_]?quant|post[-_]ema)[\w-]{0,40})(?: [\w-]{1,40})?"
_FINAL = (r"(?i:final|(de)?quantized|post_(quant|ttt|gptq)|roundtrip|sliding|sw_|eval_(final|sliding)|legal|ttt|"
          r"test_time|phased|slot|ngram|gptq|int[4-8]|mixed|ternary|binary|zstd|lzma|brotli)")
_LABEL = rf"(?={_FINAL})(?P<label>[\w.+-]{{1,80}}(?: [A-Za-z][\w.+-]{{0,60}}(?![\w.+:=-])){{0,2}}):?"


def _has(name, group):
    """Pattern that looks ahead for `name:1.23`, wherever it stands among other tokens."""
    return rf"(?=(?:.*?[ (])?{name}[:=] ?(?P<{group}>{_NUM})(?:[ ,;|)]|$))"


def _size(group):
    """Pattern of `: 48,125 bytes` and `: 48 kB (48,125 bytes)`."""
    return rf": (?:[^:]{{0,60}}?[ (])??(?P<{group}>\d{{1,3}}(?:,\d{{3}}){{1,3}}|\d{{1,12}}) bytes.*"


_COMMON_LINES = [  # kind of line, how it starts, how it goes on to its end, what takes it
    ("train", _STEP, rf"{_AT} train_loss: ?(?P<loss>{_NUM})(?: .*?)? {_TIME}{_REST}", _take_train),
    ("val", _STEP, rf"{_AT} {_PAIR}(?:(?: .*?)? {_TIME})?{_REST}", _take_val),
    ("stop", r"stopping_early:", rf" wallclock_cap {_TIME} step: ?{_AT}", _take_stop),
    ("pre_quant", _BEFORE, rf":? {_PAIR}{_REST}", _take_pre_quant),
    ("pre_quant", r"DIAGNOSTIC (?!quant)", rf"\S+ {_PAIR}{_REST}", _take_pre_quant),
    ("score", rf"(?i:diagnostic )?{_LABEL} ", rf"{_has('val_loss', 'loss')}{_has('val_bpb', 'bpb')}.*", _take_score),
    ("model", rf"Serialized model(?= ){_NOT_RAW}", rf"{_WORDS}{_size('bytes')}", _take_model),
    ("total", rf"Total submission size{_NOT_RAW}", rf"(?P<label>{_WORDS}){_size('bytes')}", _take_total),
    ("batch", r"train_batch_tokens:", r"(?P<batch_tokens>\d{1,12}) .*", _take_batch),
    ("code", r"Code size", rf"{_WORDS}{_size('code_bytes')}", _take_numbers),
    ("seed", r"(?i:seed)[:=]", r" ?(?P<seed>\d{1,18})(?: .*)?", _take_numbers),
    ("tokens", r"val_(?=loader:|tokens:)", r"(?:loader:.* )?tokens: ?(?P<val_tokens>\d{1,12})", _take_numbers),
    ("memory", r"peak memory allocated: ", r"(?P<memory_mib>\d{1,9}) MiB(?: .*)?", _take_numbers),
    ("params", r"model_params:", r" ?(?P<params>\d{1,12})(?: .*)?", _take_numbers),
    ("world", r"world_size:", r"(?P<world_size>\d{1,6})(?: .*)?", _take_numbers),
    ("data", r"train_loader:dataset:", r"(?P<dataset>\S+).*", _take_words),
    ("python", r"(?:Running )?Python (?=3)", r"(?P<major>3)\.(?P<minor>\d{1,2})\.\d.*", _take_python),
    ("status", r"status=", r"(?P<status>\S+) reason=.*", _take_words),  # not in _OWN_LINES: older runs give no hint
]


# Lines that only our trainers print, as common/runlog.py parses them.

def _take_run(log, f, line):
    log.backend, log.device = f["backend"], f["device"]


def _take_versions(log, f, line):
    log.versions = f["versions"]
    if found := re.match(r"python (?P<major>3)\.(?P<minor>\d{1,2})\.\d", log.versions):
        _take_python(log, found, line)


def _take_command(log, f, line):
    log.command = f["command"]


def _take_settings(log, f, line):
    log.settings = {}
    log.refused = {}
    try:
        log.settings = _typed_settings(json.loads(f["settings"]))
    except (AttributeError, ValueError, TypeError, RecursionError):
        log.problems.append("its line of settings cannot be read")
        return
    for name, value in log.settings.items():
        field = Settings.__dataclass_fields__.get(name)
        try:
            if field and field.type is not str and isinstance(value, str):  # text with a grammar
                parse_own_setting(field, value)
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


def _take_data(log, f, line):
    log.dataset, log.manifest_sha256 = _last_part(f["path"]), f["manifest"]


def _take_tokenizer(log, f, line):
    log.vocab_size = f["vocab_size"]


def _take_code(log, f, line):
    log.code_sha256 = f["sha256"]


def _take_resume(log, f, line):
    """What was made after the checkpoint is made again."""
    log.train = [row for row in log.train if row[0] <= f["step"]]
    log.val = [row for row in log.val if row[0] <= f["step"]]
    log.averages = [row for row in log.averages if row[0] <= f["step"]]
    log.stop = None


def _take_evaluation(log, f, line):
    log.evaluation_ms = 1e3 * f["seconds"]


def _take_scored(log, f, line):
    log.val_tokens, log.val_bytes = f["tokens"], f["bytes"]
    log.partial = log.partial or _partial(f["partial"])


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

_PATTERNS = [(kind, re.compile(start + rest, re.ASCII), take) for kind, start, rest, take in _COMMON_LINES]
_OPTIONS = re.compile(r"[a-z]\w{0,60}:\S+(?: [a-z]\w{0,60}:\S+)+")
_STARTS = re.compile("|".join([r"[a-z]\w{0,60}:\S+ [a-z]\w{0,60}:"] +
                              [re.sub(r"\(\?P<\w+>", "(?:", start) for _, start, _, _ in _COMMON_LINES] +
                              [re.escape(LOG_LINES[kind].partition("{")[0]) for kind in _OWN_LINES]))
