"""`python -m records verify FOLDER...`: twelve checks in order, cheap and safe first. Nothing of a folder runs before the tenth.

Exit code 0: all that is required holds (warnings allowed); 1: a check failed; 2: it could not be tried; 3: nothing failed, but a check that is
required or was asked for could not be made.
"""
import json
import sys
import textwrap
import time
from pathlib import Path

from common.settings import UserError
from records import checks, claims
from records.checks import FAIL, NOT_RUN, PASS, RULESETS, UNVERIFIED, WARN, Finding
from records.code import inspect_code
from records.evaluation import check_evaluation
from records.folder import CODE_LIMIT, open_folder
from records.sandbox import check_smoke
from records.significance import side_of

NAMES = ("layout", "schema", "compile", "code bytes", "artifact", "logs", "score", "clock", "significance", "smoke run", "re-evaluation", "hazards")
ORDER = (PASS, NOT_RUN, WARN, UNVERIFIED, FAIL)  # the worst last
MOST_FINDINGS = 20  # of one check


def verify_folder(path, ruleset="strict", smoke=False, data=None, backend=None, baseline=None, leave_out=()):
    """dict check name -> list[Finding], never empty, the worst first. Never raises on account of what is in the folder. UserError: no
    such folder, or a backend or data that cannot be used."""
    if not Path(path).is_dir():
        raise UserError(f"{path} is no folder: give a record's folder, records/<track>/<date>_<name>")
    rules, folder = RULESETS[ruleset], open_folder(path)
    code, code_failure = read_code(folder)
    made = {
        "layout": lambda: checks.check_layout(folder, rules),
        "schema": lambda: checks.check_schema(folder, rules),
        "compile": lambda: code_failure or checks.check_compile(folder, rules, code),
        "code bytes": lambda: checks.check_code_bytes(folder, rules, code),
        "artifact": lambda: checks.check_artifact(folder, rules),
        "logs": lambda: checks.check_logs(folder, rules),
        "score": lambda: claims.check_score(folder, rules),
        "clock": lambda: claims.check_clock(folder, rules),
        "significance": lambda: claims.check_significance(folder, rules, baseline),
        "smoke run": lambda: check_smoke(folder) if smoke else [Finding(NOT_RUN, "--smoke makes it")],
        "re-evaluation": lambda: check_evaluation(folder, data, backend) if data else [Finding(NOT_RUN, "--data DIR makes it")],
        "hazards": lambda: code_failure or checks.check_hazards(code),
    }
    return {name: _make(made[name]) for name in NAMES if name not in leave_out}


def _make(check):
    try:
        found = sorted(check(), key=lambda f: -ORDER.index(f.status)) or [Finding(PASS, "as required")]
        more = len(found) - MOST_FINDINGS
        return found[:MOST_FINDINGS] + [Finding(found[0].status, f"and {more:,} more")] * (more > 0)
    except UserError:
        raise
    except (Exception, MemoryError) as error:  # a folder that no check foresaw is a failed check, not a crash
        return [Finding(FAIL, f"cannot be judged: {type(error).__name__}: {error}"[:200], "a folder that can be read", ".")]


def read_code(folder):
    """(what inspect_code says of the .py files, findings where it could not say it). Any other file that a source names counts as code,
    but for the model and what a record folder always holds."""
    names = sorted(n for n in folder.files if n.endswith(".py") and folder.files[n])
    large = [n for n in names if folder.files[n] > CODE_LIMIT]
    if large:
        return {}, [Finding(FAIL, f"has {folder.files[large[0]]:,} bytes", f"at most {CODE_LIMIT:,} bytes of source", large[0])]
    try:
        others = [n for n in sorted(folder.files) if n not in names and not n.endswith((".log", ".md", "submission.json", "requirements.txt"))
                  and not checks.MODEL_NAMES.fullmatch(n)]
        return (inspect_code(folder.path, names, others) if names else {}), []
    except (RuntimeError, OSError, ValueError) as error:
        return {}, [Finding(FAIL, str(error), "source that can be compiled", ".")]


def status_of(findings):
    return max((f.status for f in findings), key=ORDER.index)


def exit_code(results):
    """results: list of what verify_folder returns."""
    found = {status_of(findings) for result in results for findings in result.values()}
    return 1 if FAIL in found else 3 if UNVERIFIED in found else 0


def verdict(result):
    """(word, list of the checks that stand behind it)."""
    by_status = {s: [name for name, findings in result.items() if status_of(findings) == s] for s in ORDER}
    for status, word in ((FAIL, "fails"), (UNVERIFIED, "not verified"), (WARN, "passes with warnings")):
        if by_status[status]:
            return word, by_status[status]
    return "passes", []


def table(path, result):
    """The table for people: a row a finding."""
    rows = [("check", "status", "observed", "expected", "where")]
    for number, (name, findings) in enumerate(result.items(), 1):
        for place, finding in enumerate(findings):
            cells = [textwrap.wrap(clean(text), 54) or [""] for text in (finding.observed, finding.expected, finding.where)]
            heads = (f"{number:>2} {name}" if not place else "", finding.status)
            for line in range(max(map(len, cells))):
                rows.append((*(heads if not line else ("", "")), *(cell[line] if line < len(cell) else "" for cell in cells)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [clean(str(path))] + ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    word, names = verdict(result)
    return "\n".join([*lines, f"=> {word}" + (f": {', '.join(names)}" if names else "")])


def clean(text):
    """Printable text of at most 200 characters: a folder's words must not move the cursor."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 200 else text[:197] + "..."


def run(options):
    if options.backend and not options.data:
        raise UserError("--backend says on what --data is scored: give --data DIR too")
    if options.data and not options.data.is_dir():
        raise UserError(f"--data {options.data} is no folder: give the one with the *_val_*.bin shards")
    baseline = side_of("baseline", options.baseline, "nats") if options.baseline else None
    results = {}
    for path in options.folders:
        started = time.perf_counter()
        results[str(path)] = result = verify_folder(path, options.ruleset, options.smoke, options.data, options.backend, baseline)
        if not options.json:
            print(table(path, result), flush=True)
            print(f"   ({options.ruleset} rules, {time.perf_counter() - started:.1f} s)\n")
    if options.json:
        json.dump({path: {"verdict": verdict(result)[0], "checks": {name: {"status": status_of(found), "findings": [vars(f) for f in found]}
                                                                    for name, found in result.items()}}
                   for path, result in results.items()}, sys.stdout, sort_keys=True, indent=1)
        print()
    return exit_code(list(results.values()))


def add_command(subparsers):
    parser = subparsers.add_parser("verify", help="check record folders")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="records/<track>/<date>_<name>")
    words = "the written rules, or what the challenge accepted (default: strict)"
    parser.add_argument("--ruleset", choices=RULESETS, default="strict", help=words)
    parser.add_argument("--json", action="store_true", help="print sorted JSON instead of the table")
    more = parser.add_argument_group("further checks")
    more.add_argument("--smoke", action="store_true", help="run two steps of a copy, in a sandbox")
    more.add_argument("--data", type=Path, metavar="DIR", help="score the model again on the validation shards of DIR")
    words = "score it on this backend (default: that of the log)"
    more.add_argument("--backend", choices=("torch", "mlx"), help=words)
    words = "what a record must beat (default: the best earlier record in the same track folder)"
    more.add_argument("--baseline", nargs="+", metavar="RUN", help=words)
    parser.set_defaults(run=run)
