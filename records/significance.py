"""Is a candidate better than a baseline by the margin that the rules require? A one-sided Welch test over seeds.

H0: mean(baseline) - mean(candidate) <= margin, in nats per token; alpha 0.01. Welch's test does not assume equal
variances (Welch, 1947); power comes from the noncentral t distribution.
"""
import dataclasses
import json
import math
import os
import statistics
import sys
from pathlib import Path

from common.settings import UserError
from records.folder import Refused, declared_seeds, open_bounded, open_folder
from records.logs import LOG_LIMIT, read_logs
from records.rules import RECORD_ALPHA, RECORD_MARGIN_NATS, SP1024_NATS_PER_BPB
from records.runs import seed_of
from records.show import printable

MIN_RUNS = 3  # of each side
POWER = 0.9  # that runs_needed asks for
MOST_RUNS = 200  # that runs_needed tries


@dataclasses.dataclass
class Test:
    """One Welch test. difference = mean(baseline) - mean(candidate); p of H0: difference <= margin."""
    margin: float
    difference: float
    t: float
    df: float
    p: float


def welch_test(baseline, candidate, margin=0.0):
    """Test of two lists of at least two numbers, lower is better. ValueError where neither list varies."""
    from scipy import special  # here, since few commands need it; scipy.stats takes 0.4 s more
    a, b = (statistics.variance(side) / len(side) for side in (baseline, candidate))
    if a + b <= 0:
        raise ValueError("neither side varies")
    difference = statistics.mean(baseline) - statistics.mean(candidate)
    df = (a + b) ** 2 / (a**2 / (len(baseline) - 1) + b**2 / (len(candidate) - 1))
    t = (difference - margin) / math.sqrt(a + b)
    return Test(margin, difference, t, df, float(special.stdtr(df, -t)))


def one_sample_p(candidate, constant, margin=0.0):
    """p of H0: constant - mean(candidate) <= margin, against a baseline taken as exact."""
    from scipy import special
    error = statistics.stdev(candidate) / math.sqrt(len(candidate))
    gain = constant - margin - statistics.mean(candidate)
    return float(special.stdtr(len(candidate) - 1, -gain / error)) if error else float(gain <= 0)


def interval(baseline, candidate, confidence=0.99):
    """(low, high) of the difference of the means."""
    from scipy import special
    test = welch_test(baseline, candidate)
    half = float(special.stdtrit(test.df, 0.5 + confidence / 2)) * test.difference / test.t if test.t else math.inf
    return test.difference - abs(half), test.difference + abs(half)


def power_of(difference, margin, sd_baseline, sd_candidate, runs_baseline, runs_candidate, alpha=RECORD_ALPHA):
    """Probability that the test rejects H0 where the true difference and standard deviations are these."""
    from scipy import special
    a, b = sd_baseline**2 / runs_baseline, sd_candidate**2 / runs_candidate
    df = (a + b) ** 2 / (a**2 / (runs_baseline - 1) + b**2 / (runs_candidate - 1))
    shift = (difference - margin) / math.sqrt(a + b)
    power = 1 - special.nctdtr(df, shift, special.stdtrit(df, 1 - alpha))
    return float(power) if math.isfinite(power) else 1.0


def runs_needed(baseline, candidate, margin):
    """(more candidate runs, more runs on both sides) for 90 % power at the spread and difference seen; None where
    MOST_RUNS more would not be enough."""
    difference = statistics.mean(baseline) - statistics.mean(candidate)
    if difference <= margin:
        return None, None
    spreads = statistics.stdev(baseline), statistics.stdev(candidate)

    def enough(more_baseline, more_candidate):
        runs = len(baseline) + more_baseline, len(candidate) + more_candidate
        return power_of(difference, margin, *spreads, *runs) >= POWER
    alone = next((more for more in range(MOST_RUNS) if enough(0, more)), None)
    both = next((more for more in range(MOST_RUNS) if enough(more, more)), None)
    return alone, both


@dataclasses.dataclass
class Side:
    """Runs of one side. losses: nats per token, bpbs: bits per byte, None where they are not known; problems: why the
    runs are not evidence."""
    label: str
    losses: list | None = None
    bpbs: list | None = None
    problems: list = dataclasses.field(default_factory=list)

    @property
    def ratio(self):
        """Nats per token in one bit per byte; None where unknown."""
        return statistics.mean(self.losses) / statistics.mean(self.bpbs) if self.losses and self.bpbs else None


def compare(baseline, candidate, margin=RECORD_MARGIN_NATS, alpha=RECORD_ALPHA):
    """dict of everything that is printed of two Sides; "decision" is "significant", "not significant" or "not
    verified", "because" a list of sentences."""
    ratio = baseline.ratio or candidate.ratio or SP1024_NATS_PER_BPB
    same_tokens = not (baseline.ratio and candidate.ratio) or abs(baseline.ratio / candidate.ratio - 1) < 2e-3
    in_nats = bool(baseline.losses and candidate.losses and same_tokens)
    ours, theirs = (side.losses if in_nats else side.bpbs for side in (baseline, candidate))
    result = {
        "unit": "nats per token" if in_nats else "bits per byte",
        "ratio": ratio,
        "ratio_assumed": not (baseline.ratio or candidate.ratio),
        "baseline": ours,
        "candidate": theirs,
        "because": doubts([(baseline, ours), (candidate, theirs)]),
        "decision": "not verified",
    }
    if not ours or not theirs or min(len(ours), len(theirs)) < 2 or (len(set(ours)) == 1 and len(set(theirs)) == 1):
        return result
    result |= statistics_of(ours, theirs, margin, ratio, in_nats)
    if not result["because"]:
        significant = result["readings"]["nats per token"]["p"] < alpha
        result["decision"] = "significant" if significant else "not significant"
    return result


def doubts(sides):
    """list of sentences: why two sides, (Side, its scores in the common unit), do not allow a decision."""
    if not all(runs for _, runs in sides):
        return ["one side has no score in the unit of the other"]
    found = [f"{side.label}: {problem}" for side, _ in sides for problem in side.problems]
    for side, runs in sides:
        if len(runs) < MIN_RUNS:
            has = counted(len(runs), "run")
            found.append(f"{side.label} has {has}, {MIN_RUNS} are needed: {MIN_RUNS - len(runs)} more")
    for side, runs in sides:
        if len(runs) >= MIN_RUNS and len(set(runs)) == 1:
            found.append(f"{side.label}: all {len(runs)} runs have the same score, which different seeds do not give")
    return found


def statistics_of(ours, theirs, margin, ratio, in_nats):
    """dict of the statistics of two lists of scores. margin: in nats per token, which the unit of the scores need not
    be; ratio: nats per token in one bit per byte."""
    unit = 1.0 if in_nats else 1 / ratio  # one nat per token, in the unit of the scores
    margins = {
        "nats per token": margin * unit,
        "nats per byte": margin * ratio / math.log(2) * unit,
        "bits per byte": margin * ratio * unit,
        "no margin": 0.0,
    }
    readings = {name: dataclasses.asdict(welch_test(ours, theirs, value)) for name, value in margins.items()}
    difference, margin = readings["nats per token"]["difference"], margins["nats per token"]
    spreads = statistics.stdev(ours), statistics.stdev(theirs)
    return {
        "readings": readings,
        "margin": margin,
        "one_sample_p": one_sample_p(theirs, statistics.mean(ours), margin),
        "interval": interval(ours, theirs),
        "needed": runs_needed(ours, theirs, margin),
        "power": power_of(difference, margin, *spreads, len(ours), len(theirs)),
    }


def counted(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def explain(result):
    """The text of a comparison, the decision first."""
    words = {
        "significant": "SIGNIFICANT: the candidate is better by more than the margin",
        "not significant": "NOT SIGNIFICANT: the runs do not show that the candidate is better by the margin",
        "not verified": "NOT VERIFIED: the runs given do not allow the test",
    }
    lines = [words[result["decision"]]]
    lines += [f"  {printable(text)}" for text in result["because"]]
    if "readings" not in result:
        return "\n".join(lines)
    main, unit = result["readings"]["nats per token"], result["unit"]
    low, high = result["interval"]
    for side in ("baseline", "candidate"):
        runs = result[side]
        mean, spread = statistics.mean(runs), statistics.stdev(runs)
        lines.append(f"  {side:<10} {len(runs)} runs  mean {mean:.6f}  sd {spread:.6f} {unit}")
    lines += [
        f"  difference {main['difference']:.6f} {unit}, 99 % interval {low:.6f} to {high:.6f}",
        f"  one-sided Welch test at margin {main['margin']:.6f} {unit}, the deciding one: "
        f"t = {main['t']:.4f}, df = {main['df']:.4f}, p = {main['p']:.4g} (must be below {RECORD_ALPHA})",
        f"  other readings of the margin of {RECORD_MARGIN_NATS}, and no margin:",
    ]
    for name, test in result["readings"].items():
        if name != "nats per token":
            lines.append(f"    {name:<14} margin {test['margin']:.6f}  t = {test['t']:8.4f}  p = {test['p']:.4g}")
    assumed = " (assumed: FineWeb sp1024)" if result["ratio_assumed"] else ""
    p = result["one_sample_p"]
    lines += [
        f"    baseline as a constant, margin {main['margin']:.6f}: one-sample p = {p:.4g}",
        f"  1 bit per byte = {result['ratio']:.4f} nats per token{assumed}",
        f"  power at this difference and spread: {100 * result['power']:.1f} %; {still_needed(result)}",
    ]
    return "\n".join(lines)


def still_needed(result):
    """How many more seeds would give 90 % power, in words."""
    alone, both = result["needed"]
    gap = result["margin"] - result["readings"]["nats per token"]["difference"]
    if gap >= 0:
        return f"more seeds do not help, the mean is {gap:.6f} {result['unit']} short of the margin"
    if alone == 0:
        return "no more seeds are needed"
    if alone is None and both is None:
        return f"{MOST_RUNS} more seeds on both sides would not give 90 %"
    words = []
    if alone:
        words.append(f"{counted(alone, 'more seed')} of the candidate")
    if both:
        words.append(f"{counted(both, 'more seed')} on both sides")
    return f"{' or '.join(words)} at this spread would give 90 %"


def score_of(label, text):
    """The number that a command-line argument is; None: it is not a number. Raises UserError."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 < value < 100:
        raise UserError(f"{label}: {text} is not a score: nats per token or bits per byte between 0 and 100")
    return value


def scored_logs(text):
    """(list of (RunLog, (val_loss, val_bpb)), list of problems) of a log, run or record folder. Raises UserError."""
    path, problems, score_label = Path(text), [], None
    if path.is_dir() and not (path / "submission.json").is_file() and (path / "train.log").is_file():
        path = path / "train.log"  # runs/<id>
    try:
        if path.is_dir():
            folder = open_folder(path)
            logs, score_label = folder.seed_logs(), folder.score_label
            problems = [f"{path.name}: {what}" for what in missing_seeds(folder) + copied_logs(folder)]
        else:
            with open_bounded(path, LOG_LIMIT) as file:
                logs = read_logs(path.name, file)
    except Refused as error:
        raise UserError(f"{text}: {error}; give record folders, logs or numbers") from None
    scored = [(log, score) for log in logs if (score := log.score(score_label))]
    if not scored:
        raise UserError(f"{text}: holds no log with a final score")
    for log, score in scored:
        if not is_score(score):
            raise UserError(f"{text}: {log.name!r} has the score {score[1]}: give runs with a finite score above 0")
    return scored, problems


def side_of(label, arguments, unit):
    """Side of command-line arguments: numbers in `unit`, logs, or record folders. Raises UserError."""
    numbers, pairs, problems, digests = [], [], [], set()
    for text in arguments:
        if (value := score_of(label, text)) is not None:
            numbers.append(value)
            continue
        scored, found = scored_logs(text)
        problems += found
        for log, score in scored:
            if log.sha256 in digests:
                problems.append(f"{log.name} has the bytes of another log: one run counts once")
                continue
            digests.add(log.sha256)
            pairs.append(score)
    if numbers and pairs:
        raise UserError(f"{label}: numbers and logs together; give one kind")
    if pairs:
        return Side(label, [loss for loss, _ in pairs], [bpb for _, bpb in pairs], problems)
    return Side(label, numbers, None) if unit == "nats" else Side(label, None, numbers)


def is_score(pair):
    """True where (val_loss, val_bpb) are numbers that can be compared."""
    return all(0 < value < 100 for value in pair)


def missing_seeds(folder):
    """list[str]: seeds that submission.json declares and no log has."""
    declared, shown = declared_seeds(folder) or set(), {seed_of(log) for log in folder.logs}
    return [f"seed {seed} is declared and has no log" for seed in sorted(declared - shown)]


def copied_logs(folder):
    """list[str]: logs that are copies of another. train.log may be a copy of one log that is named after its seed."""
    first, copies = {}, []
    for log in folder.logs:
        if log.name != "train.log" and log.sha256 in first:
            copies.append(f"{log.name} is a copy of {first[log.sha256]}")
        elif log.name != "train.log":
            first[log.sha256] = log.name
    return copies


def run(options):
    """Exit code: 0 significant, 1 not, 3 not verified."""
    baseline = side_of("baseline", options.baseline, options.unit)
    result = compare(baseline, side_of("candidate", options.candidate, options.unit))
    if options.json:
        json.dump(result, sys.stdout, sort_keys=True, indent=1)
        print()
    else:
        print(explain(result))
    return {"significant": 0, "not significant": 1, "not verified": 3}[result["decision"]]


def add_command(subparsers):
    parser = subparsers.add_parser("significance", help="test whether a candidate beats a baseline by the margin")
    words = "record folders, runs, logs, or numbers"
    parser.add_argument("baseline", nargs="+", type=os.path.expanduser, metavar="BASELINE", help=words)
    parser.add_argument("--candidate", nargs="+", type=os.path.expanduser, required=True, metavar="RUN", help=words)
    words = "unit of numbers: nats per token or bits per byte (default: nats)"
    parser.add_argument("--unit", choices=("nats", "bpb"), default="nats", help=words)
    parser.add_argument("--json", action="store_true", help="print sorted JSON instead of text")
    parser.set_defaults(run=run)
