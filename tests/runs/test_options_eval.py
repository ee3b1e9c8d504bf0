"""Options of the final evaluation on both backends: `python -m pytest tests/runs/test_options_eval.py`."""
import dataclasses

import numpy as np
import pytest

from common import bpb
from common.batches import TokenStream, step_rows
from common.dataset import open_data
from common.loop import Run, warm_up
from common.params import initial_weights
from common.ranks import Interrupt, RankWatch
from common.readlog import parse_log
from common.settings import Settings, settings_of
from parity.options import OPTIONS, option_settings
from parity.problem import full_weights
from tests import faults
from tests.conftest import BACKENDS, DEVICES, ROOT, TINY, environment, run_script, tiered, tiny_settings, trainer_class

BOS = 1
SCORING = settings_of("evaluation").keys() - {"quant_levels", "quant_clip", "gptq_tokens"}
NAMES = [name for name in OPTIONS if OPTIONS[name].keys() <= SCORING]
WAYS = {name: option_settings(Settings(**TINY), [name]) for name in NAMES}
ALL = option_settings(Settings(**TINY), ["long windows", "sliding windows", "test-time training by document"])
WAYS |= {"all": ALL, "all, in chunks": option_settings(Settings(**TINY), NAMES)}


def build(backend, data_path, weights=None, **changes):
    """(trainer, settings) in reference mode; the weights are such that everything in the model counts."""
    settings = tiny_settings(backend, data_path, **{"compute_dtype": "float64"} | changes)
    return trainer_class(backend)(settings, weights or full_weights(settings)), settings


def final_scores(trainer, settings, tokens, tokenizer, monkeypatch):
    """float64 (tokens,): nats of each token in the final evaluation; NaN of the first."""
    nats, windows, scores = np.full(len(tokens), np.nan), [], []
    with monkeypatch.context() as patch:
        def eval_batch(stream, given, *more, make=bpb.eval_batch):
            windows.append(given)
            return make(stream, given, *more)

        def token_nats(tokens, make=trainer.token_nats):
            scores.append(make(tokens))
            return scores[-1]

        patch.setattr(bpb, "eval_batch", eval_batch)
        patch.setattr(trainer, "token_nats", token_nats)
        stream = TokenStream([np.array(tokens, np.uint16)])
        bpb.evaluate(trainer, settings, stream, tokenizer, len(tokens), final=True)
    for given, made in zip(windows, scores, strict=True):
        for row, (start, count, last) in enumerate(given):
            place = slice(start + 1 + count - last, start + 1 + count)
            assert np.isnan(nats[place]).all()
            nats[place] = made[row, count - last:count]
    return nats


# legal ----------------------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 10, "num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "train_seq_len": 8,
         "train_batch_tokens": 64, "micro_batch_tokens": 16}
TABLE = dataclasses.make_dataclass("Table", ["byte_counts", "leading_space", "boundary", "bos_id"])(
    np.ones(10, np.int32), np.zeros(10, bool), np.zeros(10, bool), BOS)
# lengths that do not divide each other, unlike those of parity/options.py
LEGAL = {
    "windows": {},
    "stride": {"eval_stride": 3},
    "chunks": {"ttt_lr": 0.5, "ttt_chunk": "16"},
    "documents": {"ttt_lr": 0.5, "ttt_chunk": "8d"},
    "adapters": {"ttt_lr": 0.5, "ttt_rank": 2, "ttt_chunk": "8d"},
    "options of the model": option_settings(Settings(num_layers=1), ["XSA", "smear gate", "parallel residual"]) | {
        "bigram_rows": 7, "bigram_dim": 4, "bos_id": BOS},
    "sliding chunks": {"ttt_lr": 0.5, "ttt_chunk": "12", "eval_stride": 3},
    "sliding documents": {"ttt_lr": 0.5, "ttt_chunk": "6d", "eval_stride": 3, "eval_seq_len": 10},
}


@pytest.mark.parametrize("way", tiered(LEGAL, 4))
def test_no_score_knows_its_own_or_a_later_token(way, backend, monkeypatch):
    """With each token in turn at one place: what is scored before is the same to the bit, and the probabilities of the
    tokens at that place add up to 1, so that none of them depends on which of them stands there, even a BOS."""
    trainer, settings = build(backend, "", **SMALL | LEGAL[way])
    tokens = np.random.Generator(np.random.Philox(11)).integers(2, 10, 40)
    tokens[[0, 5, 28]] = BOS
    for place in (7, 16, 17, 27, 38):
        texts = [[*tokens[:place], token, *tokens[place + 1:]] for token in range(10)]
        ways = np.array([final_scores(trainer, settings, text, TABLE, monkeypatch) for text in texts])
        assert (ways[:, 1:place] == ways[0, 1:place]).all()
        assert abs(np.exp(-ways[:, place]).sum() - 1) < 1e-12
        assert (ways[:, place + 1] != ways[0, place + 1]).any()


def test_steps_on_scored_tokens_change_what_follows(backend, monkeypatch):
    """Beyond the reach of any window, another token is felt through the weights alone: everywhere later, or within its
    document."""
    tokens = np.random.Generator(np.random.Philox(12)).integers(2, 10, 96)
    tokens[[0, 60]] = BOS
    other = [*tokens[:9], tokens[9] % 8 + 2, *tokens[10:]]
    felt = {}
    chunks = {"off": {}, "chunks": {"ttt_chunk": "16"}, "documents": {"ttt_chunk": "16d"}}
    for way, chunk in chunks.items():
        trainer, settings = build(backend, "", **SMALL | chunk, ttt_lr=0.5 if chunk else 0.0)
        before = trainer.weights()
        one, two = (final_scores(trainer, settings, t, TABLE, monkeypatch) for t in (tokens, other))
        felt[way] = (one != two).nonzero()[0][1:]  # 0 is NaN
        assert all((before[name] == w).all() for name, w in trainer.weights().items())  # as trained, to the bit
    assert felt["off"].tolist() == [*range(9, 17)]
    assert set(range(17, 96)) <= set(felt["chunks"])
    assert set(range(17, 61)) <= set(felt["documents"]) and felt["documents"].max() == 60


def passes(trainer, monkeypatch):
    """The set to which each forward pass adds its kind and the shape of its tokens: what is compiled once."""
    seen = set()

    def noted(way, make):
        def call(*given):
            if trainer.backend == "torch":
                import torch
                seen.add((way, tuple(given[0].shape), torch.is_grad_enabled()))
            else:
                seen.add((way, tuple(given[1].shape), None))
            return make(*given)
        return call

    for way in {"forward", "loss_and_grads"} & vars(trainer).keys():
        monkeypatch.setattr(trainer, way, noted(way, getattr(trainer, way)))
    return seen


def test_a_step_is_plain_sgd_on_the_mean(backend, monkeypatch):
    """Of any number of rows, in passes of at most three shapes: PyTorch gives up at the ninth that it compiles."""
    trainer, _ = build(backend, "", **SMALL | {"micro_batch_tokens": 240, "ttt_chunk": "355d"}, eval_seq_len=12)
    tokens = np.random.Generator(np.random.Philox(13)).integers(0, 10, (32, 13)).astype(np.int32)
    before, seen = trainer.weights(), set()
    for rows in (1, 2, 5, 14, 30, 31, 32):
        _, grads = trainer.gradients(tokens[:rows])
        with monkeypatch.context() as patch:
            shapes = passes(trainer, patch)
            trainer.sgd_step(tokens[:rows], 0.25)
            seen |= shapes
        after = trainer.weights()
        assert all(np.abs(after[name] - (before[name] - 0.25 * grads[name])).max() < 1e-14 for name in before)
        assert any(np.abs(g).max() > 1e-3 for g in grads.values())
        trainer.undo_sgd()
    assert {shape for _, shape, _ in seen} == {(15, 13), (3, 13), (1, 13)} and len(seen) == 3


# equal ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", tiered(WAYS, 3))
def test_backends_and_micro_batches_agree(way, documents):
    """To 1e-9 of a nat, and each way differs from plain windows."""
    scores = []
    for backend in BACKENDS:
        for micro in (256, 64):
            trainer, settings = build(backend, documents, micro_batch_tokens=micro, **WAYS[way])
            data = open_data(settings)
            arguments = trainer, settings, data.val, data.tokenizer, data.val_tokens
            plain, final = bpb.evaluate(*arguments), bpb.evaluate(*arguments, final=True)
            assert plain[2:] == final[2:] and abs(plain[0] - final[0]) > 1e-3
            scores.append([*final[:2], *plain[:2]])
    assert np.ptp(scores, axis=0).max() < 1e-9


@pytest.mark.slow
def test_context_and_steps_help_a_trained_model(backend, documents):
    """Sliding windows on text like that of training, where steps can teach little; steps on text of other letters."""
    trainer, settings = build(backend, documents)
    data = open_data(settings)
    trainer.load_state(initial_weights(settings))
    for step in range(120):
        trainer.train_step(step_rows(data.train, settings, step), 1 - step / 120, 0.9)
    trained, tokens = trainer.weights(), data.val.read(0, 700)
    other = np.where(tokens == BOS, BOS, tokens + 1)

    def score(tokens, **changes):
        stream = TokenStream([tokens.astype(np.uint16)])
        changed = dataclasses.replace(settings, **changes)
        return bpb.evaluate(trainer, changed, stream, data.tokenizer, 700, final=True)[1]

    assert score(tokens, eval_stride=8) < score(tokens) - 0.02
    for values in ({"ttt_chunk": "64"}, {"ttt_chunk": "32d"}, {"ttt_chunk": "64", "eval_stride": 8}):
        assert score(other, ttt_lr=0.1, **values) < score(other, **values) - 0.1
    assert all((trained[name] == w).all() for name, w in trainer.weights().items())


@pytest.mark.parametrize("backend, device", DEVICES)
@pytest.mark.parametrize("changes", [{}, ALL, WAYS["test-time training"] | {"ttt_chunk": "224"}],
                         ids=["plain", "all", "chunks of 7 rows"])
def test_the_warm_up_compiles_all_that_a_run_uses(changes, backend, device, documents, tmp_path, monkeypatch):
    """Steps with all options, validations and the final evaluation meet no other shape; and it leaves no trace."""
    sizes = {"micro_batch_tokens": 128, "ema_decay": 0.9, "qat_start": 0.5, "device": device}
    sizes |= {"compute_dtype": "auto"} if device == "gpu" else {}
    trainer, settings = build(backend, documents, **sizes | changes)
    data, before = open_data(settings), trainer.state()
    with monkeypatch.context() as patch:
        warmed = passes(trainer, patch)
        warm_up(Run(settings, data, trainer, None, None, RankWatch(tmp_path, 0, 1, 60), Interrupt()))
    after = trainer.state()
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    used = passes(trainer, monkeypatch)
    for rounding in (False, True):
        trainer.train_step(step_rows(data.train, settings, 0), 1.0, 0.9, rounding)
    for final in (False, True):
        bpb.evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens, final=final)
    assert used == warmed


# whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_and_backends_score_alike_in_whole_runs(documents, tmp_path):
    """With all options on one rank and two: the same score, by the same model as without them; and the log says how it
    was scored and how long that took."""
    scores, models = [], []
    cases = [(backend, ranks, "all") for backend in BACKENDS for ranks in (1, 2)]
    for backend, world_size, way in [*cases, ("torch", 1, None)]:
        folder = tmp_path / f"{backend}{world_size}{way}"
        run = faults.Run(backend, folder, documents, world_size=world_size, **WAYS.get(way, {}))
        assert run.wait() == [0] * world_size, run.text()
        models.append(run.model())
        [line] = run.lines("evaluation")
        assert line["limit"] == 600
        if way:
            scores.append([run.lines("final_exact")[0][key] for key in ("val_loss", "val_bpb")])
            assert (line["seq_len"], line["stride"], line["ttt"]) == (64, 8, "lr 0.05, chunk 64d")
            assert "windows of 64 tokens, every 8; test-time training: lr 0.05, chunk 64d" in run.text()
        else:
            assert (line["seq_len"], line["stride"], line["ttt"]) == (32, 32, "off")
            assert "scored    windows" not in run.text()
    assert len({*models}) == 1 and np.ptp(scores, axis=0).max() <= 1.01e-8  # the last digit printed


def test_steps_that_diverge_end_the_run(backend, documents, tmp_path):
    run = faults.Run(backend, tmp_path, documents, ["diverges_at_test_time"], iterations=1, **WAYS["all"])
    faults.ended(run, "nonfinite", "lower TTT_LR=0.05")


@pytest.mark.slow
def test_compiled(backend, documents, tmp_path):
    """Windows, steps and ends of other shapes than those of training go through the compiled graph too."""
    found, sizes = [], {"num_layers": 1, "iterations": 2, "compute_dtype": "float64"} | ALL | {"ttt_chunk": "96d"}
    for compiled in (0, 1):
        folder = tmp_path / str(compiled)
        folder.mkdir()
        done = run_script([ROOT / BACKENDS[backend]], folder, environment(documents, compile=compiled, **sizes))
        assert done.returncode == 0, done.stderr
        [path] = folder.glob("runs/*/train.log")
        found += [values["val_bpb"] for kind, values in parse_log(path.read_text()) if kind == "final_exact"]
    assert len(found) == 2 and abs(found[0] - found[1]) <= 1.01e-8
