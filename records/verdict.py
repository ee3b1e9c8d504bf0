"""What the findings of a folder come to: the status of a check, the verdict on a folder, the exit code of a command."""
from records.rules import FAIL, NOT_RUN, NOTE, PASS, UNVERIFIED, WARN

ORDER = (NOTE, PASS, NOT_RUN, WARN, UNVERIFIED, FAIL)  # the worst last


def status_of(findings):
    """The worst status."""
    return max((f.status for f in findings), key=ORDER.index)


def checks_with(result, status):
    """list of the checks that have a status, in order. result: what verify_folder returns."""
    return [name for name, findings in result.items() if status_of(findings) == status]


def verdict(result):
    """(word, list of the checks that stand behind it)."""
    for status, word in ((FAIL, "fails"), (UNVERIFIED, "not verified"), (WARN, "passes with warnings")):
        if names := checks_with(result, status):
            return word, names
    return "passes", []


def exit_code(results):
    """results: list of what verify_folder returns."""
    found = {status_of(findings) for result in results for findings in result.values()}
    if FAIL in found:
        return 1
    return 3 if UNVERIFIED in found else 0
