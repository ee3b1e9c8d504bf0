"""`python -m records levels`: `python -m pytest tests/records/test_levels.py`."""
import numpy as np
import pytest

from common.artifact import encode_model
from common.params import param_table
from common.settings import Settings
from records.__main__ import main

SIZES = {"vocab_size": 260, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "train_seq_len": 32}


def write_model(path, levels="127"):
    settings = Settings(**SIZES, quant_levels=levels if isinstance(levels, str) else "127")
    random = np.random.Generator(np.random.Philox(0))
    shapes = {name: p.shape for name, p in param_table(settings).items()}
    weights = {name: 0.1 * random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    path.write_bytes(encode_model(settings, weights, None if isinstance(levels, str) else levels)[0])
    return path


def rows(text):
    """The rows of the table, each a list of words."""
    lines = [line.split() for line in text.splitlines()]
    return [words for words in lines if len(words) in (4, 5) and words[1].replace(",", "").isdigit()]


def test_fewer_levels_cost_fewer_bytes_and_more_error(tmp_path, capsys):
    model = write_model(tmp_path / "model.int8.zlib")
    assert main(["levels", str(tmp_path), "--plot", str(tmp_path / "l.png")]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == ["127", "63", "31", "15", "11", "7", "5", "3", "2"]
    sizes, errors = [int(row[1].replace(",", "")) for row in found], [float(row[3].rstrip("%")) for row in found]
    assert sizes[0] == model.stat().st_size and sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors) and errors[0] == 0 < errors[1]
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "levels, first, count",
    [
        ("5", "5", 3),
        ("matrix=3,embed=fp16", "matrix=3,embed=fp16", 10),
        ("2", "2", 1),
        ({"matrix": 6.47, "embed": 6.47}, "6.47", 4),
        ({"matrix": 300.3, "embed": 300.3}, "300.3", 10),
    ],
)
def test_only_levels_below_those_of_the_file(levels, first, count, tmp_path, capsys):
    model = write_model(tmp_path / "m", levels)
    assert main(["levels", str(model)]) == 0
    found = rows(capsys.readouterr().out)
    assert found[0][0] == first and int(found[0][1].replace(",", "")) == model.stat().st_size and len(found) == count


@pytest.mark.needs("torch")
def test_the_score_is_that_of_each_file(tmp_path, data_path, capsys):
    """The first row against the trainer's own score of the decoded file."""
    from common.artifact import decode_model
    from common.bpb import evaluate
    from common.dataset import open_data
    from parity.trainers import load_trainer
    from records.evaluation import scoring_settings
    model = write_model(tmp_path / "m", "5")
    assert main(["levels", str(model), "--data-path", str(data_path), "--val-tokens-limit", "200"]) == 0
    found = rows(capsys.readouterr().out)
    kind = load_trainer("torch")
    settings, weights = decode_model(model.read_bytes())
    own = scoring_settings(kind, settings, data_path, compile=False, val_tokens_limit=200)
    data, trainer = open_data(own), kind(own, weights)
    assert found[0][4] == f"{evaluate(trainer, own, data.val, data.tokenizer, data.val_tokens)[1]:.4f}"
    assert len({row[4] for row in found}) == 3


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "m").write_bytes(b"no model")
    for path, words in ((tmp_path / "m", "is not a zlib stream"), (tmp_path / "none", "is missing"),
                        (tmp_path, "model.int8.zlib: is missing")):
        assert main(["levels", str(path)]) == 2
        assert words in capsys.readouterr().err
    assert main(["levels", str(tmp_path / "m"), "--plot", "x.txt"]) == 2
