"""Re-evaluation: the shipped model file, loaded by this repository's trainer and scored on validation shards that the reviewer has."""
import dataclasses
import hashlib

from common.artifact import decode_model
from common.bpb import eval_lengths, evaluate
from common.challenge import BUDGET_BYTES
from common.dataset import open_data
from common.settings import Settings, UserError, parse_setting, setting_conflicts, settings_of
from records.checks import FAIL, PASS, UNVERIFIED, Finding
from records.folder import Refused

SAME_BACKEND, ACROSS = 5e-5, 5e-4  # bits per byte
MOST_WORK = 512  # times that of scoring each token in one window; a window of 4096 tokens with stride 16 is 256 times
MODEL_FILE, LONGEST_ROW = "model.int8.zlib", 16384
EVAL_SETTINGS = settings_of("evaluation")  # what the score depends on besides model and data


def trainer_class(backend):
    """UserError: its framework is not installed."""
    try:
        if backend == "mlx":
            from train_gpt_mlx import MlxTrainer
            return MlxTrainer
        from train_gpt import TorchTrainer
        return TorchTrainer
    except ModuleNotFoundError as error:
        raise UserError(f"--backend {backend}: {error}; `make install BACKEND={backend}` provides it") from None


def bad_settings(own):
    """What no run takes of the settings of an evaluation, which a log may claim."""
    try:
        for field in dataclasses.fields(Settings):
            if field.name in EVAL_SETTINGS and not issubclass(field.type, str):
                parse_setting(field, repr(getattr(own, field.name)))
    except ValueError as error:
        return str(error)
    return "; ".join(setting_conflicts(own))


def scoring_settings(kind, settings, data_path, **how):
    """Settings of a trainer class that scores a model of these sizes on the data of a folder, in batches of about 8192 tokens."""
    rows = max(1, 8192 // settings.train_seq_len) * settings.train_seq_len
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    values |= how | {"data_path": str(data_path), "train_batch_tokens": rows, "micro_batch_tokens": rows, "loss_chunk": 8192}
    return kind.settings_class(**values)


def check_evaluation(folder, data_path, backend=None):
    """Findings of scoring model.int8.zlib on the data of a folder; backend: that of the log by default."""
    if MODEL_FILE not in folder.files:
        yield Finding(UNVERIFIED, "the model is not in the folder", "the model file", MODEL_FILE)
        return
    try:
        model = folder.read(MODEL_FILE, BUDGET_BYTES)
        settings, weights = decode_model(model)
    except (Refused, UserError) as error:
        yield Finding(FAIL, str(error), "a canonical model file", MODEL_FILE)
        return
    digest = hashlib.sha256(model).hexdigest()
    log = next((log for log in folder.logs if log.model_sha256 == digest), None)
    if not log or not log.score():
        yield Finding(UNVERIFIED, "no log names this model's SHA-256 and a score", "the log of the run that wrote it", MODEL_FILE)
        return
    ran = log.run_settings
    longest = max(settings.train_seq_len, ran.eval_seq_len)
    if longest > LONGEST_ROW:
        yield Finding(UNVERIFIED, f"rows of {longest:,} tokens", f"at most {LONGEST_ROW:,}, for the sake of memory", MODEL_FILE)
        return
    backend = backend or log.backend or "torch"
    kind = trainer_class(backend)
    # bfloat16 rounds otherwise where it is compiled: 6e-4 measured, so the same backend runs as it ran
    how = {"compile": ran.compile, "compute_dtype": ran.compute_dtype} if backend == log.backend else {"compile": False, "compute_dtype": "float32"}
    own = scoring_settings(kind, settings, data_path, **how | {name: getattr(ran, name) for name in EVAL_SETTINGS})
    if wrong := bad_settings(own):
        yield Finding(FAIL, wrong, "settings that can be", log.name)
        return
    window, stride = eval_lengths(own)
    # a step trains on a window at least, and to move all weights takes as long as some hundred tokens
    work = window / stride + 3 * bool(own.ttt_lr) * max(1, max(window, 512) / own.ttt_chunk.tokens)
    if work > MOST_WORK:
        yield Finding(UNVERIFIED, f"{work:,.0f} times the work of plain windows", f"at most {MOST_WORK} times", log.name)
        return
    try:
        data = open_data(own)
    except UserError as error:
        yield Finding(UNVERIFIED, str(error), "the data of the log", str(data_path))
        return
    if log.manifest_sha256 and data.manifest_sha256 != log.manifest_sha256:
        yield Finding(UNVERIFIED, f"{data_path} is other data: manifest {data.manifest_sha256[:12]}", f"{log.manifest_sha256[:12]} of {log.name}",
                      str(data_path))
        return
    trainer = kind(own, weights)
    _, bpb, _, _ = evaluate(trainer, own, data.val, data.tokenizer, data.val_tokens, final=True)
    trainer.close()
    claimed, bound = log.score()[1], SAME_BACKEND if backend == log.backend else ACROSS
    words = f"{bpb:.8f} on {backend}, off by {abs(bpb - claimed):.1e}"
    if not abs(bpb - claimed) <= bound:
        yield Finding(FAIL, words, f"{claimed:.8f} within {bound:.0e}", MODEL_FILE)
    else:
        yield Finding(PASS, words, f"{claimed:.8f} within {bound:.0e}", MODEL_FILE)
