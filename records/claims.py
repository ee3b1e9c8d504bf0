"""The checks of what a record claims, against its own logs and its neighbours: score, clock, significance."""
import math
import re
import statistics

from common.challenge import EVAL_SECONDS
from records.challenge import CAP_SECONDS, FINEWEB_VAL_BYTES, FINEWEB_VAL_TOKENS, SPLIT_TOLERANCE
from records.checks import FAIL, NOT_RUN, PASS, UNVERIFIED, WARN, Finding, is_founding, is_record_name
from records.folder import Decimal, on_fineweb, open_folder
from records.significance import Side, compare, copied_logs, is_score, missing_seeds

MAIN_SCORE = "final_int8_zlib_roundtrip"  # the one final line
SECOND = 1e3  # in milliseconds
SCORE_UNIT, TIME_UNIT = 5e-3, 0.5  # the most that a claim may be off on the ground of how few digits it is written with


def check_score(folder, rules):
    """val_bpb, val_loss and their values before quantization, each against the logs; and the bytes that the pair implies."""
    fields, label = folder.fields, folder.score_label
    if "val_bpb" not in fields:
        yield Finding(FAIL, "no val_bpb is claimed", "the score", "submission.json")
    if not folder.logs:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log to compare with", "the score in a log", ".")
    elif not label:
        before = [log.pre_quant[1] for log in folder.logs if log.pre_quant]
        same = any(_agrees(fields.get("val_bpb"), value) for value in before)
        yield Finding(FAIL, "no final score in the log" + "; the claim is the score before quantization" * same,
                      "a line of the final score", folder.logs[0].name)
    else:
        runs = folder.seed_logs()
        for number, name in ((1, "val_bpb"), (0, "val_loss")):
            if name in fields:
                yield from _claim(fields[name], name, [log.score(label)[number] for log in runs], runs, rules)
            yield from _seed_claims(folder, name, number, label, rules)
        last = next(reversed(folder.logs[0].scores))
        others = {log.name: next(reversed(log.scores)) for log in folder.logs if next(reversed(log.scores)) != label}
        for name, other in others.items():
            value = next(log for log in folder.logs if log.name == name).score(other)[1]
            yield Finding(WARN, f"its last score is {other} {value:.4f}", f"the claimed {label}", name)
        if MAIN_SCORE not in (label, last):
            yield Finding(WARN, f"the score is named {label}", MAIN_SCORE, folder.logs[0].name)
    for number, name in ((1, "pre_quant_val_bpb"), (0, "pre_quant_val_loss")):
        values = [log.pre_quant[number] for log in folder.logs if log.pre_quant]
        finals = [log.val[-1][number + 1] for log in folder.logs if log.val]
        if name in fields and values:
            good = [v for group in (values, finals) for v in [*group, statistics.mean(group or [math.nan])]]
            if not any(_agrees(fields[name], v) for v in good):
                yield Finding(rules.lenient, f"{name} {float(fields[name]):g}", " or ".join(f"{v:g}" for v in sorted(set(values))), "submission.json")
    yield from _implied_bytes(folder, rules, label)


def _half_unit(value, most=SCORE_UNIT):
    return min(most, value.half_unit) if isinstance(value, Decimal) else most


def _agrees(claim, value):
    return claim is not None and abs(claim - value) <= _half_unit(claim) * (1 + 1e-9) + 1e-12


def _claim(claim, name, values, runs, rules):
    """A claimed number against one value a run: it is that of the main log, or the mean of all."""
    mean = statistics.mean(values)
    if _agrees(claim, values[0]) and len(values) == 1:
        return
    if _agrees(claim, mean):
        return
    matches = [log for log, value in zip(runs, values) if _agrees(claim, value)]
    if matches and claim <= min(values) + _half_unit(claim):
        yield Finding(WARN, f"{name} {float(claim):g} is the best of {len(values)} runs", f"the mean {mean:.6f}, or a middle run", matches[0].name)
    elif matches and matches[0] is not runs[0] and len(runs) > 1:
        yield Finding(WARN, f"{name} {float(claim):g} is that of {matches[0].name}", f"{values[0]:.6f} of {runs[0].name}", "submission.json")
    elif not matches:
        yield Finding(FAIL, f"{name} {float(claim):g} claimed", " or ".join(f"{v:.6f}" for v in values) +
                      (f", mean {mean:.6f}" if len(values) > 1 else ""), "submission.json")


def _seed_claims(folder, name, number, label, rules):
    """The scores that submission.json gives seed by seed, and their standard deviation."""
    results = folder.raw.get("seed_results")
    values = {str(log.seed): log.score(label)[number] for log in folder.seed_logs()}
    for seed, result in results.items() if isinstance(results, dict) else []:
        claim = result.get(name) if isinstance(result, dict) else None
        if isinstance(claim, Decimal) and seed in values and not _agrees(claim, values[seed]):
            yield Finding(rules.lenient, f"{name} {claim:g} of seed {seed}", f"{values[seed]:.6f} of its log", "submission.json")
    claim = folder.raw.get(f"{name}_std")
    if isinstance(claim, Decimal) and len(values) > 1 and not _agrees(claim, statistics.stdev(values.values())):
        yield Finding(rules.lenient, f"{name}_std {claim:g}", f"{statistics.stdev(values.values()):.6f} of the logs", "submission.json")


def _implied_bytes(folder, rules, label):
    """UTF-8 bytes of the validation text = val_loss / ln 2 * tokens / val_bpb, which no tokenizer changes."""
    official, shown = folder.track in CAP_SECONDS, False
    pairs = [(log.name, *log.score(label), log) for log in folder.seed_logs()] if label else []
    if not pairs and "val_loss" in folder.fields and "val_bpb" in folder.fields:
        pairs = [("submission.json", folder.fields["val_loss"], folder.fields["val_bpb"], None)]
    for where, loss, bpb, log in pairs:
        tokens = log.val_tokens if log else None
        if not bpb or not math.isfinite(bpb) or not math.isfinite(loss):
            continue
        shown = True
        if tokens and log.val_bytes:
            implied = loss / math.log(2) * tokens / bpb
            if abs(implied / log.val_bytes - 1) > SPLIT_TOLERANCE:
                yield Finding(FAIL, f"loss and score imply {implied:,.0f} bytes", f"{log.val_bytes:,} as the log says", where)
                continue
        elif tokens:
            implied = loss / math.log(2) * tokens / bpb
        else:  # only a split whose tokens are known can be recognised
            implied = min((loss / math.log(2) * n / bpb for n in FINEWEB_VAL_TOKENS), key=lambda v: abs(v - FINEWEB_VAL_BYTES))
        off = abs(implied / FINEWEB_VAL_BYTES - 1)
        fineweb = official or not log or on_fineweb(folder, log)
        if fineweb and off > SPLIT_TOLERANCE:
            near = min(FINEWEB_VAL_TOKENS, key=lambda n: abs(n - (tokens or 0)))
            count = f" of {tokens:,} tokens" if tokens and abs(tokens / near - 1) > 1e-3 else ""
            published = UNVERIFIED if is_founding(folder) else FAIL
            yield Finding(published if tokens or official else UNVERIFIED, f"{implied:,.0f} validation bytes implied{count}, {100 * off:.2f} % off",
                          f"{FINEWEB_VAL_BYTES:,} of FineWeb's 50,000 documents", where)
        elif not fineweb and log.dataset and log.dataset not in folder.text("README.md"):
            yield Finding(FAIL, f"scored on {log.dataset}, which the README does not say", "the data set, stated", "README.md")
    if not shown and (official or on_fineweb(folder)):
        yield Finding(UNVERIFIED, "no pair of loss and score shows the bytes of the text", f"{FINEWEB_VAL_BYTES:,} of FineWeb", ".")


def check_clock(folder, rules):
    """Training time against the cap, its own arithmetic, and the time of evaluation."""
    if not folder.logs:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log", "the training time", ".")
    for log in folder.logs:
        step, ms, caps = log.last_step, log.train_ms, [log.cap_seconds, CAP_SECONDS.get(folder.track)]
        if not step or ms is None or not math.isfinite(ms):
            yield Finding(FAIL, "no training time", "lines with train_time", log.name)
            continue
        caps = [c for c in caps if c]
        cap, per_step = min(caps) * SECOND if caps else math.inf, ms / step
        if ms > cap:
            over = f"{ms / SECOND:,.3f} s, {ms - cap:,.0f} ms over"
            late = ms > cap + 2 * per_step
            yield Finding(FAIL if late else WARN, over + f", {(ms - cap) / per_step:.1f} steps" * late, f"at most {cap / SECOND:,.0f} s", log.name)
        wrong = [row for row in log.averages if row[0] and abs(row[0] * row[2] - row[1]) > row[0] * 0.011 + 1.0]
        if wrong:
            at, time, average = wrong[0]
            yield Finding(FAIL, f"step {at}: {average} ms a step, {time:,.0f} ms in all", f"{time / at:.2f} ms a step", log.name)
        spent = max(sum(score[2] or 0.0 for score in log.scores.values()), log.evaluation_ms or 0.0)
        if spent > EVAL_SECONDS * SECOND and folder.track in CAP_SECONDS:
            yield Finding(FAIL, f"evaluation took {spent / SECOND:,.1f} s", f"at most {EVAL_SECONDS:.0f} s", log.name)
        if folder.track not in CAP_SECONDS and "README.md" in folder.files:
            seconds = f"{log.cap_seconds or 0:g}"
            stated = r"MAX_WALLCLOCK_SECONDS\s*=\s*0\b" if seconds == "0" else rf"(?<![\d.,]){re.escape(seconds)}(?![\d])"
            if not re.search(stated, folder.text("README.md").replace(",", "")):
                yield Finding(rules.lenient, "the compute is not stated", f"MAX_WALLCLOCK_SECONDS={seconds}", "README.md")
    runs = [log for log in folder.seed_logs() if log.train_ms is not None]
    for name, values, scale in (("wallclock_seconds", [log.train_ms for log in runs], SECOND), ("step_stop", [log.last_step for log in runs], 1)):
        claim = folder.fields.get(name)
        half = _half_unit(claim, TIME_UNIT) if claim is not None else 0
        if claim is not None and values and all(abs(claim - v / scale) > half + 1e-9 for v in [*values, statistics.mean(values)]):
            yield Finding(rules.lenient, f"{name} {claim:,}", " or ".join(f"{v / scale:,}" for v in sorted(set(values))), "submission.json")


def check_significance(folder, rules, baseline):
    """baseline: a Side, or None: then the best earlier record beside the folder."""
    if folder.track not in CAP_SECONDS:
        yield Finding(NOT_RUN, "no record is claimed in this track")
        return
    if is_founding(folder):
        yield Finding(UNVERIFIED, "one published run, the first: there was nothing to beat", "3 runs", ".")
        return
    candidate = side_of_folder(folder, "candidate")
    baseline = baseline or earlier_record(folder, rules)
    if baseline is None:
        yield Finding(UNVERIFIED, "no earlier record beside the folder", "--baseline FOLDER, at least 3 runs", ".")
        return
    margin = {"margin": 0.0} if rules.name != "strict" else {}
    result = compare(baseline, candidate, **margin)
    main = result.get("readings", {}).get("nats per token")
    if any("copy" in text or "the same score" in text for text in result["because"]):
        yield Finding(FAIL, "; ".join(result["because"]), "independent runs", "logs")
    elif result["decision"] == "not verified":
        yield Finding(UNVERIFIED, "; ".join(result["because"]), f"at least 3 runs a side, against {baseline.label}", "logs")
    else:
        words = f"{main['difference']:.5f} {result['unit']} better than {baseline.label}, margin {main['margin']:.5f}, p = {main['p']:.3g}"
        yield Finding(PASS if result["decision"] == "significant" else rules.lenient, words, "p < 0.01", "logs")


def side_of_folder(folder, label):
    scores = folder.seed_scores()
    good = [s for s in scores if is_score(s)]
    problems = ["a log has no finite score above 0"] * (len(good) < len(scores)) + missing_seeds(folder) + copied_logs(folder)
    return Side(label, [s[0] for s in good], [s[1] for s in good], problems)


def earlier_record(folder, rules):
    """Side of the best entry of the same track whose folder name is dated before this one's and which no other check fails; None where
    there is none. The claims give the order, which a check ties to the logs; the runs are those of the logs."""
    from records.verify import verdict, verify_folder  # here, since it makes these checks
    found = []
    for path in sorted(folder.path.parent.iterdir()):
        if is_record_name(path.name) and path.is_dir() and not path.is_symlink() and path.name[:10] < folder.name[:10]:
            score = open_folder(path, with_logs=False).fields.get("val_bpb")
            found += [(score, path)] if score is not None else []
    for _, path in sorted(found):
        if verdict(verify_folder(path, rules.name, leave_out=("significance",)))[0] != "fails":
            return side_of_folder(open_folder(path), path.name)
    return None
