"""The checks of a record folder that only read: layout, schema, code, bytes, artifact, logs, score, clock, hazards.

Each takes (Folder, Rules) and yields Findings. `strict` is the written rules; `upstream-2026-04` is what the challenge accepted in practice:
what it let pass is a warning there.
"""
import dataclasses
import datetime
import hashlib
import math
import re
import statistics

from common.artifact import decode_model
from common.settings import UserError, model_settings
from records.challenge import CAP_BYTES, FOUNDING, NUMBER_FIELDS, TEXT_FIELDS, TRACKS
from records.folder import Decimal, Refused, declared_seeds
from records.significance import copied_logs, missing_seeds

PASS, WARN, FAIL, UNVERIFIED, NOT_RUN = "PASS", "WARN", "FAIL", "NOT VERIFIED", "not asked"
PLACEHOLDER = "TO BE WRITTEN"  # stands in a README draft where words of the author are missing
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".whl")
MODEL_NAMES = re.compile(r"[^/]*(\.int8\.|\.int6\.|model\.(zlib|zst|br|bin)|final_model)[^/]*|[^/]*\.(ptz|pt|pth|pkl|safetensors)")


PAYLOAD_LIMIT = 1 << 27  # bytes of a model file inflated: a bit for each of 16,000,000 bytes would be this much


@dataclasses.dataclass
class Finding:
    status: str
    observed: str
    expected: str = ""
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Rules:
    """lenient: the status of what the challenge let pass."""
    name: str
    lenient: str


RULESETS = {"strict": Rules("strict", FAIL), "upstream-2026-04": Rules("upstream-2026-04", WARN)}


def is_founding(folder):
    """Whether it is one of the challenge's own two runs, of which there are figures only."""
    try:
        digest = hashlib.sha256(folder.read("submission.json", 1 << 20)).hexdigest()
    except Refused:
        return False
    return FOUNDING.get(f"{folder.track}/{folder.name}") == digest


def check_layout(folder, rules):
    for what, where in folder.problems:
        yield Finding(FAIL, what, "plain files and folders only", where)
    if folder.track not in TRACKS.values():
        yield Finding(FAIL, f"lies in {folder.track}/", " or ".join(TRACKS.values()), "..")
    if not is_record_name(folder.name):
        yield Finding(FAIL, folder.name.encode(errors="replace").decode()[:100], "YYYY-MM-DD_name", ".")
    logs = [log.name for log in folder.logs]
    for name in ("README.md", "submission.json", "train.log", "train_gpt.py"):
        size = folder.files.get(name)
        kind = rules.lenient
        if name == "submission.json" or (name == "train.log" and not logs):
            kind = FAIL
        if is_founding(folder) and name in ("train.log", "train_gpt.py"):
            yield Finding(UNVERIFIED, "none: published by the challenge, not run here", "", name)
        elif size is None:
            yield Finding(kind, "is missing", "there", name)
        elif not size:
            yield Finding(kind, "is empty", "not empty", name)
    if "README.md" in folder.files:
        try:
            text = folder.read("README.md", 1 << 20).decode()
            if PLACEHOLDER in text:
                yield Finding(FAIL, f"{text.count(PLACEHOLDER)} places still say {PLACEHOLDER}", "the idea and its justification", "README.md")
        except (Refused, UnicodeDecodeError) as error:
            yield Finding(FAIL, str(error) if isinstance(error, Refused) else f"is not UTF-8 at byte {error.start}", "UTF-8 text", "README.md")
    for name in sorted(folder.files):
        if name.endswith(ARCHIVES):
            yield Finding(WARN, "an archive, which is not opened", "files as they are", name)


def check_schema(folder, rules):
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
        yield Finding(FAIL if "val_bpb" in missing else rules.lenient, f"without {', '.join(missing)}", "every field", "submission.json")
    digits = 4 if rules.name == "strict" else 2
    logged = [[log.score(folder.score_label)[number] for log in folder.seed_logs()] for number in (0, 1)] if folder.score_label else [[], []]
    for name, values in zip(("val_loss", "val_bpb"), logged):
        value = folder.fields.get(name)
        if value is None or (values and any(abs(value - v) < 1e-8 for v in [*values, statistics.mean(values)])):
            continue  # whoever writes 1.87000000 of a log as 1.87 has left nothing out
        if not isinstance(value, Decimal) or value.half_unit > 0.51 * 10.0 ** -digits:
            yield Finding(FAIL, f"{name} {getattr(value, 'text', value)}", f"at least {digits} decimals", "submission.json")
    date = folder.fields.get("date", "")
    if date and not _is_date(date[:10]):
        yield Finding(FAIL, f"date {date!r}", "YYYY-MM-DD, with a time or not", "submission.json")
    elif date and date[:10] != folder.name[:10]:
        yield Finding(WARN, f"date {date[:10]}", f"{folder.name[:10]} of the folder's name", "submission.json")
    track = folder.fields.get("track", "")
    if track and ("non" in track.lower()) != ("non" in folder.track):
        yield Finding(FAIL, f"track {track!r}", folder.track, "submission.json")


def check_compile(folder, rules, code):
    if not code:
        yield Finding(UNVERIFIED, "no code to compile", "train_gpt.py", ".")
    for name, found in code.items():
        if found["error"]:
            yield Finding(FAIL, f"does not compile: {found['error']}", "it compiles", name)
        for text in found["wrapped"]:
            yield Finding(WARN, f"a wrapper: {text}", "plain source", name)


def check_code_bytes(folder, rules, code):
    size = folder.files.get("train_gpt.py")
    if not size:
        yield Finding(UNVERIFIED, "no train_gpt.py to count", "the counted code", "train_gpt.py")
        return
    counted, pending = {}, ["train_gpt.py"]
    while pending:
        name = pending.pop()
        if name not in counted:
            counted[name] = folder.files[name]
            pending += code.get(name, {}).get("reaches", [])
    total = sum(counted.values())
    if len(counted) > 1:
        others = ", ".join(sorted(counted.keys() - {"train_gpt.py"}))
        yield Finding(rules.lenient, f"reaches {others}: {total:,} bytes with them", "all counted code in train_gpt.py", "train_gpt.py")
    known = {*counted, *(log.name for log in folder.logs), "README.md", "submission.json", "requirements.txt"}
    for name in sorted(folder.files.keys() - known):
        if not MODEL_NAMES.fullmatch(name) or name.endswith(".py"):
            yield Finding(rules.lenient, f"{folder.files[name]:,} bytes in {name} that no check accounts for", "what is counted, and no more", name)
    reported = folder.fields.get("bytes_code")
    if reported is not None and reported != total:
        yield Finding(rules.lenient, f"{total:,} bytes shipped", f"{reported:,} as bytes_code says", "train_gpt.py")
    for log in folder.logs:
        if log.code_bytes not in (None, total):
            yield Finding(rules.lenient, f"{total:,} bytes shipped", f"{log.code_bytes:,} as {log.name} says", "train_gpt.py")


def check_artifact(folder, rules):
    models = [n for n in sorted(folder.files) if MODEL_NAMES.fullmatch(n) and not n.endswith(".py")]
    fields, main = folder.fields, folder.logs[0] if folder.logs else None
    size, code_size = fields.get("bytes_model_int8_zlib"), folder.files.get("train_gpt.py") or fields.get("bytes_code")
    for name in models:
        try:
            data = folder.read(name, CAP_BYTES)
        except Refused as error:
            yield Finding(FAIL, str(error), f"less than {CAP_BYTES:,} bytes", name)
            continue
        if not name.endswith(".int8.zlib"):
            yield Finding(UNVERIFIED, f"{len(data):,} bytes of another format, not opened", "model.int8.zlib", name)
            continue
        try:
            settings, _ = decode_model(data, PAYLOAD_LIMIT)
        except UserError as error:
            yield Finding(FAIL, str(error), "a canonical model file", name)
            continue
        except MemoryError:
            yield Finding(FAIL, "needs more memory than there is", "a model of this size", name)
            continue
        digest = hashlib.sha256(data).hexdigest()
        log = next((log for log in folder.logs if log.model_sha256 == digest), None)
        if any(log.model_sha256 for log in folder.logs) and not log:
            yield Finding(FAIL, f"SHA-256 {digest[:12]}", f"{main.model_sha256[:12]} of {main.name}", name)
        if log and model_settings(settings) != model_settings(log.run_settings):
            yield Finding(FAIL, "holds a model of other sizes", f"the settings in {log.name}", name)
        if log in (main, None) and size is not None and len(data) != size:
            yield Finding(FAIL, f"{len(data):,} bytes", f"{size:,} as bytes_model_int8_zlib says", name)
        if len(data) + (code_size or 0) >= CAP_BYTES:
            yield Finding(FAIL, f"{len(data):,} bytes and {code_size or 0:,} of code", f"less than {CAP_BYTES:,}", name)
    together = sum(folder.files[name] for name in models) + (code_size or 0)
    if len(models) > 1 and together >= CAP_BYTES:
        yield Finding(rules.lenient, f"{len(models)} model files and the code have {together:,} bytes", f"less than {CAP_BYTES:,}", ".")
    if size is not None and fields.get("bytes_code") is not None and "bytes_total" in fields and size + fields["bytes_code"] != fields["bytes_total"]:
        yield Finding(rules.lenient, f"bytes_total {fields['bytes_total']:,}", f"{size + fields['bytes_code']:,} = model + code", "submission.json")
    if "bytes_total" in fields and fields["bytes_total"] >= CAP_BYTES:
        yield Finding(FAIL, f"bytes_total {fields['bytes_total']:,}", f"less than {CAP_BYTES:,}", "submission.json")
    for log in folder.logs:
        literal = (log.model_bytes or 0) + max(code_size or 0, log.code_bytes or 0)
        total = max(log.total_bytes or 0, literal)
        if total >= CAP_BYTES:
            yield Finding(FAIL, f"{total:,} bytes = model {log.model_bytes or 0:,} + code", f"less than {CAP_BYTES:,}", log.name)
    totals = {log.total_bytes for log in folder.logs if log.total_bytes}
    if totals and "bytes_total" in fields and fields["bytes_total"] not in totals:
        yield Finding(rules.lenient, f"bytes_total {fields['bytes_total']:,}", f"{' or '.join(f'{t:,}' for t in sorted(totals))} of the logs",
                      "submission.json")
    if not totals and not models and "bytes_total" not in fields:
        yield Finding(UNVERIFIED, "no size is stated and no artifact shipped", f"less than {CAP_BYTES:,} bytes", ".")


def check_logs(folder, rules):
    for what, name in folder.log_errors:
        yield Finding(FAIL, what, "a readable log", name)
    if not folder.logs and not folder.log_errors:
        yield Finding(UNVERIFIED if is_founding(folder) else FAIL, "no log", "one log a seed", ".")
    for log in folder.logs:
        for problem in log.problems:
            yield Finding(FAIL, problem, "an unedited log", log.name)
        numbers = [x for row in log.train + log.val for x in row[1:] if x is not None] + [x for s in log.scores.values() for x in s[:2]]
        if not all(map(math.isfinite, numbers)):
            yield Finding(FAIL, "a loss that is no finite number", "finite losses", log.name)
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
            yield Finding(WARN, "names no seed", "the seed", log.name)
    for text in copied_logs(folder):
        yield Finding(FAIL, text, "one log a run", "logs")
    for text in missing_seeds(folder):
        yield Finding(rules.lenient, text, "one log for each declared seed", "submission.json")
    seeds = [log.seed for log in folder.seed_logs() if log.seed is not None]
    if len(set(seeds)) < len(seeds):
        yield Finding(FAIL, f"seeds {', '.join(map(str, sorted(seeds)))}", "different seeds", "logs")
    undeclared = set(seeds) - (declared_seeds(folder) or set(seeds))
    if undeclared:
        yield Finding(rules.lenient, f"seed {min(undeclared)} has a log", "declared in submission.json", "logs")
    digests = {log.code_sha256 for log in folder.logs if log.code_sha256}
    if "train_gpt.py" in folder.files and digests:
        try:
            shipped = hashlib.sha256(folder.read("train_gpt.py", 2 << 20)).hexdigest()
            if digests != {shipped}:
                yield Finding(FAIL, f"code {', '.join(sorted(d[:12] for d in digests))}", f"{shipped[:12]} of train_gpt.py", "logs")
        except Refused as error:
            yield Finding(FAIL, str(error), "the code that ran", "train_gpt.py")
    if len({log.code_bytes for log in folder.logs if log.code_bytes}) > 1:
        yield Finding(rules.lenient, "code sizes " + ", ".join(f"{log.code_bytes:,}" for log in folder.seed_logs() if log.code_bytes),
                      "one code for all seeds", "logs")


def check_hazards(code):
    if not code:
        yield Finding(UNVERIFIED, "no code to read", "train_gpt.py", ".")
    for name, found in code.items():
        for line, text in found["hazards"]:
            yield Finding(WARN, text, "a reviewer who has looked at it", f"{name}:{line}")


def is_record_name(name):
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\d_[\w.+-]{1,100}", name, re.ASCII)) and _is_date(name[:10])


def _is_date(text):
    try:
        return bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False
