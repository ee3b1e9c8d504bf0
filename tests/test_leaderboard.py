"""The leaderboard's tables and page, in headless Chromium too: `python -m pytest tests/test_leaderboard.py`."""
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from records.__main__ import main
from records.checks import is_founding
from records.folder import open_folder
from records.leaderboard import BLURB, CURVE_POINTS, CURVE_SEEDS, TITLES, markdown, read_entries
from records.page import write_page
from tests.conftest import ROOT
from tests.made_records import FINEWEB, make_record, make_run

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
PWN = "document.documentElement.dataset.pwned=1"
PAYLOAD = (
    f'<img src=x onerror="{PWN}"><script>{PWN}</script></script><svg onload="{PWN}">'
    f"]]>'\"`${{{PWN}}}` | javascript:alert(1) &lt;b&gt;"
)


def browse(page, folder, width=1280, scheme="light"):
    """The DOM of a page as headless Chromium has it after its scripts."""
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    hint = "`apt-get install chromium`, `brew install --cask chromium` or Google Chrome"
    assert browser, f"this test needs Chromium: {hint}"
    profile = Path(folder, "profile")
    shutil.rmtree(profile, ignore_errors=True)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        "--virtual-time-budget=2000",
        "--dump-dom",
    ]
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def drive(page, folder, script, **look):
    """Run a script of ours in a copy of the page without its policy, which would refuse the script. Returns what the
    script passes to done()."""
    text = page.read_text()
    assert "Content-Security-Policy" in text
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    done = "const done = (x) => document.documentElement.setAttribute('data-done', JSON.stringify(x));"
    driver = f"<script>{{{done}{script}}}</script></body>"
    copy = Path(folder, "driven.html")
    copy.write_text(text.replace("</body>", driver))
    dom = browse(copy, folder, **look)
    found = re.search(r'<html[^>]* data-done="([^"]*)"', dom)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """records/ with our founding entries and four made ones, one of which fails; the leaderboard written."""
    folder = tmp_path_factory.mktemp("board")
    for track in ("track_10min_16mb", "track_non_record_16mb"):
        for path in (ROOT / "records" / track).glob("2026-03-18*"):
            shutil.copytree(path, folder / "records" / track / path.name)
    make_record(folder, (1.2101, 1.2094, 1.2098), "10min", "Better", "2026-05-02", FINEWEB)
    make_record(folder, (1.2001, 1.1994, 1.1998), "10min", "Best", "2026-05-03", FINEWEB)
    broken = make_record(folder, (0.9, 0.91, 0.905), "10min", "Broken", "2026-05-04", FINEWEB)
    (broken / "train_gpt.py").write_bytes(b"other code\n")
    make_record(folder, (1.8, 1.81, 1.805), "non-record", "Elsewhere", "2026-05-05")
    assert main(["leaderboard", "--records", str(folder / "records")]) == 0
    return folder / "records"


def test_ranks_are_by_score_within_a_track_and_data_and_need_the_checks(board):
    entries = {e["name"]: e for e in read_entries(board)}
    assert {name: e["rank"] for name, e in entries.items()} == {
        "Best": 1,
        "Better": 2,
        "Naive Baseline": 3,
        "Broken": None,
        "4-Hour Baseline": 1,
        "Elsewhere": 1,
    }
    assert entries["Elsewhere"]["data"] == "pydoc_sp1024" and entries["Best"]["data"] == "FineWeb"
    assert entries["Naive Baseline"]["verdict"].startswith("published by the challenge")
    assert entries["Broken"]["verdict"] == "fails"
    readme = (board / "README.md").read_text()
    assert "| 1 | [Best](track_10min_16mb/2026-05-03_best/README.md) | **1.1998**<br>3 seeds, 1.1998" in readme
    assert "which is not FineWeb" in readme
    assert "| &ndash; | [Broken]" in readme and "fails: compile, code bytes, logs" in readme


def test_the_score_that_ranks_is_the_logs_and_its_bytes_must_be_shown(tmp_path):
    make_record(tmp_path, (1.8314, 1.85, 1.84), name="True")
    rough = make_record(tmp_path, (1.8312, 1.8318, 1.8317), name="Rough")
    fields = (rough / "submission.json").read_text()
    (rough / "submission.json").write_text(fields.replace('"val_bpb": 1.8317', '"val_bpb": 1.83', 1))
    entries = {e["name"]: e for e in read_entries(tmp_path / "records", "upstream-2026-04")}
    assert entries["Rough"]["val_bpb"] == 1.8312 and (entries["Rough"]["rank"], entries["True"]["rank"]) == (1, 2)
    claimed = make_record(tmp_path, (0.8, 0.81, 0.82), name="Claimed")
    for log in claimed.glob("*.log"):
        log.write_text(log.read_text().replace("data/pydoc_sp1024", "data/FineWeb10B_sp1024"))
    entry = read_entries(tmp_path / "records")[0]
    assert (entry["name"], entry["data"], entry["rank"]) == ("Claimed", "FineWeb", None) and "score" in entry["checks"]
    for log in claimed.glob("*.log"):
        log.write_text(re.sub(r"(?m)^(scored|data): .*\n", "", log.read_text()))
    fields = (claimed / "submission.json").read_text()
    (claimed / "submission.json").write_text(fields.replace("pydoc_sp1024", "FineWeb"))
    entry = read_entries(tmp_path / "records")[0]
    assert (entry["data"], entry["rank"], entry["verdict"]) == ("FineWeb", None, "not verified"), entry["why"]


def test_the_output_is_the_same_twice_and_the_repositorys_own_is_current(board, tmp_path):
    before = [(board / name).read_bytes() for name in ("README.md", "index.html")]
    assert main(["leaderboard", "--records", str(board)]) == 0
    assert before == [(board / name).read_bytes() for name in ("README.md", "index.html")]
    copy = tmp_path / "records"
    for track in ("track_10min_16mb", "track_non_record_16mb"):
        shutil.copytree(ROOT / "records" / track, copy / track)
    assert main(["leaderboard", "--records", str(copy)]) == 0
    for name in ("README.md", "index.html"):
        same = (copy / name).read_bytes() == (ROOT / "records" / name).read_bytes()
        assert same, f"records/{name} is old: python -m records leaderboard"


def test_only_the_pinned_files_are_the_challenges_own(board):
    path = board / "track_10min_16mb/2026-03-18_naive_baseline"
    assert is_founding(open_folder(path)) and main(["verify", str(path)]) == 3
    other = path.with_name("2026-03-19_naive_baseline")
    shutil.copytree(path, other)
    forged = path.with_name("2026-03-18_forged")
    shutil.copytree(path, forged)
    assert not is_founding(open_folder(other)) and not is_founding(open_folder(forged))
    assert main(["verify", str(other)]) == 1
    shutil.rmtree(other)
    shutil.rmtree(forged)


def test_the_page_works_as_it_is_written(board, tmp_path):
    """With its own policy in force: the script runs, nothing is fetched."""
    dom = browse(board / "index.html", tmp_path)
    assert 'data-ready="6"' in dom and dom.count('class="row"') == 6
    assert "FineWeb validation" in dom and "not run here" in dom
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", dom)


def test_sorting_opening_and_keys(board, tmp_path):
    found = drive(board / "index.html", tmp_path, """
const buttons = () => [...document.querySelectorAll("table")[0].querySelectorAll("button.name")];
const names = () => buttons().map((b) => b.textContent);
const out = {ranked: names()};
document.querySelector('[data-sort="date"]').click(); out.byDate = names();
document.querySelector('[data-sort="date"]').click(); out.backwards = names();
out.sorted = document.querySelector('[aria-sort="descending"]').textContent;
const best = [...document.querySelectorAll("button.name")].find((b) => b.textContent === "Best");
best.focus(); best.click();
out.focused = document.activeElement.textContent; out.hash = location.hash;
out.expanded = document.activeElement.getAttribute("aria-expanded");
const detail = document.querySelector("tr.detail");
out.paths = detail.querySelectorAll("svg path").length;
out.titles = [...detail.querySelectorAll("h3")].map((x) => x.firstChild.textContent);
const svg = detail.querySelector("svg"); svg.focus();
svg.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"})); out.tip = detail.querySelector(".tip").textContent;
document.activeElement.blur();
document.querySelector("button.name[aria-expanded=true]").click(); out.closed = !document.querySelector("tr.detail");
document.querySelectorAll(".bar button")[2].click(); out.nonRecord = names();
done(out);""")
    assert found["ranked"] == ["Best", "4-Hour Baseline", "Better", "Naive Baseline", "Broken"]  # rank, then score
    assert found["byDate"][2:] == ["Better", "Best", "Broken"]
    assert found["backwards"][:3] == ["Broken", "Best", "Better"] and found["sorted"] == "date"
    assert (found["focused"], found["expanded"], found["hash"]) == ("Best", "true", "#track_10min_16mb/2026-05-03_best")
    assert found["titles"] == ["Byte budget", "Training loss", "Validation"]
    assert found["paths"] == 6 and "seed" in found["tip"]
    assert found["closed"] and found["nonRecord"] == ["4-Hour Baseline"]


@pytest.mark.parametrize(("width", "scheme"), [(500, "light"), (500, "dark"), (1280, "dark")])
def test_a_phone_and_the_dark(board, tmp_path, width, scheme):
    found = drive(board / "index.html", tmp_path, """document.querySelector("button.name").click();
done({wide: document.documentElement.scrollWidth, inner: innerWidth,
      back: getComputedStyle(document.body).backgroundColor,
      head: getComputedStyle(document.querySelector(".board thead")).display});""", width=width, scheme=scheme)
    assert found["wide"] <= found["inner"] == width
    assert found["head"] == ("none" if width < 760 else "table-header-group")
    light = int(re.search(r"\d+", found["back"])[0]) > 128
    assert light == (scheme == "light")


def hostile_board(folder):
    """A record with the payload in every field and place that text can come from."""
    path = make_record(folder, (1.8, 1.81, 1.805))
    fields = json.loads((path / "submission.json").read_text())
    texts = {
        name: PAYLOAD[: 90 if name in ("github_id", "track") else 190]
        for name in ("author", "github_id", "name", "blurb", "track")
    }
    fields |= texts | {"date": "2026-05-01<script>", "dataset": PAYLOAD, "hardware": PAYLOAD}
    fields["seeds"] = [PAYLOAD, 1, 2, 3]
    (path / "submission.json").write_text(json.dumps(fields))
    for log in path.glob("*.log"):
        text = log.read_text().replace("data/pydoc_sp1024", "data/" + PAYLOAD.replace("/", ""))
        text = text.replace("1 x cpu, float32", PAYLOAD)
        text = text.replace("train_loss:", "train_loss:nan ", 1).replace("step_avg", "\u202e step_avg", 1)
        log.write_text(text)
    (path / "README.md").write_text(PAYLOAD)
    (path / (PAYLOAD[:60].replace("/", "") + ".py")).write_text("x = (")
    path.rename(path.with_name('2026-05-01_<img src=x onerror="document.documentElement.dataset.pwned=1">'))
    assert main(["leaderboard", "--records", str(folder / "records")]) == 0
    return folder / "records"


def test_what_a_submission_says_is_shown_and_never_run(tmp_path):
    records = hostile_board(tmp_path)
    found = drive(records / "index.html", tmp_path, """document.querySelector("button.name").click();
done({name: document.querySelector("button.name").textContent,
      tags: document.querySelectorAll("main img, main script, svg[onload], main b").length,
      pwned: document.documentElement.dataset.pwned ?? "no"});""")
    assert found == {"name": PAYLOAD[:190], "tags": 0, "pwned": "no"}
    assert "data-pwned" not in browse(records / "index.html", tmp_path).split(">")[1]
    readme = (records / "README.md").read_text()
    assert not re.search(r"<(?!br>)|javascript:alert\(1\)\)|\]\((?!track_|GUIDE)", readme)
    assert len([line for line in readme.splitlines() if line.startswith("| &ndash;")]) == 1


def test_words_of_strangers_are_plain_in_markdown():
    text = markdown("a|b <i> [x](http://e.com) `c` *d* _e_ \\ @f ![g] www.h.com\n# i \u202e \x1b[31m")
    assert not re.search(r"[|<>\[\]`*_\\@]|://|www\.|\n|\x1b|\u202e", text) and "a&#124;b" in text


def test_a_hundred_records_stay_small(board, tmp_path):
    entries = read_entries(board)
    steps = [round(20_000 * i / CURVE_POINTS) for i in range(CURVE_POINTS)]
    dense = {"seed": 1337, "train": [[s, 2.1234] for s in steps], "val": [[s, 1.2345] for s in steps]}
    full = {"blurb": "b" * BLURB, "curves": [dense] * CURVE_SEEDS}
    many = [entries[i % len(entries)] | full | {"folder": f"2026-05-01_{i}"} for i in range(100)]
    page = tmp_path / "many.html"
    assert write_page(page, "many", "leaderboard.js", {"entries": many, "titles": TITLES, "cap": 16_000_000}) < 10**6
    assert 'data-ready="100"' in browse(page, tmp_path)


def test_report_page_and_picture(tmp_path, capsys):
    runs = [make_run(tmp_path / "runs", seed, 1.8 + seed / 100) for seed in (1, 2)]
    assert main(["report", *map(str, runs), "-o", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    found = drive(tmp_path / "r.html", tmp_path, """
done({titles: [...document.querySelectorAll("h3")].map((x) => x.firstChild.textContent),
tensors: document.querySelectorAll(".small tbody tr").length, text: document.body.textContent,
paths: document.querySelectorAll("svg path").length});""")
    curves = ["Training loss", "Validation", "Learning rate", "Throughput"]
    assert found["titles"] == [*curves, "Byte budget by tensor group", "Expected rounding error per tensor"]
    assert found["paths"] == 8 and found["tensors"] == 2 + 13
    assert "peak MiB" in found["text"] and "embedding" in found["text"]
    assert 'data-ready="2"' in browse(tmp_path / "r.html", tmp_path)
    assert main(["report", str(tmp_path / "no")]) == 2 and "error: " in capsys.readouterr().err


def test_report_of_an_odd_name_and_of_a_loss_that_is_not_finite(tmp_path):
    run = make_run(tmp_path / "runs", 1, 1.8).rename(tmp_path / "runs/a$b_{$\\frac$")
    log = run / "train.log"
    text = re.sub(r"(step:5998/\d+ val_loss:)\S+ val_bpb:\S+", r"\1nan val_bpb:nan", log.read_text())
    log.write_text(re.sub(r"train_time:[1-9]\d+ms", "train_time:nanms", text, count=1))
    assert main(["report", str(run), "-o", str(tmp_path / "r.html")]) == 0 and (tmp_path / "r.png").is_file()


def test_a_model_of_zeros_has_a_budget():
    import numpy as np

    from common.artifact import encode_model
    from common.params import initial_weights
    from common.settings import Settings
    from records.budget import group_bytes, model_budget
    settings = Settings(vocab_size=260, num_layers=2, model_dim=64, num_heads=2, num_kv_heads=1, train_seq_len=16)
    model, _ = encode_model(settings, {name: np.zeros_like(w) for name, w in initial_weights(settings).items()})
    assert sum(group_bytes(model_budget(model)).values()) == len(model)


def test_what_int8_costs_is_what_is_expected():
    """The error that is reported from the file against the error itself, from the weights before rounding."""
    import numpy as np

    from common.artifact import encode_model
    from common.params import initial_weights, param_table
    from common.quantize import dequantize_rows, quantize_rows
    from common.settings import Settings
    from records.budget import group_bytes, model_budget
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


def test_reproduce_prints_data_machine_and_command(capsys):
    check = "import os; from common.settings import *; load_settings(Settings, [], os.environ, exit)"
    entries = {"naive_baseline": "=600 ", "2026-03-18_4_hour_baseline": "=14400 "}
    for entry, seconds in entries.items():
        words = f"MAX_WALLCLOCK_SECONDS{seconds}"
        assert main(["reproduce", entry, "--records", str(ROOT / "records")]) == 0
        text = capsys.readouterr().out
        assert words in text and "torchrun --standalone --nproc_per_node=8 train_gpt.py" in text
        assert "8xH100" in text and "fineweb --variant sp1024" in text
        settings = dict(word.split("=") for word in text.splitlines()[-1].split() if "=" in word and word[0].isupper())
        done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=settings, check=False)
        assert done.returncode == 0
    assert main(["reproduce", "nothing", "--records", str(ROOT / "records")]) == 2
    assert "naive_baseline" in capsys.readouterr().err
