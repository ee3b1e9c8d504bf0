"""Whether this repository runs here as it says, on one GPU: `make gpu-check`, on a Mac `make device-check`.

    python -m tests.device.check               device, speed, parity, tests, a run of a minute: under 10 minutes
    python -m tests.device.check --rehearse    every part at a tiny size, on the CPU

Needs no network, and PyTorch or MLX. What is timed comes first, alone on the machine; what is only right or wrong
follows, side by side. Each part is a process of its own with a limit of time. The report is made for attaching to an
issue. Exit code 0: all that was tried held; 1: something did not; 2: there is no device.
"""
import argparse
import contextlib
import dataclasses
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.data.__main__ import main as data_command
from common.settings import Settings, settings_table
from tests.device.part import DIFFERS, HELD, PREDICTED

ROOT = Path(__file__).parents[2]
PROBE, LEAST = 60, 15  # seconds: limit of the part that finds the device; less is not worth a start
# name: (seconds at most, whether it is timed and runs alone); those of tests/device/on_BACKEND.py and proofs.py
TIMED = {"ceilings": 60, "attention": 90, "step": 200, "reduction": 150}
PROOFS = {"ladder-float32": 300, "ladder-bfloat16": 300, "run": 300, "determinism": 240, "tests": 300}
NOT_ON = {"mlx": {"reduction": "one process of MLX has nothing to reduce"}}


@dataclasses.dataclass
class Done:
    """A part and what came of it. verdict: "ok", "FAILED", "out of time" or "left out"."""

    name: str
    verdict: str
    seconds: float = 0.0
    text: str = ""


class Check:
    """The parts on one backend, in a folder of their own. limit: seconds for all of them."""

    def __init__(self, backend, work, options):
        self.backend, self.work, self.options = backend, work, options
        self.end, self.started = time.monotonic() + options.limit, []
        self.flags = ["--backend", backend, *["--rehearse"] * options.rehearse]

    def part(self, name, limit):
        """Done of a part, in a process group of its own."""
        if reason := NOT_ON.get(self.backend, {}).get(name):
            return Done(name, "left out", 0.0, f"left out: {reason}")
        start, left = time.monotonic(), self.end - time.monotonic()
        if left < LEAST:
            return Done(name, "out of time", 0.0, "no time was left for it")
        folder = self.work / name
        folder.mkdir()
        module = "proofs" if name in PROOFS else f"on_{self.backend}"
        with open(folder / "output", "w") as out:
            process = subprocess.Popen([sys.executable, "-m", f"tests.device.{module}", name, *self.flags], cwd=folder,
                                       env=environment(self.work), stdout=out, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            self.started.append(process)
            try:
                code = process.wait(min(limit, left))
                verdict = {0: "ok", 2: "left out"}.get(code, "FAILED")
            except subprocess.TimeoutExpired:
                verdict = "out of time"
            finally:
                kill_group(process)
        seconds, text = time.monotonic() - start, (folder / "output").read_text("utf-8", "replace")
        print(f"{name:<16} {verdict:<12} {seconds:.0f} s", flush=True)
        return Done(name, verdict, seconds, text)

    def all_parts(self, found):
        """list of Done; found: that of the part that found the device."""
        self.flags += ["--data", str(self.options.data or corpus(self.work, self.options.rehearse))]
        at_once = len(PROOFS) if os.cpu_count() >= 2 * len(PROOFS) else 2
        timed = self.several(TIMED, at_once if self.options.rehearse else 1)
        return [found, *timed, *self.several(PROOFS, at_once)]

    def several(self, parts, at_once):
        """list of Done of the parts, so many side by side."""
        with ThreadPoolExecutor(at_once) as pool:
            try:
                return list(pool.map(self.part, parts, parts.values()))
            except KeyboardInterrupt:
                self.end = 0.0  # none is started any more
                for process in self.started:
                    kill_group(process)
                raise


def kill_group(process):
    """End what is left of a part: it, or a compiler that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only dead ones are left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(work):
    """Environment of a part: without settings, with this repository on the path and caches that begin empty."""
    settings = {name for _, name, *_ in settings_table(Settings)}
    clean = {name: value for name, value in os.environ.items() if name not in settings}
    path = os.pathsep.join([str(ROOT), *filter(None, [clean.get("PYTHONPATH")])])
    return clean | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
                    "TRITON_CACHE_DIR": str(work / "triton")}


def corpus(work, rehearse):
    """The data folder: the embedded corpus; in a rehearsal two pages of this repository, in byte tokens."""
    made, folder = ROOT / "data/pydoc_sp1024", work / "corpus"
    if rehearse:
        documents = work / "documents"
        documents.mkdir()
        for name, page in {"0": "common/data/README.md", "1": "records/GUIDE.md"}.items():
            (documents / f"{name}.txt").write_text((ROOT / page).read_text("utf-8"), "utf-8")
        data_command(["export", str(documents), "--tokenizer", "bytes", "--val-docs", "1", "--out", str(folder)])
    elif made.exists():
        return made
    else:
        data_command(["pydoc", "--out", str(folder)])
    return folder


def report(done, seconds):
    """Text: verdicts and predictions first, then the output of each part, without names of this user or machine."""
    lines = [f"Device report, commit {commit()}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {seconds:.0f} s",
             "", done[0].text.strip(), "", f"{'part':<16} {'verdict':<12} seconds"]
    lines += [f"{part.name:<16} {part.verdict:<12} {part.seconds:.0f}" for part in done]
    said = [line.removeprefix(PREDICTED) for part in done for line in part.text.splitlines()
            if line.startswith(PREDICTED)]
    count = {verdict: sum(line.startswith(f"{verdict}:") for line in said) for verdict in (HELD, DIFFERS)}
    lines += ["", f"what this repository predicts: {count[HELD]} held, {count[DIFFERS]} differ",
              *sorted(said, key=lambda line: line.startswith(HELD))]
    for part in done[1:]:
        lines += ["", f"######## {part.name}: {part.verdict}", part.text.strip()[-100_000:]]
    text = "\n".join(lines) + "\n"
    for name, stands_for in {str(ROOT): ".", str(Path.home()): "~", platform.node(): "HOST"}.items():
        text = text.replace(name, stands_for) if len(name) > 3 else text
    return text


def commit():
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m tests.device.check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    first = ("mlx", "torch") if sys.platform == "darwin" else ("torch", "mlx")
    parser.add_argument("--backend", choices=first, help="default: the one that sees a device")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: the embedded corpus)")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for everything (default: 570)")
    parser.add_argument("--rehearse", action="store_true", help="every part at a tiny size, on the CPU")
    parser.add_argument("-o", "--output", type=Path, default=Path("device_report.txt"), help="the report's file")
    options = parser.parse_args(arguments)
    try:
        return check_first_found((options.backend,) if options.backend else first, options)
    except KeyboardInterrupt:
        print("error: interrupted: there is no report", file=sys.stderr)
        return 1


def check_first_found(backends, options):
    """Exit code of the check of the first backend that sees a device."""
    start, problems = time.monotonic(), []
    for backend in backends:
        with tempfile.TemporaryDirectory() as work:
            check = Check(backend, Path(work), options)
            found = check.part("machine", PROBE)
            if found.verdict == "ok":
                done = check.all_parts(found)
                options.output.write_text(text := report(done, time.monotonic() - start), "utf-8")
                print(text.partition("########")[0], f"{options.output} is the report: attach it to an issue", sep="\n")
                return 1 if {part.verdict for part in done} & {"FAILED", "out of time"} else 0
        last = (found.text.strip().splitlines() or [found.verdict])[-1]
        problems.append(f"{backend}: {last.removeprefix('left out: ')}")
    print("error: there is no device to check (`make install BACKEND=torch` or BACKEND=mlx installs a framework):",
          *problems, sep="\n  ", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
