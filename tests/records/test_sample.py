"""`python -m records sample`: `python -m pytest tests/records/test_sample.py`."""
import json
import subprocess
import sys

import numpy as np
import pytest

from common.artifact import encode_model
from common.params import param_table
from common.sample import write_text
from common.settings import Settings
from common.tokenizer import load_tokenizer
from records.__main__ import main
from tests.conftest import BACKENDS, ROOT, environment, run_script

SIZES = {"vocab_size": 260, "num_layers": 3, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "train_seq_len": 70}
BYTES = load_tokenizer("bytes")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a model whose weights are random."""
    settings, random = Settings(**SIZES), np.random.Generator(np.random.Philox(0))
    weights = {name: random.standard_normal(p.shape).astype(np.float32) for name, p in param_table(settings).items()}
    path = tmp_path_factory.mktemp("model") / "model.int8.zlib"
    path.write_bytes(encode_model(settings, weights)[0])
    return path


def sampled(capsys, *arguments):
    """What the command prints; its last line of error where it exits with 2."""
    code = main(["sample", *map(str, arguments)])
    printed = capsys.readouterr()
    assert code in (0, 2) and (code == 0 or printed.err.count("\n") == 1), printed.err
    return printed.err if code else printed.out


def test_each_backend_writes_the_same_text(model, capsys):
    """More of it than the model sees at once."""
    common = [model, "--tokenizer", "bytes", "--prompt", "Na\u00efve: ", "--tokens", 90]
    texts = [sampled(capsys, *common, "--backend", backend) for backend in ("numpy", "torch", "mlx", "numpy")]
    assert len(set(texts)) == 1 and texts[0].startswith("Na\u00efve: ") and len(texts[0]) > 60
    others = [sampled(capsys, *common, "--seed", 2), sampled(capsys, *common, "--temperature", 0),
              sampled(capsys, *common, "--prompt", "")]
    assert len({texts[0], *others}) == 4
    assert sampled(capsys, *common, "--temperature", 0, "--seed", 2) == others[1]


@pytest.mark.slow
def test_a_run_ends_with_the_text_that_sample_writes(tmp_path, data_path, backend, capsys):
    """In what it prints, not in its log."""
    env = environment(data_path, run_id="a", iterations=3, compute_dtype="float32", sample_tokens=40)
    done = run_script([ROOT / BACKENDS[backend]], tmp_path, env)
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr
    printed = done.stdout.split("  the model writes\n")[1].splitlines()[:-1]
    assert all(line.startswith("    | ") for line in printed)
    text = "\n".join(line.removeprefix("    | ") for line in printed)
    assert text.strip() and text == sampled(capsys, tmp_path / "runs/a", "--tokens", 40).rstrip()
    assert "writes" not in (tmp_path / "runs/a/train.log").read_text()


def test_numpy_needs_no_framework(model):
    code = ("import sys; sys.modules |= dict.fromkeys(['torch', 'mlx', 'mlx.core']); from records.__main__ import main;"
            f"sys.exit(main(['sample', {str(model)!r}, '--tokenizer', 'bytes', '--tokens', '3']))")
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_the_draws_follow_the_probabilities():
    """Of 4,000 tokens of a model that knows only three; a seed is a stream of its own."""
    odds = {ord("a"): 0.5, ord("b"): 0.3, ord("c"): 0.2}
    scores = np.full(260, -np.inf)
    for byte, share in odds.items():
        scores[4 + byte] = np.log(share)

    def text(**how):
        pieces = write_text(lambda row: np.tile(scores, (1, row.shape[1], 1)), BYTES, [], 4000, 64, **how)
        return "".join(pieces)

    found = text(temperature=1.0)
    assert all(abs(found.count(chr(byte)) / 4000 - share) < 0.03 for byte, share in odds.items())
    colder = text(temperature=0.5)  # the squares, made to add up to 1
    assert abs(colder.count("a") / 4000 - 0.25 / 0.38) < 0.03
    assert set(text(temperature=0)) == {"a"} and found != text(temperature=1.0, seed=2)


def test_text_is_whole_characters_that_move_no_cursor():
    script = iter([*(4 + b for b in "\u00e9\x1b[2J\n\t".encode()), 1, 4 + 0xc3, 4 + ord("a"), 4 + 0xc3])

    def logits(row):
        found = np.zeros((1, row.shape[1], 260))
        found[..., next(script)] = 1
        return found

    pieces = [*write_text(logits, BYTES, [], 12, 64, temperature=0)]
    assert pieces == ["", "\u00e9", "?", "[", "2", "J", "\n", "\t", "\n\n", "", "\ufffda", "", "\ufffd"]


def test_the_model_sees_the_end_of_what_it_is_given():
    rows = []

    def logits(row):
        rows.append(row[0])
        return np.ones((1, row.shape[1], 260))

    assert "".join(write_text(logits, BYTES, range(4, 136), 3, 100, temperature=0)) == ""
    assert [len(row) for row in rows] == [100] * 3 and [row[0] for row in rows] == [36, 37, 38]
    assert [*rows[2][-3:]] == [135, 0, 0]
    rows.clear()
    next(write_text(logits, BYTES, [7, 8], 1, 100))
    assert [*rows[0][:4]] == [1, 7, 8, 0] and len(rows[0]) == 64


def run_folder(path, model, **stored):
    path.mkdir()
    (path / model.name).write_bytes(model.read_bytes())
    (path / "settings.json").write_text(json.dumps(stored))
    return path


def test_a_run_knows_its_tokenizer(model, data_path, tmp_path, capsys):
    whole = sampled(capsys, model, "--tokenizer", "bytes", "--tokens", 5)
    run = run_folder(tmp_path / "run", model, data_path=str(data_path), tokenizer_path="")
    assert sampled(capsys, run, "--tokens", 5) == sampled(capsys, run / model.name, "--tokens", 5) == whole
    assert sampled(capsys, model, "--data", data_path, "--tokens", 5) == whole
    other = run_folder(tmp_path / "other", model, tokenizer_path="bytes", identity={"tokenizer": "1234"})
    assert "in settings.json 1234): give its own as --data DIR" in sampled(capsys, other)
    (run / "submission.json").write_text("{}")  # of anyone: what it says chooses no file
    assert "does not say which tokenizer its model needs" in sampled(capsys, run)


@pytest.mark.parametrize("arguments, says", [
    ("--tokens 0", "--tokens 0 is not a number of tokens: give 1 or more"),
    ("--temperature -1", "--temperature -1.0 is not a temperature: give 0.01 to 100, or 0"),
    ("--temperature nan", "--temperature nan is not a temperature"),
    ("--seed -1", "--seed -1 is not a seed: give 0 to"),
    ("", "does not say which tokenizer its model needs: give the folder of its data as --data DIR, or --tokenizer"),
    ("--data {tmp}", "has no manifest.json that names a tokenizer: give"),
    ("--tokenizer {tmp}/none", "no such file; a tokenizer is"),
    ("--tokenizer {tmp}/table", "the tokenizer has 2 ids, the model 260: give that of the model as --data DIR or"),
    ("--tokenizer {tmp}/large --prompt a", "--prompt a: a table tokenizer only decodes; leave --prompt out"),
    ("--tokenizer bytes --prompt \udcff", "is not UTF-8: type it in a terminal that uses UTF-8"),
])
def test_what_cannot_be_done_is_one_line(model, tmp_path, capsys, arguments, says):
    (tmp_path / "table").write_text("parity-golf-table 1 0\n\n61\n")
    (tmp_path / "large").write_text("parity-golf-table 1 0\n" + "\n" + "61\n" * 259)
    assert says in sampled(capsys, model, *arguments.format(tmp=tmp_path).split(" ") if arguments else [])


@pytest.mark.parametrize("name, says", [
    ("none", "none: is missing; give a run's folder, a record's, or a model.int8.zlib"),
    ("text", "text: the model file is not a zlib stream"), ("", "model.int8.zlib: is missing")])
def test_what_is_no_model_is_one_line(tmp_path, capsys, name, says):
    (tmp_path / "text").write_text("no model")
    assert says in sampled(capsys, tmp_path / name, "--tokenizer", "bytes")
