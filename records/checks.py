"""The checks of a record folder that read its files: layout, schema, code bytes, artifact, logs.

Each takes a Folder and the Rules that it is judged by, and yields Findings; none means that all is as required.
code: what records/code.py says of each .py file.
"""
import datetime
import hashlib
import math
import re
import statistics

from common.artifact import decode_model
from common.challenge import BUDGET_BYTES
from common.settings import UserError, model_settings, settings_of
from records import line_ends, litter
from records.digits import Decimal, agrees
from records.folder import CODE_LIMIT, Refused, declared_seeds
from records.rules import FAIL, FOUNDING, NUMBER_FIELDS, PASS, SCRIPT, TEXT_FIELDS, TRACKS, UNVERIFIED, WARN, Finding
from records.runs import seed_in_name
from records.significance import copied_logs, missing_seeds

PLACEHOLDER = "TO BE WRITTEN"  # in a README draft, where the author's own words are missing
UNDERSTOOD = "It is understood all the same; the expected spelling is safer."
PAYLOAD_LIMIT = 1 << 27  # bytes of an inflated model file: a bit for each of 16,000,000 bytes would be this much


def is_founding(folder):
    """Whether it is one of the challenge's own two runs, of which there are only figures."""
    try:
        digest = hashlib.sha256(folder.read("submission.json", 1 << 20)).hexdigest()
    except Refused:
        return False
    return FOUNDING.get(f"{folder.track}/{folder.name}") == digest


def is_record_name(name):
    """Whether it is YYYY-MM-DD_name."""
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\d_[\w.+-]{1,100}", name, re.ASCII)) and _is_date(name[:10])


def _is_date(text):
    try:
        datetime.date.fromisoformat(text)
        return True
    except ValueError:
        return False


def check_layout(folder, rules):
    """The place and name of the folder, the files that must be there, and a README that is written."""
    for what, where in folder.problems:
        yield Finding(FAIL, what, "plain files and folders only", where)
    if folder.line_ends:
        yield line_ends.finding(folder, *folder.line_ends)
    if folder.litter:
        meaning = "Delete these: they are not part of the record, and nothing in them is read."
        yield Finding(rules.lenient, litter.in_words(folder.litter), "none of these", ".", meaning)
    if folder.track not in TRACKS.values():
        yield Finding(FAIL, f"is in {folder.track}/", " or ".join(TRACKS.values()), "..")
    if not is_record_name(folder.name):
        yield Finding(FAIL, folder.name.encode(errors="replace").decode()[:100], "YYYY-MM-DD_name", ".")
    for name in ("README.md", "submission.json", "train.log", SCRIPT):
        yield from _required_file(folder, rules, name)
    yield from _readme(folder)
    for name, kind in sorted(folder.kinds.items()):
        if kind == "archive":
            meaning = "Nothing in it is checked: ship the files themselves."
            yield Finding(WARN, "an archive, which is not opened", "the files themselves", name, meaning)


def _required_file(folder, rules, name):
    needed = name == "submission.json" or (name == "train.log" and not folder.logs)
    status = FAIL if needed else rules.lenient
    size = folder.files.get(name)
    if is_founding(folder) and name in ("train.log", SCRIPT):
        yield Finding(UNVERIFIED, "none: published by the challenge, not run here", "", name)
    elif size is None:
        observed = "is missing"
        if name == "train.log" and folder.logs:
            observed += f"; the logs are named {', '.join(dict.fromkeys(log.file for log in folder.logs))}"
        yield Finding(status, observed, "present", name)
    elif not size:
        yield Finding(status, "is empty", "not empty", name)


def _readme(folder):
    if "README.md" not in folder.files:
        return
    try:
        text = folder.read("README.md", 1 << 20).decode()
    except Refused as error:
        yield Finding(FAIL, str(error), "UTF-8 text", "README.md")
    except UnicodeDecodeError as error:
        yield Finding(FAIL, f"is not UTF-8 at byte {error.start}", "UTF-8 text", "README.md")
    else:
        if count := text.count(PLACEHOLDER):
            observed = f"{count} places still say {PLACEHOLDER}"
            yield Finding(FAIL, observed, "the idea and its justification", "README.md")


def check_schema(folder, rules):
    """submission.json: strict JSON, every field, in range, with enough digits, of this date and track."""
    if folder.json_error:
        yield Finding(FAIL, folder.json_error, "strict JSON, one object", "submission.json")
        return
    for what, expected in folder.invalid:
        yield Finding(FAIL, what, expected, "submission.json")
    for theirs, ours in folder.spelled:
        yield Finding(WARN, f"spelled {theirs}", ours, "submission.json", UNDERSTOOD)
    invalid = " ".join(what for what, _ in folder.invalid)
    missing = [n for n in [*TEXT_FIELDS, *NUMBER_FIELDS] if n not in folder.fields and n not in invalid]
    if missing:
        status = FAIL if "val_bpb" in missing else rules.lenient
        yield Finding(status, f"without {', '.join(missing)}", "every field", "submission.json")
    yield from _digits(folder, rules)
    yield from _date_and_track(folder)


def _digits(folder, rules):
    """val_loss and val_bpb have enough digits, or all that the logs print: 1.87000000 may be written as 1.87."""
    scores = folder.seed_scores()
    for number, name in enumerate(("val_loss", "val_bpb")):
        value = folder.fields.get(name)
        logged = [score[number] for score in scores]
        if logged:
            logged.append(statistics.mean(logged))
        if value is None or any(abs(value - v) < 1e-8 for v in logged):
            continue
        if not isinstance(value, Decimal) or value.unit > 1.01 * 10.0**-rules.digits:
            written = getattr(value, "text", value)
            yield Finding(FAIL, f"{name} {written}", f"at least {rules.digits} decimals", "submission.json")


def _date_and_track(folder):
    date = folder.fields.get("date", "")
    if date and not _is_date(date[:10]):
        yield Finding(FAIL, f"date {date!r}", "YYYY-MM-DD, with or without a time", "submission.json")
    elif date and date[:10] != folder.name[:10]:
        expected = f"{folder.name[:10]} of the folder's name"
        yield Finding(WARN, f"date {date[:10]}", expected, "submission.json", UNDERSTOOD)
    track = folder.fields.get("track", "")
    if track and ("non" in track.lower()) != ("non" in folder.track):
        yield Finding(FAIL, f"track {track!r}", folder.track, "submission.json")


def check_code_bytes(folder, rules, code):
    """The bytes of train_gpt.py and of every file it reaches, against the sizes in submission.json and the logs."""
    if not folder.files.get(SCRIPT):
        yield Finding(UNVERIFIED, f"no {SCRIPT} to count", "the counted code", SCRIPT)
        yield from _other_files(folder, rules, code.keys())
        return
    counted = reached_files(code)
    total = sum(folder.files[name] for name in counted)
    if others := sorted(counted - {SCRIPT}):
        observed = f"reaches {', '.join(others)}: {total:,} bytes with them"
        yield Finding(rules.lenient, observed, f"all counted code in {SCRIPT}", SCRIPT)
    yield from _other_files(folder, rules, counted)
    reported = {"bytes_code": folder.fields.get("bytes_code")}
    reported |= {log.where("code"): log.code_bytes for log in folder.logs}
    for size in dict.fromkeys(reported.values()):
        if size not in (None, total):
            sources = " and ".join(source for source, said in reported.items() if said == size)
            yield Finding(rules.lenient, f"{total:,} bytes shipped", f"{size:,}, by {sources}", SCRIPT)


def _other_files(folder, rules, counted):
    """Each file that is not part of the record is named with its bytes. Texts, pictures and tokenizers are not code."""
    for name, kind in sorted(folder.kinds.items()):
        if name in counted or kind in ("log", "model") or name in ("README.md", "submission.json", "requirements.txt"):
            continue
        size = f"{folder.files[name]:,} bytes"
        if kind in ("text", "picture", "tokenizer"):
            yield Finding(PASS, f"{size} of {kind} beside the code", "", name)
        elif kind == "code" and name.endswith(".py"):
            yield Finding(WARN, f"{size} of code in {name} that {SCRIPT} does not reach", "not needed to train", name)
        else:
            yield Finding(rules.lenient, f"{size} in {name} that no check accounts for", "only what is counted", name)


def reached_files(code):
    """set of train_gpt.py and all that it reaches, directly or not."""
    found = set()
    pending = [SCRIPT]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += code.get(name, {}).get("reaches", [])
    return found


def check_artifact(folder, rules, code=()):
    """Every model file by itself, and the bytes of code and model as files, in submission.json and in the logs."""
    models = [name for name, kind in sorted(folder.kinds.items()) if kind == "model"]
    shipped = sum(folder.files.get(name, 0) for name in reached_files(code)) if code else folder.files.get(SCRIPT)
    code_bytes = shipped or folder.fields.get("bytes_code") or 0
    for name in models:
        yield from _model_file(folder, name)
    together = sum(folder.files[name] for name in models) + code_bytes
    if models and together >= BUDGET_BYTES:
        what = "the model file" if len(models) == 1 else f"{len(models)} model files"
        status = FAIL if rules.literal_size else WARN
        yield Finding(status, f"{what} and the code have {together:,} bytes", f"less than {BUDGET_BYTES:,}", models[0])
    yield from _bytes_total(folder, rules)
    yield from _claimed_parts(folder, rules)
    yield from _logged_bytes(folder, rules, code_bytes)
    if not models and "bytes_total" not in folder.fields and not any(log.total_bytes for log in folder.logs):
        observed = "neither a size nor a model file"
        yield Finding(UNVERIFIED, observed, f"less than {BUDGET_BYTES:,} bytes", ".")


def _model_file(folder, name):
    """One model file: canonical, and as its log and submission.json say."""
    try:
        data = folder.read(name, BUDGET_BYTES)
    except Refused as error:
        yield Finding(FAIL, str(error), f"less than {BUDGET_BYTES:,} bytes", name)
        return
    if not name.endswith(".int8.zlib"):
        yield Finding(UNVERIFIED, f"{len(data):,} bytes of another format, not opened", "model.int8.zlib", name)
        return
    try:
        settings, _ = decode_model(data, PAYLOAD_LIMIT)
    except UserError as error:
        yield Finding(FAIL, str(error), "a canonical model file", name)
        return
    except MemoryError:
        yield Finding(FAIL, "needs more memory than this machine has", "a model that fits", name)
        return
    yield from _model_as_logged(folder, name, data, settings)


def _model_as_logged(folder, name, data, settings):
    """The SHA-256, the settings and the size of a model file, against its log and submission.json."""
    main = folder.logs[0] if folder.logs else None
    log = folder.log_of_model(data)
    named = next((log for log in folder.logs if log.model_sha256), None)
    if named and not log:
        digest = hashlib.sha256(data).hexdigest()
        yield Finding(FAIL, f"SHA-256 {digest[:12]}", f"{named.model_sha256[:12]} of {named.name}", name)
    if log and not _same_model(settings, log):
        yield Finding(FAIL, "holds a model of another size", f"the settings in {log.name}", name)
    size = folder.fields.get("bytes_model_int8_zlib")
    if (log is None or log is main) and size not in (None, len(data)):
        yield Finding(FAIL, f"{len(data):,} bytes", f"{size:,} as bytes_model_int8_zlib says", name)


def _same_model(settings, log):
    if log.refused.keys() & settings_of("model").keys():
        return False
    return model_settings(settings) == model_settings(log.run_settings)


def _bytes_total(folder, rules):
    """bytes_total: below the limit, the sum of its parts, and the total of a log or the mean of all."""
    total, model, code = (folder.fields.get(f"bytes_{part}") for part in ("total", "model_int8_zlib", "code"))
    if total is None:
        return
    if model is not None and code is not None and model + code != total:
        yield Finding(rules.lenient, f"bytes_total {total:,}", f"{model + code:,} = model + code", "submission.json")
    if total >= BUDGET_BYTES:
        yield Finding(FAIL, f"bytes_total {total:,}", f"less than {BUDGET_BYTES:,}", "submission.json")
    totals, models = ([getattr(log, f"{part}_bytes") for log in folder.seed_logs()] for part in ("total", "model"))
    if not any(totals) or _is_one_or_mean(total, totals):
        return
    observed = f"bytes_total {total:,}"
    if _is_one_or_mean(total, models):
        observed += ", which is the model without the code"
    expected = f"{' or '.join(f'{size:,}' for size in sorted({*totals} - {None}))} of the logs"
    yield Finding(rules.lenient, observed, expected, "submission.json")


def _claimed_parts(folder, rules):
    """The claimed bytes of a model or of code that is not shipped are those of a log, or the mean."""
    for name, part in (("bytes_model_int8_zlib", "model_bytes"), ("bytes_code", "code_bytes")):
        sizes = sorted({getattr(log, part) for log in folder.seed_logs()} - {None})
        shipped = SCRIPT in folder.files if name == "bytes_code" else "model" in folder.kinds.values()
        claim = folder.fields.get(name)
        if claim is not None and sizes and not shipped and not _is_one_or_mean(claim, sizes):
            expected = f"{' or '.join(f'{size:,}' for size in sizes)} of the logs"
            yield Finding(rules.lenient, f"{name} {claim:,}", expected, "submission.json")


def _is_one_or_mean(claim, sizes):
    """Whether a claimed size is that of one run or the mean of all. sizes: those of the runs; None where not known."""
    known = [size for size in sizes if size]
    return bool(known) and (claim in known or agrees(claim, statistics.mean(known), 1.0))


def _logged_bytes(folder, rules, code_bytes):
    """Each log's total, or model + code, whichever is more, is below the limit. Where the stated size decides, a
    smaller total in submission.json stands against all but the model's own bytes: a log counts the code that ran, and
    what is shipped may be packed."""
    stated = folder.fields.get("bytes_total", BUDGET_BYTES)
    for log in folder.seed_logs():
        model, code = log.model_bytes or 0, max(code_bytes, log.code_bytes or 0)
        total = max(log.total_bytes or 0, model + code)
        if total < BUDGET_BYTES:
            continue
        accepted = min(stated, log.total_bytes or stated) < BUDGET_BYTES and model < BUDGET_BYTES
        status = WARN if accepted and not rules.literal_size else FAIL
        parts = f"model {model:,} + code {total - model:,}" if model else "as the log says"
        yield Finding(status, f"{total:,} bytes = {parts}", f"less than {BUDGET_BYTES:,}", log.where("total"))


def check_logs(folder, rules, code):
    """Each log by itself, one log for each seed, and that they ran the shipped code."""
    for what, name in folder.log_errors:
        yield Finding(FAIL, what, "a readable log", name)
    if not folder.logs and not folder.log_errors:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log", "one log per seed", ".")
    for log in folder.logs:
        yield from _one_log(log)
    for log, status, what in folder.other_logs:
        yield Finding(status, what, "" if status == PASS else "one run per seed, of one experiment", log.name)
    yield from _seeds(folder, rules)
    yield from _code_that_ran(folder, code)
    sizes = [log.code_bytes for log in folder.seed_logs() if log.code_bytes]
    if len({log.code_bytes for log in folder.logs if log.code_bytes}) > 1:
        observed = "code sizes " + ", ".join(f"{size:,}" for size in sizes)
        yield Finding(rules.lenient, observed, "one code for all seeds", "logs")


def _one_log(log):
    for problem in log.problems:
        yield Finding(FAIL, problem, "an unedited log", log.name)
    lines = [(log.where(kind, row[0]), row[1:]) for kind in ("train", "val") for row in getattr(log, kind)]
    lines += [(log.where("score", label), score) for label, score in log.scores.items()]
    for where, values in lines:
        if not all(math.isfinite(value) for value in values if value is not None):
            yield Finding(FAIL, "a loss that is not a finite number", "finite losses", where)
            break
    if not log.train and not log.val:
        yield Finding(FAIL, "no line of a training run in it", "steps, validation, score", log.name)
    if log.partial:
        yield Finding(FAIL, f"partial validation, {log.partial} tokens", "validation in full", log.where("score"))
    if log.status not in ("", "status=finished", "finished", "capped"):
        yield Finding(FAIL, f"the run ended with status {log.status}", "finished or capped", log.where("status"))
    named = seed_in_name(log.name) if log.name == log.file else None  # else several runs share the name
    if None not in (named, log.seed) and named != log.seed:
        yield Finding(FAIL, f"seed {log.seed}", f"{named} of its name", log.where("seed"))
    if log.seed is None:
        yield Finding(WARN, "does not name its seed", "the seed", log.name)


def _seeds(folder, rules):
    """One log for each seed that submission.json declares, and no copies."""
    for text in copied_logs(folder):
        yield Finding(FAIL, text, "one log per run", "logs")
    for text in missing_seeds(folder):
        yield Finding(rules.lenient, text, "one log for each declared seed", "submission.json")
    seeds = [log.seed for log in folder.seed_logs() if log.seed is not None]
    declared = declared_seeds(folder)
    if declared and (undeclared := set(seeds) - declared):
        yield Finding(rules.lenient, f"seed {min(undeclared)} has a log", "declared in submission.json", "logs")


def _digest_of_script(folder):
    """SHA-256 of the bytes of train_gpt.py; empty where they cannot be read."""
    try:
        return hashlib.sha256(folder.read(SCRIPT, CODE_LIMIT)).hexdigest()
    except Refused:
        return ""


def _code_that_ran(folder, code):
    """The logs name the SHA-256 of train_gpt.py, or of the innermost source where it is a wrapper."""
    logged = {log.code_sha256 for log in folder.logs if log.code_sha256}
    if SCRIPT not in folder.files or not logged:
        return
    if SCRIPT in code:
        shipped = code[SCRIPT]["source_sha256"]
    elif not folder.files[SCRIPT]:
        shipped = hashlib.sha256(b"").hexdigest()  # an empty file is not inspected
    else:
        yield Finding(UNVERIFIED, "its source could not be read", "the code that ran", SCRIPT)
        return
    if logged not in ({shipped}, {_digest_of_script(folder)}):
        observed = f"code {', '.join(sorted(digest[:12] for digest in logged))}"
        yield Finding(FAIL, observed, f"{shipped[:12]} of {SCRIPT}", "logs")
