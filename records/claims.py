"""The check of the scores that a record claims, against its own logs; and the sum of its bytes."""
import math
import re
import statistics

from common.published import VAL_BYTES, VAL_BYTES_TOLERANCE, VAL_TOKENS
from records.checks import is_founding
from records.digits import agrees, slack_of
from records.folder import data_of, on_fineweb
from records.rules import FAIL, NOTE, PASS, TRAIN_LIMITS, UNVERIFIED, WARN, Finding

MAIN_SCORE = "final_int8_zlib_roundtrip"  # the one final line
BYTE_VOCABULARY = range(256, 265)  # tokens of a byte alphabet, with a few that are not bytes


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
            yield from _claimed_score(folder, rules, name, number)
        yield from _label(folder)
    for number, name in ((1, "val_bpb"), (0, "val_loss")):
        yield from _claimed_before_quantization(folder, rules, f"pre_quant_{name}", number)
    yield from _implied_bytes(folder, rules)


def _no_final_score(folder):
    before = [log.pre_quant[1] for log in folder.logs if log.pre_quant]
    observed = "no final score in the log"
    if any(agrees(folder.fields.get("val_bpb"), value) for value in before):
        observed += "; the claim is the score before quantization"
    return Finding(FAIL, observed, "a line of the final score", folder.logs[0].where("val"))


def _claimed_score(folder, rules, name, number):
    """The claim is the score of the main log, or the mean of all. number: place in (val_loss, val_bpb). Records are
    ranked by val_bpb, so a wrong loss beside a right val_bpb was accepted."""
    if name not in folder.fields:
        return
    claim = folder.fields[name]
    runs = folder.seed_logs()
    values = [score[number] for score in folder.seed_scores()]
    mean = statistics.mean(values)
    if agrees(claim, mean):
        return
    matching = [log for log, value in zip(runs, values) if agrees(claim, value)]
    shown = f"{name} {float(claim):g}"
    if not matching:
        expected = " or ".join(f"{v:.6f}" for v in values)
        if len(values) > 1:
            expected += f", mean {mean:.6f}"
        status = FAIL if name == "val_bpb" else rules.lenient
        yield Finding(status, f"{shown} claimed", expected, "submission.json")
    elif claim <= min(values) + slack_of(claim):
        expected = f"the mean {mean:.6f}, or a middle run"
        where = matching[0].where("score", folder.score_label)
        yield Finding(WARN, f"{shown} is the best of {len(values)} runs", expected, where)
    elif matching[0] is not runs[0] and runs[0].file == "train.log":  # else no log is the main one
        expected = f"{values[0]:.6f} of {runs[0].name}"
        yield Finding(WARN, f"{shown} is that of {matching[0].name}", expected, "submission.json")


def _label(folder):
    """The score that is claimed is the last one printed, under the usual name."""
    label = folder.score_label
    for log in folder.logs:
        last = next(reversed(log.scores))
        if last != label:
            observed = f"its last score is {last} {log.score(last)[1]:.4f}"
            yield Finding(WARN, observed, f"the claimed {label}", log.where("score", last))
    main = folder.logs[0]
    if MAIN_SCORE not in (label, next(reversed(main.scores))):
        yield Finding(WARN, f"the score is named {label}", MAIN_SCORE, main.where("score", label))


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
    if not any(agrees(claim, value) for value in good):
        expected = " or ".join(f"{v:g}" for v in sorted(set(values)))
        yield Finding(rules.lenient, f"{name} {float(claim):g}", expected, "submission.json")


def _implied_bytes(folder, rules):
    """UTF-8 bytes of the validation text, val_loss / ln 2 * tokens / val_bpb, which no tokenizer changes."""
    label = folder.score_label
    pairs = [(log.where("score", label), *log.score(label), log) for log in folder.seed_logs()] if label else []
    if not pairs and "val_loss" in folder.fields and "val_bpb" in folder.fields:
        pairs = [("submission.json", folder.fields["val_loss"], folder.fields["val_bpb"], None)]
    pairs = [pair for pair in pairs if pair[2] and math.isfinite(pair[1]) and math.isfinite(pair[2])]
    for pair in pairs:
        yield from _bytes_of_pair(folder, rules, *pair)
    if not pairs and (folder.track in TRAIN_LIMITS or on_fineweb(folder)):
        observed = "no pair of loss and score shows the bytes of the text"
        yield Finding(UNVERIFIED, observed, f"{VAL_BYTES:,} of FineWeb", ".")


def _bytes_of_pair(folder, rules, where, loss, bpb, log):
    """The bytes that one loss and score imply; log: where they come from, or None."""
    tokens = log.val_tokens if log else None
    per_token = loss / math.log(2) / bpb  # bytes
    if tokens and log.val_bytes and abs(per_token * tokens / log.val_bytes - 1) > VAL_BYTES_TOLERANCE:
        observed = f"loss and score imply {per_token * tokens:,.0f} bytes"
        yield Finding(FAIL, observed, f"{log.val_bytes:,} as the log says", log.where("scored"))
        return
    official = folder.track in TRAIN_LIMITS
    claimed = "fineweb" in str(folder.raw.get("dataset")).lower()
    if official or claimed or not log or on_fineweb(folder, log):
        yield from _fineweb_bytes(folder, rules, where, per_token, log)
    elif log.dataset and log.dataset not in folder.text("README.md"):
        observed = f"scored on {log.dataset}, which the README does not say"
        yield Finding(FAIL, observed, "the data set, stated", "README.md")


def _fineweb_bytes(folder, rules, where, per_token, log):
    """The bytes of FineWeb's validation split. Where the tokens are not known, the nearest published split is meant,
    and with a byte alphabet the bytes themselves."""
    tokens, vocabulary = log.val_tokens if log else None, _vocabulary(folder, log)
    counts = [tokens] if tokens else VAL_TOKENS.values()
    if not tokens and vocabulary in BYTE_VOCABULARY:
        counts = [VAL_BYTES]
    implied = min((per_token * count for count in counts), key=lambda size: abs(size - VAL_BYTES))
    off = abs(implied / VAL_BYTES - 1)
    if off <= VAL_BYTES_TOLERANCE:
        return
    certain = tokens or folder.track in TRAIN_LIMITS
    status = FAIL if certain and not is_founding(folder) else UNVERIFIED
    observed = f"loss and score: {implied:,.0f} validation bytes implied, {100 * off:.2f} % off"
    if tokens and min(abs(tokens / count - 1) for count in VAL_TOKENS.values()) > 1e-3:
        observed = f"scored on another split: {tokens:,} tokens, {implied:,.0f} validation bytes implied"
    if not tokens and vocabulary is None and abs(per_token - 1) <= VAL_BYTES_TOLERANCE:
        status, observed = UNVERIFIED, "one byte per token, and no vocabulary that says whether tokens are bytes"
    meaning = ""
    if any(tokens == count and abs(implied / size - 1) <= VAL_BYTES_TOLERANCE for count, size in rules.other_splits):
        status = WARN
        observed += ", the challenge's first export"
        meaning = "The challenge's own first runs were scored on it: it is not comparable with the scores on the other."
    yield Finding(status, observed, f"{VAL_BYTES:,} of FineWeb's 50,000 documents", where, meaning)


def _vocabulary(folder, log):
    """Tokens of the vocabulary, as the log, submission.json or the name of the data set says; None where none does."""
    said = [log.vocab_size, log.settings.get("vocab_size"), log.hyperparameters.get("vocab_size")] if log else []
    named = re.search(r"(?:sp|byte)(\d{3,6})", data_of(folder, log))
    said += [folder.raw.get("vocab_size"), named and named[1]]
    return next((int(size) for size in said if size and re.fullmatch(r"\d{1,9}", str(size))), None)


def size_row(folder):
    """The sum that the size is of, as submission.json has it or else the main log: what holds, or which part is not
    known. The checks of the artifact say what is wrong about it."""
    parts = dict(zip(("total", "model", "code"), folder.stated_bytes()))
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
