"""What `verify` prints of a folder: text for people, at most 80 columns wide, JSON for programs, and annotations for
GitHub. Words of a folder are shown as printable text, on one line, and bounded."""
import html
import re
import textwrap

from records.rules import FAIL, NOT_RUN, PASS, UNVERIFIED, WARN
from records.verdict import checks_with, status_of, verdict

WIDTH = 80  # columns
INDENT = "    "
NO_FILE = ("", ".", "..", "logs")  # places of findings that no one file shows
PLAIN = "as required"  # observed by a check that passes and has nothing to say
HOW_TO_ASK = {"smoke run": "--smoke", "re-evaluation": "--data DIR"}
NEXT = {
    "fails": "mend what is marked FAIL, then run this command again.",
    "not verified": "supply what is marked NOT VERIFIED, or judge it by hand.",
    "passes with warnings": "look at what is marked WARN; all else is in order.",
    "passes": "nothing is left to mend.",
}
USUALLY = {  # what a status means where MEANINGS says nothing
    FAIL: "An honest record does not look so: mend it, or explain it in the pull request.",
    WARN: "An honest record may look so: a person should look.",
    UNVERIFIED: "This machine and the given files cannot show it.",
}
MEANINGS = {  # check -> status -> what it means, or how to mend it; FAIL's serves for WARN where that is missing
    "pull request": {
        FAIL: "A submission adds one record folder and changes nothing else: take out the rest.",
    },
    "layout": {
        FAIL: "Programs and people find a record by its name and files: add or mend what is named.",
        UNVERIFIED: "The challenge published figures of this run, without log or code.",
    },
    "schema": {
        FAIL: "Programs read submission.json: write the field as expected.",
    },
    "compile": {
        FAIL: "Code that does not compile did not run: ship the file that ran.",
        UNVERIFIED: "Nobody can read or run the code of this record.",
    },
    "code bytes": {
        FAIL: "All code counts, and lies in train_gpt.py: ship the file that was counted, and nothing else.",
        WARN: "Strict rules count these bytes as they lie in the folder.",
    },
    "artifact": {
        FAIL: "Code and model together must stay below 16,000,000 bytes, in files as in claims.",
        UNVERIFIED: "The size cannot be shown from what is in the folder.",
    },
    "logs": {
        FAIL: "The logs are the evidence: ship each run's whole log, as it was printed.",
        WARN: "Look whether these are independent runs of one configuration.",
    },
    "score": {
        FAIL: "A score stands in a log, on the validation text in full: claim what the log prints.",
        WARN: "Check which score of which run is claimed.",
        UNVERIFIED: "Nothing in the folder shows this score.",
    },
    "clock": {
        FAIL: "The time and steps that are claimed stand in a log, and keep the limit.",
    },
    "significance": {
        UNVERIFIED: "The test needs independent runs on both sides; --baseline names other runs to beat.",
    },
    "smoke run": {
        FAIL: "The script must run from its own folder, to its last line: try it there.",
        UNVERIFIED: "Run it where what is named is at hand.",
    },
    "re-evaluation": {
        FAIL: "The shipped model does not have the claimed score: ship the model of the run that is claimed.",
        UNVERIFIED: "The shipped model was not scored here.",
    },
    "hazards": {
        WARN: "This may be harmless: read the line.",
    },
}


def printable(text):
    """The words of a folder must not move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def clean(text, most=200):
    """Printable text of at most `most` characters."""
    text = printable(text)
    return text if len(text) <= most else text[:most - 3] + "..."


def as_text(path, result, ruleset="strict", verbose=False):
    """The verdict and what to do next in at most six lines, then what is not a plain pass; verbose: every row."""
    lines = heading(path, result, ruleset)
    for name, findings in result.items():
        if verbose or any(f.status not in (PASS, NOT_RUN) for f in findings):
            lines += ["", *_block(name, findings, verbose)]
    return "\n".join(lines)


def heading(path, result, ruleset):
    """list of at most six lines."""
    word, names = verdict(result)
    outcome = f"{word.upper()} by the {ruleset} rules"
    lines = _wrapped(f"{outcome}: {', '.join(names)}" if names else outcome)
    rest = []
    for status, what in ((UNVERIFIED, "not verified"), (WARN, "warnings")):
        others = [name for name in checks_with(result, status) if name not in names]
        rest += [f"{what}: {', '.join(others)}"] if others else []
    not_asked = [f"{name} ({option})" for name, option in HOW_TO_ASK.items() if name in checks_with(result, NOT_RUN)]
    rest += [f"not asked: {', '.join(not_asked)}"] if not_asked else []
    if rest:
        text = "; ".join(rest)
        lines += _wrapped(text[0].upper() + text[1:])
    return [clean(str(path)), *lines, f"Next: {NEXT[word]}"]


def _block(name, findings, verbose):
    """Lines of one check: its findings, and after those of one meaning the sentence that says it. What passes beside
    something worse is for verbose."""
    lines = []
    if not verbose and status_of(findings) != PASS:
        findings = [f for f in findings if f.status not in (PASS, NOT_RUN)]
    for finding, following in zip(findings, [*findings[1:], None]):
        if finding.status == PASS and finding.observed == PLAIN:
            lines += [f"{PASS}  {name}"] if verbose else []
            continue
        where = "" if finding.where in NO_FILE else clean(finding.where)
        lines += _wrapped("  ".join(filter(None, (finding.status, name, where))))
        lines += _wrapped(clean(finding.observed, 400), INDENT)
        if finding.expected:
            lines += _wrapped(f"expected: {clean(finding.expected, 400)}", INDENT)
        sentence = meaning_of(name, finding)
        if sentence and not (following and meaning_of(name, following) == sentence):
            lines += _wrapped(sentence, INDENT + "> ")
    return lines


def meaning_of(name, finding):
    """The sentence on a finding of a check; empty where none is needed."""
    meanings = MEANINGS.get(name, {})
    usual = meanings.get(finding.status) or (meanings.get(FAIL) if finding.status == WARN else "")
    return finding.meaning or usual or USUALLY.get(finding.status, "")


def _wrapped(text, start=""):
    further = " " * len(start)
    lines = textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=further, break_on_hyphens=False)
    return lines or [start]


def closing(results):
    """One line on several folders. results: dict path -> what verify_folder returns."""
    words = [verdict(result)[0] for result in results.values()]
    counts = [f"{word} {words.count(word)}" for word in reversed(NEXT) if word in words]
    return f"Of {len(words)} folders: {', '.join(counts)}"


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


# ----------------------------------------------------------------------------------------------------------------------
# GitHub: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
# ----------------------------------------------------------------------------------------------------------------------

LEVELS = {FAIL: "error", WARN: "warning", UNVERIFIED: "notice"}


def as_annotations(path, result):
    """list of lines: the verdict, and a workflow command for each finding that is not a pass."""
    lines = [escaped(clean(f"{verdict(result)[0]}: {path}"))]
    for name, findings in result.items():
        for finding in findings:
            if finding.status in LEVELS:
                lines.append(_annotation(str(path), name, finding))
    return lines


def _annotation(path, name, finding):
    file, line = re.fullmatch(r"(.*?)(?::(\d+))?", finding.where, re.DOTALL).groups()
    properties = {"title": f"{finding.status}: {name}"}
    if file not in NO_FILE:
        place = file[1:] if file.startswith("/") else f"{path}/{file}"  # / is the root of the repository
        properties = {"file": place} | ({"line": line} if line else {}) | properties
    message = f"{path}: {clean(finding.observed, 400)}"
    if finding.expected:
        message += f" (expected: {clean(finding.expected, 400)})"
    message += f"\n{meaning_of(name, finding)}"
    given = ",".join(f"{key}={escaped(value, in_property=True)}" for key, value in properties.items())
    return f"::{LEVELS[finding.status]} {given}::{escaped(message)}"


def escaped(text, in_property=False):
    """Text of a workflow command. `##[` would begin a command of the older kind, wherever it stands."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace("##[", "## [")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text


def as_summary(results, ruleset):
    """Markdown for the file that GITHUB_STEP_SUMMARY names; strangers' words are not markup."""
    parts = []
    for path, result in results.items():
        text = html.escape(as_text(path, result, ruleset))
        parts.append(f"### Record: {verdict(result)[0]}\n\n<pre>\n{text}\n</pre>\n")
    return "\n".join(parts)
