"""Records in other hands: what git, operating systems, editors, launchers and log collectors do to their files.

Run: `python -m pytest tests/test_records_hands.py`.
"""
import pytest

from records.__main__ import main
from records.folder import open_folder
from records.logs import read_log
from records.verdict import verdict
from records.verify import verify_folder
from tests.made_records import make_record, make_run

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
    "(main pid=4242, ip=10.0.0.7) ", "INFO:root:", "[default0]:", "[rank0]: ",
    "2026-11-25 10:00:{:02},123 - root - INFO - ", "[2026-11-25 10:00:{:02},123][__main__][INFO] - ",
    "2026-11-25 10:00:{:02}.123 | INFO     | __main__:log:12 - ", "2026-11-25T10:00:{:02}.123Z 0: ",
    "[pod/train-0/main] 2026-11-25T10:00:{:02}.123Z [default0]:",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return (make_run(tmp_path_factory.mktemp("plain"), 1, 1.8) / "train.log").read_text()


@pytest.mark.parametrize("prefix", PREFIXED)
def test_a_prefix_on_each_line_changes_nothing(plain, prefix):
    """As `srun -l`, `kubectl logs --timestamps` and others put there; a few lines of their own stay without."""
    lines = [prefix.format(number % 60) + line for number, line in enumerate(plain.splitlines())]
    text = "\n".join(["srun: job 4242 queued", *lines, "srun: done", ""])
    log = read_log("train.log", text.encode())
    assert meaning(log) == meaning(read_log("train.log", plain.encode())) and log.where("seed") == "train.log"
    assert log.where("run") == "train.log:2"


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
    prefixed = "".join(f"0: {line}\n" for line in text.splitlines())
    assert read_log("a", prefixed.encode()).hyperparameters == read_log("a", text.encode()).hyperparameters != {}


def test_a_prefix_on_few_lines_is_no_prefix(plain):
    """What the minority of the first lines begin with belongs to them."""
    noise = "".join(f"{n}: final_x val_loss:1.0 val_bpb:0.5\n" for n in range(5))
    assert meaning(read_log("a", (noise + plain).encode())) == meaning(read_log("a", plain.encode()))
