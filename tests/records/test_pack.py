"""Pack and verify: every check on a folder that passes and on folders that fail it.

Run: `python -m pytest tests/records/test_pack.py`.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from types import SimpleNamespace

import pytest

from common.challenge import BUDGET_BYTES
from common.runlog import log_line
from common.settings import Settings
from records.__main__ import main
from records.checks import PLACEHOLDER
from records.evaluation import NotScored, check_evaluation, open_same_data
from records.folder import open_folder
from records.logs import read_log
from records.show import as_text
from records.verdict import exit_code, status_of, verdict
from records.verify import NAMES, verify_folder
from tests import faults
from tests.conftest import BACKENDS, ROOT, environment, run_script, tiered
from tests.records.made_records import FINEWEB, SCRIPT, make_record, make_run
from tests.records.spoil import (
    append_to_model,
    bpb,
    copy,
    edit,
    field,
    files,
    link_out,
    remove,
    rename_folder,
    replace_first,
    write,
    write_code,
    write_json,
)

BASELINE, CANDIDATE = (1.2246, 1.2250, 1.2243), (1.2101, 1.2094, 1.2098)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clean folder in the non-record track, and two in the record track, the second a record."""
    folder = tmp_path_factory.mktemp("made")
    make_record(folder, BASELINE, "10min", "Before", "2026-05-01", FINEWEB)
    record = make_record(folder, CANDIDATE, "10min", "Better", "2026-05-02", FINEWEB)
    return {"plain": make_record(folder, (1.83, 1.85, 1.84)), "record": record}


@pytest.fixture
def copy_of(made, tmp_path):
    """A copy of one of them, neighbours and all, to be spoiled."""
    def call(kind):
        shutil.copytree(made[kind].parent, tmp_path / made[kind].parent.name, symlinks=True)
        return tmp_path / made[kind].parent.name / made[kind].name
    return call


PARTIAL = "final_int8_zlib_roundtrip_exact val_loss:1 val_bpb:1 partial:9/99"
BOMB = zlib.compress(bytes(160 << 20), 1)
FAILING = {  # check -> list of (folder, what spoils it, words of the finding)
    "layout": [
        ("plain", remove("README.md"), "is missing"),
        ("plain", write("train_gpt.py", b""), "is empty"),
        ("plain", rename_folder, "may_1_made"),
        ("plain", link_out, "symbolic link"),
        ("plain", files({"__pycache__/helper.cpython-311.pyc": b"123"}), "__pycache__"),
        ("plain", write("README.md", b"\xff"), "UTF-8"),
        ("plain", replace_first("README.md", "Written", PLACEHOLDER), PLACEHOLDER),
    ],
    "schema": [
        ("plain", remove("submission.json"), "is missing"),
        ("plain", write_json('{"name": "a", "name": "b"}'), "twice"),
        ("plain", write_json('{"val_bpb": NaN}'), "NaN"),
        ("plain", write_json('{"val_bpb": 1e400}'), "1e400"),
        ("plain", write_json("[" * 100_000), "nested too deeply"),
        ("plain", field(blurb=None), "without blurb"),
        ("plain", write_json('{"name": "\\ud800"}'), "surrogate"),
        ("plain", field(bytes_total=-1), "-1"),
        ("plain", field(val_bpb="1.8"), "a number"),
        ("plain", field(date="May 1"), "May 1"),
        ("plain", field(val_bpb=1.839), "at least 4 decimals"),
        ("plain", bpb("0e1"), "at least 4"),
        ("plain", bpb("2"), "at least 4 decimals"),
        ("record", field(track="non-record"), "non-record"),
        ("plain", write_json(b" " * (1 << 20) + b"{}"), "more than"),
    ],
    "code bytes": [
        ("plain", write_code("from importlib import import_module\nimport_module('helper')", helper="x = 1"),
         "reaches helper.py"),
        ("plain", files({"train_gpt.py": "import p.a", "p/a.py": "from . import b", "p/b.py": "x = 1"}),
         "reaches p/a.py, p/b.py"),
        ("plain", write("table.bin", b"12345"), "5 bytes in table.bin that no check"),
        ("plain", write_code(SCRIPT + b"\n"), "shipped"),
        ("plain", field(bytes_code=1), "bytes_code"),
        ("plain", write_code("exec(open('model_code.py').read())", model_code="pass"), "model_code.py"),
        ("plain", write_code("import helper", helper="x = 1"), "helper.py"),
    ],
    "artifact": [
        ("plain", files({"a.ptz": bytes(8_000_000), "b.ptz": bytes(8_000_000)}), "model files and the code"),
        ("plain", write("model.int8.zlib", BOMB), "expands to more"),
        ("plain", field(bytes_total=16_000_000), "bytes_total"),
        ("plain", write("model.int8.zlib", b"\0" * BUDGET_BYTES + b"\0"), "more than"),
        ("plain", write("model.int8.zlib", b"zip"), "zlib stream"),
        ("plain", replace_first("train.log", r"(?<=submission size int8\+zlib: )\d+", "16000000"), "16,000,000"),
        ("plain", field(bytes_model_int8_zlib=1), "model"),
        ("plain", append_to_model, "after its end"),
    ],
    "logs": [
        ("plain", copy("train_seed1.log", "train_seed9.log"), "is a copy of"),
        ("plain", replace_first("train_seed1.log", '"seed": 1', '"seed": 4'), "seed 4"),
        ("plain", write("train.log", b"nothing\n"), "no line of a training run"),
        ("plain", write("train.log", b"\xff\xfe"), "UTF-8"),
        ("plain", replace_first("train.log", "step_avg", "step_avg\0"), "NUL"),
        ("plain", remove("train_seed1.log"), "declared and has no log"),
        ("plain", replace_first("train.log", r"step:598/", "step:5/"), "out of order"),
        ("plain", replace_first("train.log", r"train_loss:\S+", "train_loss:nan"), "finite"),
        ("plain", replace_first("train.log", r"(?<=code: bytes:)(\d+) sha256:\w+", "99 sha256:00"), "of train_gpt.py"),
        ("plain", replace_first("train.log", r"(?m)^(final_\S+_exact .*)$", PARTIAL), "partial"),
        ("plain", write("train_seed7.log", b"x" * (33 << 20)), "more than"),
        ("plain", replace_first("train.log", "status=capped", "status=nonfinite"), "nonfinite"),
    ],
    "score": [
        ("plain", field(val_bpb=1.8299), "1.8299 claimed"),
        ("plain", field(val_loss=1.0), "val_loss"),
        ("plain", field(pre_quant_val_bpb=1.0), "pre_quant"),
        ("plain", bpb("0e1"), "0 claimed"),
        ("plain", bpb("0e99999999"), "0 claimed"),
        ("plain", field(val_bpb=2), "2 claimed"),
        ("plain", edit("train.log", ("data/pydoc_sp1024", "data/FineWeb10B_sp1024")), "of FineWeb"),
        ("plain", replace_first("train.log", r"scored: tokens:\d+", "scored: tokens:99999"), "imply"),
        ("plain", edit("train.log", ("final_", "last_")), "no final"),
        ("record", replace_first("train.log", r"scored: tokens:\d+ bytes:\d+\n", "val_tokens: 45508608\n"), "FineWeb"),
        ("plain", field(val_bpb_std=0.5), "val_bpb_std"),
        ("plain", field(seed_results={"1": {"val_bpb": 1.25}}), "of seed 1"),
        ("plain", write("README.md", "Some other data, MAX_WALLCLOCK_SECONDS=600"), "does not say"),
    ],
    "clock": [
        ("record", replace_first("train.log", r"train_time:\d+ms step:5998", "train_time:700000ms step:5998"), "over"),
        ("plain", edit("train.log", (r"train_time:\d+ms", "train_time:nanms")), "no training time"),
        ("plain", replace_first("train.log", r"step_avg:100.00ms", "step_avg:90.00ms"), "90.0 ms per step"),
        ("plain", field(wallclock_seconds=5.0), "wallclock"),
        ("plain", field(step_stop=5), "step_stop"),
        ("record", replace_first("train.log", r"eval_time:\d+", "eval_time:600001"), "evaluation took"),
        ("record", replace_first("train.log", "evaluation: time:1.0s", "evaluation: time:600.1s"), "took 600.1 s"),
        ("plain", write("README.md", "Trained on pydoc_sp1024 for a while"), "the compute is not stated"),
    ],
}
CASES = [(check, number) for check, cases in FAILING.items() for number in range(len(cases))]


@pytest.mark.parametrize("kind", ["plain", "record"])
def test_a_packed_folder_passes(made, kind):
    result = verify_folder(made[kind])
    assert verdict(result) == ("passes", []), as_text(made[kind], result)
    assert exit_code([result]) == 0 and list(result) == list(NAMES)


@pytest.mark.parametrize(("check", "number"), tiered(CASES, 3))
def test_a_spoiled_folder_fails_the_check(copy_of, check, number):
    kind, spoil, words = FAILING[check][number]
    folder = copy_of(kind)
    folder = spoil(folder) or folder
    result = verify_folder(folder)
    assert status_of(result[check]) == "FAIL", as_text(folder, result)
    assert any(words in f.observed + f.expected for f in result[check] if f.status == "FAIL"), as_text(folder, result)
    assert exit_code([result]) == 1


def test_other_spellings_and_what_the_challenge_accepted(copy_of):
    folder = copy_of("record")
    claims = json.loads((folder / "submission.json").read_text())
    claims["mean_val_bpb"] = claims.pop("val_bpb")
    claims["artifact_bytes"] = claims.pop("bytes_total")
    del claims["step_stop"]
    (folder / "submission.json").write_text(json.dumps(claims))
    (folder / "train_gpt.py").write_bytes(SCRIPT + b"\n")
    strict, upstream = verify_folder(folder), verify_folder(folder, "upstream-2026-04")
    observed = {f.observed for f in strict["schema"]}
    assert observed >= {"spelled mean_val_bpb", "spelled artifact_bytes", "without step_stop"}
    assert exit_code([strict]) == 1 and status_of(upstream["schema"]) == status_of(upstream["code bytes"]) == "WARN"


def test_a_log_like_the_challenges_is_read():
    text = """print(f"final_int8_zlib_roundtrip_exact val_loss:{q_val_loss:.8f} val_bpb:{q_val_bpb:.8f}")
    final_int8_zlib_roundtrip_exact val_loss:9.0 val_bpb:9.0
# step:1/2 train_loss:9.0 train_time:1ms step_avg:1.00ms
Hyperparameters:
  max_wallclock_seconds: 600.0
  run_id:
  seed: 42
val_tokens: 45508608
\x1b[32mstep:10/20000 train_loss:3.5000 train_time:435ms step_avg:43.50ms\x1b[0m
[rank0]:step:20/20000 train_loss:3.4000 train_time:870ms step_avg:43.50ms
[rank1]:step:20/20000 train_loss:3.4000 train_time:870ms step_avg:43.50ms
30/20000 train_loss: 3.3000 train_time: 0.1m tok/s: 8485990
30/20000 val_loss: 3.3000 val_bpb: 1.9500
stopping_early: wallclock_cap train_time: 590088ms step: 5449/20000
pre-quantization post-ema val_loss:2.52391662 val_bpb:1.09686509 eval_time:2006ms
Code size: 24584 bytes
Serialized model int6+brotli: 15968168 bytes
Total submission size int6+brotli: 15992752 bytes
final_int6_roundtrip val_loss:2.55060505 val_bpb:1.10846357 eval_time:7667ms
final_int6_sliding_window val_loss:2.5077 val_bpb:1.0898 stride:64 eval_time:76573ms
final_int6_sliding_window_exact val_loss:2.50771838 val_bpb:1.08982552
"""
    log = read_log("train_seed42.log", text.encode())
    assert [row[0] for row in log.train] == [10, 20, 30] and log.train[-1][2] == 3000 and not log.problems
    assert (log.seed, log.cap_seconds, log.val_tokens, log.stop, log.code_bytes, log.model_bytes, log.total_bytes) == \
        (42, 600.0, 45_508_608, (5449, 590_088.0), 24_584, 15_968_168, 15_992_752)
    assert log.pre_quant == (2.52391662, 1.09686509)
    assert list(log.scores) == ["final_int6_roundtrip", "final_int6_sliding_window"]
    assert log.score() == (2.50771838, 1.08982552) and log.scores["final_int6_sliding_window"][2] == 76_573.0


def test_a_vocabulary_that_is_not_set_is_the_tokenizers(made, capsys):
    assert '"vocab_size"' not in (made["plain"] / "train.log").read_text()
    assert status_of(verify_folder(made["plain"])["artifact"]) == "PASS"
    assert main(["reproduce", str(made["plain"])]) == 0
    assert "--vocab-size 260 --out data/pydoc_sp260" in capsys.readouterr().out


def test_a_log_that_was_resumed_and_one_of_an_older_run_are_read(made):
    lines = (made["plain"] / "train.log").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("step:897/"))
    again = [log_line("checkpoint", step=598, bytes=9, seconds=0.1), *lines[first:first + 3],
             log_line("status", status="interrupted", reason="", hint=""),
             *lines[:8], log_line("preflight", free=1, need=1, memory=1, memory_need=1),
             log_line("resume", step=598, ms=59_800, path="runs/x")]
    whole = read_log("a", "\n".join(lines).encode())
    resumed = read_log("a", "\n".join(lines[:first] + again + lines[first:]).encode())
    assert not resumed.problems
    assert (resumed.train, resumed.val, resumed.scores) == (whole.train, whole.val, whole.scores)
    assert resumed.status == "capped" == read_log("a", b"status=capped reason=the wall-clock cap was reached").status
    assert read_log("a", "\n".join(lines[:first + 3] + lines[first:]).encode()).problems


def test_pack_takes_the_middle_run_and_every_figure_from_the_logs(tmp_path):
    folder = make_record(tmp_path, (1.90, 1.80, 1.85, 1.87), written=False)
    fields = json.loads((folder / "submission.json").read_text())
    assert fields["val_bpb"] == 1.87 and fields["seeds"] == [4, 1, 2, 3] and fields["val_bpb_mean"] == 1.855
    logs = ["train_seed1.log", "train_seed2.log", "train_seed3.log"]
    texts = ["README.md", "model.int8.zlib", "requirements.txt", "submission.json", "train.log", "train_gpt.py"]
    assert sorted(p.name for p in folder.iterdir()) == texts + logs
    assert (folder / "train_gpt.py").read_bytes() == SCRIPT
    assert "MAX_WALLCLOCK_SECONDS=600" in (folder / "README.md").read_text()
    assert {"torch==2.13.0", "numpy==2.4.6", "tqdm"} <= set((folder / "requirements.txt").read_text().split())
    result = verify_folder(folder)
    assert verdict(result) == ("fails", ["layout"]) and PLACEHOLDER in result["layout"][0].observed


def test_logs_of_odd_numbers_end_in_findings(copy_of, capsys, tmp_path):
    folder = copy_of("plain")
    for log in folder.glob("*.log"):
        text = re.sub(r"(step:5998/\d+ val_loss:)\S+ val_bpb:\S+", r"\1nan val_bpb:nan", log.read_text())
        text = text.replace("train_time:598ms", "train_time:nanms")
        log.write_text(re.sub(r"(?m)^(Code size|stopping_early).*\n", "", text))
    assert main(["leaderboard", "--records", str(folder.parents[1])]) == 0 and main(["reproduce", str(folder)]) == 0
    (folder / "train_gpt.py").unlink()
    capsys.readouterr()
    assert main(["reproduce", str(folder)]) == 2 and "no train_gpt.py" in capsys.readouterr().err
    folder.with_name("2026-05-07_\x1b[2J").mkdir()
    assert main(["reproduce", "no", "--records", str(folder.parents[1])]) == 2 and "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(("spoil", "words"), [
    (write("status.json", '{"status": "over_budget"}'), "over_budget"), (remove("model.int8.zlib"), "model.int8.zlib"),
    (remove("status.json"), "missing"),
    (write("train.log", "cut"), "not the whole log"),
    (replace_first("train.log", '"train_seq_len": 16', '"train_seq_len": 32'), "differ in train_seq_len"),
    (write("train_gpt.py", "other"), "other code"),
    (replace_first("train.log", '"seed": 2', '"seed": 1'), "one run per seed"),
    (replace_first("train.log", r"(?m)^(scored: .*)$", "scored: tokens:9 bytes:20 partial:9/99"), "part of validation"),
])
def test_pack_says_what_is_wrong(tmp_path, capsys, spoil, words):
    runs = [make_run(tmp_path / "runs", seed, 1.8 + seed / 100) for seed in (1, 2)]
    spoil(runs[1])
    given = ["pack", *map(str, runs), "--track", "non-record", "--name", "X", "--author", "a", "--github-id", "a"]
    assert main([*given, "--records", str(tmp_path / "records")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and not list(tmp_path.glob("records/*/*"))


COMMANDS = ["pack", "verify", "significance", "leaderboard", "report", "levels", "reproduce", "ablation"]


def test_help_names_every_command_and_every_command_has_its_own(capsys):
    for command in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0 and text.startswith(" ".join(["usage: python -m records", *command]))
        assert command or all(f"    {name}" in text for name in COMMANDS)


def test_help_loads_no_library_that_only_a_command_needs():
    heavy = {"matplotlib", "scipy", "torch", "mlx"}
    source = f"""import sys
from records.__main__ import main
try:
    main(["--help"])
finally:
    print(sorted({heavy}.intersection(sys.modules)), file=sys.stderr)"""
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ") and done.stderr == "[]\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["pack", "--help"], ["reproduce", "naive_baseline"]])
def test_a_closed_pipe_ends_a_command_quietly(arguments, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    command, env = [sys.executable, "-m", "records", *arguments], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_arguments_that_no_command_takes_are_refused(capsys):
    for arguments, words in (([], "required: COMMAND"), (["leaderboard", "--no-such"], "arguments: --no-such")):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_real_run_is_packed_smoked_and_scored_again_on_both_backends(tmp_path, data_path, capsys, backend):
    env = environment(data_path, run_id="real", compute_dtype="float32")
    done = run_script([ROOT / BACKENDS[backend]], tmp_path, env)
    assert done.returncode == 0, done.stderr
    words = ["--track", "non-record", "--name", "Real", "--author", "a", "--github-id", "a", "--records", str(tmp_path)]
    assert main(["pack", str(tmp_path / "runs/real"), *words]) == 1
    [folder] = tmp_path.glob("track_non_record_16mb/*")
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace(PLACEHOLDER, "Written"))
    result = verify_folder(folder, smoke=True, data=data_path)
    assert exit_code([result]) == 0, as_text(folder, result)
    assert result["re-evaluation"][0].status == result["smoke run"][0].status == "PASS", as_text(folder, result)
    other = {"torch": "mlx", "mlx": "torch"}[backend]
    assert main(["verify", str(folder), "--data", str(data_path), "--backend", other]) == 0, capsys.readouterr()
    score = r"(?<=roundtrip_exact val_loss:)(\S+) val_bpb:\S+"
    replace_first("train.log", score, "2.00000000 val_bpb:1.00000000")(folder)
    assert status_of(verify_folder(folder, data=data_path)["re-evaluation"]) == "FAIL"
    other_data = tmp_path / "other"
    shutil.copytree(data_path, other_data)
    (other_data / "manifest.json").write_text((data_path / "manifest.json").read_text() + "\n")
    assert status_of(verify_folder(folder, data=other_data)["re-evaluation"]) == "NOT VERIFIED"


EVALUATED = {"eval_stride": 12, "eval_seq_len": 48, "ttt_lr": 0.5, "ttt_chunk": "100d"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_scores_again_has_the_evaluation_of_the_log(backend, tmp_path, documents):
    """Sliding windows and test-time training, on both backends, in reference mode and in float32; not without them."""
    run = faults.Run(backend, tmp_path, documents, **EVALUATED)
    assert run.wait() == [0], run.text()
    for other in BACKENDS:
        [finding] = check_evaluation(open_folder(run.path), documents, other)
        assert finding.status == "PASS", finding
    for old, new, words in (
            ('"eval_stride": 12', '"eval_stride": 48', "off by"),
            ('"ttt_lr": 0.5', '"ttt_lr": 0.0', "off by"),
            ('"eval_stride": 12', '"eval_stride": 49', "EVAL_STRIDE=49 would leave"),
            ('"eval_stride": 12', '"eval_stride": -1', "not a whole"),
            ('"ttt_lr": 0.5', '"ttt_lr": -0.5', "TTT_LR=-0.5 is not a number"),
            ('"100d"', '"d"', "TTT_CHUNK=d is neither"),
            ('"eval_seq_len": 48', '"eval_seq_len": 8192', "928 times the work of plain windows"),
            ('"eval_seq_len": 48', '"eval_seq_len": 17000', "rows of 17,000 tokens")):
        log = run.path / "train.log"
        text = log.read_text()
        assert text.count(old) == 1
        log.write_text(text.replace(old, new))
        [finding] = check_evaluation(open_folder(run.path), documents)
        assert finding.status in ("FAIL", "NOT VERIFIED") and words in finding.observed
        log.write_text(text)


def test_a_score_on_bytes_that_the_text_does_not_have_is_not_verified(tmp_path, data_path):
    """Where the manifest counts more bytes of validation than its text has, re-evaluation fails."""
    data = shutil.copytree(data_path, tmp_path / "data")
    manifest, log = json.loads((data / "manifest.json").read_text()), SimpleNamespace(manifest_sha256="", name="log")
    for text, refused in ((1500, False), (1499, True)):
        manifest["splits"] = {"val": {"bytes": 1500, "text_bytes": text, "shards": []}}
        (data / "manifest.json").write_text(json.dumps(manifest))
        try:
            assert open_same_data(Settings(data_path=str(data), train_seq_len=32), log) and not refused
        except NotScored as reason:
            assert refused and reason.finding.status == "FAIL" and "its text has 1499" in reason.finding.observed
