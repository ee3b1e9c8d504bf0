"""Re-evaluation: the shipped model file, loaded by this repository's trainer and scored again on the validation shards
that the reviewer has."""
import dataclasses

from common.artifact import decode_model
from common.bpb import eval_lengths, evaluate
from common.challenge import BUDGET_BYTES
from common.dataset import open_data
from common.finish import MODEL_FILE
from common.settings import UserError, parse_setting, setting_conflicts, settings_of
from parity.trainers import load_trainer
from records.folder import Refused
from records.rules import FAIL, PASS, UNVERIFIED, Finding

SAME_BACKEND, ACROSS = 5e-5, 5e-4  # bits per byte
MOST_WORK = 512  # times that of plain windows; windows of 4096 tokens with stride 16 take 256 times
LONGEST_ROW = 16384  # tokens


class NotScored(Exception):
    """Why a model is not scored again: a Finding."""

    def __init__(self, status, observed, expected, where=MODEL_FILE):
        super().__init__(observed)
        self.finding = Finding(status, observed, expected, where)


def check_evaluation(folder, data_path, backend=None):
    """The finding of scoring model.int8.zlib on the data of a folder; backend: that of the log by default."""
    try:
        yield score_again(folder, data_path, backend)
    except NotScored as reason:
        yield reason.finding


def score_again(folder, data_path, backend):
    """The finding, PASS or FAIL, of a model that can be scored. Raises NotScored."""
    settings, weights, log = read_model_and_log(folder)
    asked, backend = backend, backend or log.backend or "torch"
    try:
        kind = load_trainer(backend)
    except UserError as error:
        if asked:
            raise
        raise NotScored(UNVERIFIED, str(error), f"the backend of {log.name}, or another with --backend") from None
    own = settings_as_logged(kind, settings, log, data_path, same_backend=backend == log.backend)
    refuse_too_much_work(own, log)
    data = open_same_data(own, log)
    trainer = kind(own, weights)
    bpb = evaluate(trainer, own, data.val, data.tokenizer, data.val_tokens, final=True)[1]
    trainer.close()

    claimed = log.score()[1]
    bound = SAME_BACKEND if backend == log.backend else ACROSS
    status = PASS if abs(bpb - claimed) <= bound else FAIL  # a NaN fails
    observed = f"{bpb:.8f} on {backend}, off by {abs(bpb - claimed):.1e}"
    return Finding(status, observed, f"{claimed:.8f} within {bound:.0e}", MODEL_FILE)


def read_model_and_log(folder):
    """(settings, weights, RunLog of the run that wrote the model). Raises NotScored."""
    if MODEL_FILE not in folder.files:
        raise NotScored(UNVERIFIED, "the model is not in the folder", "the model file")
    try:
        model = folder.read(MODEL_FILE, BUDGET_BYTES)
        settings, weights = decode_model(model)
    except (Refused, UserError) as error:
        raise NotScored(FAIL, str(error), "a canonical model file") from None
    log = folder.log_of_model(model)
    if not log or not log.score():
        raise NotScored(
            UNVERIFIED, "no log names this model's SHA-256 and a score", "the log of the run that wrote it"
        )
    longest = max(settings.train_seq_len, log.run_settings.eval_seq_len)
    if longest > LONGEST_ROW:
        raise NotScored(UNVERIFIED, f"rows of {longest:,} tokens", f"at most {LONGEST_ROW:,}, to limit memory")
    return settings, weights, log


def settings_as_logged(kind, settings, log, data_path, same_backend):
    """Settings of a trainer class that repeat the evaluation of a log. Raises NotScored."""
    ran = log.run_settings
    repeated = {name: getattr(ran, name) for name in settings_of("evaluation")}
    if same_backend:  # compiled bfloat16 rounds differently (6e-4 measured), so it runs as it ran
        how = {"compile": ran.compile, "compute_dtype": ran.compute_dtype}
    else:
        how = {"compile": False, "compute_dtype": "float32"}
    own = scoring_settings(kind, settings, data_path, **how, **repeated)
    if wrong := wrong_settings(own, log):
        raise NotScored(FAIL, "; ".join(wrong), "settings that a run accepts", log.name)
    return own


def wrong_settings(own, log):
    """list[str]: what no run accepts of the evaluation's settings, which a log may name anyway."""
    fields = settings_of("evaluation")
    refused = [why for name, why in log.refused.items() if name in fields]
    if refused:
        return refused
    for name, field in fields.items():
        try:
            parse_setting(field, str(getattr(own, name)))
        except ValueError as error:
            return [str(error)]
    return setting_conflicts(own)


def scoring_settings(kind, settings, data_path, **how):
    """Settings of a trainer class that scores a model of these sizes on the data of a folder, in batches of about 8192
    tokens."""
    rows = max(1, 8192 // settings.train_seq_len) * settings.train_seq_len
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    values |= {"data_path": str(data_path), "train_batch_tokens": rows, "micro_batch_tokens": rows, "loss_chunk": 8192}
    return kind.settings_class(**values | how)


def refuse_too_much_work(own, log):
    """Raises NotScored where the evaluation would take too long. A test-time step trains on at least one window, and
    moving all weights takes as long as some hundred tokens."""
    window, stride = eval_lengths(own)
    work = window / stride
    if own.ttt_lr:
        work += 3 * max(1, max(window, 512) / own.ttt_chunk.tokens)
    if work > MOST_WORK:
        observed = f"{work:,.0f} times the work of plain windows"
        raise NotScored(UNVERIFIED, observed, f"at most {MOST_WORK} times", log.name)


def open_same_data(own, log):
    """The data of a run, which is that of the log. Raises NotScored."""
    try:
        data = open_data(own)
    except UserError as error:
        raise NotScored(UNVERIFIED, str(error), "the data of the log", own.data_path) from None
    if data.overcounted:
        raise NotScored(FAIL, data.overcounted, "bytes of validation that its text has", own.data_path)
    if log.manifest_sha256 and data.manifest_sha256 != log.manifest_sha256:
        observed = f"{own.data_path} is other data: manifest {data.manifest_sha256[:12]}"
        expected = f"{log.manifest_sha256[:12]} of {log.name}"
        raise NotScored(UNVERIFIED, observed, expected, own.data_path)
    return data
