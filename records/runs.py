"""Which logs show the runs of a record, one per seed, and what the others show: the same run again, its evaluation, a
run that did not end, another experiment, a seed that was run twice."""
import re
import statistics

from common.settings import settings_of
from records.digits import agrees
from records.rules import FAIL, PASS, WARN

SCORE_NOISE = 5e-4  # between two evaluations of one model on different devices
# settings that may differ between the runs of one experiment
FREE = re.compile(r"seed|.*_(path|dir|files|every|id|time)|logfile|(local_)?rank|is_main_process|world_size|device|"
                  r"distributed|grad_accum_steps|micro_batch_rows|val_batch_\w+|train_(loader|shards)")


def seed_in_name(name):
    """The seed in a log's name, or None."""
    found = re.search(r"seed[_-]?(\d{1,18})", name)
    return int(found[1]) if found else None


def seed_of(log):
    """The seed that a log prints, else the one in its name; or None."""
    return log.seed if log.seed is not None else seed_in_name(log.name)


def common_label(logs, claim=None):
    """The last score that every log prints and that is claimed; where none is, the last that every log prints. None
    where there is none. claim: val_bpb, or None."""
    labels = [label for label in logs[0].scores if all(label in log.scores for log in logs)] if logs else []
    claimed = [label for label in labels if _is_claimed(logs, label, claim)]
    return (claimed or labels or [None])[-1]


def _is_claimed(logs, label, claim):
    values = [log.score(label)[1] for log in logs]
    return any(agrees(claim, value) for value in [*values, statistics.mean(values)])


def runs_of(logs, claim, declared):
    """(the logs of the record's runs, list of (RunLog, status, what it is) of the others), in the order of `logs`.

    claim: val_bpb, or None; declared: set of the seeds that submission.json names."""
    others = []
    runs = _without_evaluations(_without_second_logs(logs, others), others, declared)
    runs = _without_unfinished(runs, others, declared)
    runs = _without_other_experiments(runs, others, claim, declared)
    return _without_repeats(runs, others, claim), others


def _without_second_logs(logs, others):
    """A script writes its log and prints it too: two files show one run. The one with a score counts."""
    kept, rows = [], []
    for log in logs:
        mine = {row for row in log.train + log.val if row[0]}
        place = next((i for i, known in enumerate(kept) if _is_same_run(log, known, mine, rows[i])), None)
        if place is None:
            kept.append(log)
            rows.append(mine)
            continue
        known = kept[place]
        less, more = (known, log) if log.scores and not known.scores else (log, known)
        kept[place] = more
        rows[place] |= mine
        both = less.scores.keys() & more.scores.keys()
        off = [label for label in both if not abs(less.score(label)[1] - more.score(label)[1]) < SCORE_NOISE]
        if off:
            others.append((less, FAIL, f"the run of {more.name} with another {off[0]}, {less.score(off[0])[1]:.6f}"))
        else:
            _add_evaluation(more, less)
            others.append((less, PASS, f"the same run as {more.name}"))
    return kept


def _is_same_run(log, other, rows, other_rows):
    """Whether one log's steps, losses and times are all in the other. Files of equal bytes are copies, not this."""
    seeds = {seed_of(log), seed_of(other)} - {None}
    if log.sha256 == other.sha256 or len(seeds) > 1 or min(len(rows), len(other_rows)) < 2:
        return False
    return rows <= other_rows or other_rows <= rows


def _without_evaluations(logs, others, declared):
    """The scores of a log without training go to the training log of its seed, or of its name but for words such as
    `eval`."""
    runs = [log for log in logs if log.train or log.val or not log.scores]
    kept = list(runs)
    for log in logs:
        if log in runs:
            continue
        whole = _training_of(log, [run for run in runs if run.train or run.val])
        if whole:
            _add_evaluation(whole, log)
            others.append((log, PASS, f"the evaluation of {whole.name}"))
        elif not runs or seed_of(log) in declared - {seed_of(run) for run in runs}:
            kept.append(log)
        else:
            others.append((log, WARN, "an evaluation of none of the runs here"))
    return kept


def _training_of(log, runs):
    seed = seed_of(log)
    if seed is None:
        found = [run for run in runs if _bare(run.name) == _bare(log.name)] or (runs if len(runs) == 1 else [])
    else:
        found = [run for run in runs if seed_of(run) == seed]
    return next((run for run in found if not run.scores), found[0] if found else None)


def _bare(name):
    return re.sub(r"train(ing)?|eval(uation)?|ttt|logs?|txt|[\W_]+", "", name.lower())


def _add_evaluation(run, log):
    """The run has what only the other log shows."""
    run.scores |= {label: score for label, score in log.scores.items() if label not in run.scores}
    run.problems += [problem for problem in log.problems if problem not in run.problems]
    run.partial = run.partial or log.partial
    run.places |= {key: place for key, place in log.places.items() if key not in run.places}
    for name in ("seed", "val_tokens", "val_bytes", "code_bytes", "model_bytes", "model_sha256", "total_bytes"):
        if getattr(run, name) in (None, ""):
            setattr(run, name, getattr(log, name))


def _without_unfinished(logs, others, declared):
    """A run without a score, where others have one: it was stopped, and is not a seed of the record, unless its seed is
    declared and no other log has that."""
    scored = {seed_of(log) for log in logs if log.scores}
    kept = []
    for log in logs:
        seed = seed_of(log)
        trained = log.train or log.val
        needed = log.name == "train.log" or seed in declared
        if log.scores or not scored or not trained or (needed and (seed is None or seed not in scored)):
            kept.append(log)
        else:
            others.append((log, WARN, f"has no final score, after step {log.last_step}: not counted"))
    return kept


def _without_other_experiments(logs, others, claim, declared):
    """Runs of other settings are not averaged. The record is the experiment whose score is claimed, else the first. A
    log whose seed is declared, and is in no other log of the record, belongs to it in any case."""
    groups = []
    for log in logs:
        group = next((group for group in groups if not difference(log, group[0])), None)
        if group is None:
            groups.append([log])
        else:
            group.append(log)
    claimed = [group for group in groups if _claims(group, claim)]
    record = (claimed or groups or [[]])[0]
    kept = []
    for log in logs:
        seed = seed_of(log)
        alone = seed in declared and all(seed_of(known) != seed for known in record)
        if log in record or alone or not (log.train or log.val):
            kept.append(log)
        else:
            what = f"another experiment, not counted: {difference(log, record[0])} of {record[0].name}"
            others.append((log, WARN, what))
    return kept


def _claims(group, claim):
    label = common_label(group, claim)
    return label is not None and _is_claimed(group, label, claim)


def difference(log, other):
    """`num_layers 9, not the 11`: the first setting in which two runs differ, of those that both logs show; or empty.
    Settings that change no result, and the seed, do not count."""
    for mine, theirs in zip(_settings(log), _settings(other)):
        for name in mine.keys() & theirs.keys() if mine and theirs else ():
            if mine[name] != theirs[name] and not FREE.fullmatch(name):
                return f"{name} {mine[name]}, not the {theirs[name]}"
    return ""


def _settings(log):
    """Three dicts, name -> value: those of our runs, those of any script, and what the log counts."""
    own = {}
    if log.settings:
        run = log.run_settings
        own = {name: getattr(run, name) for kind in ("model", "training", "evaluation") for name in settings_of(kind)}
    printed = {name: _number(value) for name, value in log.hyperparameters.items()}
    counted = {"model_params": log.params, "train_batch_tokens": log.batch_tokens, "dataset": log.dataset or None}
    return own, printed, {name: value for name, value in counted.items() if value is not None}


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _without_repeats(logs, others, claim):
    """A seed counts once: of its runs the one whose score is claimed, else the last. Copies are not meant."""
    kept = []
    for log in logs:
        runs = [run for run in logs if log.seed is not None and run.seed == log.seed and run.scores]
        label = common_label(runs)
        counted = next((run for run in runs if label and agrees(claim, run.score(label)[1])), runs[-1] if runs else log)
        if not log.scores or log.sha256 == counted.sha256:
            kept.append(log)
        else:
            others.append((log, WARN, f"seed {log.seed} again, not counted: {counted.name} is"))
    return kept
