"""The code of a record, read and never run: whether it compiles, what it wraps and reaches, which hazards it holds, and
whether it can have trained a model.

    python -m records.code < JSON       [folder, .py files, other files that count where a source names them, version]

prints JSON. A process of its own with hard limits does this, since a hostile source can exhaust the compiler. This
module and what it imports need the standard library only, so that a newer Python can run it without packages.
"""
import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import subprocess
import sys
from pathlib import Path

from records.decoders import LIMIT_BYTES, Unreadable
from records.grammar import NEWEST, newest_use, read_tree
from records.hazards import hazards
from records.reach import reached_files
from records.training import look
from records.values import Unknown, Values, imported_aliases
from records.wrappers import known_decoders, runs

LIMIT_SECONDS = 30  # of CPU time
WALL_SECONDS = 600  # on the clock: a busy machine may need far more than it does of CPU time
LIMIT_MEMORY, LAYERS, LIMIT_SOURCES = 1 << 30, 5, 50
NEWER_PYTHONS = 6  # minor versions after the one that is needed, tried in order


class TooSlow(Exception):
    """This machine did not give the time to read a source; the source may be as it must."""


def inspect_code(folder, names, others=(), python=None):
    """What is in .py files, from a process with limits. dict name -> {
    "error": why it does not compile, or "",
    "needs": the Python whose grammar it needs and that is not here, and for what; or "",
    "wrapped": list of what was opened,
    "hidden": [[line, text]] of code that cannot be known without running it,
    "source_sha256": SHA-256 of the text in a file that only unwraps and runs it, else of the file's bytes,
    "reaches": those of `names` and `others` that it imports or names,
    "hazards": [[line, text]],
    "signs": as records/training.py gives them, of all its layers}.
    python: (major, minor) of the version that ran it, where that is known. Raises RuntimeError if the source exhausted
    its limits, TooSlow if the machine is too busy."""
    given = json.dumps([os.path.abspath(folder), list(names), list(others), python]).encode()
    found = _inspect(sys.executable, given)
    needed = max((_version(f["needs"]) for f in found.values() if f["needs"]), default=None)
    newer = needed and _newer_python(needed)
    if newer:
        with contextlib.suppress(RuntimeError, TooSlow, OSError, ValueError):
            return _inspect(newer, given)
    return found


def _inspect(interpreter, given):
    command = [interpreter, "-E", "-s", "-S", "-B", "-m", "records.code"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=WALL_SECONDS, env={}, input=given,
                              cwd=Path(__file__).parents[1])
    except subprocess.TimeoutExpired:
        raise TooSlow(f"reading it took more than {WALL_SECONDS} s on this machine") from None
    if done.returncode:
        what = "its time" if done.returncode == -24 else "the memory or the stack of the compiler"
        raise RuntimeError(f"reading it exhausted {what}")
    return json.loads(done.stdout)


def _version(text):
    """(3, 12) of "3.12 for ..."."""
    major, minor = text.split()[0].split(".")
    return int(major), int(minor)


def _newer_python(needed):
    """Path of a Python of at least this version that answers, or None."""
    for minor in range(needed[1], needed[1] + NEWER_PYTHONS):
        path = shutil.which(f"python{needed[0]}.{minor}")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False, timeout=60).returncode:
                return path
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Inside the process
# ----------------------------------------------------------------------------------------------------------------------


def examine(source, name="train_gpt.py", names=(), read=None, python=None):
    """What inspect_code says of one file's bytes. read: function of a file's name that returns its bytes, or raises
    Unknown."""
    found = {"error": "", "needs": "", "wrapped": [], "hidden": [], "source_sha256": "", "reaches": [], "hazards": [],
             "signs": {}}
    found["source_sha256"] = _sha256(source)
    pending, seen = [(source, 0, True)], 0  # (source, layers around it, whether it is all that the file does)
    while pending and not found["error"]:
        text, layer, whole = pending.pop(0)
        seen += 1
        if layer > LAYERS:
            found["error"] = f"wraps source more than {LAYERS} times"
            break
        if seen > LIMIT_SOURCES:
            found["hidden"].append([0, f"more than {LIMIT_SOURCES} sources in one file"])
            break
        if whole:
            found["source_sha256"] = _sha256(text)
        try:
            if b"\0" in _encoded(text):
                raise Unreadable("holds NUL bytes")
            opened = _examine_layer(text, layer, name, {*names} - {name}, read or _no_files, python, found)
        except SyntaxError as error:
            found["error"] = f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
        except (RecursionError, MemoryError):
            found["error"] = "is nested too deeply for the compiler"
        except (Unreadable, ValueError) as error:
            found["error"] = str(error)
        else:
            for run in opened:
                found["wrapped"].append(f"{len(_encoded(text)):,} bytes hold {len(_encoded(run.text)):,} of source")
                pending.append((run.text, layer + 1, whole and run.exact))
    return found


def _no_files(name):
    raise Unknown("")


def _encoded(source):
    return source if isinstance(source, bytes) else source.encode(errors="surrogatepass")


def _sha256(source):
    return hashlib.sha256(_encoded(source)).hexdigest()


def _examine_layer(source, layer, name, names, read, python, found):
    """Add what is in one source to `found`. Returns the Runs whose text is a source too. Sources are bytes or str, as
    exec() is given them: a coding line means nothing in a str."""
    tree = _tree(source, python, found)
    if tree is None:
        return []
    prefix = "(unwrapped) " if layer else ""
    executed = set()

    def read_and_note(other):
        executed.add(posixpath.normpath(other))
        return read(other)
    values = Values(tree, imported_aliases(tree), read_and_note, name, known_decoders(tree))
    calls = []
    try:
        calls = runs(tree, values)
    finally:
        found["reaches"] = sorted({*found["reaches"], *executed})  # a README that is executed is code
        exact = [run.call for run in calls if run.exact]
        texts = set(hazards(tree, values, exact))
        found["hazards"] += [[line, prefix + text] for line, text in sorted(texts)]
        reached, imports = reached_files(values, names)
        found["reaches"] = sorted({*found["reaches"], *reached})
        signs = look(tree, values)
        found["signs"] = _together(found["signs"], signs) if found["signs"] else signs
    hidden = [(run.call.lineno, run.why) for run in calls if run.text is None]
    hidden += [(line, text) for line, text in imports if names - reached]  # or there is no file that it may be
    found["hidden"] += [[line, prefix + text] for line, text in sorted(set(hidden))]
    return [run for run in calls if run.text is not None]


def _tree(source, python, found):
    """The tree of a source; None where a grammar that is not known here may explain an error. Raises SyntaxError."""
    try:
        tree, uses = read_tree(source)
    except SyntaxError:
        if not python or python <= max(NEWEST, sys.version_info[:2]):
            raise
        found["needs"] = f"{python[0]}.{python[1]} for its grammar"
        return None
    if python and (use := newest_use(source, python)):
        version = f"{use.version[0]}.{use.version[1]}"
        ran = f"{python[0]}.{python[1]}"
        raise SyntaxError(f"{use.what} needs Python {version}, and Python {ran} ran it", ("", use.line, 1, ""))
    if uses:
        version, line, what = max(uses)
        found["needs"] = f"{version[0]}.{version[1]} for line {line}, {what}"
    return tree


def _together(signs, more):
    """The signs of two layers."""
    joined = {name: signs[name] + more[name] for name in ("opaque", "numbers")}
    return {name: signs[name] or more[name] for name in signs} | joined


def main(folder, names, others, python):
    import resource
    with contextlib.suppress(ValueError, OSError):  # macOS does not limit the address space
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_MEMORY, LIMIT_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS + 1))

    def read(name):
        path = os.path.join(folder, name)
        inside = os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
        if not inside or not os.path.isfile(path) or os.path.getsize(path) > LIMIT_BYTES:
            raise Unknown("")
        with open(path, "rb") as file:
            return file.read(LIMIT_BYTES)

    found = {}
    for name in names:
        found[name] = examine(read(name), name, {*names, *others}, read, python and tuple(python))
    json.dump(found, sys.stdout, sort_keys=True)


if __name__ == "__main__":
    import warnings
    warnings.simplefilter("ignore")
    main(*json.load(sys.stdin))
