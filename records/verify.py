"""`python -m records verify FOLDER...`: twelve checks in order, cheap and safe first. Nothing in a folder is run before
the tenth. A track folder, or the folder of the tracks, stands for all the records in it.

Exit code 0: every required check passes (warnings allowed); 1: a check failed; 2: usage or internal error; 3: nothing
failed, but a check that is required or was asked for could not be made.
"""
import functools
import itertools
import json
import os
import sys
from pathlib import Path

from common.command import path_argument
from common.settings import UserError
from records import checks, claims, source
from records.baseline import check_significance
from records.clock import check_clock
from records.evaluation import check_evaluation
from records.honesty import further
from records.pull import pull_request
from records.rules import FAIL, NOT_RUN, NOTE, PASS, RULESETS, TRACKS, Finding
from records.show import PLAIN, as_annotations, as_json, as_summary, as_text, closing
from records.significance import side_of
from records.smoke import check_smoke
from records.tree import Tree, is_record_folder
from records.verdict import ORDER, exit_code, status_of

NAMES = ("layout", "schema", "compile", "code bytes", "artifact", "logs", "score", "clock", "significance", "smoke run",
         "re-evaluation", "hazards")
MOST_FINDINGS = 20  # of one check


def verify_folder(path, ruleset="strict", smoke=False, data=None, backend=None, baseline=None, tree=None):
    """dict check name -> list[Finding], never empty, the worst first. Nothing in the folder makes it raise.
    tree: a Tree that other folders were or will be read from. UserError: no such folder, or a backend or data that
    cannot be used."""
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder: give a record's folder, records/<track>/<date>_<name>")
    tree = tree or Tree()
    folder = tree.folder(path)

    def failed(other, first_only=False):
        return failed_checks(other, ruleset, tree, first_only)
    by_name = {
        "significance": lambda: check_significance(
            folder, RULESETS[ruleset], lambda: tree.earlier(folder), failed, baseline
        ),
        "smoke run": lambda: check_smoke(folder) if smoke else [Finding(NOT_RUN, "requested with --smoke")],
        "re-evaluation": lambda: (
            check_evaluation(folder, data, backend) if data else [Finding(NOT_RUN, "requested with --data DIR")]
        ),
    }
    return {
        name: _findings(by_name[name]) if name in by_name else own_check(name, folder, ruleset, tree) for name in NAMES
    }


OWN_CHECKS = {  # those that need neither a baseline nor an option, the quick ones first
    "layout": lambda folder, rules, code: checks.check_layout(folder, rules),
    "schema": lambda folder, rules, code: checks.check_schema(folder, rules),
    "score": lambda folder, rules, code: claims.check_score(folder, rules),
    "clock": lambda folder, rules, code: check_clock(folder, rules),
    "artifact": lambda folder, rules, code: itertools.chain(
        checks.check_artifact(folder, rules, code.found), claims.size_row(folder)
    ),
    "compile": lambda folder, rules, code: code.unread or source.check_compile(folder, code.found),
    "code bytes": lambda folder, rules, code: checks.check_code_bytes(folder, rules, code.found),
    "logs": lambda folder, rules, code: checks.check_logs(folder, rules, code.found),
    "hazards": lambda folder, rules, code: code.unread or source.check_hazards(code.found),
}


class Code:
    """The code of a folder, read when a check first asks for it, since that takes a process."""

    def __init__(self, folder):
        self._folder = folder

    @functools.cached_property
    def _read(self):
        return source.read_code(self._folder)

    @property
    def found(self):
        """What inspect_code says of each .py file."""
        return self._read[0]

    @property
    def unread(self):
        """Findings where the code could not be read."""
        return self._read[1]


def own_check(name, folder, ruleset, tree):
    """Findings of one of OWN_CHECKS. It is made once per folder of a tree: later records ask for it too."""
    made = tree.results.setdefault((folder.path, ruleset), {"code": Code(folder)})
    if name not in made:
        rules = RULESETS[ruleset]
        made[name] = _findings(
            lambda: [*OWN_CHECKS[name](folder, rules, made["code"]), *further(name, folder, rules, tree)]
        )
    return made[name]


def failed_checks(folder, ruleset, tree, first_only=False):
    """list of the names of the OWN_CHECKS that a Folder fails; first_only: at most one of them."""
    failed = (name for name in OWN_CHECKS if status_of(own_check(name, folder, ruleset, tree)) == FAIL)
    return list(itertools.islice(failed, 1)) if first_only else sorted(failed, key=NAMES.index)


def _findings(check):
    """What a check yields, the worst first and at most MOST_FINDINGS; that it passes, where it yields nothing."""
    try:
        found = []
        for finding in sorted(check(), key=lambda f: -ORDER.index(f.status)):
            if finding not in found:  # three logs may show the same
                found.append(finding)
    except UserError:
        raise
    except (Exception, MemoryError) as error:  # a folder that no check foresaw is a failed check, not a crash
        observed = f"cannot be checked: {type(error).__name__}: {error}"[:200]
        return [Finding(FAIL, observed, "a folder that can be read", ".")]
    if not found or found[0].status == NOTE:
        found.insert(0, Finding(PASS, PLAIN))
    more = len(found) - MOST_FINDINGS
    if more > 0:
        found[MOST_FINDINGS:] = [Finding(found[0].status, f"and {more:,} more")]
    return found


def run(options):
    if options.backend and not options.data:
        raise UserError("--backend chooses what --data is scored on: give --data DIR too")
    if options.data and not options.data.is_dir():
        raise UserError(f"--data {options.data} is not a folder: give the one with the *_val_*.bin shards")
    if not options.pr:
        take_folders(options)
    elif options.folders:
        raise UserError("give record folders or --pr BASE..HEAD, not both")
    baseline = side_of("baseline", options.baseline, "nats") if options.baseline else None
    asked = {"smoke": options.smoke, "data": options.data, "backend": options.backend, "baseline": baseline}
    if options.pr:
        given = judge_pull_request(options.pr, options.repo, options.ruleset, asked)
    else:
        given = judge_folders(options.folders, options.ruleset, asked)
    results = {}
    for path, result in given:
        results[path] = result
        if options.format == "text":
            print(as_text(path, result, options.ruleset, options.verbose), end="\n\n", flush=True)
        elif options.format == "github":
            print(*as_annotations(path, result), sep="\n", flush=True)
    finish(results, options)
    return exit_code(list(results.values()))


def finish(results, options):
    """What is printed when every folder has been judged."""
    if options.format == "json":
        json.dump(as_json(results), sys.stdout, sort_keys=True, indent=1)
        print()
    elif len(results) > 1:
        print(closing(results))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if options.format == "github" and summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(as_summary(results, options.ruleset))


def judge_folders(paths, ruleset, asked):
    """Yields (path, result) of every record folder that is given or lies in a folder that is given."""
    tree = Tree()
    for path in [inner for given in paths for inner in record_folders(given)]:
        yield str(path), verify_folder(path, ruleset, tree=tree, **asked)


def judge_pull_request(commits, repository, ruleset, asked):
    """Yields (path in the repository, result) of the record folder that a pull request adds."""
    with pull_request(commits, repository) as (path, findings, folder):
        result = {"pull request": _findings(lambda: findings)}
        if folder:
            result |= verify_folder(folder, ruleset, **asked)
        yield path, result


def record_folders(path):
    """list of the record folders that a path stands for: itself, or those in a track folder or in all tracks."""
    tracks = [path] if path.resolve().name in TRACKS.values() else [path / name for name in TRACKS.values()]
    tracks = [track for track in tracks if track.is_dir()]
    if not tracks or (path / "submission.json").exists():
        return [path]
    found = [inner for track in tracks for inner in sorted(track.iterdir()) if is_record_folder(inner)]
    if not found:
        raise UserError(f"{path} holds no record folder: they are <track>/<date>_<name>")
    return found


def take_folders(options):
    """`verify --baseline A FOLDER`: argparse gives both to --baseline, and this gives the folder back. Raises UserError
    where it could be one more baseline."""
    if options.folders:
        return
    *before, last = options.baseline or [""]
    if not before or not Path(last).is_dir():
        raise UserError("verify needs the FOLDER to check: records/<track>/<date>_<name>; or --pr BASE..HEAD")
    if len(before) > 1 and any(Path(text).is_dir() for text in before):
        raise UserError(f"is {last} the FOLDER to check or one more baseline? Put FOLDER before --baseline")
    options.baseline, options.folders = before, [Path(last)]


def add_command(subparsers):
    parser = subparsers.add_parser("verify", help="check record folders")
    words = "records/<track>/<date>_<name>, or a folder of such folders"
    parser.add_argument("folders", nargs="*", type=path_argument, metavar="FOLDER", help=words)
    words = "the written rules, or what the challenge accepted (default: strict)"
    parser.add_argument("--ruleset", choices=RULESETS, default="strict", help=words)
    shown = parser.add_argument_group("output")
    shown.add_argument("-v", "--verbose", action="store_true", help="show what passes too")
    words = "text for people, sorted JSON, or annotations of a pull request (default: text)"
    shown.add_argument("--format", choices=("text", "json", "github"), default="text", help=words)
    shown.add_argument("--json", action="store_const", const="json", dest="format", help="short for --format json")
    more = parser.add_argument_group("further checks")
    more.add_argument("--smoke", action="store_true", help="run two steps of a copy, in a sandbox")
    words = "score the model again on the validation shards of DIR"
    more.add_argument("--data", type=path_argument, metavar="DIR", help=words)
    words = "score it on this backend (default: that of the log)"
    more.add_argument("--backend", choices=("torch", "mlx"), help=words)
    words = "what a record must beat (default: the best earlier record in the same track folder)"
    more.add_argument("--baseline", nargs="+", action="extend", type=os.path.expanduser, metavar="RUN", help=words)
    pull = parser.add_argument_group("a pull request")
    words = "judge what HEAD adds to BASE: one record folder, and nothing else"
    pull.add_argument("--pr", metavar="BASE..HEAD", help=words)
    words = "the repository (default: the one around this folder)"
    pull.add_argument("--repo", type=path_argument, default=Path(), metavar="DIR", help=words)
    parser.set_defaults(run=run)
