"""The leaderboard's tables and page, in headless Chromium too: `python -m pytest tests/records/test_leaderboard.py`."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from records.__main__ import main
from records.checks import is_founding
from records.comparable import OTHER_TEXT, SEVERAL, UNSTATED
from records.folder import Folder, open_folder
from records.leaderboard import (
    BLURB,
    CURVE_POINTS,
    CURVE_SEEDS,
    bytes_cell,
    describe,
    figures,
    markdown,
    page_data,
    read_entries,
)
from records.page import write_page
from records.tree import Tree
from tests.conftest import ROOT, tiered
from tests.records.made_records import FINEWEB, make_record

WIDTHS = (360, 768, 1280, 1400)  # of a phone, a tablet and two screens, in pixels
PWN = "document.documentElement.dataset.pwned=1"
PAYLOAD = (
    f'<img src=x onerror="{PWN}"><script>{PWN}</script></script><svg onload="{PWN}">'
    f"]]>'\"`${{{PWN}}}` | javascript:alert(1) &lt;b&gt;"
)


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


@pytest.fixture(scope="module")
def entries(board):
    return read_entries(board)


def test_ranks_are_by_score_within_a_track_and_data_and_need_the_checks(board, entries):
    entries = {e["name"]: e for e in entries}
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
    assert "| 1 | [Best](track_10min_16mb/2026-05-03_best/README.md) | **1.1998**<br>3&nbsp;seeds, 1.1998" in readme
    assert "### pydoc&#95;sp1024: not comparable with scores on FineWeb" in readme
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
    assert (entry["name"], entry["data"], entry["rank"]) == ("Claimed", OTHER_TEXT, None) and "score" in entry["checks"]
    for log in claimed.glob("*.log"):
        log.write_text(re.sub(r"(?m)^(scored|data|run):.*\n", "", log.read_text()))
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


PAGES = sorted([*(ROOT / "records").glob("*.md"), *(ROOT / "records").glob("track_*/*/README.md")])


def faults_of_markdown(text, folder):
    """list of words: rows of tables that GitHub would cut or fill up, and links to files that are not there."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    found = []
    for block in re.findall(r"(?m)^\|.*(?:\n\|.*)*", text):
        rows = [re.sub(r"`[^`|]*`", "", row) for row in block.splitlines()]
        cells = [row.count("|") - row.count("\\|") for row in rows]
        if len(rows) < 2 or not re.fullmatch(r"[|\s:-]+", rows[1]):
            found.append(f"no table: {rows[0]}")
        found += [f"{n - 1} cells, {cells[0] - 1} in the head: {row}" for row, n in zip(rows, cells) if n != cells[0]]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    return found + [f"no {link}" for link in links if "://" not in link and not (folder / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "records")))
def test_the_tables_of_the_pages_are_whole_and_their_links_lead_somewhere(page):
    assert faults_of_markdown(page.read_text(), page.parent) == []


def test_a_torn_table_and_a_dead_link_are_seen(tmp_path):
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert len(PAGES) >= 8 and faults_of_markdown(table, tmp_path) == []
    assert faults_of_markdown(table + "| 1 | 2 | 3 |\n", tmp_path) == ["3 cells, 2 in the head: | 1 | 2 | 3 |"]
    assert faults_of_markdown("| a | b |\n| 1 | 2 |\n", tmp_path) == ["no table: | a | b |"]
    assert faults_of_markdown("[x](gone.md)", tmp_path) == ["no gone.md"]


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


def edit_logs(pattern, new):
    def change(folder):
        for log in folder.glob("*.log"):
            text, count = re.subn(pattern, new, log.read_text())
            assert count, pattern
            log.write_text(text)
    return change


def edit_one_log(folder):
    log = next(folder.glob("train_seed*.log"))
    log.write_text(log.read_text().replace("data/fineweb10B_sp1024", "data/pydoc_sp1024"))


SCORED, DATA = r"(?m)^scored: .*\n", r"(?m)^data: .*\n"


@pytest.mark.parametrize(("changes", "group"), [
    ([], "FineWeb"),
    ([edit_logs(SCORED, "")], "FineWeb"),
    ([edit_logs("fineweb10B_sp1024", "fineweb10B_my512"), edit_logs(SCORED, "val_loader: tokens:7\n")], "FineWeb"),
    ([edit_logs("fineweb10B", "other")], "other_sp1024"),
    ([edit_logs(r"(scored: tokens:\d+) bytes:\d+", r"\1 bytes:99000111")], OTHER_TEXT),
    ([edit_logs(r"(scored: .*)", r"\1 partial:1000/62021632")], OTHER_TEXT),
    ([edit_logs(SCORED, "val_loader:shards tokens:63779840\n")], OTHER_TEXT),
    ([edit_one_log], SEVERAL),
    ([edit_logs(DATA, "")], UNSTATED),
])
def test_an_entry_is_ranked_on_the_text_that_its_logs_say_they_scored(tmp_path, changes, group):
    folder = make_record(tmp_path, (1.2101, 1.2094, 1.2098), "non-record", "Made", data=FINEWEB)
    fields = json.loads((folder / "submission.json").read_text())
    fields.pop("dataset", None)
    (folder / "submission.json").write_text(json.dumps(fields))
    for change in changes:
        change(folder)
    tree = Tree()
    assert describe(tree.folder(folder), "strict", tree)["data"] == group


@pytest.mark.parametrize(("stated", "shown"), [
    ((30, 20, 10), "30 = 20 + 10"),
    ((None, 20, 10), "30 = 20 + 10"),
    ((30, None, 10), "30 = 20 + 10"),
    ((30, 20, None), "30 = 20 + 10"),
    ((None, None, 10), "? = ? + 10"),
    ((5, None, 10), "5 = ? + 10"),
    ((31, 20, 10), "31 &ne; 20 + 10"),
])
def test_total_is_model_and_code_or_says_what_is_unknown(stated, shown):
    names = "bytes_total", "bytes_model_int8_zlib", "bytes_code"
    fields = {name: size for name, size in zip(names, stated) if size is not None}
    found = figures(Folder(Path("made"), "track", fields=fields))
    assert bytes_cell(found["total"], found["model"], found["code"]).replace("&nbsp;", " ") == shown


def test_the_page_works_as_it_is_written(board, browser):
    """With its own policy in force: the script runs, nothing is fetched."""
    browser.open(board / "index.html")
    assert browser.run("document.documentElement.dataset.ready") == "6" and browser.requests() == []
    assert "50,000 documents" in browser.run("document.body.innerText")
    script = f"Object.assign(document.createElement('script'), {{textContent: {PWN!r}}})"
    browser.run(f"document.body.append({script})")
    assert browser.run("document.documentElement.dataset.pwned ?? 'refused'") == "refused"


NAMES = "[...document.querySelectorAll('button.name')].map((b) => b.textContent)"
CHOICES = "[...document.querySelectorAll('.bar button')].map((b) => b.textContent)"


def test_one_ranking_at_a_time_and_first_the_official_track_on_fineweb(board, browser):
    browser.open(board / "index.html")
    choices = ["10 minutes, FineWeb (4)", "Non-record, FineWeb (1)", "Non-record, pydoc_sp1024 (1)"]
    assert browser.run(CHOICES) == choices
    seen, dots = [], "document.querySelectorAll('.grid svg')[1].querySelectorAll('circle').length"
    for place in range(3):
        browser.run(f"document.querySelectorAll('.bar button')[{place}].click()")
        assert browser.run("document.querySelectorAll('table.board').length") == 1
        seen.append((browser.run(NAMES), browser.run(dots)))
    assert seen == [
        (["Best", "Better", "Naive Baseline", "Broken"], 4),
        (["4-Hour Baseline"], 1),
        (["Elsewhere"], 1),
    ]


@pytest.mark.parametrize(("kept", "choices"), [
    (["track_10min_16mb pydoc", "track_non_record_16mb FineWeb"], ["Non-record, FineWeb (1)", "10 minutes, pydoc (1)"]),
    (["track_non_record_16mb pydoc"], ["Non-record, pydoc (1)"]),
    ([], []),
])
def test_without_official_entries_the_page_opens_with_what_there_is(entries, browser, tmp_path, kept, choices):
    made = [entries[0] | dict(zip(("track", "data"), words.split())) for words in kept]
    write_page(tmp_path / "page.html", "page", "leaderboard.js", page_data(made))
    browser.open(tmp_path / "page.html")
    assert browser.run(CHOICES) == choices
    assert browser.run("document.querySelector('.bar button')?.ariaPressed ?? null") == ("true" if choices else None)
    assert ("No records yet." in browser.run("document.body.innerText")) == (not choices)


def test_sorting_and_opening_by_keyboard_alone(board, browser):
    browser.open(board / "index.html")
    focused = "document.activeElement.textContent"

    def press_until(text):
        for _ in range(40):
            browser.press("Tab")
            if browser.run(focused) == text:
                return
        raise AssertionError(f"the Tab key does not reach {text!r}")

    press_until("date")
    browser.press("Enter")
    assert browser.run(NAMES) == ["Naive Baseline", "Better", "Best", "Broken"] and browser.run(focused) == "date"
    browser.press("Enter")
    assert browser.run(NAMES) == ["Broken", "Best", "Better", "Naive Baseline"]
    assert browser.run("document.querySelector('[aria-sort=descending]').textContent") == "date"
    press_until("Best")
    browser.press(" ")
    assert browser.run("[document.activeElement.textContent, document.activeElement.ariaExpanded, location.hash]") == [
        "Best", "true", "#track_10min_16mb/2026-05-03_best"]
    titles = browser.run("[...document.querySelectorAll('.detail h3')].map((x) => x.firstChild.textContent)")
    assert titles == ["Byte budget", "Training loss", "Validation"]
    assert browser.run("document.querySelectorAll('.detail svg path').length") == 6
    browser.press("Tab", "ArrowLeft")
    assert "seed" in browser.run("document.querySelector('.detail .tip').textContent")
    browser.press("Escape")
    assert browser.run("document.querySelector('.detail .tip').hidden")
    browser.run("document.querySelector('[aria-expanded=true]').focus()")
    browser.press("Enter")
    assert browser.run("!document.querySelector('.detail') && location.hash") == ""


def test_a_dot_of_a_chart_opens_its_run_by_pointer_and_by_key(board, browser):
    browser.open(board / "index.html")
    browser.run("document.querySelector('.grid svg').focus()")
    browser.press("ArrowRight", "Enter")
    assert browser.run("location.hash") == "#track_10min_16mb/2026-05-04_broken"  # the latest
    browser.run("document.querySelector('.grid circle').dispatchEvent(new MouseEvent('click'))")
    assert browser.run("location.hash") == "#track_10min_16mb/2026-05-03_best"


def test_an_address_opens_its_entry_in_its_own_ranking(board, browser):
    browser.open(board / "index.html", part="#track_non_record_16mb/2026-05-05_elsewhere")
    assert browser.run(NAMES) == ["Elsewhere"] and browser.run("!!document.querySelector('.detail')")
    browser.run("location.hash = '#track_10min_16mb/2026-05-03_best'")
    browser.settle()
    assert browser.run("document.querySelector('[aria-expanded=true]').textContent") == "Best"
    browser.open(board / "index.html", part="#track_10min_16mb/%E0%A4%A")
    assert browser.run("document.querySelectorAll('.row').length") == 4


def test_the_byte_budget_shows_model_and_code(board, entries, browser):
    browser.open(board / "index.html")
    budgets = []
    for name in ("Naive Baseline", "Best"):
        browser.run(f"[...document.querySelectorAll('button.name')].find((b) => b.textContent === '{name}').click()")
        budgets.append(browser.run("document.querySelector('.detail .legend').innerText.split('\\n')"))
    assert budgets[0] == ["model 15,815,847", "code 47,642", "136,510 left"]
    best = next(e for e in entries if e["name"] == "Best")
    assert f"code {best['code']:,}" in budgets[1] and f"{15_999_999 - best['total']:,} left" in budgets[1]
    groups = [words.split() for words in budgets[1] if words.split()[0] in best["budget"]]
    assert sum(int(size.replace(",", "")) for _, size in groups) == best["model"]


LONG = "An_unbreakable_" + "name" * 46
ODD_ENTRIES = (
    {},
    {"name": LONG, "author": "W" * 200, "github": "w" * 100, "dataset": "d" * 80, "hardware": "h" * 120},
    {"name": PAYLOAD, "blurb": "x" * BLURB, "why": ["layout: " + "y" * 400] * 6, "verdict": "fails", "rank": None},
    {"val_bpb": 100.0, "mean": None, "sd": None, "seeds": 0, "rank": None, "verdict": "not verified"}
    | dict.fromkeys(("author", "github", "blurb", "date", "hardware", "dataset"), "")
    | dict.fromkeys(("total", "model", "code", "steps", "seconds", "val_loss", "before", "budget")) | {"curves": []},
    {"model": 1, "sd": 0.0012, "mean": 1.2, "seeds": 3, "folder": "2026-05-01_" + "f" * 100},
)


def made_entries(entries, count):
    """So many entries in the official ranking, each odd in its own way."""
    made = []
    for i in range(count):
        place = {"folder": f"2026-05-01_{i}", "track": "track_10min_16mb", "data": "FineWeb", "rank": i + 1}
        date = f"2026-0{3 + i // 25}-{1 + i % 25:02}"
        numbers = {"date": date, "val_bpb": 1.25 - 0.002 * i, "total": 15_000_000 + 16_001 * i}
        made.append(entries[i % len(entries)] | place | numbers | ODD_ENTRIES[i % len(ODD_ENTRIES)])
    return made


@pytest.mark.parametrize("count", tiered([5, 0, 1, 60], 4))
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_or_overlaps(entries, browser, tmp_path, width, count):
    """Closed, and with each kind of entry open."""
    page = tmp_path / "page.html"
    write_page(page, "page", "leaderboard.js", page_data(made_entries(entries, count)))
    browser.open(page, width)
    assert browser.faults() == []
    for place in range(min(count, 5)):
        browser.run(f"document.querySelectorAll('button.name')[{place}].click()")
        browser.run("document.querySelectorAll('.plot svg').forEach((svg) => svg.dispatchEvent("
                    "new KeyboardEvent('keydown', {key: 'ArrowLeft'})))")  # shows the tips
        assert browser.faults() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_on_the_repositorys_own_page(browser, width):
    page = ROOT / "records/index.html"
    browser.open(page, width)
    for place in range(browser.run("document.querySelectorAll('.bar button').length")):
        browser.run(f"document.querySelectorAll('.bar button')[{place}].click();"
                    "document.querySelector('button.name').click()")
        assert browser.faults() == []


@pytest.mark.parametrize(("style", "fault"), [
    ("main { min-width: 1500px }", "the page is"),
    (".blurb { height: 10px; overflow: hidden }", "hides"),
    (".board { width: 1300px } .tablecard { overflow: auto }", "scrolls without a hint"),
    (".c-score { position: relative; left: -60px }", "overlaps"),
    (".plot text { transform: translateX(-30px) }", "leaves its svg"),
    ("td .name { white-space: nowrap }", "leaves the page"),
])
def test_the_test_of_the_layout_sees_what_is_cut(entries, browser, tmp_path, style, fault):
    page = tmp_path / "page.html"
    write_page(page, "page", "leaderboard.js", page_data(made_entries(entries, 5)))
    browser.open(page)
    assert browser.faults() == []
    browser.run(f"document.querySelector('style').textContent += {json.dumps(style)}")
    assert fault in " ".join(browser.faults())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(entries, browser, tmp_path, scheme):
    """At least 4.5 to 1, as WCAG 2 asks of text."""
    page = tmp_path / "page.html"
    write_page(page, "page", "leaderboard.js", page_data(made_entries(entries, 5)))
    browser.open(page, scheme=scheme)
    browser.run("document.querySelectorAll('button.name')[2].click()")
    kinds = "h1, h3, p, .soft, .chip, .bar button, th, dt, dd, li, text"
    pairs = browser.run(f"[...document.querySelectorAll('{kinds}')]" + """.map((e) => {
      const ink = (style) => e.closest("svg") && e.tagName === "text" ? style.fill : style.color;
      let behind = e;
      while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
      return [e.textContent, ink(getComputedStyle(e)), getComputedStyle(behind).backgroundColor];
    })""")
    light = {text: contrast(ink, paper) for text, ink, paper in pairs}
    assert len(light) > 40 and {text: value for text, value in light.items() if value < 4.5} == {}
    assert (luminance(browser.run("getComputedStyle(document.body).backgroundColor")) > 0.5) == (scheme == "light")


def luminance(color):
    """Relative luminance of rgb(r, g, b), as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(*colors):
    low, high = sorted(map(luminance, colors))
    return (high + 0.05) / (low + 0.05)


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


def test_what_a_submission_says_is_shown_and_never_run(tmp_path, browser):
    records = hostile_board(tmp_path)
    browser.open(records / "index.html")
    browser.run("document.querySelector('button.name').click()")
    assert browser.run("document.querySelector('button.name').textContent") == PAYLOAD[:190]
    assert browser.run("document.querySelectorAll('main img, main script, svg[onload], main b').length") == 0
    assert browser.run("document.documentElement.dataset.pwned ?? 'no'") == "no" and browser.requests() == []
    readme = (records / "README.md").read_text()
    assert not re.search(r"<(?!br>)|javascript:alert\(1\)\)|\]\((?!track_|GUIDE)", readme)
    assert len([line for line in readme.splitlines() if line.startswith("| &ndash;")]) == 1
    assert [fault for fault in faults_of_markdown(readme, records) if "GUIDE.md" not in fault] == []


def test_words_of_strangers_are_plain_in_markdown():
    text = markdown("a|b <i> [x](http://e.com) `c` *d* _e_ \\ @f ![g] www.h.com\n# i \u202e \x1b[31m")
    assert not re.search(r"[|<>\[\]`*_\\@]|://|www\.|\n|\x1b|\u202e", text) and "a&#124;b" in text


def test_a_hundred_records_stay_small(entries, tmp_path, browser):
    steps = [round(20_000 * i / CURVE_POINTS) for i in range(CURVE_POINTS)]
    dense = {"seed": 1337, "train": [[s, 2.1234] for s in steps], "val": [[s, 1.2345] for s in steps]}
    full = {"blurb": "b" * BLURB, "curves": [dense] * CURVE_SEEDS}
    many = [entries[i % len(entries)] | full | {"folder": f"2026-05-01_{i}"} for i in range(100)]
    page = tmp_path / "many.html"
    assert write_page(page, "many", "leaderboard.js", page_data(many)) < 10**6
    browser.open(page)
    assert browser.run("document.documentElement.dataset.ready") == "100"


def test_reproduce_prints_data_machine_and_command(capsys):
    check = "import os; from common.settings import *; load_settings(Settings, [], os.environ, exit)"
    entries = {"naive_baseline": "=600 ", "2026-03-18_4_hour_baseline": "=14400 "}
    for entry, seconds in entries.items():
        words = f"MAX_WALLCLOCK_SECONDS{seconds}"
        assert main(["reproduce", entry, "--records", str(ROOT / "records")]) == 0
        text = capsys.readouterr().out
        assert words in text and "torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=8 train_gpt.py" in text
        assert "8xH100" in text and "fineweb --variant sp1024" in text
        settings = dict(word.split("=") for word in text.splitlines()[-1].split() if "=" in word and word[0].isupper())
        done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=settings, check=False)
        assert done.returncode == 0
    assert main(["reproduce", "nothing", "--records", str(ROOT / "records")]) == 2
    assert "naive_baseline" in capsys.readouterr().err
