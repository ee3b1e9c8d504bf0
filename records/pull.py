"""A pull request as a range of commits: it adds one record folder and changes nothing else.

The folder is judged as HEAD has it, among the records of BASE, in a temporary folder. What it changes is counted from
the commit that BASE and HEAD have in common, as GitHub does, so that a BASE that has moved on does not matter.
"""
import contextlib
import datetime
import tempfile
from pathlib import Path

from common.settings import UserError
from records import litter
from records.checks import is_record_name
from records.folder import ENTRIES_LIMIT, FOLDER_LIMIT
from records.git import SUBMODULE, Repository
from records.rules import FAIL, WARN, Finding, listed

RECORDS = "records"
GENERATED = (f"{RECORDS}/README.md", f"{RECORDS}/index.html")  # `python -m records leaderboard` writes them
OLDEST_DAYS = 30  # before the commit that the request builds on
LARGE = 32_000_000  # bytes of a folder: twice what code and model may have
WORDS = {"A": "adds", "D": "removes"}  # "changes" for other kinds of Change
LATER_MEANS = "Significance is judged against earlier dates only: look whether it beats what was there on this day."
EXPECTED = f"one new folder {RECORDS}/<track>/<date>_<name>, and nothing else"


@contextlib.contextmanager
def pull_request(commits, path="."):
    """Gives (name of the folder that the range BASE..HEAD adds, else of the range; list of Findings on the change; a
    copy of the folder among the records of BASE, or None where it is not one folder or too large to read).
    UserError: a range, a commit or a repository that does not exist here."""
    base, head = _ends(commits)
    repository = Repository(path)
    base, head = repository.commit(base), repository.commit(head)
    start = repository.common_commit(base, head)
    before = repository.entries(start, RECORDS)
    new, findings = judge_changes(repository.changes(start, head), {record_of(entry.path) for entry in before})
    if len(new) != 1:
        observed = f"adds {len(new)} record folders: {', '.join(new)}" if new else "adds no record folder"
        yield commits, [Finding(FAIL, observed, EXPECTED), *findings], None
        return
    [name] = new
    entries = repository.entries(head, name)
    others = [entry for entry in repository.entries(base, RECORDS) if record_of(entry.path)]
    findings += judge_date(name, repository.seconds(start), {record_of(entry.path) for entry in others})
    too_large = list(judge_size(entries))
    findings += too_large
    if any(f.status == FAIL for f in too_large):
        yield name, findings, None
        return
    with tempfile.TemporaryDirectory(prefix="pull_request_") as copy:
        repository.copy([entry for entry in others if record_of(entry.path) != name] + entries, copy)
        yield name, findings, Path(copy, name)


def _ends(commits):
    """(BASE, HEAD) of a range, HEAD where the second is not given. Raises UserError."""
    base, dots, head = commits.replace("...", "..").partition("..")
    if not base or not dots or base.startswith("-"):
        raise UserError(f"--pr {commits}: give two commits, as in origin/main..HEAD")
    return base, head or "HEAD"


def record_of(path):
    """The record folder that a path of the repository lies in; "" where it lies in none."""
    parts = path.split("/")
    inside = len(parts) > 3 and parts[0] == RECORDS and parts[1].startswith("track_")
    return "/".join(parts[:3]) if inside else ""


def judge_changes(changes, existing):
    """(list of the record folders that are new, Findings on everything else). existing: those before the change."""
    by_record, findings, left = {}, [], {}
    for change in changes:
        record, found = record_of(change.path), change.kind != "D" and litter.litter_in(change.path)
        if found and (record in existing or not record or not found.startswith(f"{record}/")):
            left[found] = True  # the check of the layout reports what lies in a new record
        elif record:
            by_record.setdefault(record, []).append(change)
        elif change.path not in GENERATED or change.kind == "D":
            word = WORDS.get(change.kind, "changes")
            findings.append(_also(f"{word} {change.path}", change.path))
    if left:
        meaning = "Delete these from the commits."
        findings.append(Finding(FAIL, litter.in_words([*left]), "no other change", "/", meaning))
    new = [record for record in by_record if record not in existing]
    for record, inner in by_record.items():
        if record in existing:
            findings.append(_also(_old_record(record, inner, {name: by_record[name] for name in new}), record))
    return new, findings


def _also(observed, path):
    """A Finding on what a request should leave alone. A `where` that begins with / counts from the repository."""
    return Finding(FAIL, observed, "no other change", f"/{path}")


def _old_record(record, changes, new):
    """What was done to a record that was there before, in words. new: dict new folder -> its changes."""
    names = [change.path.removeprefix(f"{record}/") for change in changes]
    gone = all(change.kind == "D" for change in changes)
    for name, added in new.items() if gone else []:
        if not _evidence(changes, "old").isdisjoint(_evidence(added, "new")):
            return f"renames {record} to {name}"
    return f"{WORDS['D'] if gone else 'changes'} {listed(names)} of {record}, an earlier record"


def _evidence(changes, side):
    """set of the digests, old or new, of what no two runs share."""
    return {getattr(change, side) for change in changes if change.path.endswith((".log", "/submission.json"))}


def judge_date(name, seconds, others):
    """The date in a folder's name: not in the future, not long before the change, the newest of its track. seconds: of
    the commit that the request builds on; others: record folders of BASE."""
    _, track, name = name.split("/")
    if not is_record_name(name):
        return  # the check of the layout says so
    date = datetime.date.fromisoformat(name[:10])
    today = datetime.datetime.now(datetime.UTC).date()
    start = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    if date > today + datetime.timedelta(days=1):  # in the easternmost time zone it is tomorrow
        meaning = "A record is dated by the day of its run or of its submission."
        yield Finding(FAIL, f"{date} is in the future", f"at most today, {today}", ".", meaning)
    if (start - date).days > OLDEST_DAYS:
        observed = f"{date} is {(start - date).days} days before the commit that it builds on, of {start}"
        yield Finding(WARN, observed, f"at most {OLDEST_DAYS} days before", ".", LATER_MEANS)
    later = sorted(n for other in others for _, t, n in [other.split("/")] if t == track and n[:10] > name[:10])
    if later:
        more = f" and {len(later) - 3} more" if len(later) > 3 else ""
        observed = f"{date} is before {', '.join(later[-3:])}{more}"
        yield Finding(WARN, observed, "the newest record of its track", ".", LATER_MEANS)


def judge_size(entries):
    """The bytes that would stay in the repository for ever. entries: those of the new folder."""
    for entry in entries:
        if entry.mode == SUBMODULE:
            yield Finding(FAIL, "a submodule", "plain files", f"/{entry.path}")
    total = sum(entry.size for entry in entries)
    if total > FOLDER_LIMIT:
        yield Finding(FAIL, f"{total:,} bytes, which are not read", f"at most {FOLDER_LIMIT:,}", ".")
    elif total > LARGE:
        meaning = "Every clone will hold these bytes for ever."
        yield Finding(WARN, f"{total:,} bytes in {len(entries)} files", f"at most {LARGE:,}", ".", meaning)
    if len(entries) > ENTRIES_LIMIT:
        yield Finding(FAIL, f"{len(entries):,} files, which are not read", f"at most {ENTRIES_LIMIT:,}", ".")
