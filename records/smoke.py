"""The smoke run: two steps of a record's train_gpt.py on tiny data, from a copy of its folder in a sandbox; once more
with other data, and once with another seed. Each must end by itself with a final score, and the score must move.

What only this machine lacks is not verified: a GPU, a package, the time. Only what would fail on the record's own
machine fails.
"""
import functools
import hashlib
import json
import math
import shutil
import signal
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np

from common.data.folder import write_shard
from common.data.tokenizers import train_tokenizer
from common.tokenizer import load_tokenizer
from records.jail import IDLE, NO_SANDBOX, NOT_STARTED, TOO_LARGE, TOO_LONG, TOO_MANY, TOO_SLOW
from records.lacking import lacking, last_error
from records.logs import read_log
from records.rules import FAIL, SCRIPT, UNVERIFIED, Finding
from records.sandbox import Limits, can_sandbox, run_jailed
from records.show import printable
from records.source import read_code

OUTPUT_LIMIT = 1 << 20  # bytes of its output that are read, the last ones
COPY_LIMIT = 64 << 20  # bytes of the folder
VOCAB_SIZE = 320
TRAIN_TOKENS, VAL_TOKENS = 65_536, 8192
SAME_DIGITS = 6  # decimals of a printed loss, from which on two equal losses are not an accident
MODEL = {"NUM_LAYERS": 2, "MODEL_DIM": 64, "NUM_HEADS": 4, "NUM_KV_HEADS": 2, "TRAIN_SEQ_LEN": 64,
         "TRAIN_BATCH_TOKENS": 1024, "MICRO_BATCH_TOKENS": 1024, "VAL_BATCH_SIZE": 8192}
OWN_MODEL = {"TRAIN_BATCH_TOKENS": 16_384, "MICRO_BATCH_TOKENS": 16_384, "VAL_BATCH_SIZE": 32_768}
TINY = {
    "ITERATIONS": 2, "WARMUP_STEPS": 0, "VAL_LOSS_EVERY": 0, "MAX_WALLCLOCK_SECONDS": 0, "VOCAB_SIZE": VOCAB_SIZE,
    "COMPILE": 0, "DEVICE": "cpu", "COMPUTE_DTYPE": "float32",
    "DATA_PATH": "smoke_data", "TOKENIZER_PATH": "smoke_data/tokenizer.model", "RUN_ID": "smoke",
    "OMP_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1, "PYTHONDONTWRITEBYTECODE": 1,
}
SEEDS = 1337, 2024
WORDS = ("the cat sat on a mat and then ran off to see what there was to eat in the old red barn",
         "no quiet zebra jumps over dozens of lazy foxes while wizards mix exotic brews for kings")

Run = namedtuple("Run", "code output")  # exit code, and the end of what was printed


def check_smoke(folder, limits=None):
    """Findings of the runs; none where each exited 0 and printed its final score, and no two scores are equal."""
    size = sum(folder.files.values())
    if not folder.files.get(SCRIPT):
        yield Finding(UNVERIFIED, f"no {SCRIPT} to run", "it runs from within its folder", SCRIPT)
    elif size > COPY_LIMIT:
        yield Finding(UNVERIFIED, f"the folder has {size:,} bytes", f"at most {COPY_LIMIT:,} to be copied", ".")
    elif reason := can_sandbox():
        yield Finding(UNVERIFIED, f"not run: {reason}", "a sandbox", SCRIPT)
    else:
        try:
            with tempfile.TemporaryDirectory(prefix="record_smoke_") as temporary:
                copy = Path(temporary).resolve() / "record"
                for name in folder.files:
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder.root / name, copy / name)
                yield from _three_runs(folder, copy, limits or Limits())
        except OSError as error:  # a full disk, no folder for temporary files: this machine's, not the record's
            yield Finding(UNVERIFIED, f"not run: {error}", "a place for a copy of the folder", SCRIPT)


def _three_runs(folder, copy, limits):
    """The second has other data, the third another seed. A model that the tiny sizes do not suit has its own sizes."""
    run = functools.partial(run_script, copy, limits)
    for sizes in (MODEL, OWN_MODEL):
        first = run(TINY | sizes | {"SEED": SEEDS[0]}, WORDS[0])
        found = list(judge(folder, first, limits))
        if not found or found[0].status != FAIL or not 0 < first.code < IDLE:
            break
    if found:
        yield from found
        return
    for what, seed, words in (("data", SEEDS[0], WORDS[1]), ("seed", SEEDS[1], WORDS[0])):
        other = run(TINY | sizes | {"SEED": seed}, words)
        yield from list(judge(folder, other, limits)) or _moved(what, seed, first, other)


def run_script(copy, limits, settings, words):
    """Run of train_gpt.py in a folder, with data of these words."""
    write_data(copy / TINY["DATA_PATH"], words)
    path = copy.with_name("output")
    code = run_jailed([sys.executable, SCRIPT], copy, path, settings, limits)
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - OUTPUT_LIMIT))
        return Run(code, file.read(OUTPUT_LIMIT))


@functools.cache
def tokenizer_model():
    """Bytes of a SentencePiece model."""
    return train_tokenizer(WORDS, VOCAB_SIZE)


def write_data(folder, words):
    """A data folder of TRAIN_TOKENS tokens for training and VAL_TOKENS for validation: some of these words each, in an
    order without pattern."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = folder / "tokenizer.model"
    model.write_bytes(tokenizer_model())
    random = np.random.Generator(np.random.Philox(len(words)))
    text = " ".join(random.choice(words.split(), TRAIN_TOKENS + VAL_TOKENS))
    tokens = np.array(load_tokenizer(model).encode(text)[:TRAIN_TOKENS + VAL_TOKENS], np.uint16)
    write_shard(folder / "fineweb_train_000000.bin", tokens[:TRAIN_TOKENS])
    write_shard(folder / "fineweb_val_000000.bin", tokens[TRAIN_TOKENS:])
    entry = {"file": model.name, "sha256": hashlib.sha256(tokenizer_model()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": entry}), "utf-8")


def judge(folder, run, limits):
    """Findings of one run."""
    lines = [line.rstrip() for line in run.output.decode(errors="replace").splitlines() if line.strip()]
    last = printable((lines or ["nothing was printed"])[-1][:120])
    log = read_log("output", run.output)
    if run.code in (NOT_STARTED, NO_SANDBOX):
        yield Finding(UNVERIFIED, f"not run: {last}", "a sandbox", SCRIPT)
    elif run.code in (IDLE, TOO_SLOW):
        seconds = limits.idle if run.code == IDLE else limits.wall
        how = f"waited for {seconds} s without any work" if run.code == IDLE else f"had not ended after {seconds} s"
        meaning = "It may wait for what only its own machine has, or this machine is too busy."
        yield Finding(UNVERIFIED, f"{how} and was ended: {last}", "two steps, then the end", SCRIPT, meaning)
    elif run.code in (TOO_LONG, TOO_MANY, TOO_LARGE):
        yield _over_limit(run, log, limits)
    elif run.code:
        yield _failed(folder, lines, run.code, last)
    elif not log.score() or not math.isfinite(log.score()[1]):
        yield Finding(FAIL, "exited 0 without a final score", "the line of the final score", SCRIPT)


def _over_limit(run, log, limits):
    """A run that describes its model or its steps may be as large as the record's own; one that does not is stuck."""
    observed = {
        TOO_LONG: f"used {limits.cpu} s of CPU time and was ended",
        TOO_MANY: "started too many processes and was ended",
        TOO_LARGE: f"used more than {limits.memory / 2**30:.3g} GiB of memory and was ended",
    }[run.code]
    began = log.params or log.batch_tokens or log.train or log.val
    if began and run.code != TOO_MANY:
        meaning = "It trains at a size of its own: does it take ITERATIONS and TRAIN_BATCH_TOKENS?"
        return Finding(UNVERIFIED, observed, "two steps of a tiny model", SCRIPT, meaning)
    return Finding(FAIL, observed, "two steps, then the end", SCRIPT)


def _failed(folder, lines, code, last):
    source, error = last_error(lines)
    needs = ""
    if "SyntaxError" in error:
        needs = next((f"Python {found['needs']}" for found in read_code(folder)[0].values() if found["needs"]), "")
    if code == 128 + signal.SIGILL:
        needs = "an instruction of another CPU"
    missing = needs or lacking(source, error, folder.files)
    if missing:
        meaning = "Run it on a machine that has it: this run says nothing of the record."
        return Finding(UNVERIFIED, f"this machine lacks {missing}: {last}", "a machine with it", SCRIPT, meaning)
    return Finding(FAIL, f"exit code {code}: {last}", "exit code 0", SCRIPT)


def _moved(what, seed, first, other):
    """Findings where the score of another run, with other data or another seed, is that of the first."""
    logs = [read_log("output", run.output) for run in (first, other)]
    (loss, bpb), (other_loss, other_bpb) = (log.score() for log in logs)
    if loss != other_loss and bpb != other_bpb:
        return
    name, value = ("val_loss", loss) if loss == other_loss else ("val_bpb", bpb)
    decimals = max(len(repr(number).partition(".")[2]) for number in (loss, bpb, other_loss, other_bpb))
    observed = f"the score does not change with the {what}: {name} {value:g} in both runs"
    expected = f"another score with SEED={seed}" if what == "seed" else "another score with other data"
    if what == "seed" and logs[1].seed != seed:
        meaning = "It does not say that it took SEED: look how the runs of the record got their seeds."
        yield Finding(UNVERIFIED, observed, expected, SCRIPT, meaning)
    elif decimals >= SAME_DIGITS or (what == "data" and (loss, bpb) == (other_loss, other_bpb)):
        meaning = "Its score is not computed from what it is given."
        yield Finding(FAIL, observed, expected, SCRIPT, meaning)
    else:
        yield Finding(UNVERIFIED, observed, expected, SCRIPT, f"{decimals} decimals are too few to tell.")
