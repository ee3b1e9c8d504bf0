"""Whether a log, of any script, can be that of one run: its lines against each other, and against the settings that it
prints. What only this project's trainers promise is in trainer_log.py.

FAIL is for what no script prints that runs once from start to end. Scripts differ in what they log and how they
evaluate, so the rest is WARN: a person looks at it.
"""
import itertools
import math
import re
import statistics

from common.published import VAL_BYTES_TOLERANCE
from records.rules import FAIL, SECOND, TRAIN_LIMITS, WARN, Finding

ROUNDING = 5.1e-5  # of a figure with four decimals
RATIO_WARN, RATIO_FAIL = 2 * VAL_BYTES_TOLERANCE, 0.05  # relative; parts of validation differ by less than the second
EARLY = 10  # steps, which most scripts log one by one
FEWEST = 5  # lines that say something of a whole run
SAME_SPACING = 0.8  # of the steps between lines: a script logs every so many
EARLY_STOP = 0.8  # of the limit: what is kept back for the quantization takes less than the rest
SAME_TIME_WARN, SAME_TIME_FAIL = 1e-3, 2e-2  # relative, between the last validation and the stop
UNTRAINED = 0.75  # of ln(vocabulary), which initial weights score
BELOW = 0.8  # of the validation loss: training losses of one pass are about as high
EPOCHS = 2.0  # passes over the training tokens, after which training losses may be far below
SHARD_TOKENS = 100_000_000  # of one of the challenge's shards
PEAK_FLOPS = 989e12  # per second of an H100, dense bfloat16
GAIN = 0.08  # relative, of the final score over the last validation: windows and test-time training gave 0.04
RATE_FACTOR = 1.5  # between tokens/s and steps, batch and time
LATE_LINES = 2000  # after the stop, that are looked at


def check_plausible(folder):
    """Yields a Finding for each log and each rule that it breaks."""
    for log in folder.logs:
        for rule in RULES:
            yield from rule(log)


def _of(log, *kinds):
    return [line for line in log.lines if line.kind in kinds]


def _resumed(log):
    return bool(_of(log, "resume"))


def _printed(log, name):
    """A whole number above 0 among the settings that a script prints, or None."""
    text = log.hyperparameters.get(name, "")
    return int(text) or None if re.fullmatch(r"[0-9]{1,10}", text) else None


def _planned_steps(log):
    """Every line names the same number of steps, which is ITERATIONS."""
    lines = _of(log, "train", "val", "stop")
    expected = _printed(log, "iterations") or log.iterations
    for line in lines if not _resumed(log) else []:
        if int(line.values["of"]) != expected:
            observed = f"{line.kind} line of {int(line.values['of']):,} steps"
            yield Finding(WARN, observed, f"{expected:,} steps in the whole log", f"{log.file}:{line.number}")
            return


def _spacing(log):
    """Training lines come every so many steps, with none left out."""
    steps = [row[0] for row in log.train if row[0] > EARLY]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    if len(gaps) < FEWEST or _resumed(log):
        return
    usual = statistics.mode(gaps)
    if gaps.count(usual) < SAME_SPACING * len(gaps):
        return
    for before, gap in zip(steps, gaps):
        if gap > usual and gap % usual == 0:
            observed = f"no line of training between steps {before:,} and {before + gap:,}"
            yield Finding(WARN, observed, f"a line every {usual:,} steps", log.where("train", before + gap))
            return


def _ratio(log):
    """val_bpb over val_loss depends on the validation text and the tokenizer alone."""
    lines = [line for line in _of(log, "val", "pre_quant", "score") if _number(line, "loss") and _number(line, "bpb")]
    ratios = [_number(line, "bpb") / _number(line, "loss") for line in lines]
    if len(ratios) < 2:
        return
    usual = statistics.median(ratios)
    for line, ratio in zip(lines, ratios):
        slack = _unit(line.values["loss"]) / _number(line, "loss") + _unit(line.values["bpb"]) / _number(line, "bpb")
        off = abs(ratio / usual - 1) - slack - ROUNDING
        if off > RATIO_WARN:
            observed = f"val_bpb {line.values['bpb']} of val_loss {line.values['loss']}: a ratio of {ratio:.5f}"
            status = FAIL if off > RATIO_FAIL else WARN
            yield Finding(status, observed, f"{usual:.5f}, as on its other lines", f"{log.file}:{line.number}")
            return


def _number(line, name):
    """A positive finite number of a line, or 0."""
    value = float(line.values[name])
    return value if 0 < value < math.inf else 0.0


def _unit(text):
    """Half of one unit of the last digit."""
    return 0.51 * 10.0 ** -len(text.partition(".")[2])


def _rounded(log):
    """A score and the `_exact` line after it are one number."""
    for line, exact in itertools.pairwise(log.lines):
        if line.kind == exact.kind == "score" and exact.values["label"] == f"{line.values['label']}_exact":
            for name in ("loss", "bpb"):
                if abs(float(line.values[name]) - float(exact.values[name])) > _unit(line.values[name]):
                    expected = f"{exact.values[name]} of its exact line"
                    where = f"{log.file}:{line.number}"
                    yield Finding(FAIL, f"val_{name} {line.values[name]}", expected, where)


def _sum_of_bytes(log):
    """A total is that of its model and code."""
    if log.total_bytes is None or log.model_bytes is None or log.code_bytes is None:
        return
    both = log.model_bytes + log.code_bytes
    totals = {int(line.values["bytes"].replace(",", "")) for line in _of(log, "total")}
    if both not in totals:
        yield Finding(WARN, f"total of {log.total_bytes:,} bytes", f"{both:,} = model + code", log.where("total"))


def _end(log):
    """The run stops once, at its last step, where its time is over."""
    last, stop = log.last_step or 0, log.stop
    if not stop:
        if log.iterations and 0 < last < log.iterations:
            observed = f"ends at step {last:,} of {log.iterations:,}"
            yield Finding(WARN, observed, "a line that says why it stopped", log.name)
        return
    trained = max((row[0] for row in log.train), default=0)
    if last > stop[0]:
        expected = f"none after it stopped at step {stop[0]:,}"
        yield Finding(FAIL if trained > stop[0] else WARN, f"a line of step {last:,}", expected, log.where("stop"))
    if stop[0] >= (log.iterations or math.inf):
        yield Finding(FAIL, f"stopped early at step {stop[0]:,}", "a step before the last", log.where("stop"))
    cap = 0.0 if log.backend else SECOND * (log.cap_seconds or 0.0)  # trainer_log.py knows when our runs stop
    if stop[1] < EARLY_STOP * cap:
        observed = f"stopped early after {stop[1] / SECOND:,.1f} s"
        yield Finding(WARN, observed, f"about {cap / SECOND:,.0f} s, its limit", log.where("stop"))
    ended = [row[3] for row in log.val if row[0] == stop[0] and row[3] is not None and _in_ms(log)]
    if ended and (off := abs(ended[-1] - stop[1])) > SAME_TIME_WARN * stop[1] + 1.0:
        status = FAIL if off > SAME_TIME_FAIL * stop[1] else WARN
        expected = f"{ended[-1]:,.0f} ms of its last validation"
        yield Finding(status, f"stopped at {stop[1]:,.0f} ms", expected, log.where("stop"))


def _in_ms(log):
    return all(line.values["unit"] == "ms" for line in _of(log, "train", "val", "stop") if line.values.get("unit"))


def _initial(log):
    """Before the first update the loss is about that of equal chances."""
    vocab = _vocabulary(log)
    first = [row[1] for row in log.val if row[0] == 0] + [row[1] for row in log.train if row[0] == 1]
    if vocab and first and 0 < min(first) < UNTRAINED * math.log(vocab):
        observed = f"a loss of {min(first):.4f} before any update"
        expected = f"about ln({vocab}) = {math.log(vocab):.2f}: weights that are not trained"
        yield Finding(WARN, observed, expected, log.where("val", 0) if log.val else log.where("train", 1))


def _vocabulary(log):
    """Number of token ids, or None."""
    named = re.search(r"sp(\d{3,6})\b", log.dataset)
    return log.vocab_size or _printed(log, "vocab_size") or (int(named[1]) if named else None)


def _losses(log):
    """Training losses change, and are about as high as validation's at the end."""
    late = [row[1] for row in log.train if row[0] > EARLY]
    if len(late) >= FEWEST and len(set(late)) == 1:
        observed = f"the loss {late[0]} on each of {len(late)} lines"
        yield Finding(FAIL, observed, "losses of training", log.where("train"))
    falling = all(a > b for a, b in itertools.pairwise(late))
    if len(late) >= 6 * FEWEST and falling:
        observed = f"the training loss falls on each of {len(late)} lines"
        yield Finding(WARN, observed, "the noise of batches", log.where("train"))
    if len(late) < FEWEST or not log.val or not log.val[-1][1] > 0 or (epochs := _epochs(log)) > EPOCHS:
        return
    mean, val = statistics.mean(late[-FEWEST:]), log.val[-1][1]
    if mean < BELOW * val:
        observed = f"training losses of {mean:.4f} at the end, after {epochs:.1f} passes"
        yield Finding(WARN, observed, f"about {val:.4f} of validation", log.where("train"))
    elif val < BELOW * mean:
        observed = f"a validation loss of {val:.4f}"
        yield Finding(WARN, observed, f"about {mean:.4f} of training at the end", log.where("val"))


def _epochs(log):
    """Passes over the training tokens; 0 where they are not known."""
    tokens = (log.last_step or 0) * (log.batch_tokens or _printed(log, "train_batch_tokens") or 0)
    text = "\n".join(line.text for line in _of(log, "data"))
    own, shards = re.search(r"train_tokens:(\d{1,15})", text), re.search(r"train_shards: ?(\d{1,6})", text)
    available = int(own[1]) if own else SHARD_TOKENS * int(shards[1]) if shards else 0
    return tokens / available if available else 0.0


def _round_trip(log):
    """The final score is not far better than the last validation."""
    if not log.val or not log.score() or not log.val[-1][1] > 0:
        return
    before, after = log.val[-1][1], log.score()[0]
    if 0 < after < (1 - GAIN) * before:
        observed = f"val_loss {after:.4f}, {100 * (1 - after / before):.0f} % below the last validation"
        yield Finding(WARN, observed, "a gain that the evaluation explains", log.where("score"))


def _speed(log):
    """Tokens per second, as printed and as counted, and what the hardware can do."""
    batch = log.batch_tokens or _printed(log, "train_batch_tokens")
    if not batch or not log.train or log.backend:
        return
    line = _of(log, "train")[-1]
    step, ms = log.train[-1][0], log.train[-1][2]
    printed = re.search(r"tok/s: ?([\d,]{1,15})", line.values["rest"])
    if not ms or ms < 10 * SECOND:
        return
    rate = SECOND * step * batch / ms
    if printed and not 1 / RATE_FACTOR < int(printed[1].replace(",", "")) / rate < RATE_FACTOR:
        expected = f"about {rate:,.0f} of {step:,} steps in {ms / SECOND:,.0f} s"
        yield Finding(WARN, f"{printed[1]} tokens/s", expected, log.where("train", step))
    flops = 6 * (log.params or 0) * rate
    if flops > PEAK_FLOPS * (log.world_size or 8):
        observed = f"{rate:,.0f} tokens/s of {log.params:,} parameters: {flops:.1e} operations per second"
        yield Finding(WARN, observed, f"at most {PEAK_FLOPS:.1e} per GPU", log.where("train", step))


_TRAIN_SHARDS = re.compile(r"train\w*(?:file|shard|pattern|glob|path|data|loader)", re.IGNORECASE)


def _shards(log):
    """Training reads no validation shards."""
    for name, value in [*log.hyperparameters.items(), *_file_settings(log)]:
        if _TRAIN_SHARDS.match(name) and re.search(r"(?:^|[/_])val(?:_|\b|idation)", value):
            yield Finding(FAIL, f"{name} {value[-80:]}", "shards of training", log.where("settings", name))
    train, val = (log.hyperparameters.get(f"{part}_files") for part in ("train", "val"))
    if train and train == val:
        observed = f"train_files and val_files are {train[-60:]}"
        yield Finding(FAIL, observed, "two lists", log.where("settings", "train_files"))


def _file_settings(log):
    """Settings of shards that the command or the loader's line names."""
    text = " ".join([log.command, *(line.text for line in _of(log, "data"))])
    return re.findall(r"\b(train_(?:files|shards|pattern|loader:\w{1,20}))[=:]\s?(\S+)", text, re.IGNORECASE)


RULES = (_planned_steps, _spacing, _ratio, _rounded, _sum_of_bytes, _end, _initial, _losses, _round_trip, _speed,
         _shards)

# What a log says of work on the weights that took time after the clock stopped. Evaluation has a limit of its own.
_WORK = re.compile(
    r"^(?!.*\bval_(?:loss|bpb)\b)(?P<what>.{0,40}\b(?:train|calibrat|hessian|swa|ema|finetun|fine-tun|warmdown|distill|qat|"
    r"gptq)\w{0,12}\b.{0,80}?)\b(?:in|took|time|elapsed)[:= ]{1,2}(?P<time>\d{1,7}(?:\.\d{1,6})?) ?(?P<unit>ms|s)\b",
    re.IGNORECASE | re.MULTILINE,
)


def check_after_the_clock(folder):
    """Work on the weights after the run stopped belongs to the training time of the record track."""
    for log in folder.logs if folder.track in TRAIN_LIMITS else []:
        yield from _late_work(log, folder.text(log.file))


def _late_work(log, text):
    limit = min(limit for limit in (log.cap_seconds, TRAIN_LIMITS["track_10min_16mb"]) if limit)
    stopped = _of(log, "stop", "val")
    if not stopped or log.train_ms is None:
        return
    spent, first = 0.0, None
    start = stopped[-1].number
    for number, line in enumerate(text.split("\n")[start:start + LATE_LINES], start + 1):
        found = _WORK.match(line[:400])
        if found and "ttt" not in line.lower():
            spent += float(found["time"]) / (SECOND if found["unit"] == "ms" else 1.0)
            first = first or (found["what"].strip(), number)
    total = log.train_ms / SECOND + spent
    if first and total > limit + 1.0:
        observed = f"{total:,.1f} s of training with {spent:,.1f} s of {first[0][:60]!r} after it stopped"
        yield Finding(WARN, observed, f"at most {limit:,.0f} s", f"{log.file}:{first[1]}")
