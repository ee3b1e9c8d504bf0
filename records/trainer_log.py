"""Whether a log of this project's trainers could have been written by them: each line against the settings that the log
itself prints, and against the other lines.

The trainers log a step at 1 to 10 and every TRAIN_LOG_EVERY, validate every VAL_LOSS_EVERY and at the end, and print
times, rates, sizes and scores that follow from each other (common/loop.py, common/finish.py). A run that was stopped
and resumed has one part for each start.
"""
import dataclasses
import itertools
import math
import statistics

from common.bpb import eval_lengths
from common.challenge import BUDGET_BYTES
from common.params import count_params
from common.readlog import parse_line
from common.runlog import LOG_LINES
from common.settings import Settings
from records.folder import Refused
from records.logs import read_log
from records.rules import FAIL, WARN, Finding

HEADER = ("run", "settings", "data", "tokenizer", "code", "params", "batch")  # of every start
REQUIRED = (*HEADER, "val", "model", "code_size", "total", "scored", "final", "final_exact")  # of every run that ended
STARTS = tuple(template.partition("{")[0] for template in LOG_LINES.values())
PARTS_LIMIT = 1000  # of one log
FIRST_STEPS = 10  # each is logged
LAST_STEPS = 6  # of the average length, before the cap: a run stops when the next steps could end after it
PLAIN_GAIN = 0.01  # relative, by which rounding the weights may improve a loss


@dataclasses.dataclass
class Line:
    number: int
    text: str
    kind: str
    values: dict


@dataclasses.dataclass
class Part:
    """What one start of the trainer printed. lines: list of Line; settings: with the defaults of this repository, which
    changed code may not have; named: names of those that the log names; start: the step it resumed from, or 0; is_last:
    no other start follows."""
    name: str
    lines: list
    settings: Settings | None
    named: set
    start: int
    is_last: bool

    def of(self, *kinds):
        return [line for line in self.lines if line.kind in kinds]

    def last(self, kind):
        """Values of the last line of a kind, or None."""
        found = self.of(kind)
        return found[-1].values if found else None

    def where(self, kind):
        found = self.of(kind)
        return f"{self.name}:{found[-1].number}" if found else self.name


def check_trainer_logs(folder):
    """Yields a Finding for each log of this project's trainers, and each rule that it breaks."""
    for log in folder.logs:
        if not log.backend:
            continue
        later = [run.lines[0].number for run in folder.all_logs() if run.file == log.file and run.lines]
        end = min((number for number in later if number > log.lines[0].number), default=math.inf)
        try:
            parts = read_parts(log.file, folder.log_lines(log.file), log.lines[0].number, end)
        except Refused:
            continue  # reported as a log that cannot be read
        yield from _whole(log.name, parts)
        readable = [part for part in parts if part.settings]
        for part in readable:
            for rule in RULES:
                yield from rule(part)
        if parts[-1] in readable:
            yield from _end(parts[-1])


def read_parts(name, log_lines, start, end):
    """list of Part of a log, from the line `start` to before the line `end`. log_lines: (number, text) of all of it.
    settings is None in a part whose settings cannot be read."""
    parts, lines = [], []
    for number, plain in log_lines:
        found = parse_line(plain) if start <= number < end and plain.startswith(STARTS) else None
        if found and found[0] == "resume" and lines and len(parts) < PARTS_LIMIT:
            parts.append(lines)
            lines = []
        if found:
            lines.append(Line(number, plain, *found))
    parts.append(lines)
    made = []
    for part in parts:
        kept = [line.text for line in part if line.kind in ("settings", "tokenizer")]
        own = read_log(name, "\n".join(kept).encode())
        resumed = next((line.values["step"] for line in part if line.kind == "resume"), 0)
        settings = None if own.refused or own.problems or not own.settings else own.run_settings
        made.append(Part(name, part, settings, own.settings.keys(), resumed, part is parts[-1]))
    return made


def _whole(name, parts):
    """A run that ended has printed every kind of line, and each start its header; `evaluation` since the status has a
    hint."""
    kinds = {line.kind for line in parts[-1].lines}
    required = [*REQUIRED, "evaluation"] if "status" in kinds else REQUIRED
    missing = [kind for kind in required if kind not in kinds]
    for part in parts[:-1]:
        missing += [kind for kind in HEADER if not part.of(kind)]
    if missing:
        yield Finding(FAIL, f"no line of {', '.join(missing)}", "every line that the trainer prints", name)


def _as_set(part):
    """Lines that repeat a setting."""
    s = part.settings
    seq_len, stride = eval_lengths(s)
    ttt = f"lr {s.ttt_lr}, chunk {s.ttt_chunk}" if s.ttt_lr else "off"
    expected = {
        "step": {"iterations": ("iterations", s.iterations)},
        "val": {"iterations": ("iterations", s.iterations)},
        "stop": {"iterations": ("iterations", s.iterations)},
        "batch": {
            "tokens": ("train_batch_tokens", s.train_batch_tokens),
            "seq_len": ("train_seq_len", s.train_seq_len),
        },
        "warmup": {"steps": ("warmup_steps", s.warmup_steps)},
        "evaluation": {
            "seq_len": ("eval_seq_len" if s.eval_seq_len else "train_seq_len", seq_len),
            "stride": ("eval_stride", stride),
            "ttt": ("ttt_lr", ttt),
        },
    }
    for kind, values in expected.items():
        for line in part.of(kind):
            wrong = [
                (name, value)
                for name, (setting, value) in values.items()
                if setting in part.named and line.values[name] != value
            ]
            if wrong:
                observed = ", ".join(f"{name} {line.values[name]}" for name, _ in wrong)
                wanted = ", ".join(f"{name} {value}" for name, value in wrong)
                yield Finding(FAIL, observed, f"{wanted}, as its settings say", f"{part.name}:{line.number}")
                break


def _one_length(part):
    """All lines name one number of steps, and the parameters are those of the model that the settings describe."""
    lines, params = part.of("step", "val", "stop"), part.last("params")
    for line in lines:
        if line.values["iterations"] != lines[0].values["iterations"]:
            observed = f"a line of {line.values['iterations']:,} steps"
            yield Finding(FAIL, observed, f"{lines[0].values['iterations']:,} steps", f"{part.name}:{line.number}")
            break
    if params and params["params"] != (count := count_params(part.settings)):
        observed = f"{params['params']:,} parameters"  # code that was changed may have others
        yield Finding(WARN, observed, f"{count:,} of the settings' model", part.where("params"))


def _due_lines(part):
    """Steps and validations are logged when they are due, and only then."""
    for kind, setting in (("step", "train_log_every"), ("val", "val_loss_every")):
        seen = {line.values["step"]: line.number for line in part.of(kind)}
        every = _interval(part, setting, list(seen))
        if every is None:
            continue
        words = f"every {every} steps" if every else "only at the end"
        early = FIRST_STEPS if kind == "step" else -1
        last = max(seen, default=None) if kind == "val" and part.is_last else None
        for step, number in seen.items():
            if step > early and step != last and (not every or step % every):
                yield Finding(FAIL, f"a {kind} line at step {step:,}", words, f"{part.name}:{number}")
                break
        if (missing := _first_missing(part, seen, early, every)) is not None:
            yield Finding(FAIL, f"no {kind} line at step {missing:,}", words, part.name)


def _interval(part, setting, steps):
    """Steps between lines as set; where the default holds, which changed code may have changed, as they are found; None
    where they are too few."""
    if setting in part.named:
        return getattr(part.settings, setting)
    late = [step for step in steps if step > FIRST_STEPS]
    gaps = [b - a for a, b in itertools.pairwise(late)]
    return statistics.mode(gaps) if len(gaps) > 1 and min(gaps) > 0 else None


def _first_missing(part, seen, early, every):
    """The first step before the last line of a part whose line is due and not there, or None."""
    end = max((line.values["step"] for line in part.of("step", "val")), default=part.start)
    first = part.start + (early > 0)  # the step that it resumed from is validated again, if due
    due = itertools.chain(
        range(first, min(early, end) + 1),
        range(first + -first % every, end + (part.is_last or 0), every) if every else (),
    )
    return next((step for step in due if step not in seen), None)


def _rates(part):
    """tokens/s of a line is its steps times the batch, over its time."""
    batch = part.settings.train_batch_tokens
    for line in part.of("step"):
        step, ms, rate = (line.values[name] for name in ("step", "ms", "rate"))
        exact = step * batch
        if abs(rate * ms / 1e3 - exact) > (rate + 1) * 0.0006 + 0.0006 * ms + 1e-6 * exact:
            expected = f"{1e3 * exact / max(ms, 1e-9):,.0f} tokens/s of {step:,} steps in {ms:,.0f} ms"
            yield Finding(FAIL, f"{rate:,.0f} tokens/s", expected, f"{part.name}:{line.number}")
            break


def _throughput(part):
    """The summary of the speed, which follows from the last time, the batch and the operations per token."""
    end, final, params = part.last("throughput"), part.last("val"), part.last("params")
    if not (end and final and params and final["ms"]):
        return
    rate = 1e3 * final["step"] * part.settings.train_batch_tokens / final["ms"]
    for name, value, digits in (
        ("rate", rate, 0.5),
        ("flops", end["rate"] * params["flops"] / 1e9, 0.005),
        ("share", 100 * end["flops"] / end["peak"] if end["peak"] else end["share"], 0.05),
    ):
        slack = 0.51 / final["ms"] + 0.51 / max(end["rate"], 1) + 0.0051 / max(end["flops"], 0.01)
        slack += 0.051 / max(end["peak"], 0.1)
        if abs(end[name] - value) > value * slack + digits * 1.01:
            expected = f"{value:,.2f} of its other figures"
            yield Finding(FAIL, f"{name} {end[name]:,}", expected, part.where("throughput"))
            return


def _sizes(part):
    """The bytes of the model file and the code, their sum, and what is left."""
    model, code, total, ran = (part.last(kind) for kind in ("model", "code_size", "total", "code"))
    if not (model and code and total):
        return
    both = model["bytes"] + code["bytes"]
    if total["bytes"] != both:
        yield Finding(FAIL, f"total of {total['bytes']:,} bytes", f"{both:,} = model + code", part.where("total"))
    elif total["left"] != BUDGET_BYTES - 1 - total["bytes"]:
        expected = f"{BUDGET_BYTES - 1 - total['bytes']:,}"
        yield Finding(FAIL, f"{total['left']:,} bytes left", expected, part.where("total"))
    if ran and ran["bytes"] != code["bytes"]:
        yield Finding(FAIL, f"code of {code['bytes']:,} bytes", f"{ran['bytes']:,} as it ran", part.where("code_size"))


def _tokens(part):
    """Tokens of validation: all but the first are scored, once each; at most, a window at the end is not."""
    data, scored = part.last("data"), part.last("scored")
    if not data or not scored or scored["partial"]:
        return
    left_out = data["val_tokens"] - 1 - scored["tokens"]
    if not 0 <= left_out < max(part.settings.train_seq_len, part.settings.eval_seq_len):
        expected = f"{data['val_tokens'] - 1:,}, all but the first of its data"
        yield Finding(FAIL, f"{scored['tokens']:,} tokens scored", expected, part.where("scored"))


def _ratio(part):
    """val_bpb over val_loss is tokens over bytes and ln 2, the same on every line."""
    scored = part.last("scored")
    if not scored or not scored["bytes"]:
        return
    ratio = scored["tokens"] / scored["bytes"] / math.log(2)
    for line in part.of("val", "final", "final_exact"):
        loss, bpb = line.values["val_loss"], line.values["val_bpb"]
        digits = 8 if line.kind == "final_exact" else 4
        if math.isfinite(loss) and abs(bpb - loss * ratio) > 0.51 * 10**-digits * (1 + ratio):
            expected = f"{loss * ratio:.{digits}f} of val_loss {loss:.{digits}f}, tokens and bytes"
            yield Finding(FAIL, f"val_bpb {bpb:.{digits}f}", expected, f"{part.name}:{line.number}")
            return


RULES = (_as_set, _one_length, _due_lines, _rates, _throughput, _sizes, _tokens, _ratio)


def _end(part):
    """How a run ends: the status, the stop, the last step, the final score."""
    yield from _status(part)
    final, exact = part.last("final"), part.last("final_exact")
    for name in ("val_loss", "val_bpb") if final and exact else ():
        if abs(final[name] - exact[name]) > 5.1e-5:
            yield Finding(FAIL, f"{name} {final[name]:.4f}", f"{exact[name]:.8f}, rounded", part.where("final"))
            return
    val = part.last("val")
    if val and exact and val["val_loss"] > 0:
        yield from _round_trip(part, val["val_loss"], exact["val_loss"])


def _status(part):
    status, stop, val = part.last("status"), part.last("stop"), part.last("val")
    if not (status and val):
        return
    where, iterations = part.where("status"), val["iterations"]
    finished = val["step"] == iterations
    if status["status"] in ("finished", "capped") and (status["status"] == "finished") != finished:
        yield Finding(FAIL, f"status {status['status']} at step {val['step']:,}", f"{iterations:,} steps", where)
    if finished == bool(stop):
        observed = f"{'a' if stop else 'no'} line of stopping early at step {val['step']:,} of {iterations:,}"
        yield Finding(FAIL, observed, "one where steps are left, and only there", part.where("stop"))
    if stop and (stop["step"], stop["ms"]) != (val["step"], val["ms"]):
        expected = f"step {val['step']:,}, {val['ms']:,.0f} ms of its last validation"
        yield Finding(FAIL, f"stopped at step {stop['step']:,}, {stop['ms']:,.0f} ms", expected, part.where("stop"))
    cap = 1e3 * part.settings.max_wallclock_seconds
    if stop and (not cap or val["ms"] + LAST_STEPS * val["avg"] < cap):
        expected = f"within {LAST_STEPS} steps of {cap:,.0f} ms" if cap else "every step: its settings have no limit"
        sure = "max_wallclock_seconds" in part.named
        yield Finding(FAIL if sure else WARN, f"stopped early after {val['ms']:,.0f} ms", expected, part.where("stop"))
    for line in part.of("checkpoint"):
        if line.values["step"] > val["step"]:
            yield Finding(FAIL, f"a checkpoint of step {line.values['step']:,}", f"none after {val['step']:,}",
                          f"{part.name}:{line.number}")


def _round_trip(part, before, after):
    """What rounding the weights and the final evaluation did to the last validation."""
    how, seq_len = part.last("evaluation"), part.settings.train_seq_len
    plain = how and how["ttt"] == "off" and how["seq_len"] == how["stride"] == seq_len
    gain = 1 - after / before
    if plain and gain > PLAIN_GAIN:
        expected = f"about {before:.4f} of the last validation, whose windows it has"
        yield Finding(FAIL, f"val_loss {after:.4f} after rounding", expected, part.where("final_exact"))
