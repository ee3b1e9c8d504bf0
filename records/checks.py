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
from records.folder import Decimal, Refused, declared_seeds
from records.kinds import MODEL_NAMES
from records.rules import FAIL, FOUNDING, NUMBER_FIELDS, TEXT_FIELDS, TRACKS, UNVERIFIED, WARN, Finding
from records.significance import copied_logs, missing_seeds

PLACEHOLDER = "TO BE WRITTEN"  # in a README draft, where the author's own words are missing
SCRIPT = "train_gpt.py"
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
    if folder.track not in TRACKS.values():
        yield Finding(FAIL, f"is in {folder.track}/", " or ".join(TRACKS.values()), "..")
    if not is_record_name(folder.name):
        yield Finding(FAIL, folder.name.encode(errors="replace").decode()[:100], "YYYY-MM-DD_name", ".")
    for name in ("README.md", "submission.json", "train.log", SCRIPT):
        yield from _required_file(folder, rules, name)
    yield from _readme(folder)
    for name, kind in sorted(folder.kinds.items()):
        if kind == "archive":
            yield Finding(WARN, "an archive, which is not opened", "the files themselves", name)


def _required_file(folder, rules, name):
    needed = name == "submission.json" or (name == "train.log" and not folder.logs)
    status = FAIL if needed else rules.lenient
    size = folder.files.get(name)
    if is_founding(folder) and name in ("train.log", SCRIPT):
        yield Finding(UNVERIFIED, "none: published by the challenge, not run here", "", name)
    elif size is None:
        yield Finding(status, "is missing", "present", name)
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
        yield Finding(WARN, f"spelled {theirs}", ours, "submission.json")
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
        if not isinstance(value, Decimal) or value.half_unit > 0.51 * 10.0**-rules.digits:
            written = getattr(value, "text", value)
            yield Finding(FAIL, f"{name} {written}", f"at least {rules.digits} decimals", "submission.json")


def _date_and_track(folder):
    date = folder.fields.get("date", "")
    if date and not _is_date(date[:10]):
        yield Finding(FAIL, f"date {date!r}", "YYYY-MM-DD, with or without a time", "submission.json")
    elif date and date[:10] != folder.name[:10]:
        yield Finding(WARN, f"date {date[:10]}", f"{folder.name[:10]} of the folder's name", "submission.json")
    track = folder.fields.get("track", "")
    if track and ("non" in track.lower()) != ("non" in folder.track):
        yield Finding(FAIL, f"track {track!r}", folder.track, "submission.json")


def check_code_bytes(folder, rules, code):
    """The bytes of train_gpt.py and of every file it reaches, against the sizes in submission.json and the logs."""
    if not folder.files.get(SCRIPT):
        yield Finding(UNVERIFIED, f"no {SCRIPT} to count", "the counted code", SCRIPT)
        return
    counted = reached_files(code)
    total = sum(folder.files[name] for name in counted)
    if others := sorted(counted - {SCRIPT}):
        observed = f"reaches {', '.join(others)}: {total:,} bytes with them"
        yield Finding(rules.lenient, observed, f"all counted code in {SCRIPT}", SCRIPT)
    known = {*counted, *(log.name for log in folder.logs), "README.md", "submission.json", "requirements.txt"}
    for name in sorted(folder.files.keys() - known):
        if not MODEL_NAMES.fullmatch(name) or name.endswith(".py"):
            observed = f"{folder.files[name]:,} bytes in {name} that no check accounts for"
            yield Finding(rules.lenient, observed, "only what is counted", name)
    reported = {"bytes_code": folder.fields.get("bytes_code")} | {log.name: log.code_bytes for log in folder.logs}
    for source, size in reported.items():
        if size not in (None, total):
            yield Finding(rules.lenient, f"{total:,} bytes shipped", f"{size:,} as {source} says", SCRIPT)


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


def check_artifact(folder, rules):
    """Every model file by itself, and the bytes of code and model as files, in submission.json and in the logs."""
    models = [n for n in sorted(folder.files) if MODEL_NAMES.fullmatch(n) and not n.endswith(".py")]
    code_bytes = folder.files.get(SCRIPT) or folder.fields.get("bytes_code") or 0
    for name in models:
        yield from _model_file(folder, name, code_bytes)
    together = sum(folder.files[name] for name in models) + code_bytes
    if len(models) > 1 and together >= BUDGET_BYTES:
        observed = f"{len(models)} model files and the code have {together:,} bytes"
        yield Finding(rules.lenient, observed, f"less than {BUDGET_BYTES:,}", ".")
    yield from _bytes_total(folder, rules)
    yield from _logged_bytes(folder, rules, code_bytes)
    if not models and "bytes_total" not in folder.fields and not any(log.total_bytes for log in folder.logs):
        observed = "neither a size nor a model file"
        yield Finding(UNVERIFIED, observed, f"less than {BUDGET_BYTES:,} bytes", ".")


def _model_file(folder, name, code_bytes):
    """One model file: canonical, as its log and submission.json say, and small enough."""
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
    if len(data) + code_bytes >= BUDGET_BYTES:
        yield Finding(FAIL, f"{len(data):,} bytes and {code_bytes:,} of code", f"less than {BUDGET_BYTES:,}", name)


def _model_as_logged(folder, name, data, settings):
    """The SHA-256, the settings and the size of a model file, against its log and submission.json."""
    main = folder.logs[0] if folder.logs else None
    log = folder.log_of_model(data)
    if any(log.model_sha256 for log in folder.logs) and not log:
        digest = hashlib.sha256(data).hexdigest()
        yield Finding(FAIL, f"SHA-256 {digest[:12]}", f"{main.model_sha256[:12]} of {main.name}", name)
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
    """bytes_total: below the limit, the sum of its parts, and the total of a log."""
    total, model, code = (folder.fields.get(f"bytes_{part}") for part in ("total", "model_int8_zlib", "code"))
    if total is None:
        return
    if model is not None and code is not None and model + code != total:
        yield Finding(rules.lenient, f"bytes_total {total:,}", f"{model + code:,} = model + code", "submission.json")
    if total >= BUDGET_BYTES:
        yield Finding(FAIL, f"bytes_total {total:,}", f"less than {BUDGET_BYTES:,}", "submission.json")
    logged = sorted({log.total_bytes for log in folder.logs if log.total_bytes})
    if logged and total not in logged:
        expected = f"{' or '.join(f'{t:,}' for t in logged)} of the logs"
        yield Finding(rules.lenient, f"bytes_total {total:,}", expected, "submission.json")


def _logged_bytes(folder, rules, code_bytes):
    """Each log's total, or model + code, whichever is more, is below the limit."""
    for log in folder.logs:
        model = log.model_bytes or 0
        total = max(log.total_bytes or 0, model + max(code_bytes, log.code_bytes or 0))
        if total >= BUDGET_BYTES:
            yield Finding(FAIL, f"{total:,} bytes = model {model:,} + code", f"less than {BUDGET_BYTES:,}", log.name)


def check_logs(folder, rules, code):
    """Each log by itself, one log for each seed, and that they ran the shipped code."""
    for what, name in folder.log_errors:
        yield Finding(FAIL, what, "a readable log", name)
    if not folder.logs and not folder.log_errors:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log", "one log per seed", ".")
    for log in folder.logs:
        yield from _one_log(log)
    yield from _seeds(folder, rules)
    yield from _code_that_ran(folder, code)
    sizes = [log.code_bytes for log in folder.seed_logs() if log.code_bytes]
    if len({log.code_bytes for log in folder.logs if log.code_bytes}) > 1:
        observed = "code sizes " + ", ".join(f"{size:,}" for size in sizes)
        yield Finding(rules.lenient, observed, "one code for all seeds", "logs")


def _one_log(log):
    for problem in log.problems:
        yield Finding(FAIL, problem, "an unedited log", log.name)
    losses = [x for row in log.train + log.val for x in row[1:] if x is not None]
    losses += [x for score in log.scores.values() for x in score[:2]]
    if not all(map(math.isfinite, losses)):
        yield Finding(FAIL, "a loss that is not a finite number", "finite losses", log.name)
    if not log.train and not log.val:
        yield Finding(FAIL, "no line of a training run in it", "steps, validation, score", log.name)
    if log.partial:
        yield Finding(FAIL, f"partial validation, {log.partial} tokens", "validation in full", log.name)
    if log.status not in ("", "status=finished", "finished", "capped"):
        yield Finding(FAIL, f"the run ended with status {log.status}", "finished or capped", log.name)
    named = re.search(r"seed[_-]?(\d{1,18})", log.name)
    if named and log.seed is not None and int(named[1]) != log.seed:
        yield Finding(FAIL, f"seed {log.seed}", f"{named[1]} of its name", log.name)
    if log.seed is None:
        yield Finding(WARN, "does not name its seed", "the seed", log.name)


def _seeds(folder, rules):
    """One log for each seed that submission.json declares, and no copies."""
    for text in copied_logs(folder):
        yield Finding(FAIL, text, "one log per run", "logs")
    for text in missing_seeds(folder):
        yield Finding(rules.lenient, text, "one log for each declared seed", "submission.json")
    seeds = [log.seed for log in folder.seed_logs() if log.seed is not None]
    if len(set(seeds)) < len(seeds):
        yield Finding(FAIL, f"seeds {', '.join(map(str, sorted(seeds)))}", "different seeds", "logs")
    declared = declared_seeds(folder)
    if declared and (undeclared := set(seeds) - declared):
        yield Finding(rules.lenient, f"seed {min(undeclared)} has a log", "declared in submission.json", "logs")


def _code_that_ran(folder, code):
    """The logs name the SHA-256 of the source in train_gpt.py; inside a wrapper it is that of the innermost source."""
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
    if logged != {shipped}:
        observed = f"code {', '.join(sorted(digest[:12] for digest in logged))}"
        yield Finding(FAIL, observed, f"{shipped[:12]} of {SCRIPT}", "logs")
