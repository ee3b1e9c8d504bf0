"""The report of runs, as a page in headless Chromium and as a picture.

Run: `python -m pytest tests/records/test_report.py`.
"""
import re
import shutil

import numpy as np
import pytest

from common.artifact import encode_model
from common.params import initial_weights, param_table
from common.quantize import dequantize_rows, quantize_rows
from common.settings import Settings
from records.__main__ import main
from records.budget import group_bytes, model_budget
from records.picture import STYLE, curves_figure, draw_summary, summary_figure
from records.report import MOST_RUNS, read_runs
from tests.conftest import ROOT, tiered
from tests.records.made_records import FINEWEB, make_record, make_run

WIDTHS = (360, 768, 1280, 1400)  # of a phone, a tablet and two screens, in pixels


def report(folder, *paths):
    """Path of the page of a report; its picture is beside it."""
    page = folder / "r.html"
    assert main(["report", *map(str, paths), "-o", str(page)]) == 0
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return page


def make_runs(folder, count, name="made"):
    """Run folders, each with its name."""
    return [make_run(folder, i, 1.8 + i / 100).rename(folder / f"{name}{i}") for i in range(1, count + 1)]


def test_page_and_picture_of_two_runs(tmp_path, browser):
    browser.open(report(tmp_path, *make_runs(tmp_path / "runs", 2)))
    titles = browser.run("[...document.querySelectorAll('h3')].map((x) => x.firstChild.textContent)")
    curves = ["Training loss", "Validation", "Learning rate", "Throughput"]
    assert titles == [*curves, "Byte budget", "Expected rounding error per tensor"]
    assert browser.run("document.querySelectorAll('svg path').length") == 8
    assert browser.run("document.querySelectorAll('.small tbody tr').length") == 2 + 13
    text = browser.run("document.body.innerText")
    assert "peak MiB" in text and "embedding" in text and not browser.run("document.querySelector('.warning')")
    assert browser.run("document.documentElement.dataset.ready") == "2" and browser.requests() == []


def test_the_bytes_of_a_run_without_its_model_are_those_of_its_log(tmp_path, browser):
    run = make_run(tmp_path / "runs", 1, 1.8)
    model = (run / "model.int8.zlib").stat().st_size
    (run / "model.int8.zlib").unlink()
    browser.open(report(tmp_path, run))
    legend = browser.run("[...document.querySelectorAll('.wide .legend li')].map((x) => x.innerText)")
    code = (run / "train_gpt.py").stat().st_size
    assert legend == [f"model {model:,}", f"code {code:,}", f"{15_999_999 - model - code:,} left"]


def test_an_odd_name_and_a_loss_that_is_not_finite(tmp_path):
    run = make_run(tmp_path / "runs", 1, 1.8).rename(tmp_path / "runs/a$b_{$\\frac$")
    log = run / "train.log"
    text = re.sub(r"(step:5998/\d+ val_loss:)\S+ val_bpb:\S+", r"\1nan val_bpb:nan", log.read_text())
    log.write_text(re.sub(r"train_time:[1-9]\d+ms", "train_time:nanms", text, count=1))
    report(tmp_path, run)


def test_the_seeds_of_a_record_are_runs_and_its_model_is_that_of_one(tmp_path):
    record = make_record(tmp_path, (1.81, 1.83, 1.82))
    runs, without = read_runs([record])
    assert without == [] and sorted(run["seed"] for run in runs) == [1, 2, 3]
    assert all(run["name"] == f"{record.name} seed {run['seed']}" for run in runs)
    assert [run["seed"] for run in runs if run["groups"]] == [3]  # the run in the middle


def test_runs_of_the_same_name_are_told_apart_and_one_that_is_given_twice_is_one(tmp_path):
    first, second = (make_run(tmp_path / place, 1, 1.8) for place in ("before", "after"))
    runs, _ = read_runs([first, second, first])
    assert [run["name"] for run in runs] == ["before/made1", "after/made1"]


def test_a_record_without_a_log_is_left_out_of_several(tmp_path, capsys):
    founding = ROOT / "records/track_10min_16mb/2026-03-18_naive_baseline"
    report(tmp_path, founding, make_run(tmp_path / "runs", 1, 1.8))
    assert f"{founding} has no log, and is left out" in capsys.readouterr().out
    assert main(["report", str(founding), "-o", str(tmp_path / "r.html")]) == 2
    assert "has no log to draw" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "said"), [
    ("records", "is a folder of tracks, not a run: give records/*/*, or rank the records"),
    ("records/track_non_record_16mb", "is a folder of records, not a run: give records/track_non_record_16mb/*, or"),
    ("records/track_10min_16mb", "is a folder of records, not a run"),
    ("runs", "is a folder of runs, not a run: give runs/*"),
    ("empty", "has no log of a run: give runs/<id>"),
    ("no", "is not a folder: give runs/<id>"),
    ("runs/silent", "silent/train.log has no line of a training run"),
    ("runs/large", "large/train.log has 33,554,433 bytes, more than the limit"),
])
def test_what_is_no_run_is_named_as_what_it_is(tmp_path, monkeypatch, capsys, path, said):
    make_record(tmp_path, (1.8, 1.81))
    (tmp_path / "records/track_10min_16mb").mkdir()
    (tmp_path / "empty").mkdir()
    for name, text in {"silent": "hello\n", "large": "x" * ((32 << 20) + 1)}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "train.log").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["report", path]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Folders of one run more than have their curves drawn, one of them on FineWeb and one without a score."""
    folder = tmp_path_factory.mktemp("many")
    runs = make_runs(folder / "runs", MOST_RUNS - 1)
    runs.append(make_run(folder / "runs", 98, 1.2, FINEWEB))
    log = runs[0] / "train.log"
    log.write_text(re.sub(r"(?m)^final_.*\n", "", log.read_text()))
    return [*runs, shutil.copytree(runs[1], folder / "runs" / "longer_name")]


def test_many_runs_give_a_summary_the_best_of_each_data_set_first(many, tmp_path, browser, capsys):
    page = report(tmp_path, *many)
    assert f"{MOST_RUNS + 1} runs, a summary" in capsys.readouterr().out
    browser.open(page)
    assert browser.run("[...document.querySelectorAll('h2')].map((x) => x.textContent)") == ["FineWeb", "pydoc_sp1024"]
    tables = browser.run("[...document.querySelectorAll('table')].map((t) => [...t.querySelectorAll('tbody tr')].map("
                         "(row) => row.children[1].textContent))")
    assert tables[0] == ["1.2000"] and tables[1] == sorted(tables[1][:-1]) + ["?"] and len(tables[1]) == MOST_RUNS
    assert browser.run("[...document.querySelectorAll('svg')].map((s) => s.querySelectorAll('circle').length)") == [
        1, 1, MOST_RUNS - 1, MOST_RUNS - 1]
    browser.open(report(tmp_path, *many[:MOST_RUNS]))
    assert browser.run("document.querySelectorAll('svg path').length") > MOST_RUNS
    assert browser.run("document.querySelector('.warning').textContent").startswith("On different data (")


@pytest.mark.parametrize("count", tiered([5, 1, MOST_RUNS, MOST_RUNS + 1], 4))
def test_nothing_is_cut_or_overlaps_on_the_page(many, tmp_path, browser, count):
    long = shutil.copytree(many[2], tmp_path / ("An_unbreakable_" + "name" * 45))
    page = report(tmp_path, long, *many[: count - 1])
    for width in WIDTHS:
        browser.open(page, width)
        browser.run("document.querySelectorAll('.plot svg').forEach((svg) => svg.dispatchEvent("
                    "new KeyboardEvent('keydown', {key: 'ArrowLeft'})))")  # shows the tips
        assert (width, browser.faults()) == (width, [])


def test_a_table_wider_than_the_page_says_so_and_scrolls_by_keyboard(many, tmp_path, browser):
    page = report(tmp_path, *many[1:MOST_RUNS])
    browser.open(page, 768)
    hint = "[...document.querySelectorAll('.hint')].at(-1)"
    assert browser.run(f"{hint}.innerText") == "There is more to the right: scroll sideways."
    browser.run("document.querySelectorAll('.scroll')[1].focus()")
    browser.press("ArrowRight", "ArrowRight")
    browser.run("""new Promise((done) => {
      const box = document.querySelectorAll(".scroll")[1];
      const look = () => box.scrollLeft > 0 ? done() : requestAnimationFrame(look);
      look();
    })""")
    names = browser.run("[...document.querySelectorAll('th.sticky')].map((x) => x.getBoundingClientRect().left)")
    assert min(names) > 0  # the names of the rows stay
    browser.open(report(tmp_path, many[1]), 768)
    assert browser.run(f"{hint}.hidden")


def covered(figure):
    """list of words: what a legend of the figure lies over, or that it leaves the figure."""
    import matplotlib
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
    own = {axes.get_legend(): axes for axes in figure.axes if axes.get_legend()}
    found = []
    for legend in [*figure.legends, *own]:
        box = legend.get_window_extent()
        if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1:
            found.append("the edge of the picture")
        for axes in figure.axes:
            panel = axes.get_window_extent() if axes is own.get(legend) else axes.get_tightbbox()
            if axes.axison and box.overlaps(panel):
                found.append(axes.get_title(loc="left"))
    return found


@pytest.mark.parametrize(
    ("count", "name"), tiered([(MOST_RUNS, "W" * 150), (1, "made"), (5, "made"), (MOST_RUNS, "made")], 4))
def test_no_legend_of_the_picture_covers_anything(tmp_path, count, name):
    import matplotlib
    runs, _ = read_runs(make_runs(tmp_path / "runs", count, name))
    with matplotlib.rc_context(STYLE):
        figure = curves_figure(runs)
    assert covered(figure) == [] and len(figure.legends) == 1
    panels = [axes for axes in figure.axes if axes.axison]
    assert min(axes.get_window_extent().width for axes in panels) > 0.25 * figure.bbox.width  # names leave room
    panels[1].legend(panels[1].get_lines()[:1], ["a run"])
    assert covered(figure) == ["Validation"]


def test_the_picture_of_a_summary_has_two_panels_for_each_data_set(many, tmp_path):
    import matplotlib
    runs, _ = read_runs(many)
    with matplotlib.rc_context(STYLE):
        titles = [axes.get_title(loc="left") for axes in summary_figure(runs).axes[::2]]
    assert sorted(titles) == ["FineWeb: 1 of 1 runs have a score", "pydoc_sp1024: 11 of 12 runs have a score"]
    draw_summary(tmp_path / "s.png", runs)
    assert (tmp_path / "s.png").stat().st_size > 10_000


def test_a_model_of_zeros_has_a_budget():
    settings = Settings(vocab_size=260, num_layers=2, model_dim=64, num_heads=2, num_kv_heads=1, train_seq_len=16)
    model, _ = encode_model(settings, {name: np.zeros_like(w) for name, w in initial_weights(settings).items()})
    assert sum(group_bytes(model_budget(model)).values()) == len(model)


def test_what_int8_costs_is_what_is_expected():
    """The error that is reported from the file against the error itself, from the weights before rounding."""
    settings = Settings(vocab_size=260, num_layers=2, model_dim=64, num_heads=2, num_kv_heads=1, train_seq_len=16)
    random = np.random.Generator(np.random.Philox(3))
    shapes = {name: w.shape for name, w in initial_weights(settings).items()}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model, _ = encode_model(settings, weights)
    budget = model_budget(model)
    assert sum(group_bytes(budget).values()) == len(model) and {t.name for t in budget} >= set(param_table(settings))
    for tensor in budget:
        if tensor.error is not None:
            w = weights[tensor.name]
            true = float(np.sqrt(np.square(dequantize_rows(*quantize_rows(w)) - w).mean() / np.square(w).mean()))
            assert tensor.error == pytest.approx(true, rel=0.05)
