"""What submission.json and README.md state beside the score: each figure of each seed, means, hardware, date, the score
in the README; and whether the seeds are runs of one configuration. Each is compared with the logs."""
import datetime
import math
import re
import statistics

from common.settings import settings_of
from records.copies import models_of
from records.digits import SCORE_UNIT, Decimal, agrees
from records.folder import claims_per_seed
from records.rules import FAIL, SECOND, SPELLINGS, TRAIN_LIMITS, WARN, Finding

SCORES = ("val_loss", "val_bpb")  # as in Folder.seed_scores
GPUS = 8  # of the record track
DAY = datetime.timedelta(days=1)
SHORT = {"wallclock_seconds": 1.0, "eval_seconds": 1.0}  # the most that a figure may be off, having few digits
NAMES = {spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings} | {
    "eval_time_seconds": "eval_seconds", "eval_seconds": "eval_seconds", "evaluation_seconds": "eval_seconds",
    "seed_scores": "val_bpb", "val_bpbs": "val_bpb", "val_losses": "val_loss", "bpbs": "val_bpb",
    "world_size": "world_size", "num_gpus": "world_size", "gpu_count": "world_size",
}
SAME = {  # fields of a log that all seeds share -> how a person names them
    "backend": "backend", "dataset": "data set", "manifest_sha256": "manifest of the data",
    "code_sha256": "code", "vocab_size": "vocabulary", "params": "parameters", "batch_tokens": "tokens per step",
    "iterations": "iterations", "cap_seconds": "time limit", "val_tokens": "validation tokens",
}
OF_ONE_RUN = {"seed", "run_id", "logfile", "rank", "local_rank", "is_main_process"}  # printed settings that may differ
PATHS = ("_path", "_dir", "_files")  # ends of the names of others, which depend on the machine


def logged(log, name):
    """list of the numbers of a log that a field may state."""
    times = [score[2] / SECOND for score in log.scores.values() if score[2] is not None]
    found = {
        "val_loss": [score[0] for score in log.scores.values()],
        "val_bpb": [score[1] for score in log.scores.values()],
        "pre_quant_val_loss": [row[0] for row in (log.pre_quant, log.val and log.val[-1][1:3]) if row],
        "pre_quant_val_bpb": [row[1] for row in (log.pre_quant, log.val and log.val[-1][1:3]) if row],
        "step_stop": [log.last_step],
        "wallclock_seconds": [log.train_ms / SECOND if log.train_ms is not None else None],
        "bytes_total": [log.total_bytes, log.model_bytes],  # some state the model's as the artifact's
        "bytes_model_int8_zlib": [log.model_bytes],
        "bytes_code": [log.code_bytes],
        "eval_seconds": [*times, sum(times) if times else None],
        "world_size": [log.world_size],
    }
    return [value for value in found[name] if value is not None and math.isfinite(value)]


def check_seed_figures(folder, rules):
    """Every figure that submission.json gives for one seed, against the logs of that seed."""
    logs = {}
    for log in folder.logs:
        logs.setdefault(log.seed, []).append(log)
    for seed, claims in claims_per_seed(folder).items():
        for spelling, claim in claims.items():
            name = NAMES.get(spelling)
            if name is None or not _is_number(claim):
                continue
            # a declared seed without a log is reported as such
            values = [value for log in logs.get(seed, ()) for value in _of_claimed_score(folder, log, name)]
            if values and not any(agrees(claim, value, SHORT.get(name, SCORE_UNIT)) for value in values):
                expected = f"{' or '.join(f'{v:,.10g}' for v in sorted(set(values)))} of its log"
                yield Finding(rules.lenient, f"{spelling} {claim:g} of seed {seed}", expected, "submission.json")
    yield from _means(folder, rules)


def _of_claimed_score(folder, log, name):
    """list of the numbers of a log that a figure of its seed may state: of several scores the one that is claimed."""
    if name in SCORES and folder.score_label:
        return [log.score(folder.score_label)[SCORES.index(name)]]
    return logged(log, name)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _means(folder, rules):
    """Means and deviations that stand beside the score."""
    runs = folder.seed_logs()
    for number, name in enumerate(SCORES):
        values = [score[number] for score in folder.seed_scores()]
        if len(values) < 2:
            continue
        deviations = [statistics.stdev(values), statistics.pstdev(values)]
        for spelling, good in (
            (f"{name}_mean", [statistics.mean(values)]),
            (f"mean_{name}", [statistics.mean(values)]),
            (f"std_{name}", deviations),
            (f"{name}_std", deviations),
            (f"{name}_stdev", deviations),
        ):
            claim = folder.raw.get(spelling)
            if _is_number(claim) and not any(agrees(claim, value) for value in good):
                expected = f"{good[0]:.6f} of {len(runs)} logs"
                yield Finding(rules.lenient, f"{spelling} {claim:g}", expected, "submission.json")


def check_same_configuration(folder, rules):
    """The seeds are runs of one configuration: settings, code, data and number of processes."""
    first, *others = folder.seed_logs() or [None]
    for run in others:
        differing = [words for name, words in SAME.items() if _differ(getattr(first, name), getattr(run, name))]
        differing += _different_settings(first, run)
        if differing:
            observed = f"{run.name} differs from {first.name} in {', '.join(differing[:5])}"
            yield Finding(rules.lenient, observed, "runs that differ only in the seed", run.where("settings"))
        elif printed := _different_hyperparameters(first, run):
            observed = f"{run.name} prints another {', '.join(printed[:5])} than {first.name}"
            yield Finding(WARN, observed, "runs that differ only in the seed", run.where("settings", printed[0]))
        if _differ(first.world_size, run.world_size):
            observed = f"{run.world_size} processes, {first.world_size} in {first.name}"
            status = rules.lenient if folder.track in TRAIN_LIMITS else WARN
            yield Finding(status, observed, "the same hardware for every seed", run.where("world"))


def _differ(first, second):
    """Whether both are known and are not equal."""
    return first not in (None, "") and second not in (None, "") and first != second


def _different_settings(first, run):
    """Names of the settings of this project's trainers that decide what is learned and scored."""
    decisive = settings_of("model", "training", "evaluation").keys() - OF_ONE_RUN
    if not (first.backend and run.backend):
        return []
    return [name.upper() for name in sorted(decisive) if first.settings.get(name) != run.settings.get(name)]


def _different_hyperparameters(first, run):
    """Names of what other scripts print; which of them matter is not known."""
    ours, theirs = first.hyperparameters, run.hyperparameters
    if first.backend or not ours or not theirs:
        return []
    names = [name for name in sorted(ours.keys() | theirs.keys()) if name not in OF_ONE_RUN]
    return [name for name in names if not name.endswith(PATHS) and ours.get(name) != theirs.get(name)]


def check_hardware(folder, rules):
    """The hardware that is claimed is that of the logs, which on the record track is 8 GPUs."""
    claim = folder.raw.get("hardware")
    claims = _devices(claim) if isinstance(claim, str) else []
    for log in folder.seed_logs():
        device = log.device.lower() or _gpus(folder, log)
        for count, name in claims:
            if log.world_size and count != log.world_size:
                observed = f"{count} x {name} claimed"
                yield Finding(rules.lenient, observed, f"{log.world_size} processes", log.where("world"))
            elif device and not _is_named(name, device):
                yield Finding(rules.lenient, f"{name} claimed", device, log.where("run"))
        if folder.track in TRAIN_LIMITS and log.world_size not in (None, GPUS):
            observed = f"{log.world_size} processes"
            yield Finding(WARN, observed, f"{GPUS} x H100, on which the track is timed", log.where("world"))
    if not claims:
        yield from _hardware_of_readme(folder)


def _devices(text):
    """list of (number, first word of the name): 8xH100 SXM, 1 x cpu."""
    found = re.findall(r"(?<![\w.])(\d{1,4}) ?[x×] ?(?:NVIDIA )?([A-Za-z][A-Za-z0-9]+)", text)
    return [(int(count), name) for count, name in found]


def _gpus(folder, log):
    """Names in the table that nvidia-smi prints into a log, in small letters; empty without one."""
    names = re.findall(r"^\|\s{1,9}\d{1,3}\s{1,9}NVIDIA (\S.{0,40}?)\s{2,}", folder.text(log.name), re.MULTILINE)
    return ", ".join(sorted({name.lower() for name in names}))


def _is_named(name, device):
    """Whether the device of a log can be the one that is claimed. A name such as GPU says too little to differ."""
    model = re.search(r"[a-z]+\d+", name.lower())
    if model:
        return model[0] in device
    return name.lower() in device or name.lower() in ("gpu", "gpus", "nvidia")


def _hardware_of_readme(folder):
    """The README names hardware, and none of it is that of the logs."""
    stated = [(count, name) for count, name in _devices(folder.text("README.md")) if re.search(r"\d", name)]
    sizes = {log.world_size for log in folder.seed_logs() if log.world_size}
    if stated and sizes and not any(count in sizes for count, _ in stated):
        observed = " and ".join(sorted({f"{count} x {name}" for count, name in stated}))
        yield Finding(WARN, f"{observed} stated", f"{max(sizes)} processes in the logs", "README.md")


def check_data_set(folder):
    """The data set that submission.json names is that of the logs, which may write it otherwise. Whether a text is
    FineWeb its bytes show (records/claims.py)."""
    claim = folder.raw.get("dataset")
    named = next((log for log in folder.logs if log.dataset), None)
    if not isinstance(claim, str) or not named or "fineweb" in claim.lower():
        return
    family = re.match("[a-z]*", named.dataset.lower())[0]
    sizes = [re.findall(r"sp(\d{3,6})", text.lower()) for text in (claim, named.dataset)]
    if family not in claim.lower() or (all(sizes) and sizes[0] != sizes[1]):
        yield Finding(WARN, f"dataset {claim[:80]} claimed", f"{named.dataset} of {named.name}", "submission.json")


def check_dates(folder, today=None):
    """No record is dated in the future; a day is left for time zones."""
    today = today or datetime.datetime.now(datetime.UTC).date()
    for text, where in ((folder.name, "."), (folder.fields.get("date", ""), "submission.json")):
        try:
            date = datetime.date.fromisoformat(text[:10])
        except ValueError:
            continue  # reported as no date
        if date > today + DAY:
            yield Finding(FAIL, f"dated {date}", f"not after today, {today}", where)


SCORE_IN_TEXT = re.compile(r"\b(?:val_)?bpb\b\W{0,12}(?:\w+\W{1,3}){0,2}?(\d\.\d{3,10})(?!\d)", re.IGNORECASE)


def check_readme_score(folder):
    """The first score that the README gives is not better than the one claimed."""
    text = folder.text("README.md")
    found, claim = SCORE_IN_TEXT.search(text), folder.fields.get("val_bpb")
    if not found or claim is None:
        return
    first = Decimal(found[1])
    first.text = found[1]
    known = [claim, *(value for log in folder.logs for name in ("val_bpb", "pre_quant_val_bpb")
                      for value in logged(log, name))]
    if len(folder.seed_scores()) > 1:
        known.append(statistics.mean(bpb for _, bpb in folder.seed_scores()))
    if first < claim and not any(agrees(first, value) for value in known):
        line = text.count("\n", 0, found.start(1)) + 1
        expected = f"{float(claim):g} of submission.json, or a score of a log"
        yield Finding(WARN, f"val_bpb {found[1]} in the README", expected, f"README.md:{line}")


def check_model_digests(folder):
    """Digests of a model in submission.json are those of the model file, or of a log."""
    known = set(models_of(folder)) | {log.model_sha256 for log in folder.logs if log.model_sha256}
    for name, value in folder.raw.items():
        stated = re.fullmatch(r"(?:sha256:)?([0-9a-fA-F]{64})", value) if isinstance(value, str) else None
        if stated and re.search("model|artifact|weights", name) and known and stated[1].lower() not in known:
            expected = f"{' or '.join(sorted(digest[:12] for digest in known))} of the model"
            yield Finding(FAIL, f"{name} {stated[1][:12]}", expected, "submission.json")


def check_model_is_claimed(folder):
    """The model file is that of the run whose score is claimed, where the claim is the score of one run."""
    models = models_of(folder)
    logs = {log.model_sha256: log for log in folder.logs if log.model_sha256 and log.score()}
    if len(models) > 1 and not models.keys() <= logs.keys():
        observed = f"{len(models)} model files"
        yield Finding(WARN, observed, "the one that is scored", ", ".join(models.values())[:200])
    shipped = [logs[digest] for digest in models if digest in logs]
    claim, values = folder.fields.get("val_bpb"), [bpb for _, bpb in folder.seed_scores()]
    if len(shipped) != 1 or claim is None or agrees(claim, statistics.mean(values or [claim])):
        return
    claimed = [log for log in folder.seed_logs() if log.score() and agrees(claim, log.score()[1])]
    if claimed and shipped[0] not in claimed:
        observed = f"{float(claim):g} is claimed, the score of {claimed[0].name}"
        yield Finding(WARN, observed, f"that of {shipped[0].name}, whose model is here", "submission.json")
