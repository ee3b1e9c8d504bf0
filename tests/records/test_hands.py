"""Records in other hands: what git, operating systems, editors, launchers and log collectors do to their files.

Run: `python -m pytest tests/records/test_hands.py`.
"""
import shutil
import tempfile

import pytest

from records.__main__ import main
from records.folder import open_folder
from records.git import Change
from records.leaderboard import read_entries
from records.litter import is_litter
from records.logs import read_log
from records.pull import judge_changes
from records.verdict import verdict
from records.verify import verify_folder
from tests.conftest import ROOT
from tests.records.made_records import SCRIPT, make_record, make_run
from tests.records.test_pr import commit, git

MEANING = ("train", "val", "scores", "settings", "averages", "seed", "total_bytes", "versions", "problems")


def meaning(log):
    return {name: getattr(log, name) for name in MEANING}


# Long logs ------------------------------------------------------------------------------------------------------------


def test_a_log_of_5_megabytes_is_packed_and_verified(tmp_path, capsys):
    """What a log may have is not what memory it takes: it is read line by line. Here other lines make it long, which
    are quicker to make than steps."""
    run = make_run(tmp_path, 1, 1.8)
    log = run / "train.log"
    log.write_text("throughput of the last step: 123456 tok/s, nothing to report\n" * 85_000 + log.read_text())
    assert log.stat().st_size > 5_000_000
    words = ["--track", "non-record", "--name", "long", "--author", "x", "--github-id", "x", "--date", "2026-05-01"]
    main(["pack", str(run), *words, "--records", str(tmp_path)])
    record = tmp_path / "track_non_record_16mb/2026-05-01_long"
    assert (record / "train.log").read_bytes() == log.read_bytes()
    assert "FAILS by the strict rules: layout\n" in capsys.readouterr().out  # the README is a draft


class Stream:
    """A file that knows only how to give its next line."""

    def __init__(self, data):
        self._lines = data.splitlines(keepends=True)

    def __iter__(self):
        return iter(self._lines)


@pytest.mark.parametrize("damage", [b"", b"\xff", b"\0"])
def test_a_log_is_a_stream(tmp_path, damage):
    """Line by line everything is as it is in one piece: the lines, the digest, the place of what is no text."""
    data = (make_run(tmp_path, 1, 1.8) / "train.log").read_bytes() + damage
    log = read_log("train.log", Stream(data))
    assert log == read_log("train.log", data)
    assert log.problems == {b"": [], b"\0": ["holds NUL bytes"]}.get(damage, [f"is not UTF-8 at byte {len(data) - 1}"])


def test_a_log_beyond_all_limits_is_refused_with_a_remedy(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path, 1, 1.8)
    size = (run / "train.log").stat().st_size
    monkeypatch.setattr("records.pack.LOG_LIMIT", size - 1)
    words = ["--track", "non-record", "--name", "x", "--author", "x", "--github-id", "x"]
    assert main(["pack", str(run), *words, "--records", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"has {size:,} bytes, more than the limit of {size - 1:,}" in said and "TRAIN_LOG_EVERY" in said


def test_all_logs_of_a_folder_together_have_a_limit(tmp_path, monkeypatch):
    record = make_record(tmp_path, (1.8, 1.81))
    monkeypatch.setattr("records.folder.LOGS_BYTES", (record / "train.log").stat().st_size + 9)
    [(what, name)] = open_folder(record).log_errors
    assert name == "train_seed1.log" and "for all logs" in what


# Logs with a prefix on each line --------------------------------------------------------------------------------------

PREFIXED = [  # what stands before each line, with the line's number in it
    "0: ", "  12: ", "2026-11-25T10:00:{:02}.123456789Z ", "2026-11-25 10:00:{:02}+01:00 ", "[2026-11-25 10:00:{:02}] ",
    "[10:00:{:02}] ", "Nov 25 10:00:{:02} ", "Nov  5 10:00:{:02} gpu-7 python[4242]: ", "[pod/train-0/main] ",
    "trainer-1  | ", "\x1b[36mtrainer-1  | \x1b[0m", "[1,0]<stdout>: ", "[1,0]<stdout>:", "[0] : ", "node-7: ",
    "(main pid=4242, ip=10.0.0.7) ", "INFO:root:", "[default0]:", "[rank0]: ", "[stdout] ", "10:00:{:02} ",
    "2026-11-25 10:00:{:02},123 - root - INFO - ", "[2026-11-25 10:00:{:02},123][__main__][INFO] - ",
    "2026-11-25 10:00:{:02}.123 | INFO     | __main__:log:12 - ", "2026-11-25T10:00:{:02}.123Z 0: ",
    "[pod/train-0/main] 2026-11-25T10:00:{:02}.123Z [default0]:", "I1125 10:00:{:02}.123456 140 train.py:12] ",
    "2026-11-25T10:00:{:02}Z stdout F ", "train-0\t", "gpu-7.cluster: ", "[  12.3456{:02}] ", "1764064{:03}.123 ",
    "INFO     ",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return (make_run(tmp_path_factory.mktemp("plain"), 1, 1.8) / "train.log").read_text()


@pytest.mark.parametrize("prefix", PREFIXED)
def test_a_prefix_on_each_line_changes_nothing(plain, prefix):
    """As `srun -l`, `kubectl logs --timestamps` and others put there; a few lines of their own stay without. Source
    that a script prints first does not matter."""
    source = ["import os", "    print(f'step:{step}/{last} train_loss:{loss}')", ""] * 100
    lines = [prefix.format(number % 60) + line for number, line in enumerate([*source, *plain.splitlines()])]
    text = "\n".join(["srun: job 4242 queued", *lines, "srun: done", ""])
    log = read_log("train.log", text.encode())
    assert meaning(log) == meaning(read_log("train.log", plain.encode())) and log.where("seed") == "train.log"
    assert log.where("run") == "train.log:302"


def test_a_byte_order_mark_in_a_log_is_not_part_of_its_line(plain):
    """As Windows puts it before the first line, or before what is appended."""
    log = read_log("train.log", ("\ufeff" + plain).encode())
    assert meaning(log) == meaning(read_log("train.log", plain.encode())) and log.where("run") == "train.log:1"


def test_a_log_in_utf_16_is_named_as_such(plain):
    assert [problem[:9] for problem in read_log("train.log", plain.encode("utf-16")).problems] == ["is UTF-16"]


def test_a_record_whose_logs_have_prefixes_passes(tmp_path):
    record = make_record(tmp_path, (1.8, 1.81, 1.79))
    for path in record.glob("*.log"):
        lines = path.read_text().splitlines()
        path.write_text("".join(f"2026-11-25T10:{n // 60:02}:{n % 60:02}.123456789Z 0: {t}\n"
                                for n, t in enumerate(lines)))
    result = verify_folder(record)
    assert verdict(result)[0] == "passes", result


def test_settings_below_their_heading_keep_their_indent():
    text = "Hyperparameters:\n  seed: 42\n  matrix_lr: 0.04\nstep:1/9 train_loss:2.0000 train_time:9ms\n"
    prefixed = "".join(f"INFO     {line}\n" for line in text.splitlines())
    assert read_log("a", prefixed.encode()).hyperparameters == read_log("a", text.encode()).hyperparameters != {}


def test_a_prefix_on_few_lines_is_no_prefix(plain):
    """What the minority of the first lines begin with belongs to them."""
    noise = "0: step:1/9 val_loss:1.0 val_bpb:1.0\n" + "0: final_x val_loss:1.0 val_bpb:0.5\n" * 5
    assert meaning(read_log("a", (noise + plain).encode())) == meaning(read_log("a", plain.encode()))


# Litter ---------------------------------------------------------------------------------------------------------------

LITTER = [
    ".DS_Store", "._train.log", "._train_gpt.py", "._model.int8.zlib", "__MACOSX/._train.log", "Icon\r", "Thumbs.db",
    "desktop.ini", "train.log:Zone.Identifier", "~$README.md", ".directory", ".Trash-1000/files/train.log",
    ".nfs000000000123abcd", ".fuse_hidden0001", "@eaDir/train.log/x", "train.log~", "#train_gpt.py#", ".train.log.swp",
    "train_gpt.py.bak", "train_gpt.py.orig", "train_gpt.py.rej", "logs/.DS_Store", "logs/train_seed9.log~",
    ".idea/workspace.xml", ".vscode/settings.json", ".ipynb_checkpoints/train_gpt-checkpoint.py",
    "__pycache__/train_gpt.cpython-311.pyc", ".git/config", "lib/.ruff_cache/x.py", "model.int8.zlib.part",
    ".ipynb_checkpoints/train_seed7-checkpoint.log",
]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_record(tmp_path_factory.mktemp("clean"), (1.8, 1.81, 1.79))


def litter(folder, names, content):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_litter_is_one_finding_whatever_is_in_it(clean, tmp_path):
    """Not even a copy of the log, of the code or of the model is taken for one."""
    contents = [(clean / name).read_bytes() for name in ("train.log", "train_gpt.py", "model.int8.zlib")]
    before = verify_folder(clean)
    for number, content in enumerate(contents):
        folder = shutil.copytree(clean, tmp_path / f"{number}/records/track_non_record_16mb" / clean.name)
        litter(folder, LITTER, content)
        (folder / ".#train.log").symlink_to("someone@laptop.4242")  # Emacs locks a file so
        result = verify_folder(folder)
        [finding] = result.pop("layout")
        assert finding.status == "FAIL" and ".DS_Store" in finding.observed and "Delete these" in finding.meaning
        assert result == {name: found for name, found in before.items() if name != "layout"}
        opened, other = open_folder(folder), open_folder(clean)
        assert opened.files == other.files


@pytest.mark.parametrize("name", LITTER)
def test_each_kind_of_litter_is_known(clean, tmp_path, name):
    folder = shutil.copytree(clean, tmp_path / "track_non_record_16mb" / clean.name)
    litter(folder, [name], b"x")
    [found] = open_folder(folder).litter
    assert name == found or name.startswith(f"{found}/")


@pytest.mark.parametrize("name", ["logs/a.log", "tmp.txt", "notes.md", ".gitignore", "bak/x.txt", "git.log", "~x.txt",
                                  "#1.txt", "train#2.log", ".python-version", "a.swp.txt", "history.csv"])
def test_what_a_person_may_have_put_there_is_not_litter(name):
    assert not any(is_litter(part) for part in name.split("/"))


def test_litter_beside_records_is_not_a_record(clean, tmp_path, capsys):
    """Of a track, of the tables, of `reproduce`."""
    track = tmp_path / "records/track_non_record_16mb"
    shutil.copytree(clean, track / clean.name)
    litter(track, ["__MACOSX/._x", "@eaDir/x", "Thumbs.db", ".DS_Store", "__pycache__/x.pyc"], b"x")
    assert main(["verify", str(track)]) == 0 and "eaDir" not in capsys.readouterr().out
    assert main(["reproduce", "no_such", "--records", str(track.parent)]) == 2
    assert "eaDir" not in capsys.readouterr().err
    assert len(read_entries(track.parent)) == 1


def test_litter_in_a_pull_request_is_one_finding():
    """Beside the new record, in an earlier one, anywhere in the repository."""
    old, new = "records/track_10min_16mb/2026-05-01_old", "records/track_10min_16mb/2026-05-02_new"
    names = [".DS_Store", "records/.DS_Store", "common/train.py~", f"{old}/._train.log", f"{new}/.DS_Store",
             "records/track_10min_16mb/__MACOSX/._x", "records/track_10min_16mb/__MACOSX/._y", f"{new}/train.log"]
    found, [finding] = judge_changes([Change("A", name, "", "1") for name in names], {old})
    assert found == [new] and finding.observed.endswith(
        "tool: .DS_Store, records/.DS_Store, common/train.py~, "
        f"{old}/._train.log, records/track_10min_16mb/__MACOSX")
    assert judge_changes([Change("D", ".DS_Store", "1", "")], {old})[1][0].observed == "removes .DS_Store"


# Line ends ------------------------------------------------------------------------------------------------------------

CRLF_GIT = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]


def crlf(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def committed(repository):
    git(repository, "init", "-q")
    commit(repository)
    return repository


def test_a_clone_that_wants_crlf_has_the_bytes_that_were_committed(clean, tmp_path):
    """.gitattributes: records as they are, with whatever line ends, and all other text with LF."""
    repository = tmp_path / "repository"
    record = shutil.copytree(clean, repository / "records/track_non_record_16mb" / clean.name)
    (record / "lib").mkdir()
    (record / "lib/windows.txt").write_bytes(b"a\r\nb\r\n")
    for name in (".gitattributes", "train_gpt.py", "Makefile", "common/bundle.py", "tests/parity/ideas/mlp_power.diff"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, repository / name)
    before = {path.relative_to(repository): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    git(tmp_path, "clone", "-q", *CRLF_GIT, committed(repository), "clone")
    assert {name: (tmp_path / "clone" / name).read_bytes() for name in before} == before
    assert git(tmp_path / "clone", *CRLF_GIT, "status", "--porcelain") == ""


def test_changed_line_ends_are_one_finding_with_a_remedy_that_works(clean, tmp_path):
    """Of a record in a repository without .gitattributes. All other checks say what they say of the right bytes."""
    track = "records/track_non_record_16mb"
    shutil.copytree(clean, tmp_path / "repository" / track / clean.name)
    git(tmp_path, "clone", "-q", *CRLF_GIT, committed(tmp_path / "repository"), "clone")
    record = tmp_path / "clone" / track / clean.name
    assert b"\r\n" in (record / "train_gpt.py").read_bytes()
    result, before = verify_folder(record), verify_folder(clean)
    [finding] = result.pop("layout")
    assert finding.status == "FAIL" and "were changed to CRLF" in finding.observed, finding
    assert result == {name: found for name, found in before.items() if name != "layout"}
    assert f"`git checkout -- {clean.name}`" in finding.meaning
    git(record, "config", "core.autocrlf", "false")
    shutil.rmtree(record)
    git(record.parent, "checkout", "--", clean.name)
    assert verify_folder(record) == before


@pytest.mark.parametrize(("names", "more"), [(["train_gpt.py"], ""), (["train_gpt.py", "README.md", "train.log"], ""),
                                             (["train_gpt.py", "train.log", "README.md", "submission.json"], " and 1")])
def test_one_converted_file_is_enough(clean, tmp_path, names, more):
    """An editor converts what it saves, a transfer in text mode what it takes for text."""
    record = shutil.copytree(clean, tmp_path / "track_non_record_16mb" / clean.name)
    for name in names:
        crlf(record / name)
    [finding] = verify_folder(record)["layout"]
    assert all(name in finding.observed for name in sorted(names)[:3]) and more in finding.observed


def test_what_ran_with_crlf_has_its_right_bytes(tmp_path):
    """No alarm while it has them, one when git has made LF of them."""
    record = make_record(tmp_path, (1.8, 1.81, 1.79), script=SCRIPT.replace(b"\n", b"\r\n"))
    before = verify_folder(record)
    assert verdict(before)[0] == "passes"
    script = record / "train_gpt.py"
    script.write_bytes(script.read_bytes().replace(b"\r\n", b"\n"))
    result = verify_folder(record)
    [finding] = result.pop("layout")
    assert finding.observed == "the line ends of train_gpt.py were changed to LF"
    assert result == {name: found for name, found in before.items() if name != "layout"}


def test_without_a_place_for_a_copy_the_line_ends_are_still_named(clean, tmp_path, monkeypatch):
    record = shutil.copytree(clean, tmp_path / "track_non_record_16mb" / clean.name)
    crlf(record / "train_gpt.py")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    [(what, _)] = open_folder(record).problems
    assert what.startswith("line ends were changed to CRLF, and no copy can be made: [Errno 2]")


def test_other_bytes_are_not_blamed_on_line_ends(clean, tmp_path):
    record = shutil.copytree(clean, tmp_path / "track_non_record_16mb" / clean.name)
    (record / "train_gpt.py").write_bytes(SCRIPT.replace(b"0.1", b"0.2000").replace(b"\n", b"\r\n"))
    result = verify_folder(record)
    assert result["layout"][0].status == "PASS" and result["logs"][0].status == "FAIL"


def test_a_founding_run_is_known_with_crlf_too(tmp_path):
    name = "track_10min_16mb/2026-03-18_naive_baseline"
    record = shutil.copytree(ROOT / "records" / name, tmp_path / name)
    for path in record.iterdir():
        crlf(path)
    [finding, *others] = verify_folder(record)["layout"]
    assert "line ends of README.md, submission.json were changed to CRLF" in finding.observed
    assert {other.status for other in others} == {"NOT VERIFIED"}


def test_no_prefix_takes_long():
    """Shapes that could match in many ways, on lines that do not."""
    text = "1.1a." * 39 + " step:1/9 val_loss:1.0 val_bpb:1.0\n" + ("1." * 400 + "\n" + "a" * 100_000 + "\n") * 50
    assert read_log("a", text.encode()).val == []


def test_an_indented_example_is_no_log():
    """In source, which is indented for the most part."""
    text = '    """\n    step:1/9 val_loss:1.0 val_bpb:1.0 train_time:9ms\n    """\n' + "    x = 1\n" * 9
    assert read_log("a", text.encode()).val == []
