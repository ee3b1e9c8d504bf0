"""Settings: `python -m pytest tests/common/test_settings.py`."""
import dataclasses
import math

import pytest

from common.settings import (
    KINDS,
    Settings,
    UserError,
    changed_settings,
    group_levels,
    load_settings,
    model_settings,
    parse_setting,
    read_settings,
    setting,
    settings_help,
    settings_table,
)

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


@dataclasses.dataclass(frozen=True)
class MoreSettings(Settings):
    chunk_rows: int = setting(4, "rows of a chunk", 1, 64)


def load(*flags, warnings=None, kind=Settings, **environment):
    warnings = [] if warnings is None else warnings
    return load_settings(kind, flags, environment, warnings.append)


def problems(*flags, **environment):
    """The lines of the error, without the heading that several problems share."""
    with pytest.raises(UserError) as error:
        load(*flags, **environment)
    first, *more = str(error.value).split("\n  ")
    assert len(more) != 1 and (first == "these settings cannot be used:") == bool(more)
    return more or [first]


def test_flag_beats_environment_beats_default():
    assert load() == Settings()
    assert load(ITERATIONS="7", SEED="8").iterations == 7
    assert load("--iterations", "9", ITERATIONS="7", SEED="8") == Settings(iterations=9, seed=8)
    assert load("--tokenizer-path=", TOKENIZER_PATH="bytes").tokenizer_path == ""
    assert load("--iterations", "9", ITERATIONS="no number").iterations == 9


@pytest.mark.parametrize("flags, name, value", [
    (["--train-seq-len", "512"], "train_seq_len", 512),
    (["--train-seq-len=512"], "train_seq_len", 512),
    (["--train_seq_len", "512"], "train_seq_len", 512),
    (["--TRAIN-SEQ-LEN=256", "--train-seq-len=512"], "train_seq_len", 512),
    (["--iterations", "1_000"], "iterations", 1000),
    (["--qk-gain-init", "-1.5"], "qk_gain_init", -1.5),
    (["--matrix-lr=4e-2"], "matrix_lr", 0.04),
    (["--data-path=a=b"], "data_path", "a=b"),
])
def test_spellings_of_a_flag(flags, name, value):
    assert load(*flags) == Settings(**{name: value})


@pytest.mark.parametrize("text, value", [
    ("1", True), ("true", True), ("YES", True), (" 0 ", False), ("False", False), ("no", False)])
def test_booleans(text, value):
    assert load(COMPILE=text).compile is value


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("around", ["\r", " ", "\r\n", "\t", "\u00a0"])
def test_white_space_around_a_value_goes(name, around):
    """As of files with line ends of Windows, whatever the setting."""
    text = str(FIELDS[name].default) or "name"
    for flags, environment in (([], {name.upper(): f"{around}{text}{around}"}), ([f"--{name}={text}{around}"], {})):
        assert read_settings(Settings, flags, environment, None) == ({name: text}, [])


@pytest.mark.parametrize("text, words", [
    ("c\u200bpu", r"DEVICE='c\u200bpu' is not one of"), ("\u0441pu", r"DEVICE='\u0441pu' is not one of"),
    ("cpu\x00", r"DEVICE='cpu\x00' is not one of"), ("cpu gpu", "DEVICE='cpu gpu' is not one of"),
    ("\udcff", r"DEVICE='\udcff' is not one of")])
def test_what_cannot_be_seen_in_a_value_is_quoted(text, words):
    assert problems(DEVICE=text)[0].startswith(words)


@pytest.mark.parametrize("name", ["data_path", "tokenizer_path", "resume"])
def test_a_tilde_is_the_home_folder(name, monkeypatch):
    """Where no shell has put it there: DATA_PATH=~/data in a file, --data-path=~/data."""
    monkeypatch.setenv("HOME", "/home/someone")
    for flags, environment in (([f"--{name}=~/a/b"], {}), ([], {name.upper(): "~/a/b"}), ([f"--{name}", "~/a/b"], {})):
        assert read_settings(Settings, flags, environment, None)[0] == {name: "/home/someone/a/b"}
    assert read_settings(Settings, [f"--{name}=a/~/b"], {}, None)[0] == {name: "a/~/b"}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_meaning_and_a_check_that_its_default_passes(name):
    field, rule = FIELDS[name], FIELDS[name].metadata
    assert issubclass(field.type, (bool, int, float, str)) and isinstance(
        field.default, str if issubclass(field.type, str) else field.type
    )
    assert rule["kind"] in KINDS
    assert rule["meaning"] and "\n" not in rule["meaning"]
    assert parse_setting(field, str(field.default)) == field.default
    if field.type in (int, float):
        low, high = rule["low"], rule["high"]
        assert type(low) in (int, field.type) and type(high) in (int, field.type) and low < high
        outside = [low - 1, high + 1]
        if field.type is float:
            outside = [low - 1e-9, high * (1 + 1e-9), math.nan, math.inf, -math.inf]
        assert [parse_setting(field, repr(value)) for value in (low, high)] == [low, high]
        for value in outside:
            with pytest.raises(ValueError, match=f"^{name.upper()}="):
                parse_setting(field, repr(value))
    for choice in rule["choices"] or ():
        assert parse_setting(field, choice) == choice


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("ITERATIONS", "ten", "not a whole number"),
        ("ITERATIONS", "1.5", "not a whole number"),
        ("ITERATIONS", "1e3", "not a whole number"),
        ("ITERATIONS", "", "not a whole number"),
        ("ITERATIONS", "nan", "not a whole number"),
        ("ITERATIONS", "True", "not a whole number"),
        ("ITERATIONS", "9" * 5000, "not a whole number"),
        ("ITERATIONS", "-1", "not a whole number from 0 to 1000000000"),
        ("SEED", str(2**63), "not a whole number from 0 to 9223372036854775807"),
        ("VOCAB_SIZE", "65537", "not a whole number from 0 to 65536"),
        ("MATRIX_LR", "fast", "not a number"),
        ("MATRIX_LR", "", "not a number"),
        ("MATRIX_LR", "-0.1", "not a number from 0 to 100"),
        ("MATRIX_LR", "nan", "not a number from"),
        ("MATRIX_LR", "1e999", "not a number from"),
        ("ADAM_EPS", "0", "not a number from 1e-30 to 1"),
        ("COMPILE", "2", "not 0 or 1"),
        ("COMPILE", "", "not 0 or 1"),
        ("DEVICE", "tpu", "not one of auto, cpu, gpu"),
    ],
)
def test_a_bad_value_is_named(name, text, words):
    [problem] = problems(**{name: text})
    assert problem.startswith(f"{name}={text} is {words}")
    assert problems(f"--{name.lower()}={text}") == [problem]


def test_all_problems_are_reported_together():
    found = problems("--iteration", "5", "--seed=x", "stray", "--num-heads", "3", "--beta1",
                     MATRIX_LR="nan", DEVICE="tpu")
    words = ["--iteration is", "SEED=x", "stray is", "MODEL_DIM=512 must be a multiple of NUM_HEADS=3", "--beta1 needs",
             "MATRIX_LR=nan", "DEVICE=tpu", "NUM_HEADS=3 must be a multiple of NUM_KV_HEADS=4"]
    assert len(found) == len({word for word in words for line in found if line.startswith(word)}) == len(words)


def test_an_unknown_flag_gets_a_hint():
    assert problems("--iteration", "5") == ["--iteration is not a setting; did you mean --iterations?"]
    assert problems("--train-seqlen=5") == ["--train-seqlen is not a setting; did you mean --train-seq-len?"]
    assert problems("--iterations\r", "5") == [r"'--iterations\r' is not a setting; did you mean --iterations?"]
    assert problems("-iterations", "5") == ["-iterations is not a setting; did you mean --iterations?"]
    assert problems("--xyzzy") == ["--xyzzy is not a setting; --help lists all settings"]
    assert problems("5") == ["5 is not a setting; --help lists all settings"]
    assert problems("--iterations") == ["--iterations needs a value"]


def test_a_near_miss_in_the_environment_is_warned_of():
    warnings = []
    environment = {"ITERATION": "5", "TRAIN_SEQLEN": "9", "PATH": "/bin", "HOME": "/", "RANK": "0", "SEED_FILE": "x"}
    assert load(warnings=warnings, **environment) == Settings()
    assert warnings == ["ITERATION is set but is not a setting; did you mean ITERATIONS?",
                        "TRAIN_SEQLEN is set but is not a setting; did you mean TRAIN_SEQ_LEN?"]
    load(warnings=warnings, **{name.upper(): str(field.default) for name, field in FIELDS.items()})
    assert len(warnings) == 2


@pytest.mark.parametrize(
    "values, words",
    [
        ({"num_heads": 3, "num_kv_heads": 1}, "MODEL_DIM=512 must be a multiple of NUM_HEADS=3"),
        ({"num_kv_heads": 3}, "NUM_HEADS=8 must be a multiple of NUM_KV_HEADS=3"),
        ({"num_kv_heads": 16}, "NUM_HEADS=8 must be a multiple of NUM_KV_HEADS=16"),
        ({"model_dim": 24}, "MODEL_DIM=24 / NUM_HEADS=8 must be even"),
        ({"train_seq_len": 1000}, "TRAIN_BATCH_TOKENS=524288 must be a multiple of TRAIN_SEQ_LEN=1000"),
        ({"train_batch_tokens": 512}, "TRAIN_BATCH_TOKENS=512 must be a multiple of TRAIN_SEQ_LEN=1024"),
        ({"micro_batch_tokens": 1023}, "MICRO_BATCH_TOKENS=1023 is less than one row"),
        ({"val_tokens_limit": 1}, "VAL_TOKENS_LIMIT=1 leaves nothing"),
        (
            {"loss_chunk": 1023},
            "LOSS_CHUNK=1023 cuts MICRO_BATCH_TOKENS or EVAL_SEQ_LEN into more than 64 chunks, each of them compiled: "
            "use 1024",
        ),
        ({"loss_chunk": 1024, "eval_seq_len": 131072}, "LOSS_CHUNK=1024 cuts"),
        ({"eval_stride": 1025}, "EVAL_STRIDE=1025 would leave tokens out between windows of 1024"),
        ({"eval_stride": 65, "eval_seq_len": 64}, "EVAL_STRIDE=65 would leave tokens out between windows of 64"),
        *[
            ({"ttt_chunk": chunk}, f"TTT_CHUNK={chunk} is neither tokens")
            for chunk in ("", "0", "d", "05", "64s", "64dd", "-64", "6.4", "1" * 10)
        ],
        ({"ttt_chunk": "6\n4"}, r"TTT_CHUNK='6\n4' is neither tokens"),
        *[
            ({"checkpoint_every": every}, f"CHECKPOINT_EVERY={every} is neither steps")
            for every in ("", "s", "5m", "-1", "1.5")
        ],
        *[
            ({"loop_layers": blocks}, f"LOOP_LAYERS={blocks} {words}")
            for blocks, words in (
                ("3", "is not a range"),
                ("a-b", "is not a range"),
                ("5-3", "is reversed"),
                ("3-9", "is outside the model: NUM_LAYERS=9 has blocks 0-8"),
            )
        ],
        ({"loop_count": 3}, "LOOP_COUNT=3 has no effect without LOOP_LAYERS"),
        ({"rope_dims": 15}, "ROPE_DIMS=15 must be even and at most MODEL_DIM / NUM_HEADS = 64"),
        ({"rope_dims": 66}, "ROPE_DIMS=66 must be even and at most MODEL_DIM / NUM_HEADS = 64"),
        ({"xsa_layers": 10}, "XSA_LAYERS=10 is more than NUM_LAYERS=9: use 0 to 9"),
        ({"parallel_layers": 10}, "PARALLEL_LAYERS=10 is more than NUM_LAYERS=9: use 0 to 9"),
        ({"bigram_rows": 1}, "BIGRAM_ROWS=1 has no row for a pair"),
        ({"bigram_dim": 64}, "BIGRAM_DIM=64 has no effect without BIGRAM_ROWS"),
        ({"bigram_rows": 2**18}, "BIGRAM_ROWS=262144 with BIGRAM_DIM=128 alone breaks the budget of 16,000,000 bytes: "
         "use at most 143088 rows"),
        ({"bos_id": 1}, "BOS_ID=1 has no effect without SMEAR_GATE or BIGRAM_ROWS"),
        ({"bos_id": 9, "smear_gate": True, "vocab_size": 9}, "BOS_ID=9 is not a token: VOCAB_SIZE=9"),
        ({"ttt_rank": 4}, "TTT_RANK=4 has no effect without test-time training: set TTT_LR"),
        ({"gptq_tokens": 1023}, "GPTQ_TOKENS=1023 is less than one row (TRAIN_SEQ_LEN=1024): GPTQ needs tokens"),
        ({"gptq_tokens": 65536, "quant_levels": "fp16"}, "GPTQ_TOKENS=65536 has no effect on matrices in fp16"),
        ({"quant_clip": 6.0, "qat_start": 0.5}, "QUANT_CLIP=6.0 does not go with QAT_START=0.5"),
        ({"quant_levels": "1"}, "QUANT_LEVELS=1: 1 is not a whole number from 2 to 127, int3 to int8, fp16 or auto"),
        *[
            ({"quant_levels": value}, f"QUANT_LEVELS={value}: {words}")
            for value, words in (
                ("", "nothing is not"),
                ("128", "128 is not"),
                ("7.5", "7.5 is not"),
                ("-5", "-5 is not"),
                ("matrix=", "nothing is not"),
                ("matrix=1,embed=5", "1 is not"),
                ("matrix=5,", "nothing is not"),
                ("scalar=5", "scalar is not one of matrix, embed"),
                ("=5", "nothing is not one"),
                ("head=5", "head is not one of matrix, embed: the head is the embedding, unless TIE_EMBEDDINGS=0"),
                ("5,6", "give one value"),
                ("5,matrix=5", "give one value"),
                ("matrix=5,6", "give one value"),
                ("matrix=5,matrix=5", "give one value"),
            )
        ],
        ({"quant_levels": "matrix=auto", "qat_start": 0.5}, "QAT_START=0.5 needs to know what to round to"),
        ({"compute_dtype": "float64", "device": "gpu"}, "COMPUTE_DTYPE=float64 runs on the CPU"),
        *[
            ({"run_id": run_id}, f"RUN_ID={run_id} must be a plain folder name")
            for run_id in ("..", ".a", "a/b", "/a", "a\\b")
        ],
        *[
            ({"run_id": run_id}, f"RUN_ID={run_id!r} must be a plain folder name")
            for run_id in ("a b", "a\nb", "a\udcff")
        ],
    ],
)
def test_what_cannot_hold_together(values, words):
    [problem] = problems(*[f"--{name}={value}" for name, value in values.items()])
    assert problem.startswith(words)


@pytest.mark.parametrize(
    "values",
    [
        {"loss_chunk": 1024},
        {"quant_levels": "auto"},
        {"quant_levels": "matrix=15, embed = fp16"},
        {"quant_levels": "head=2", "tie_embeddings": False},
        {"run_id": "2026-03-18_a.b"},
        {"compute_dtype": "float64"},
        {"micro_batch_tokens": 1024},
        {"val_tokens_limit": 2},
        {"eval_stride": 1024},
        {"eval_stride": 2048, "eval_seq_len": 2048},
        {"eval_seq_len": 2**20},
        {"ttt_lr": 0.1, "ttt_chunk": "1"},
        {"ttt_chunk": "2048d"},
        {"model_dim": 4, "num_heads": 2, "num_kv_heads": 2},
        {"train_batch_tokens": 1024},
        {"rope_dims": 64, "xsa_layers": 9, "parallel_layers": 9, "bigram_rows": 2, "bos_id": 1},
        {"bigram_rows": 2**18, "quant_levels": "embed=3"},
        {"gptq_tokens": 1024, "quant_levels": "embed=fp16,matrix=auto", "quant_clip": 1.5},
    ],
)
def test_what_can(values):
    assert load(*[f"--{name}={value}" for name, value in values.items()]) == Settings(**values)


def test_levels_of_each_group():
    assert group_levels(Settings()) == {"matrix": 127, "embed": 127}
    assert group_levels(Settings(quant_levels="fp16", tie_embeddings=False)) == dict.fromkeys(
        ("matrix", "embed", "head"), "fp16"
    )
    assert group_levels(Settings(quant_levels="matrix=int4,embed=int8")) == {"matrix": 7, "embed": 127}
    assert group_levels(Settings(quant_levels="int6", tie_embeddings=False)) == dict.fromkeys(
        ("matrix", "embed", "head"), 31
    )
    assert group_levels(Settings(quant_levels="head=auto, matrix=15", tie_embeddings=False)) == {
        "matrix": 15,
        "embed": 127,
        "head": "auto",
    }


def test_changed_settings():
    assert changed_settings(Settings()) == {}
    assert changed_settings(load("--iterations=20000", "--compile=0", BETA1="0.8")) == {"compile": False, "beta1": 0.8}


def test_a_trainer_adds_its_own():
    settings = load("--chunk-rows", "8", kind=MoreSettings, SEED="2")
    assert changed_settings(settings) == {"chunk_rows": 8, "seed": 2}
    with pytest.raises(UserError, match="CHUNK_ROWS=65 is not a whole number from 1 to 64"):
        load(kind=MoreSettings, CHUNK_ROWS="65")


def test_model_settings_are_those_of_the_architecture():
    assert model_settings(Settings(vocab_size=1024, rope_base=5.0, seed=1)) == {
        "vocab_size": 1024, "num_layers": 9, "model_dim": 512, "num_heads": 8, "num_kv_heads": 4, "mlp_mult": 2,
        "tie_embeddings": True, "rope_base": 5.0, "logit_softcap": 30.0, "rms_norm_eps": 1e-6, "train_seq_len": 1024}


def test_help_lists_every_setting():
    text = settings_help(MoreSettings, "usage: python x.py")
    assert text.startswith("usage: python x.py\n")
    lines = [line.split() for line in text.splitlines()]
    for _, name, default, meaning in settings_table(MoreSettings):
        row = [f"--{name.lower().replace('_', '-')}", *default.split(), *meaning.split()]
        assert lines.count(row) == 1
    assert sorted(name.lower() for _, name, *_ in settings_table(MoreSettings)) == sorted([*FIELDS, "chunk_rows"])
    assert ("memory", "COMPILE", "1") in [row[:3] for row in settings_table(Settings)]
    assert any(meaning.endswith("(auto, cpu, gpu)") for *_, meaning in settings_table(Settings))
    groups = [group for group, *_ in settings_table(MoreSettings)]
    assert groups == sorted(groups, key=[*KINDS].index) and set(groups) == set(KINDS)
