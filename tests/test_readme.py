"""The README and those of the rooms are true: `python -m pytest tests/test_readme.py`; `python -m tests.test_readme`
writes the settings table anew."""
import re
from pathlib import Path

import pytest

from common.settings import KINDS, Settings, settings_table

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "common/README.md"
PAGES = [ROOT / "README.md", SETTINGS, *(ROOT / name for name in (
    "CONTRIBUTING.md", "common/data/README.md", "parity/README.md", "records/GUIDE.md", "records/NOTES.md",
    "tests/README.md"))]
README_LINES, PAGE_LINES = 150, 300  # at most


def table():
    rows, before = ["| setting | default | meaning |", "| --- | --- | --- |"], ""
    for group, name, default, meaning in settings_table(Settings):
        if group != before:
            rows.append(f"| **{KINDS[group]}** | | |")
        rows.append(f"| `{name}` | {default or '(empty)'} | {meaning} |")
        before = group
    return "\n".join(rows)


def with_table(text):
    return re.sub(
        r"(?<=<!-- settings -->\n).*?(?=<!-- end of settings -->)", lambda _: table() + "\n", text, flags=re.DOTALL
    )


def test_the_settings_table_is_the_generated_one():
    assert SETTINGS.read_text() == with_table(SETTINGS.read_text())


def test_only_the_memory_setting_differs_in_mlx():
    from train_gpt_mlx import MlxSettings
    ours, theirs = settings_table(Settings), settings_table(MlxSettings)
    assert {row[1] for row in set(ours) ^ set(theirs)} == {"MICRO_BATCH_TOKENS"}
    assert ("MICRO_BATCH_TOKENS", "8192") in [row[1:3] for row in theirs]


def test_the_file_tree_names_every_file():
    pages = [re.split("## (?:Files|Where things are)\n+(?=```)", page.read_text()) for page in PAGES]
    trees = [page[1].split("```")[1] for page in pages if page[1:]]
    tree = "\n".join(trees)
    named = set(re.findall(r"^ *([\w./]+)", tree, re.MULTILINE))
    files = [
        p.name
        for p in [
            *ROOT.glob("*.py"),
            *ROOT.glob("common/**/*.py"),
            *ROOT.glob("parity/*.py"),
            *ROOT.glob("records/*.py"),
        ]
    ]
    assert {name for name in files if name != "__init__.py"} <= named
    there = [str(path) for pattern in ("*", ".ci/*", "[!.]*/**/*") for path in ROOT.glob(pattern)]
    assert all(any(path.endswith(f"/{name.rstrip('/')}") for path in there) for name in named)


def test_the_readme_shows_what_is_there():
    text, idea = PAGES[0].read_text(), (ROOT / "tests/parity/ideas/mlp_power_fork.diff").read_text()
    shown = re.search(r"```diff\n(.*?)```", text, re.DOTALL)[1]
    changed = [[line for line in diff.splitlines() if re.match(r"[-+](?![-+])", line)] for diff in (shown, idea)]
    assert changed[0] == changed[1] and len(changed[0]) == 4
    ladder = re.findall(r"^.* (?:exact|[\d.]+e-\d+) +ok.*$", text, re.MULTILINE)
    assert len(ladder) == 8 and set(ladder) <= set((ROOT / "parity/README.md").read_text().splitlines())
    table = (ROOT / "records/README.md").read_text().splitlines()
    results = re.findall(r"\| (\d\.\d{4}) \| ([\d,]+) \|", text)
    assert len(results) == 3 and all(any(f"**{bpb}**" in row and f"| {size} =" in row for row in table)
                                     for bpb, size in results)


def test_torchrun_looks_up_no_name():
    """A laptop's own name often does not resolve: torchrun --standalone alone waits for it in vain."""
    others = [ROOT / "Makefile", ROOT / "train_gpt.py", ROOT / "records/README.md", *ROOT.glob("records/*.py")]
    written = [*PAGES, *others]
    commands = [line for path in written for line in path.read_text().splitlines() if "torchrun --s" in line]
    assert len(commands) == 5 and all("--standalone --local-addr 127.0.0.1 " in line for line in commands), commands


def test_every_test_that_a_table_names_exists():
    """`room/test_file::test_name` in tests/README.md; without a file it is in that of the name before; * ends any."""
    named, path = 0, None
    for file, name, star in re.findall(r"`(?:([\w/]+)::)?(test_\w+?)(\*?)`", (ROOT / "tests/README.md").read_text()):
        path = ROOT / f"tests/{file}.py" if file else path
        if path:  # before the tables, a file is named
            named += 1
            assert re.search(rf"^def {name}{'' if star else '[(]'}", path.read_text(), re.MULTILINE), (path, name)
    assert named > 60


def test_no_place_was_left_to_fill():
    for page in PAGES:
        assert not re.search(r"<!-- (?!settings|end of settings)|@[A-Z]+@", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short_and_its_links_lead_somewhere(page):
    text = page.read_text()
    assert text.count("\n") <= (README_LINES if page == PAGES[0] else PAGE_LINES)
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", re.sub(r"`[^`\n]*`", "", text))
    for link, anchor in links:
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), f"{link}#{anchor}"


def anchors(text):
    """Names of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


if __name__ == "__main__":
    SETTINGS.write_text(with_table(SETTINGS.read_text()))
