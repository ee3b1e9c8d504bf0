"""What people really ship is read as they mean it: logs, scores, sizes, claims and the files beside them.

Run: `python -m pytest tests/records/test_reading.py`.
"""
import json
import math

import pytest

from common.published import VAL_BYTES, VAL_TOKENS
from records.__main__ import main
from records.folder import open_folder
from records.logs import read_log, read_logs
from records.show import as_text
from records.verdict import status_of
from records.verify import verify_folder
from tests.records.made_records import make_record

TOKENS = VAL_TOKENS["sp1024"]
SCRIPT = b"print('train')\n"
CODE_BYTES = len(SCRIPT)
FINAL = "final_int8_zlib_roundtrip"
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\0\0\0\0IEND\xaeB`\x82"
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02" * 9


def nats(bpb, tokens=TOKENS):
    return bpb * math.log(2) * VAL_BYTES / tokens


def header(seed, lr="0.04", params=17_059_912, data="fineweb10B_sp1024", tokens=TOKENS):
    """What a script of the challenge prints before it trains."""
    return f"""logs/{seed}.txt
train_loader:dataset:{data} train_shards:80
val_loader:shards pattern=./data/{data}/fineweb_val_*.bin tokens:{tokens}
model_params:{params}
world_size:8 grad_accum_steps:1
tie_embeddings:True embed_lr:0.05 matrix_lr:{lr} scalar_lr:0.04
train_batch_tokens:524288 train_seq_len:1024 iterations:20000 warmup_steps:20 max_wallclock_seconds:600.000
seed:{seed}
"""


def steps(seed, bpb, last=6000):
    """Lines of training, of which no two seeds have the same."""
    lines = []
    for step in (1, 2, *range(1000, last + 1, 1000)):
        ms = 99 * step + seed % 7
        lines.append(f"step:{step}/20000 train_loss:{2 + math.sin(seed * step) / 9 + 3 / step:.4f} train_time:{ms}ms "
                     f"step_avg:{ms / step:.2f}ms")
    lines.append(f"step:{last}/20000 val_loss:{nats(bpb):.4f} val_bpb:{bpb:.4f} train_time:{99 * last + seed % 7}ms "
                 f"step_avg:99.00ms")
    return "\n".join(lines) + "\n"


def sizes(model=15_000_000, code=CODE_BYTES):
    return f"""Serialized model: 67224983 bytes
Code size: {code} bytes
Serialized model int8+zlib: {model} bytes (payload:17178912)
Total submission size int8+zlib: {model + code} bytes
"""


def final(bpb, label=FINAL, tokens=TOKENS):
    return f"{label}_exact val_loss:{nats(bpb, tokens):.8f} val_bpb:{bpb:.8f}\n"


def log_text(seed, bpb, **changes):
    """A whole log."""
    return header(seed, **changes) + steps(seed, bpb) + sizes() + final(bpb)


def make(tmp_path, files, track="track_10min_16mb", **claims):
    """A record folder with these files, name -> text or bytes; its submission.json claims these."""
    folder = tmp_path / track / "2026-05-01_made"
    facts = {"author": "A. Author", "github_id": "author", "name": "Made", "blurb": "Made for a test.",
             "date": "2026-05-01", "track": track}
    files = {"README.md": "Made on fineweb10B_sp1024, MAX_WALLCLOCK_SECONDS=600", "train_gpt.py": SCRIPT,
             "submission.json": json.dumps(facts | claims)} | files
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def findings(folder, check, ruleset="strict"):
    """(findings of one check, the whole answer as printed, for a test that fails)."""
    result = verify_folder(folder, ruleset)
    return result[check], as_text(folder, result, True)


def rows_of(found, status):
    return [f"{f.where} {f.observed} {f.expected}" for f in found if f.status == status]


# Lines of a log

@pytest.mark.parametrize(("line", "label", "pair"), [
    ("final_int8_zlib_roundtrip_exact val_loss:2.07 val_bpb:1.22", FINAL, (2.07, 1.22)),
    ("final_int6_sliding_window stride:64 val_loss:1.9 val_bpb:1.12", "final_int6_sliding_window", (1.9, 1.12)),
    ("final_sliding stride:64 eval_seq_len:2048 val_bpb:1.12 val_loss:1.9", "final_sliding", (1.9, 1.12)),
    ("final_int6_s64_exact val_loss:1.9 val_bpb:1.12 chunk:32768 eval_time:9ms", "final_int6_s64", (1.9, 1.12)),
    ("quantized_sliding_window val_loss:2.8 val_bpb:1.08", "quantized_sliding_window", (2.8, 1.08)),
    ("quantized val_bpb: 1.09 val_loss: 2.8", "quantized", (2.8, 1.09)),
    ("diagnostic quantized val_loss:2.8 val_bpb:1.09", "quantized", (2.8, 1.09)),
    ("legal_ttt_exact val_loss:1.9 val_bpb:1.12", "legal_ttt", (1.9, 1.12)),
    ("ttt_lora val_loss:1.9 val_bpb:1.12", "ttt_lora", (1.9, 1.12)),
    ("final: val_loss=1.9, val_bpb=1.12", "final", (1.9, 1.12)),
    ("final int6 sliding_exact val_loss:1.9 val_bpb:1.12", "final_int6_sliding", (1.9, 1.12)),
    ("sliding_window_exact val_loss:1.9 val_bpb:1.12", "sliding_window", (1.9, 1.12)),
    ("mixed_roundtrip (val_loss: 1.9, val_bpb: 1.12)", "mixed_roundtrip", (1.9, 1.12)),
    ("eval_sliding_s64 val_loss:1.9 val_bpb:1.12", "eval_sliding_s64", (1.9, 1.12)),
    ("post_ttt_exact val_loss:1.9 val_bpb:1.12", "post_ttt", (1.9, 1.12)),
    ("last_roundtrip val_loss:1.9 val_bpb:1.12", None, None),
    ("final_int6_sliding_window val_bpb:1.12", None, None),
    ("final_score val_loss:{loss:.4f} val_bpb:{bpb:.4f}", None, None),
    ("  final_int6_sliding_window val_loss:1.9 val_bpb:1.12", None, None),
    ("pre-quantization post-ema val_loss:1.9 val_bpb:1.12", None, None),
    ("DIAGNOSTIC post_ema val_loss:1.9 val_bpb:1.12 eval_time:9ms", None, None),
])
def test_a_score_is_read_under_any_label_and_among_other_tokens(line, label, pair):
    log = read_log("train.log", line.encode())
    assert (next(iter(log.scores), None), log.score()) == (label, pair)


def test_a_score_before_quantization_is_not_the_final_one():
    for label in ("pre-quantization post-ema", "DIAGNOSTIC post_ema", "diagnostic pre-quantization post-ema"):
        assert read_log("train.log", f"{label} val_loss:1.9 val_bpb:1.12".encode()).pre_quant == (1.9, 1.12)


@pytest.mark.parametrize(("line", "name", "size"), [
    ("Code size: 48125 bytes", "code_bytes", 48_125),
    ("Code size for train_gpt.py: 1,234 bytes", "code_bytes", 1234),
    ("Code size: 48 kB (48,125 bytes)", "code_bytes", 48_125),
    ("Code size (minified): 20,001 bytes, of 48,125 bytes", "code_bytes", 20_001),
    ("Code size: unknown", "code_bytes", None),
    ("Serialized model int6+zstd (final): 15,487,414 bytes", "model_bytes", 15_487_414),
    ("Serialized model with brotli: 15.5 MB (15,487,414 bytes)", "model_bytes", 15_487_414),
    ("Serialized model (raw): 67,224,983 bytes", "model_bytes", None),
    ("Serialized model: 67224983 bytes", "model_bytes", None),
    ("Total submission size of model and code: 15,535,539 bytes", "total_bytes", 15_535_539),
    ("Total submission size: 15.5 MB (15,535,539 bytes)", "total_bytes", 15_535_539),
])
def test_a_size_is_read_with_words_between(line, name, size):
    assert getattr(read_log("train.log", line.encode()), name) == size


def test_a_log_says_where_each_thing_stands():
    text = header(1337) + steps(1337, 1.2) + sizes() + final(1.2)
    log = read_log("logs/a.txt", text.encode())
    lines = text.splitlines()
    for kind, step, start in (("seed", None, "seed:"), ("train", 2000, "step:2000/20000 train"),
                              ("val", 6000, "step:6000/20000 val"), ("score", FINAL, FINAL), ("score", None, FINAL),
                              ("code", None, "Code size"), ("total", None, "Total"),
                              ("batch", None, "train_batch_tokens")):
        file, _, number = log.where(kind, step).partition(":")
        assert file == "logs/a.txt" and lines[int(number) - 1].startswith(start), (kind, step)
    assert log.where("train", 2001) == log.where("stop") == "logs/a.txt"
    block = b"\r\nHyperparameters:\r\n  num_layers: 9\r\n  seed: 5\r\n\r\nval_tokens: 9\r\n"
    log = read_log("b", block)
    assert (log.where("settings", "num_layers"), log.where("tokens"), log.seed) == ("b:3", "b:6", 5)
    assert log.hyperparameters == {"num_layers": "9", "seed": "5"}


@pytest.mark.parametrize(("line", "row"), [
    ("step:500/20000 train_loss:2.5 train_time:50000ms step_avg:100.00ms", (500, 2.5, 50_000)),
    ("step:500/20000 train_loss:2.5 lr:0.04 train_time:50000ms step_avg:100.00ms", (500, 2.5, 50_000)),
    ("500/20000 train_loss: 2.5 train_time: 1.0m tok/s: 9", (500, 2.5, 57_000)),
    ("step:500/20000 train_loss:2.5 lr:0.04", None),
    ("step:500/20000 val_loss:2.5 val_bpb:1.5 train_time:50000ms", (500, 2.5, 1.5, 50_000)),
    ("step:500/20000 val_loss:2.5 val_bpb:1.5 ema:0 train_time:50000ms", (500, 2.5, 1.5, 50_000)),
    ("500/20000 val_loss: 2.5 val_bpb: 1.5", (500, 2.5, 1.5, None)),
])
def test_a_step_is_read_with_other_tokens_between(line, row):
    log = read_log("train.log", line.encode())
    assert log.train + log.val == ([row] if row else [])


@pytest.mark.parametrize(("line", "seed"), [
    ("seed:42", 42), ("Seed: 42", 42), ("SEED=42 RUN_ID=a torchrun train_gpt.py", 42), ("seed:42 deterministic:0", 42),
    ("    seed = 42", None), ("seed:{args.seed}", None),
])
def test_a_seed_is_read_as_scripts_print_it(line, seed):
    assert read_log("train.log", line.encode()).seed == seed


# Several runs in a file

RUNS_IN_A_FILE = {  # what the file holds -> (its text, (seed, score or None) of each run)
    "seeds one after another": (log_text(1, 1.21) + log_text(2, 1.22) + log_text(3, 1.23),
                                [(1, 1.21), (2, 1.22), (3, 1.23)]),
    "a script started twice": (header(1) + steps(1, 1.3, last=2000) + log_text(1, 1.21), [(1, None), (1, 1.21)]),
    "a start that failed before it trained": (header(1) + log_text(1, 1.21), [(1, 1.21)]),
    "training and evaluation": (header(1) + steps(1, 1.21) + header(1) + final(1.21), [(1, 1.21)]),
    "training, and the evaluation of another seed": (log_text(1, 1.21) + header(2) + final(1.22),
                                                     [(1, 1.21), (2, 1.22)]),
    "one run": (log_text(1, 1.21), [(1, 1.21)]),
}


@pytest.mark.parametrize("what", RUNS_IN_A_FILE)
def test_each_run_in_a_file_is_a_log_of_its_own(what):
    text, expected = RUNS_IN_A_FILE[what]
    logs = read_logs("train.txt", text.encode())
    assert [(log.seed, log.score() and log.score()[1]) for log in logs] == expected
    assert not any(log.problems for log in logs)
    several = [f"train.txt#{number}" for number in range(1, len(logs) + 1)]
    assert [log.name for log in logs] == (several if logs[1:] else ["train.txt"])
    starts = [log.where("seed").rpartition(":")[::2] for log in logs]
    lines = text.splitlines()
    assert all(file == "train.txt" and lines[int(number) - 1] == f"seed:{log.seed}"
               for (file, number), log in zip(starts, logs))


def test_steps_that_go_back_without_a_new_start_are_out_of_order():
    [log] = read_logs("train.log", (log_text(1, 1.21) + steps(1, 1.21)).encode())
    assert "out of order" in log.problems[0]


# Which logs are the runs of the record

SEEDS = {f"train_seed{seed}.log": log_text(seed, bpb) for seed, bpb in ((1, 1.21), (2, 1.22), (3, 1.23))}
FOLDERS = {  # what is shipped -> (its logs, claims, scores of the runs that count, status and words of the others)
    "logs named .txt in a folder": (
        {f"logs/run{seed}.txt": log_text(seed, 1.2 + seed / 100) for seed in (1, 2, 3)}, {"val_bpb": 1.22},
        [1.21, 1.22, 1.23], []),
    "several seeds in one file": (
        {"train.log": "".join(SEEDS.values())}, {"val_bpb": 1.22}, [1.21, 1.22, 1.23], []),
    "notes that name no run": (
        {**SEEDS, "notes.txt": "val_loss: it fell\n", "hashes.txt": "ab12  train_gpt.py\n"}, {"val_bpb": 1.22},
        [1.21, 1.22, 1.23], []),
    "an evaluation in a log of its own": (
        {"train_seed1.log": header(1) + steps(1, 1.21) + sizes(), "eval_seed1.log": "seed:1\n" + final(1.21),
         "train_seed2.log": header(2) + steps(2, 1.22) + sizes(), "eval_seed2.txt": final(1.22)}, {"val_bpb": 1.215},
        [1.21, 1.22], [("PASS", "evaluation of train_seed1.log"), ("PASS", "evaluation of train_seed2.log")]),
    "what the script printed and what it wrote": (
        {"train.log": "NCCL version 2\n" + log_text(1, 1.21), "logs/1.txt": log_text(1, 1.21).replace(final(1.21), "")},
        {"val_bpb": 1.21}, [1.21], [("PASS", "the same run as train.log")]),
    "a start that failed, beside the run": (
        {"first_try.log": header(1) + steps(1, 1.3, last=1000), "train.log": log_text(1, 1.21)}, {"val_bpb": 1.21},
        [1.21], [("WARN", "no final score")]),
    "a script started twice": (
        {"train.log": header(1) + steps(1, 1.3, last=2000).replace("loss:2.", "loss:4.") + log_text(1, 1.21)},
        {"val_bpb": 1.21}, [1.21], [("WARN", "no final score")]),
    "an ablation of another learning rate": (
        {**SEEDS, "ablation.log": log_text(1, 1.4, lr="0.08")}, {"val_bpb": 1.22}, [1.21, 1.22, 1.23],
        [("WARN", "matrix_lr 0.08, not the 0.04")]),
    "an ablation of another width, named first": (
        {**SEEDS, "train.log": log_text(7, 1.4, params=9_000_000)}, {"val_bpb": 1.22}, [1.21, 1.22, 1.23],
        [("WARN", "model_params 9000000, not the 17059912")]),
    "the same learning rate, written otherwise": (
        {"train_seed1.log": log_text(1, 1.21), "train_seed2.log": log_text(2, 1.22, lr="0.040")}, {"val_bpb": 1.215},
        [1.21, 1.22], []),
    "another learning rate under a seed that is declared": (
        {**SEEDS, "train_seed2.log": log_text(2, 1.22, lr="0.08")}, {"val_bpb": 1.22, "seeds": [1, 2, 3]},
        [1.21, 1.22, 1.23], []),
    "a seed that was run twice": (
        {**SEEDS, "again.log": log_text(2, 1.19).replace("train_loss:2.", "train_loss:3.")}, {"val_bpb": 1.22},
        [1.21, 1.22, 1.23], [("WARN", "seed 2 again")]),
    "the run of another log with another score": (
        {**SEEDS, "z.log": log_text(2, 1.22).replace(final(1.22), final(1.1))}, {"val_bpb": 1.22},
        [1.21, 1.22, 1.23], [("FAIL", "the run of train_seed2.log with another")]),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_the_runs_of_a_record_are_told_from_its_other_logs(tmp_path, what):
    logs, claims, scores, others = FOLDERS[what]
    folder = make(tmp_path, logs, **claims)
    opened = open_folder(folder)
    assert sorted(bpb for _, bpb in opened.seed_scores()) == scores
    found, printed = findings(folder, "logs")
    assert sorted(status for _, status, _ in opened.other_logs) == sorted(status for status, _ in others), printed
    for status, words in others:
        assert any(words in row for row in rows_of(found, status)), printed
    assert bool(rows_of(found, "FAIL")) == any(status == "FAIL" for status, _ in others), printed
    found, printed = findings(folder, "score")
    assert not rows_of(found, "FAIL"), printed


@pytest.mark.parametrize(("logs", "claims", "words"), [
    ({"train.log": header(1) + steps(1, 1.21) + sizes()}, {"seeds": [1]}, "no final score"),
    ({**SEEDS, "train_seed2.log": header(2) + steps(2, 1.22)}, {"seeds": [1, 2, 3]}, "no final score"),
])
def test_a_declared_run_without_a_score_fails(tmp_path, logs, claims, words):
    found, printed = findings(make(tmp_path, logs, val_bpb=1.21, **claims), "score")
    assert any(words in row for row in rows_of(found, "FAIL")), printed


# Claims

@pytest.mark.parametrize(("claim", "value", "passes"), [
    ("1.2244", 1.22436570, True),  # rounded
    ("1.2243", 1.22436570, True),  # cut off
    ("1.2244", 1.22430001, True),  # rounded up
    ("1.22436", 1.22436500, True),
    ("1.22437", 1.22436500, True),  # half a unit, either way
    ("1.22436570", 1.22436570, True),
    ("1.2242", 1.22436570, False),
    ("1.2245", 1.22436570, False),
    ("1.2243", 1.22440000, False),  # a whole unit
    ("1.22436", 1.22437000, False),
])
def test_a_claim_is_the_value_rounded_either_way(tmp_path, claim, value, passes):
    folder = make(tmp_path, {"train.log": log_text(1, value).replace(final(value), f"{FINAL}_exact "
                  f"val_loss:{nats(value):.8f} val_bpb:{value:.8f}\n")})
    path = folder / "submission.json"
    path.write_text(path.read_text().replace('"track":', f'"val_bpb": {claim}, "track":'))
    found, printed = findings(folder, "score")
    assert (status_of(found) != "FAIL") == passes, printed


def test_the_claimed_score_may_be_one_that_is_not_last(tmp_path):
    logs = {name: text + final(1.3, "final_ttt") for name, text in SEEDS.items()}
    found, printed = findings(make(tmp_path, logs, val_bpb=1.22), "score")
    assert not rows_of(found, "FAIL") and any("final_ttt 1.3000" in row for row in rows_of(found, "WARN")), printed
    found, printed = findings(make(tmp_path, logs, val_bpb=1.25), "score")
    assert rows_of(found, "FAIL"), printed


@pytest.mark.parametrize(("claims", "fails"), [
    ({"seeds": [1, 2, 3], "seed_scores": [1.21, 1.22, 1.23]}, False),
    ({"seeds": [3, 1, 2], "seed_scores": [1.23, 1.21, 1.22]}, False),
    ({"seeds": [1, 2, 3], "seed_scores": [1.21, 1.2201, 1.23]}, True),
    ({"seed_results": [{"seed": 1, "val_bpb": 1.21}, {"seed": 2, "bpb": 1.22}, {"seed": 3, "val_bpb": 1.23}]}, False),
    ({"seed_results": {"seed_1": {"val_bpb": 1.2101}}}, True),
    ({"seed_results": {"1": 1.2101}}, True),
    ({"val_bpb_std": 0.01}, False),  # of a sample
    ({"val_bpb_std": 0.00816}, False),  # of a population
    ({"val_bpb_std": 0.005}, True),
])
def test_claims_of_single_seeds_are_compared_with_their_logs(tmp_path, claims, fails):
    found, printed = findings(make(tmp_path, SEEDS, val_bpb=1.22, **claims), "score")
    assert bool(rows_of(found, "FAIL")) == fails, printed


def test_a_wrong_loss_beside_a_right_score_was_accepted(tmp_path):
    folder = make(tmp_path, SEEDS, val_bpb=1.22, val_loss=2.01)
    for ruleset, status in (("strict", "FAIL"), ("upstream-2026-04", "WARN")):
        found, printed = findings(folder, "score", ruleset)
        assert any("val_loss 2.01 claimed" in row for row in rows_of(found, status)), printed


# Bytes of the validation text

def byte_log(per_token=1.0, tokens_line="", vocabulary="  vocab_size: 260\n"):
    """A log of a byte model, which has as many bits per byte as per token."""
    loss = 1.2 * math.log(2) * per_token
    return (f"Hyperparameters:\n  seed: 1\n{vocabulary}{tokens_line}" + steps(1, 1.2) + sizes()
            + f"{FINAL}_exact val_loss:{loss:.8f} val_bpb:1.20000000\n")


@pytest.mark.parametrize(("text", "status"), [
    (byte_log(), "PASS"),
    (byte_log(tokens_line=f"val_tokens: {VAL_BYTES}\n"), "PASS"),
    (byte_log(tokens_line=f"val_tokens: {VAL_BYTES + 50_000}\n"), "PASS"),  # and a token that begins each document
    (byte_log(vocabulary="  datasets_dir: data/fineweb10B_byte260\n"), "PASS"),
    (byte_log(per_token=1.167), "FAIL"),
    (byte_log(tokens_line=f"val_tokens: {TOKENS}\n"), "FAIL"),
    (byte_log(vocabulary="  vocab_size: 1024\n"), "FAIL"),
    (byte_log(vocabulary="  datasets_dir: data/fineweb10B_sp1024\n"), "FAIL"),
    (byte_log(vocabulary=""), "NOT VERIFIED"),
])
def test_implied_bytes_of_a_byte_alphabet_are_its_tokens(tmp_path, text, status):
    found, printed = findings(make(tmp_path, {"train.log": text}, val_bpb=1.2), "score")
    assert status_of(found) == status, printed


def test_the_first_export_of_validation_is_accepted_only_by_the_lenient_edition(tmp_path):
    tokens, size = 63_779_840, 155_769_700
    loss = 1.22 * math.log(2) * size / tokens
    line = f"{FINAL}_exact val_loss:{loss:.8f} val_bpb:1.22000000\n"
    text = log_text(1, 1.22, tokens=tokens).replace(final(1.22), line)
    folder = make(tmp_path, {"train.log": text}, val_bpb=1.22)
    for ruleset, status in (("strict", "FAIL"), ("upstream-2026-04", "WARN")):
        found, printed = findings(folder, "score", ruleset)
        assert status_of(found) == status, printed
    (folder / "train.log").write_text(text.replace(str(tokens), str(tokens - 10**6)))
    found, printed = findings(folder, "score", "upstream-2026-04")
    assert status_of(found) == "FAIL", printed


# Sizes

@pytest.mark.parametrize(("model", "code", "claim", "strict", "upstream"), [
    (15_000_000, CODE_BYTES, 15_000_000 + CODE_BYTES, "PASS", "PASS"),
    (15_960_000, 90_000, 15_980_000, "FAIL", "WARN"),  # the code that ran is larger than what was shipped
    (15_960_000, 90_000, None, "FAIL", "FAIL"),
    (16_010_000, CODE_BYTES, 15_980_000, "FAIL", "FAIL"),  # the model alone is too large
    (15_000_000, CODE_BYTES, 16_000_000, "FAIL", "FAIL"),
    (15_960_000, 90_000, 15_960_000, "FAIL", "WARN"),  # the claim leaves out the code
])
def test_the_size_that_decides_is_literal_or_stated(tmp_path, model, code, claim, strict, upstream):
    text = header(1) + steps(1, 1.2) + sizes(model, code) + final(1.2)
    claims = {} if claim is None else {"bytes_total": claim}
    folder = make(tmp_path, {"train.log": text}, val_bpb=1.2, **claims)
    for ruleset, status in (("strict", strict), ("upstream-2026-04", upstream)):
        found, printed = findings(folder, "artifact", ruleset)
        assert status_of(found) == status, printed


@pytest.mark.parametrize(("claim", "words"), [
    (15_000_100 + CODE_BYTES, ""),  # the mean of the runs
    (15_000_000 + CODE_BYTES, ""),
    (15_000_100, "the model without the code"),
    (15_000_300, "bytes_total 15,000,300"),
])
def test_a_claimed_total_is_that_of_a_run_or_the_mean(tmp_path, claim, words):
    logs = {f"train_seed{seed}.log": header(seed) + steps(seed, 1.2) + sizes(model) + final(1.2)
            for seed, model in ((1, 15_000_000), (2, 15_000_200))}
    found, printed = findings(make(tmp_path, logs, val_bpb=1.2, bytes_total=claim), "artifact")
    assert bool(rows_of(found, "FAIL")) == bool(words) and any(words in f.observed for f in found), printed


@pytest.mark.parametrize(("claims", "fails"), [
    ({"bytes_model_int8_zlib": 15_000_000}, False),
    ({"model_bytes": 15_000_001}, True),
])
def test_a_claimed_model_is_that_of_a_log_where_none_is_shipped(tmp_path, claims, fails):
    found, printed = findings(make(tmp_path, {"train.log": log_text(1, 1.2)}, val_bpb=1.2, **claims), "artifact")
    assert any("15,000,000 of the logs" in row for row in rows_of(found, "FAIL")) == fails, printed


def test_a_claimed_code_size_is_that_of_a_log_where_no_code_is_shipped(tmp_path):
    for claim, fails in ((CODE_BYTES, False), (CODE_BYTES + 1, True)):
        folder = make(tmp_path, {"train.log": log_text(1, 1.2)}, val_bpb=1.2, bytes_code=claim)
        (folder / "train_gpt.py").unlink()
        found, printed = findings(folder, "artifact")
        assert any(f"bytes_code {claim}" in row for row in rows_of(found, "FAIL")) == fails, printed


@pytest.mark.parametrize("name", ["final_model.int6.ptz", "out/weights.npz"])
def test_a_model_of_any_format_counts_with_all_code_that_is_reached(tmp_path, name):
    for size, status in ((15_900_000, "NOT VERIFIED"), (15_999_000, "FAIL")):
        files = {"train_gpt.py": "import helper\n", "helper.py": b"#" * 1000, name: bytes(size)}
        folder = make(tmp_path, {"train.log": log_text(1, 1.2), **files}, val_bpb=1.2)
        found, printed = findings(folder, "artifact")
        assert status_of(found) == status, printed


def test_shipped_files_that_are_too_large_are_a_warning_where_the_stated_size_decides(tmp_path):
    code = b"#" * 1_000_000
    text = header(1) + steps(1, 1.2) + sizes(15_500_000, 20_000) + final(1.2)
    folder = make(tmp_path, {"train.log": text, "train_gpt.py": code}, val_bpb=1.2, bytes_total=15_520_000)
    for ruleset, status in (("strict", "FAIL"), ("upstream-2026-04", "WARN")):
        found, printed = findings(folder, "artifact", ruleset)
        assert any("16,500,000 bytes" in row for row in rows_of(found, status)), printed
        assert status_of(found) == status


# Files beside the code

FILES = {  # name -> (its bytes, status in the strict edition, words)
    "tokenizer.model": (SENTENCEPIECE, "PASS", "of tokenizer"),
    "data/fineweb_8192.vocab": (b"a\t-1\n", "PASS", "of tokenizer"),
    "tokenizer.json": (b"{}", "PASS", "of tokenizer"),
    "curve.png": (PICTURE, "PASS", "of picture"),
    "NOTES.md": (b"tried\n", "PASS", "of text"),
    "run.sh": (b"torchrun train_gpt.py\n", "PASS", "of text"),
    "config.yaml": (b"lr: 1\n", "PASS", "of text"),
    "SHA256SUMS": (b"00  train.log\n", "PASS", "of text"),
    "plot.py": (b"print(1)\n", "WARN", "does not reach"),
    "weights.png": (bytes(range(256)), "FAIL", "no check accounts for"),
    "notes.txt": (b"\x80\x02\0", "FAIL", "no check accounts for"),
    "table.bin": (b"12345", "FAIL", "no check accounts for"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_beside_the_code_is_accounted_for_with_its_bytes(tmp_path, name):
    data, status, words = FILES[name]
    folder = make(tmp_path, {"train.log": log_text(1, 1.2), name: data}, val_bpb=1.2)
    found, printed = findings(folder, "code bytes")
    [row] = [f for f in found if f.where == name and words in f.observed]
    assert row.status == status and f"{len(data):,} bytes" in row.observed, printed


@pytest.mark.parametrize(("name", "reached"), [("tokenizer.model", False), ("curve.png", False), ("layers.txt", True)])
def test_a_tokenizer_that_the_code_opens_is_not_code_but_a_text_is(tmp_path, name, reached):
    data = {"tokenizer.model": SENTENCEPIECE, "curve.png": PICTURE, "layers.txt": b"9\n"}[name]
    code = f"open('{name}')\n"
    folder = make(tmp_path, {"train.log": log_text(1, 1.2), name: data, "train_gpt.py": code}, val_bpb=1.2)
    found, printed = findings(folder, "code bytes")
    assert any(f"reaches {name}" in row for row in rows_of(found, "FAIL")) == reached, printed


# Editions of the rules

def test_an_unknown_edition_is_refused_with_those_that_exist(tmp_path, capsys):
    folder = make_record(tmp_path, (1.8,))
    for ruleset, code in (("strict", 0), ("upstream-2026-04", 0), ("upstream-1999", 2)):
        try:
            ended = main(["verify", "--ruleset", ruleset, str(folder)])
        except SystemExit as end:
            ended = end.code
        assert ended == code, ruleset
    error = capsys.readouterr().err
    assert "'upstream-1999'" in error and "strict" in error and "upstream-2026-04" in error
