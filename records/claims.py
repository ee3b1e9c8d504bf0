"""The checks of what a record claims, against its own logs: score and clock."""
import math
import re
import statistics

from common.challenge import EVAL_SECONDS
from common.published import VAL_BYTES, VAL_BYTES_TOLERANCE, VAL_TOKENS
from records.checks import is_founding
from records.folder import Decimal, on_fineweb
from records.rules import FAIL, NOTE, PASS, TRAIN_LIMITS, UNVERIFIED, WARN, Finding

MAIN_SCORE = "final_int8_zlib_roundtrip"  # the one final line
SECOND = 1e3  # in milliseconds
SCORE_UNIT = 5e-3  # the most that a claimed score may be off because it has few digits
TIME_UNIT = 1.0  # and claimed seconds
LATE_STEPS = 2  # a step cannot be interrupted, so a run may be late by this many


def check_score(folder, rules):
    """val_bpb, val_loss and their values before quantization, each against the logs; and the bytes that both imply."""
    if "val_bpb" not in folder.fields:
        yield Finding(FAIL, "no val_bpb is claimed", "the score", "submission.json")
    if not folder.logs:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log to compare with", "the score in a log", ".")
    elif not folder.score_label:
        yield _no_final_score(folder)
    else:
        for number, name in ((1, "val_bpb"), (0, "val_loss")):
            yield from _claimed_score(folder, name, number)
            yield from _claimed_per_seed(folder, rules, name, number)
        yield from _label(folder)
    for number, name in ((1, "val_bpb"), (0, "val_loss")):
        yield from _claimed_before_quantization(folder, rules, f"pre_quant_{name}", number)
    yield from _implied_bytes(folder)


def _half_unit(claim, most=SCORE_UNIT):
    """How much a claim may be off on account of its digits."""
    return min(most, claim.half_unit) if isinstance(claim, Decimal) else most


def _agrees(claim, value):
    return claim is not None and abs(claim - value) <= _half_unit(claim) * (1 + 1e-9) + 1e-12


def _no_final_score(folder):
    before = [log.pre_quant[1] for log in folder.logs if log.pre_quant]
    observed = "no final score in the log"
    if any(_agrees(folder.fields.get("val_bpb"), value) for value in before):
        observed += "; the claim is the score before quantization"
    return Finding(FAIL, observed, "a line of the final score", folder.logs[0].name)


def _claimed_score(folder, name, number):
    """The claim is the score of the main log, or the mean of all. number: place in (val_loss, val_bpb)."""
    if name not in folder.fields:
        return
    claim = folder.fields[name]
    runs = folder.seed_logs()
    values = [score[number] for score in folder.seed_scores()]
    mean = statistics.mean(values)
    if _agrees(claim, mean):
        return
    matching = [log for log, value in zip(runs, values) if _agrees(claim, value)]
    shown = f"{name} {float(claim):g}"
    if not matching:
        expected = " or ".join(f"{v:.6f}" for v in values)
        if len(values) > 1:
            expected += f", mean {mean:.6f}"
        yield Finding(FAIL, f"{shown} claimed", expected, "submission.json")
    elif claim <= min(values) + _half_unit(claim):
        expected = f"the mean {mean:.6f}, or a middle run"
        yield Finding(WARN, f"{shown} is the best of {len(values)} runs", expected, matching[0].name)
    elif matching[0] is not runs[0]:
        expected = f"{values[0]:.6f} of {runs[0].name}"
        yield Finding(WARN, f"{shown} is that of {matching[0].name}", expected, "submission.json")


def _claimed_per_seed(folder, rules, name, number):
    """The scores of single seeds in submission.json, and their standard deviation."""
    values = {str(log.seed): log.score(folder.score_label)[number] for log in folder.seed_logs()}
    results = folder.raw.get("seed_results")
    for seed, result in results.items() if isinstance(results, dict) else []:
        claim = result.get(name) if isinstance(result, dict) else None
        if isinstance(claim, Decimal) and seed in values and not _agrees(claim, values[seed]):
            expected = f"{values[seed]:.6f} of its log"
            yield Finding(rules.lenient, f"{name} {claim:g} of seed {seed}", expected, "submission.json")
    claim = folder.raw.get(f"{name}_std")
    if isinstance(claim, Decimal) and len(values) > 1 and not _agrees(claim, statistics.stdev(values.values())):
        expected = f"{statistics.stdev(values.values()):.6f} of the logs"
        yield Finding(rules.lenient, f"{name}_std {claim:g}", expected, "submission.json")


def _label(folder):
    """The score that is claimed is the last one printed, under the usual name."""
    label = folder.score_label
    for log in folder.logs:
        last = next(reversed(log.scores))
        if last != label:
            observed = f"its last score is {last} {log.score(last)[1]:.4f}"
            yield Finding(WARN, observed, f"the claimed {label}", log.name)
    main = folder.logs[0]
    if MAIN_SCORE not in (label, next(reversed(main.scores))):
        yield Finding(WARN, f"the score is named {label}", MAIN_SCORE, main.name)


def _claimed_before_quantization(folder, rules, name, number):
    """The claim is what a log names as the score before quantization, its last validation, or the mean of either."""
    values = [log.pre_quant[number] for log in folder.logs if log.pre_quant]
    finals = [log.val[-1][number + 1] for log in folder.logs if log.val]
    if name not in folder.fields or not values:
        return
    good = [*values, statistics.mean(values), *finals]
    if finals:
        good.append(statistics.mean(finals))
    claim = folder.fields[name]
    if not any(_agrees(claim, value) for value in good):
        expected = " or ".join(f"{v:g}" for v in sorted(set(values)))
        yield Finding(rules.lenient, f"{name} {float(claim):g}", expected, "submission.json")


def _implied_bytes(folder):
    """UTF-8 bytes of the validation text, val_loss / ln 2 * tokens / val_bpb, which no tokenizer changes."""
    pairs = [(log.name, *score, log) for log, score in zip(folder.seed_logs(), folder.seed_scores())]
    if not pairs and "val_loss" in folder.fields and "val_bpb" in folder.fields:
        pairs = [("submission.json", folder.fields["val_loss"], folder.fields["val_bpb"], None)]
    pairs = [pair for pair in pairs if pair[2] and math.isfinite(pair[1]) and math.isfinite(pair[2])]
    for pair in pairs:
        yield from _bytes_of_pair(folder, *pair)
    if not pairs and (folder.track in TRAIN_LIMITS or on_fineweb(folder)):
        observed = "no pair of loss and score shows the bytes of the text"
        yield Finding(UNVERIFIED, observed, f"{VAL_BYTES:,} of FineWeb", ".")


def _bytes_of_pair(folder, where, loss, bpb, log):
    """The bytes that one loss and score imply; log: where they come from, or None."""
    tokens = log.val_tokens if log else None
    per_token = loss / math.log(2) / bpb  # bytes
    if tokens and log.val_bytes and abs(per_token * tokens / log.val_bytes - 1) > VAL_BYTES_TOLERANCE:
        observed = f"loss and score imply {per_token * tokens:,.0f} bytes"
        yield Finding(FAIL, observed, f"{log.val_bytes:,} as the log says", where)
        return
    official = folder.track in TRAIN_LIMITS
    if official or not log or on_fineweb(folder, log):
        yield from _fineweb_bytes(folder, where, per_token, tokens)
    elif log.dataset and log.dataset not in folder.text("README.md"):
        observed = f"scored on {log.dataset}, which the README does not say"
        yield Finding(FAIL, observed, "the data set, stated", "README.md")


def _fineweb_bytes(folder, where, per_token, tokens):
    """The bytes of FineWeb's validation split. Where the tokens are not known, the nearest published split is meant."""
    counts = [tokens] if tokens else VAL_TOKENS.values()
    implied = min((per_token * count for count in counts), key=lambda size: abs(size - VAL_BYTES))
    off = abs(implied / VAL_BYTES - 1)
    if off <= VAL_BYTES_TOLERANCE:
        return
    observed = f"{implied:,.0f} validation bytes implied"
    if tokens and min(abs(tokens / count - 1) for count in VAL_TOKENS.values()) > 1e-3:
        observed += f" of {tokens:,} tokens"
    observed += f", {100 * off:.2f} % off"
    certain = tokens or folder.track in TRAIN_LIMITS
    status = FAIL if certain and not is_founding(folder) else UNVERIFIED
    yield Finding(status, observed, f"{VAL_BYTES:,} of FineWeb's 50,000 documents", where)


def size_row(folder):
    """The sum that the size is of, as submission.json has it or else the main log: what holds, or which part is not
    known. The checks of the artifact say what is wrong about it."""
    log = folder.logs[0] if folder.logs else None
    parts = {
        part: folder.fields.get(claim, log and getattr(log, logged))
        for part, claim, logged in (("total", "bytes_total", "total_bytes"),
                                    ("model", "bytes_model_int8_zlib", "model_bytes"),
                                    ("code", "bytes_code", "code_bytes"))
    }
    unknown = [part for part, size in parts.items() if size is None]
    total, model, code = (f"{size:,}" if size is not None else "unknown" for size in parts.values())
    observed = f"{total} bytes in all = {model} model + {code} code"
    if len(unknown) == 3:
        return
    if unknown:
        yield Finding(NOTE, observed, f"the bytes of {' and '.join(unknown)}, stated", "submission.json")
    elif parts["total"] == parts["model"] + parts["code"]:
        yield Finding(PASS, observed)
    else:
        more = parts["total"] - parts["model"] - parts["code"]
        word = "more" if more > 0 else "less"
        yield Finding(NOTE, f"{total} bytes in all, {abs(more):,} {word} than {model} model + {code} code",
                      "total = model + code", "submission.json")


def check_clock(folder, rules):
    """Training time against the limit and the logged averages, the time of evaluation, and the claims of both."""
    if not folder.logs:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log", "the training time", ".")
    official = folder.track in TRAIN_LIMITS
    runs = []
    for log in folder.seed_logs():
        if not log.last_step or log.train_ms is None or not math.isfinite(log.train_ms):
            yield Finding(FAIL, "no training time", "lines with train_time", log.name)
            continue
        runs.append(log)
        yield from _training_time(folder, log)
        yield from _step_averages(log)
        if official:
            yield from _evaluation_time(folder, log)
    if not official:
        yield from _stated_limits(folder, rules, runs)
    yield from _claimed_time(folder, rules, runs)
    yield from _claimed_steps(folder, rules, runs)


def _training_time(folder, log):
    """The shorter of the run's own limit and the track's is kept, but for the step that was running."""
    limits = [limit for limit in (log.cap_seconds, TRAIN_LIMITS.get(folder.track)) if limit]
    if not limits or log.train_ms <= min(limits) * SECOND:
        return
    over = log.train_ms - min(limits) * SECOND
    steps = over / (log.train_ms / log.last_step)
    observed = f"{log.train_ms / SECOND:,.3f} s, {over:,.0f} ms over, {steps:.1f} steps"
    status, meaning = WARN, ""
    if steps > LATE_STEPS:
        status, meaning = FAIL, "A step that has begun ends late, but not by so much: the run kept on training."
    yield Finding(status, observed, f"at most {min(limits):,.0f} s", _line_at(log, log.train_ms), meaning)


def _line_at(log, ms):
    """Where a log has a training time."""
    if log.stop and log.stop[1] == ms:
        return log.where("stop")
    rows = [("val", row) for row in log.val] + [("train", row) for row in log.train]
    return next((log.where(kind, row[0]) for kind, row in rows if row[-1] == ms), log.name)


def _step_averages(log):
    """step x step_avg is train_time, on the first line where it is not; the average is printed with two decimals."""
    for step, ms, average in log.averages:
        if step and abs(step * average - ms) > step * 0.011 + 1.0:
            observed = f"step {step}: {average} ms per step, {ms:,.0f} ms in all"
            meaning = "The line contradicts itself: no trainer prints it so."
            yield Finding(FAIL, observed, f"{ms / step:.2f} ms per step", _line_at(log, ms), meaning)
            return


def _evaluation_time(folder, log):
    """The evaluation that gives the score keeps the limit; further ones, of the same model, may take longer."""
    spent = [score[2] or 0.0 for score in log.scores.values()]
    scored = log.scores.get(folder.score_label, (None, None, None))[2] or 0.0
    needed = max(scored, log.evaluation_ms or 0.0)
    limit, expected = EVAL_SECONDS * SECOND, f"at most {EVAL_SECONDS:.0f} s"
    if needed > limit:
        where = log.where("score", folder.score_label) if scored == needed else log.where("evaluation")
        yield Finding(FAIL, f"evaluation took {needed / SECOND:,.1f} s", expected, where)
    elif sum(spent) > limit:
        observed = f"{len(spent)} evaluations took {sum(spent) / SECOND:,.1f} s together"
        meaning = "The one that gives the score must not need the others."
        yield Finding(WARN, observed, expected, log.where("score"), meaning)


def _stated_limits(folder, rules, runs):
    """The README says how long the runs could train."""
    text = folder.text("README.md").replace(",", "")
    if "README.md" not in folder.files:
        return
    for seconds in sorted({log.cap_seconds or 0.0 for log in runs}):
        if not re.search(_stated(seconds), text, re.IGNORECASE):
            expected = f"MAX_WALLCLOCK_SECONDS={seconds:g}"
            meaning = "State the compute: the limit as the run had it, in seconds, minutes or hours."
            yield Finding(rules.lenient, "the compute is not stated", expected, "README.md", meaning)


def _stated(seconds):
    """Pattern of a limit in a text without thousands separators; 0: there was none."""
    if not seconds:
        return r"MAX_WALLCLOCK_SECONDS\s*=\s*0\b|\bunlimited\b"
    units = ((1, ""), (60, r"[\s-]*min"), (3600, r"[\s-]*h(?:ours?|rs?)?\b"))
    forms = [rf"{re.escape(f'{seconds / size:g}')}(?:\.0+)?(?![\d.]*\d){unit}" for size, unit in units]
    return rf"(?<![\d.])(?:{'|'.join(forms)})"


def _claimed_time(folder, rules, runs):
    """wallclock_seconds is the training time of a run, or the mean: rounded to its last digit, down or up."""
    claim, times = folder.fields.get("wallclock_seconds"), [log.train_ms / SECOND for log in runs]
    unit = min(2 * claim.half_unit, TIME_UNIT) if isinstance(claim, Decimal) else TIME_UNIT
    if claim is None or not times or _is_near(claim, times, unit):
        return
    expected = " or ".join(f"{time:,.3f}" for time in sorted(set(times)))
    if claim >= min(times) and any(claim == log.cap_seconds for log in runs):
        meaning = "The claim is the limit; the run took less."
        yield Finding(WARN, f"wallclock_seconds {claim:,}", expected, "submission.json", meaning)
    else:
        yield Finding(rules.lenient, f"wallclock_seconds {claim:,}", expected, "submission.json")


def _claimed_steps(folder, rules, runs):
    """step_stop is the last step of a run, or the mean."""
    claim, steps = folder.fields.get("step_stop"), [log.last_step for log in runs]
    if claim is not None and steps and claim not in steps and abs(claim - statistics.mean(steps)) >= 1:
        expected = " or ".join(f"{step:,}" for step in sorted(set(steps)))
        yield Finding(rules.lenient, f"step_stop {claim:,}", expected, "submission.json")


def _is_near(claim, values, unit):
    """Whether a claim is less than a unit away from one of the values, or from their mean."""
    return any(abs(claim - value) < unit * (1 - 1e-9) for value in [*values, statistics.mean(values)])
