"""`python -m records verify FOLDER...`: twelve checks in order, cheap and safe first. Nothing in a folder is run before
the tenth.

Exit code 0: every required check passes (warnings allowed); 1: a check failed; 2: usage or internal error; 3: nothing
failed, but a check that is required or was asked for could not be made.
"""
import json
import sys
import textwrap
import time
from pathlib import Path

from common.settings import UserError
from records import checks, claims
from records.code import inspect_code
from records.evaluation import check_evaluation
from records.folder import CODE_LIMIT, open_folder
from records.rules import FAIL, NOT_RUN, PASS, RULESETS, UNVERIFIED, WARN, Finding
from records.sandbox import check_smoke
from records.significance import side_of

NAMES = ("layout", "schema", "compile", "code bytes", "artifact", "logs", "score", "clock", "significance", "smoke run",
         "re-evaluation", "hazards")
ORDER = (PASS, NOT_RUN, WARN, UNVERIFIED, FAIL)  # the worst last
MOST_FINDINGS = 20  # of one check


def verify_folder(path, ruleset="strict", smoke=False, data=None, backend=None, baseline=None, leave_out=()):
    """dict check name -> list[Finding], never empty, the worst first. Nothing in the folder makes it raise.
    UserError: no such folder, or a backend or data that cannot be used."""
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder: give a record's folder, records/<track>/<date>_<name>")
    rules = RULESETS[ruleset]
    folder = open_folder(path)
    code, unread = read_code(folder)
    no_smoke = [Finding(NOT_RUN, "requested with --smoke")]
    no_data = [Finding(NOT_RUN, "requested with --data DIR")]
    by_name = {
        "layout": lambda: checks.check_layout(folder, rules),
        "schema": lambda: checks.check_schema(folder, rules),
        "compile": lambda: unread or checks.check_compile(code),
        "code bytes": lambda: checks.check_code_bytes(folder, rules, code),
        "artifact": lambda: checks.check_artifact(folder, rules),
        "logs": lambda: checks.check_logs(folder, rules, code),
        "score": lambda: claims.check_score(folder, rules),
        "clock": lambda: claims.check_clock(folder, rules),
        "significance": lambda: claims.check_significance(
            folder, rules, lambda: baseline or earlier_record(folder, ruleset)
        ),
        "smoke run": lambda: check_smoke(folder) if smoke else no_smoke,
        "re-evaluation": lambda: check_evaluation(folder, data, backend) if data else no_data,
        "hazards": lambda: unread or checks.check_hazards(code),
    }
    return {name: _findings(by_name[name]) for name in NAMES if name not in leave_out}


def _findings(check):
    """What a check yields, the worst first and at most MOST_FINDINGS; that it passes, where it yields nothing."""
    try:
        found = sorted(check(), key=lambda f: -ORDER.index(f.status)) or [Finding(PASS, "as required")]
    except UserError:
        raise
    except (Exception, MemoryError) as error:  # a folder that no check foresaw is a failed check, not a crash
        observed = f"cannot be checked: {type(error).__name__}: {error}"[:200]
        return [Finding(FAIL, observed, "a folder that can be read", ".")]
    more = len(found) - MOST_FINDINGS
    if more > 0:
        found[MOST_FINDINGS:] = [Finding(found[0].status, f"and {more:,} more")]
    return found


def read_code(folder):
    """(what inspect_code says of the .py files, findings where it could not read them). Any other file that a source
    names counts as code, except the model and what every record folder holds."""
    names = sorted(n for n in folder.files if n.endswith(".py") and folder.files[n])
    for name in names:
        if folder.files[name] > CODE_LIMIT:
            observed = f"has {folder.files[name]:,} bytes"
            return {}, [Finding(FAIL, observed, f"at most {CODE_LIMIT:,} bytes of source", name)]
    if not names:
        return {}, []
    no_code = (".log", ".md", "submission.json", "requirements.txt")
    others = [
        name
        for name in sorted(folder.files)
        if name not in names and not name.endswith(no_code) and not checks.MODEL_NAMES.fullmatch(name)
    ]
    try:
        return inspect_code(folder.path, names, others), []
    except (RuntimeError, OSError, ValueError) as error:
        return {}, [Finding(FAIL, str(error), "source that can be compiled", ".")]


def earlier_record(folder, ruleset):
    """Side of the best record to beat: of the same track, dated before this folder, and failing no other check; None if
    there is none. The claimed scores give the order, which a check ties to the logs; the runs are those of the logs."""
    found = []
    for path in sorted(folder.path.parent.iterdir()):
        earlier = checks.is_record_name(path.name) and path.name[:10] < folder.name[:10]
        if earlier and path.is_dir() and not path.is_symlink():
            score = open_folder(path, with_logs=False).fields.get("val_bpb")
            if score is not None:
                found.append((score, path))
    for _, path in sorted(found):
        word, _ = verdict(verify_folder(path, ruleset, leave_out=("significance",)))
        if word != "fails":
            return claims.side_of_folder(open_folder(path), path.name)
    return None


def status_of(findings):
    """The worst status."""
    return max((f.status for f in findings), key=ORDER.index)


def exit_code(results):
    """results: list of what verify_folder returns."""
    found = {status_of(findings) for result in results for findings in result.values()}
    if FAIL in found:
        return 1
    return 3 if UNVERIFIED in found else 0


def verdict(result):
    """(word, list of the checks that stand behind it)."""
    for status, word in ((FAIL, "fails"), (UNVERIFIED, "not verified"), (WARN, "passes with warnings")):
        names = [name for name, findings in result.items() if status_of(findings) == status]
        if names:
            return word, names
    return "passes", []


def table(path, result):
    """The table for people: a row for each finding."""
    rows = [("check", "status", "observed", "expected", "where")]
    for number, (name, findings) in enumerate(result.items(), 1):
        label = f"{number:>2} {name}"
        for finding in findings:
            rows += _table_rows(label, finding)
            label = ""
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    word, names = verdict(result)
    last = f"=> {word}: {', '.join(names)}" if names else f"=> {word}"
    return "\n".join([clean(str(path)), *lines, last])


def _table_rows(label, finding):
    """Rows of five cells; long texts go on in the rows below the first."""
    texts = (finding.observed, finding.expected, finding.where)
    columns = [textwrap.wrap(clean(text), 54) or [""] for text in texts]
    rows = []
    for place in range(max(map(len, columns))):
        cells = [column[place] if place < len(column) else "" for column in columns]
        rows.append((label, finding.status, *cells) if not place else ("", "", *cells))
    return rows


def clean(text):
    """Printable text of at most 200 characters: the words of a folder must not move the cursor."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 200 else text[:197] + "..."


def as_json(results):
    """The object that --json prints; results: dict path -> what verify_folder returns."""
    shown = {}
    for path, result in results.items():
        by_name = {
            name: {"status": status_of(findings), "findings": [vars(f) for f in findings]}
            for name, findings in result.items()
        }
        shown[path] = {"verdict": verdict(result)[0], "checks": by_name}
    return shown


def run(options):
    if options.backend and not options.data:
        raise UserError("--backend chooses what --data is scored on: give --data DIR too")
    if options.data and not options.data.is_dir():
        raise UserError(f"--data {options.data} is not a folder: give the one with the *_val_*.bin shards")
    take_folders(options)
    baseline = side_of("baseline", options.baseline, "nats") if options.baseline else None
    results = {}
    for path in options.folders:
        started = time.perf_counter()
        result = verify_folder(path, options.ruleset, options.smoke, options.data, options.backend, baseline)
        results[str(path)] = result
        if not options.json:
            print(table(path, result), flush=True)
            print(f"   ({options.ruleset} rules, {time.perf_counter() - started:.1f} s)\n")
    if options.json:
        json.dump(as_json(results), sys.stdout, sort_keys=True, indent=1)
        print()
    return exit_code(list(results.values()))


def take_folders(options):
    """`verify --baseline A FOLDER`: argparse gives both to --baseline, and this gives the folder back. Raises UserError
    where it could be one more baseline."""
    if options.folders:
        return
    *before, last = options.baseline or [""]
    if not before or not Path(last).is_dir():
        raise UserError("verify needs the FOLDER to check: records/<track>/<date>_<name>")
    if len(before) > 1 and any(Path(text).is_dir() for text in before):
        raise UserError(f"is {last} the FOLDER to check or one more baseline? Put FOLDER before --baseline")
    options.baseline, options.folders = before, [Path(last)]


def add_command(subparsers):
    parser = subparsers.add_parser("verify", help="check record folders")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="records/<track>/<date>_<name>")
    words = "the written rules, or what the challenge accepted (default: strict)"
    parser.add_argument("--ruleset", choices=RULESETS, default="strict", help=words)
    parser.add_argument("--json", action="store_true", help="print sorted JSON instead of the table")
    more = parser.add_argument_group("further checks")
    more.add_argument("--smoke", action="store_true", help="run two steps of a copy, in a sandbox")
    more.add_argument("--data", type=Path, metavar="DIR", help="score the model again on the validation shards of DIR")
    words = "score it on this backend (default: that of the log)"
    more.add_argument("--backend", choices=("torch", "mlx"), help=words)
    words = "what a record must beat (default: the best earlier record in the same track folder)"
    more.add_argument("--baseline", nargs="+", action="extend", metavar="RUN", help=words)
    parser.set_defaults(run=run)
