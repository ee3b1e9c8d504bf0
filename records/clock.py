"""The check of the clock: training and evaluation against their limits, a log against itself, and what is claimed of
both."""
import math
import re
import statistics

from common.challenge import EVAL_SECONDS
from records.checks import is_founding
from records.digits import agrees
from records.rules import FAIL, SECOND, TRAIN_LIMITS, UNVERIFIED, WARN, Finding

TIME_UNIT = 1.0  # the most that claimed seconds may be off because they have few digits
LATE_STEPS = 2  # a step cannot be interrupted, so a run may be late by this many


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
    status, meaning = WARN, "Accepted: a step that has begun cannot be interrupted."
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
    if claim is None or not times or any(agrees(claim, time, TIME_UNIT) for time in [*times, statistics.mean(times)]):
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
