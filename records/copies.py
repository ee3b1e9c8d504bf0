"""Runs, models and code that stand twice: within a record folder, and in the other folders of a tree of records.

Two runs are independent, so their losses differ in most lines; the first steps and a few others may agree by chance.
The same run may be reported twice: train.log is often a copy of the log of one seed, and a run on the CPU repeats to
the last digit. Its times never repeat.
"""
import hashlib

from records.folder import Refused
from records.rules import FAIL, SCRIPT, WARN, Finding

FEWEST = 4  # later losses that a comparison needs
SHARE = 0.5  # of the later losses; two runs of one configuration share less than a tenth
READ_LIMIT = 16_000_000  # bytes of a file that is compared


def share_equal(first, second):
    """Which share of the values that two dicts have for the same keys are equal; 0 where there are too few."""
    both = first.keys() & second.keys()
    if len(both) < FEWEST:
        return 0.0
    return sum(first[key] == second[key] for key in both) / len(both)


def check_copied_runs(folder):
    """No two logs of a folder show the losses or the times of one run under two seeds."""
    logs = folder.seed_logs()
    for number, log in enumerate(logs):
        for other in logs[:number] if log.seed is not None else []:
            if other.seed in (None, log.seed):
                continue  # two logs of one run, as of training and evaluation
            same = share_equal(log.late_losses, other.late_losses)
            if same > SHARE:
                observed = f"{100 * same:.0f} % of the losses of {log.name} are those of {other.name}"
                yield Finding(FAIL, observed, f"another run: seeds {log.seed} and {other.seed}", log.where("train"))
            elif share_equal(log.late_times, other.late_times) > SHARE and _exact_times(log):
                observed = f"the times of {log.name} are those of {other.name}"
                yield Finding(FAIL, observed, "times of another run", log.where("train"))
            elif _sizes(log) == _sizes(other) is not None:
                observed = f"{log.model_bytes:,} bytes of model and val_loss {log.score()[0]} as in {other.name}"
                yield Finding(FAIL, observed, "another model", log.where("model"))


def _exact_times(log):
    """Whether times are in milliseconds, long enough that they do not agree by chance."""
    return bool(log.train) and all(row[2] is not None and row[2] % 3000 for row in log.train[-FEWEST:])


def _sizes(log):
    """What two models never share, or None where the log does not say it."""
    return (log.model_bytes, log.score()[0]) if log.model_bytes and log.score() else None


def earlier(folder, others):
    """The folders of others that are not dated later: of two equal ones the later is the copy."""
    return [other for other in others if other.name[:10] <= folder.name[:10] and other.path != folder.path]


def same_author(folder, other):
    ids = [(f.fields.get("github_id") or f.fields.get("author") or "").lower() for f in (folder, other)]
    return ids[0] == ids[1] != ""


def _name(folder, other):
    """Name of the other folder, with its track where that is another."""
    return other.name if other.track == folder.track else f"{other.track}/{other.name}"


def check_runs_of_others(folder, others):
    """Runs that an earlier folder of the tree shows too. others: list of the tree's other Folders."""
    for log in folder.seed_logs():
        for other in earlier(folder, others):
            found = (_same_run(folder, log, other, theirs) for theirs in other.seed_logs())
            yield from [finding for finding in found if finding][:1]


def _same_run(folder, log, other, theirs):
    """Finding about a log and one of another folder; or None."""
    where = _name(folder, other)
    if log.sha256 == theirs.sha256:
        return Finding(FAIL, f"{log.name} is {theirs.name} of {where}", "a log of this record", log.name)
    same = share_equal(log.late_losses, theirs.late_losses)
    if same <= SHARE:
        return None
    observed = f"{100 * same:.0f} % of its losses are those of {theirs.name} of {where}"
    if log.seed != theirs.seed:
        return Finding(FAIL, f"{observed}, seed {theirs.seed}", f"another run for seed {log.seed}", log.name)
    if same_author(folder, other):
        again = log.score() == theirs.score()
        return Finding(WARN, f"{observed}, and so is its score", "a record that is new", log.name) if again else None
    if _exact_times(log) and share_equal(log.late_times, theirs.late_times) > SHARE:
        return Finding(FAIL, f"{observed}, and so are its times", "a run of one's own", log.name)
    return Finding(WARN, observed, "a repeated run, which the README says", log.name)


def check_models_of_others(folder, others):
    """Models of an earlier folder of another author."""
    ours = models_of(folder)
    for other in earlier(folder, others) if ours else []:
        if same_author(folder, other):
            continue
        theirs = models_of(other, {folder.files[name] for name in ours.values()})
        for digest in sorted(ours.keys() & theirs.keys()):
            same_code = _digest(folder, SCRIPT) == _digest(other, SCRIPT) is not None
            status = WARN if same_code else FAIL  # the same code with the same seed makes the same model
            observed = f"the model of {_name(folder, other)}, by another author"
            yield Finding(status, observed, "the model of this record", ours[digest])


def check_code_of_others(folder, others):
    """Code of an earlier folder of another author. Records build on each other, so it may be meant."""
    for other in earlier(folder, others):
        same_size = folder.files.get(SCRIPT) and folder.files.get(SCRIPT) == other.files.get(SCRIPT)
        if same_size and not same_author(folder, other) and _digest(folder, SCRIPT) == _digest(other, SCRIPT):
            observed = f"the code of {_name(folder, other)}, by another author"
            yield Finding(WARN, observed, "code of this record, or a README that gives credit", SCRIPT)


def models_of(folder, sizes=None):
    """dict SHA-256 -> name of the model files; of these sizes alone, if given."""
    names = [name for name in sorted(folder.files) if folder.kinds[name] == "model"]
    digests = {_digest(folder, name): name for name in names if sizes is None or folder.files[name] in sizes}
    digests.pop(None, None)
    return digests


def _digest(folder, name):
    """SHA-256 of a file; None where it is not there, empty, or cannot be read."""
    if not folder.files.get(name):
        return None
    try:
        return hashlib.sha256(folder.read(name, READ_LIMIT)).hexdigest()
    except Refused:
        return None
