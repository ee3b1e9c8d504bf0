"""The check of significance: does a record beat the record of the day? That is the best score among the earlier records
of its track, whether their folders pass the other checks or not."""
from records.checks import is_founding
from records.rules import FAIL, NOT_RUN, NOTE, PASS, RECORD_ALPHA, TRAIN_LIMITS, UNVERIFIED, Finding
from records.significance import MIN_RUNS, Side, compare, copied_logs, is_score, missing_seeds, still_needed


def check_significance(folder, rules, find_earlier, failed_checks, given=None):
    """Whether a record beats the record of the day, which decides, and beside it, as notes, the best one that fails no
    check and the best one with enough runs. find_earlier: function that gives a list of Folders, the best first;
    failed_checks: function that gives the names of the checks that a Folder fails, with first_only at most one; given:
    a Side to beat instead."""
    if folder.track not in TRAIN_LIMITS:
        yield Finding(NOT_RUN, "no record is claimed in this track")
        return
    if is_founding(folder):
        yield Finding(UNVERIFIED, "one published run, the first: there was nothing to beat", f"{MIN_RUNS} runs", ".")
        return
    if given:
        yield compared(folder, rules, given)
        return
    earlier = find_earlier()
    if not earlier:
        observed = "no earlier record beside the folder"
        yield Finding(UNVERIFIED, observed, f"--baseline FOLDER, at least {MIN_RUNS} runs", ".")
        return
    best = earlier[0]
    failed = failed_checks(best)
    finding = compared(folder, rules, side_of_folder(best, f"the record of the day ({best.name})"))
    if failed:
        finding.observed += f"; {best.name} fails {', '.join(failed)}"
    yield finding
    yield from _beside(folder, rules, earlier, failed_checks, failed)


def _beside(folder, rules, earlier, failed_checks, failed):
    """Notes on other earlier records, where the record of the day is open to doubt."""
    shown = []
    if failed:
        passing = (other for other in earlier if not failed_checks(other, first_only=True))
        shown.append(("without a failed check", next(passing, None)))
    if not _enough_runs(earlier[0]):
        shown.append((f"with {MIN_RUNS} runs", next((f for f in earlier if _enough_runs(f)), None)))
    for what, other in shown:
        if other is None:
            yield Finding(NOTE, f"there is no earlier record {what}", "", "..")
        else:
            finding = compared(folder, rules, side_of_folder(other, f"the best {what} ({other.name})"))
            outcome = {PASS: "significant", UNVERIFIED: "not verified"}.get(finding.status, "not significant")
            yield Finding(NOTE, f"{outcome}: {finding.observed}", finding.expected, "logs")


def _enough_runs(folder):
    return len(side_of_folder(folder, "").bpbs) >= MIN_RUNS


def compared(folder, rules, baseline):
    """The Finding of a Folder against a Side."""
    candidate = side_of_folder(folder, "candidate")
    result = compare(baseline, candidate, margin=rules.margin_nats)
    same_scores = len(candidate.bpbs) >= MIN_RUNS and len(set(candidate.bpbs)) == 1
    if same_scores or copied_logs(folder):
        because = [text for text in result["because"] if text.startswith(candidate.label)]
        return Finding(FAIL, "; ".join(because), "independent runs", "logs", "One run counts once: ship a log of each.")
    if result["decision"] == "not verified":
        observed, expected = "; ".join(result["because"]), f"at least {MIN_RUNS} runs per side"
        if baseline.label not in observed:
            expected += f", against {baseline.label}"
        return Finding(UNVERIFIED, observed, expected, "logs")
    test = result["readings"]["nats per token"]
    status = PASS if result["decision"] == "significant" else rules.lenient
    word = "better" if test["difference"] >= 0 else "worse"
    observed = f"{abs(test['difference']):.5f} {result['unit']} {word} than {baseline.label}; p = {test['p']:.3g}"
    expected = f"p < {RECORD_ALPHA} at a margin of {test['margin']:.5f}"
    meaning = "" if status == PASS else f"Other seeds could have said otherwise: {still_needed(result)}."
    return Finding(status, observed, expected, "logs", meaning)


def side_of_folder(folder, label):
    """Side of the runs of a record folder."""
    scores = folder.seed_scores()
    good = [score for score in scores if is_score(score)]
    problems = missing_seeds(folder) + copied_logs(folder)
    if len(good) < len(scores):
        problems.insert(0, "a log has no finite score above 0")
    return Side(label, [loss for loss, _ in good], [bpb for _, bpb in good], problems)
