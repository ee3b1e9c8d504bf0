"""Run logs as they are found: our own lines, those of the challenge's scripts and of their descendants, among source dumps, ANSI colours,
warnings and the echoes of several ranks. A line counts only where the whole of it has a known form."""
import dataclasses
import hashlib
import json
import math
import re

from common.readlog import parse_line
from common.settings import Settings

LOG_LIMIT = 4 << 20  # bytes; the longest published log has 130 kB
LINE_LIMIT = 20_000

_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"\[?(?:rank|default)\s?\d{1,4}\]?:\s?")
_NUM = r"(?:-?\d{1,15}(?:\.\d{1,15})?|nan|-?inf)"
_AT = r"(?:step:)?(?P<step>\d{1,9})/(?P<of>\d{1,9})"
_TIME = rf"train_time: ?(?P<time>{_NUM})(?P<unit>ms|s|m)"
_PAIR = rf"val_loss: ?(?P<loss>{_NUM}) val_bpb: ?(?P<bpb>{_NUM})"
_LINES = {kind: re.compile(pattern) for kind, pattern in {
    "train": rf"{_AT} train_loss: ?(?P<loss>{_NUM}) {_TIME}(?: .*)?",
    "val": rf"{_AT} {_PAIR}(?: {_TIME})?(?P<rest>(?: .*)?)",
    "stop": rf"stopping_early: wallclock_cap {_TIME} step: ?(?P<step>\d{{1,9}})/(?P<of>\d{{1,9}})",
    "score": rf"(?P<label>final_[\w+-]+|quantized[\w+-]*|legal_ttt[\w+-]*) {_PAIR}(?P<rest>(?: .*)?)",
    "before": rf"(?:DIAGNOSTIC|pre-quantization) \S+ {_PAIR}(?: .*)?",
    "code": r"Code size(?: [\w+-]+)?: (?P<bytes>\d{1,12}) bytes",
    "model": r"Serialized model (?P<label>[\w+-]+): (?P<bytes>\d{1,12}) bytes(?: .*)?",
    "total": r"Total submission size(?P<label>(?: [\w+-]+)?): (?P<bytes>\d{1,12}) bytes(?: .*)?",
    "seed": r"seed:(?P<seed>\d{1,18})",
    "tokens": r"val_(?:loader:.* )?tokens: ?(?P<tokens>\d{1,12})",
    "dataset": r"train_loader:dataset:(?P<dataset>\S+).*",
    "memory": r"peak memory allocated: (?P<mib>\d{1,9}) MiB(?: .*)?",
    "params": r"model_params:(?P<params>\d{1,12})(?: .*)?",
    "batch": r"train_batch_tokens:(?P<tokens>\d{1,12}) .*",
    "world": r"world_size:(?P<world>\d{1,6})(?: .*)?",
}.items()}
_FIRST = re.compile(r"(?:step:)?\d{1,9}/\d|stopping_early:|final_|quantized|legal_ttt|DIAGNOSTIC |pre-quantization |Code size|Serialized |Total sub|"
                    r"seed:|val_|train_|peak |model_params:|world_size:|run:|versions:|command:|settings:|data:|tokenizer:|code:|throughput:|"
                    r"scored:|evaluation:|status=|resume:|warmup_steps:")
_SETTING = re.compile(r"  (\w{1,60}):(?: (.{0,400}))?")  # under the heading "Hyperparameters:"


@dataclasses.dataclass
class RunLog:
    """What one log says. Times in milliseconds, None where the log is silent. scores: label -> (val_loss, val_bpb, eval ms or None), the
    labels without `_exact`, in order of appearance; problems: list[str], what no honest log shows."""
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
    val_tokens: int | None = None
    val_bytes: int | None = None
    evaluation_ms: float | None = None  # of the final evaluation of one of our runs
    memory_mib: int | None = None
    params: int | None = None
    batch_tokens: int | None = None
    world_size: int | None = None
    stop: tuple | None = None  # (step, ms)
    pre_quant: tuple | None = None  # (val_loss, val_bpb) before quantization
    settings: dict = dataclasses.field(default_factory=dict)  # those that differ from the defaults of our trainers
    train: list = dataclasses.field(default_factory=list)  # (step, loss, ms)
    val: list = dataclasses.field(default_factory=list)  # (step, val_loss, val_bpb, ms or None)
    averages: list = dataclasses.field(default_factory=list)  # (step, ms, logged step_avg)
    scores: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)

    @property
    def last_step(self):
        """Optimizer steps made, or None."""
        return max([row[0] for row in self.val + self.train] + ([self.stop[0]] if self.stop else []), default=None)

    @property
    def train_ms(self):
        """Training time in milliseconds, or None."""
        times = [row[-1] for row in self.val + self.train if row[-1] is not None]
        return max(times + ([self.stop[1]] if self.stop else []), default=None)

    @property
    def run_settings(self):
        """Settings of one of our runs: the defaults and what the log says was changed; VOCAB_SIZE unset is that of the tokenizer."""
        known = {f.name for f in dataclasses.fields(Settings)}
        settings = Settings(**{name: value for name, value in self.settings.items() if name in known})
        return settings if settings.vocab_size else dataclasses.replace(settings, vocab_size=self.vocab_size or 0)

    def score(self, label=None):
        """(val_loss, val_bpb) under a label, by default the last one printed; None where there is none."""
        return self.scores.get(label or next(reversed(self.scores), None), (None,))[:2] if self.scores else None


def read_log(name, data):
    """RunLog of bytes, which may come from anyone. Never raises; what is wrong is in .problems."""
    log = RunLog(name, hashlib.sha256(data).hexdigest())
    if b"\0" in data:
        log.problems.append("holds NUL bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        log.problems.append(f"is not UTF-8 at byte {error.start}")
        text = data.decode(errors="replace")
    in_settings = False
    plain_total = None
    for raw in re.split(r"[\r\n]+", text):
        line = _RANK.sub("", _NOISE.sub("", raw), count=1).rstrip() if raw[:1] in "\x1b[rd" else raw.rstrip()
        if line == "Hyperparameters:":
            in_settings = True
            continue
        if in_settings:
            found = _SETTING.fullmatch(line)
            in_settings = bool(found)
            if found:
                _take_setting(log, found[1], found[2] or "")
                continue
        if len(line) > LINE_LIMIT or not _FIRST.match(line):
            continue
        kind, found = next(((kind, m) for kind, pattern in _LINES.items() if (m := pattern.fullmatch(line))), ("", None))
        if not found:
            _take_own(log, line)
            continue
        f = found.groupdict()
        if kind == "train":
            row = int(f["step"]), float(f["loss"]), _milliseconds(f)
            _append(log, log.train, row, f["of"])
            _average(log, row[0], row[2], line)
        elif kind == "val":
            row = int(f["step"]), float(f["loss"]), float(f["bpb"]), _milliseconds(f) if f["time"] else None
            _append(log, log.val, row, f["of"])
            if f["time"]:
                _average(log, row[0], row[3], line)
            log.partial = log.partial or _partial(f["rest"])
        elif kind == "stop":
            log.stop = int(f["step"]), _milliseconds(f)
        elif kind == "score":
            label, exact = f["label"].removesuffix("_exact"), f["label"].endswith("_exact")
            eval_ms = re.search(r"eval_time:(\d{1,12}(?:\.\d+)?)ms", f["rest"])
            known = log.scores.pop(label, None)
            pair = (float(f["loss"]), float(f["bpb"])) if exact or not known else known[:2]
            log.scores[label] = *pair, float(eval_ms[1]) if eval_ms else known and known[2]
            log.partial = log.partial or _partial(f["rest"])
        elif kind == "before":
            log.pre_quant = float(f["loss"]), float(f["bpb"])
        elif kind == "model":
            log.model_bytes = int(f["bytes"])
            own = parse_line(line)
            log.model_sha256 = own[1]["sha256"] if own else ""
        elif kind == "total":
            if f["label"]:
                log.total_bytes = int(f["bytes"])
            plain_total = int(f["bytes"])
        elif kind == "dataset":
            log.dataset = f["dataset"]
        else:
            field, value = {"code": ("code_bytes", "bytes"), "seed": ("seed", "seed"), "tokens": ("val_tokens", "tokens"),
                            "memory": ("memory_mib", "mib"), "params": ("params", "params"), "batch": ("batch_tokens", "tokens"),
                            "world": ("world_size", "world")}[kind]
            setattr(log, field, int(f[value]))
            if kind == "batch":
                _take_batch(log, line)
    if log.total_bytes is None:
        log.total_bytes = plain_total
    if log.pre_quant is None and log.val and log.val[-1][0] == log.last_step:
        log.pre_quant = log.val[-1][1:3]
    return log


def _milliseconds(f):
    """Of minutes, which logs round to a tenth, the earliest time that they can mean."""
    return max(0.0, 6e4 * (float(f["time"]) - 0.05)) if f["unit"] == "m" else float(f["time"]) * (1e3 if f["unit"] == "s" else 1.0)


def _partial(rest):
    found = re.search(r"partial:(\d{1,15}/\d{1,15})", rest)
    return found[1] if found else ""


def _append(log, rows, row, of):
    if rows and row == rows[-1]:
        return  # another rank's echo
    back = rows and (row[0] <= rows[-1][0] or (None not in (row[-1], rows[-1][-1]) and row[-1] < rows[-1][-1]))
    if back and not any("order" in p for p in log.problems):
        log.problems.append(f"steps or times are out of order at step {row[0]}, after {rows[-1][0]}")
    log.iterations = log.iterations or int(of)
    rows.append(row)


def _average(log, step, ms, line):
    if found := re.search(r"step_avg:(\d{1,12}(?:\.\d{1,6})?)ms", line):
        log.averages.append((step, ms, float(found[1])))


def _take_batch(log, line):
    if found := re.search(r"max_wallclock_seconds:(\d{1,9}(?:\.\d{1,6})?)", line):
        log.cap_seconds = float(found[1])
    if found := parse_line(line):
        log.world_size = found[1]["world_size"]


def _take_setting(log, name, value):
    if name == "seed" and value.isdecimal():
        log.seed = int(value[:18])
    elif name == "max_wallclock_seconds" and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value):
        log.cap_seconds = float(value)
    elif name == "datasets_dir":
        log.dataset = value.rstrip("/").rsplit("/", 1)[-1]
    elif name == "world_size" and value.isdecimal():
        log.world_size = int(value[:6])


def _checked_settings(settings):
    """A dict of settings whose known names have values of their type. Raises TypeError or ValueError."""
    for name, value in settings.items():
        default = getattr(Settings, name, None)
        if default is not None and type(value) is not type(default) and not (type(default) is float and type(value) is int):
            raise TypeError(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(name)
    return settings


def _take_own(log, line):
    """Lines that only our trainers print."""
    kind, values = parse_line(line) or ("", {})
    if kind == "run":
        log.backend, log.device = values["backend"], values["device"]
    elif kind in ("versions", "command"):
        setattr(log, kind, values[kind])
    elif found := re.fullmatch(r"status=(\S+) reason=.*", line):  # older runs give no hint
        log.status = found[1]
    elif kind == "resume":  # what was made after the checkpoint is made again
        log.train, log.val = ([row for row in rows if row[0] <= values["step"]] for rows in (log.train, log.val))
        log.averages = [row for row in log.averages if row[0] <= values["step"]]
        log.stop = None
    elif kind == "tokenizer":
        log.vocab_size = values["vocab_size"]
    elif kind == "settings":
        try:
            log.settings = _checked_settings(json.loads(values["settings"]))
            s = log.run_settings
            log.seed, log.cap_seconds = int(s.seed), float(s.max_wallclock_seconds)
        except (AttributeError, ValueError, TypeError, RecursionError):
            log.settings = {}
            log.problems.append("its line of settings cannot be read")
    elif kind == "data":
        log.dataset, log.manifest_sha256 = values["path"].rstrip("/").rsplit("/", 1)[-1], values["manifest"]
    elif kind == "code":
        log.code_sha256 = values["sha256"]
    elif kind == "evaluation":
        log.evaluation_ms = 1e3 * values["seconds"]
    elif kind == "scored":
        log.val_tokens, log.val_bytes = values["tokens"], values["bytes"]
        log.partial = log.partial or _partial(values["partial"])
