"""The checks of a record's code as text: it compiles in the Python that ran it, is in sight, and can have made its
logs. What they need is read once, by read_code."""
import re

from records import code as reader
from records.checks import reached_files
from records.folder import CODE_LIMIT
from records.rules import FAIL, PASS, SCRIPT, UNVERIFIED, WARN, Finding

NO_CODE = (".md", "submission.json", "requirements.txt")
COMPILED = (".so", ".pyc", ".pyd", ".dll", ".dylib")
LEAST_DECIMALS = 4  # of a claimed score that a constant in the code may equal by chance
IN_SIGHT = "Nobody can tell what it runs without running it: ship the readable source."
SIGNS = {  # of records/training.py -> what a source without it lacks
    "reads": ("nothing in it reads data", "code that opens the training data"),
    "models": ("nothing in it builds a model", "code that makes the arrays or layers of a model"),
    "steps": ("nothing in it takes a training step", "gradients, an optimizer's step, counts or another update"),
}


def read_code(folder):
    """(what records/code.py says of the .py files, findings where it could not read them). Any other file that a source
    names counts as code, except the model and what every record folder holds."""
    names = sorted(n for n in folder.files if n.endswith(".py") and folder.files[n])
    for name in names:
        if folder.files[name] > CODE_LIMIT:
            observed = f"has {folder.files[name]:,} bytes"
            return {}, [Finding(FAIL, observed, f"at most {CODE_LIMIT:,} bytes of source", name)]
    if not names:
        return {}, []
    others = [
        name
        for name, kind in sorted(folder.kinds.items())
        if kind in ("code", "text", "other") and name not in names and not name.endswith(NO_CODE)
    ]
    try:
        return reader.inspect_code(folder.root, names, others, declared_python(folder)), []
    except reader.TooSlow as error:
        return {}, [Finding(UNVERIFIED, str(error), "a machine that is less busy", ".")]
    except OSError as error:  # the process that reads it cannot be started
        return {}, [Finding(UNVERIFIED, f"not read: {error}", "a Python that can be started", ".")]
    except (RuntimeError, ValueError) as error:
        return {}, [Finding(FAIL, str(error), "source that can be compiled", ".")]


def declared_python(folder):
    """(major, minor) of the newest Python that a log names, else that .python-version names; None where none does."""
    found = [log.python for log in folder.logs if log.python]
    if not found:
        named = re.findall(r"^\s*(?:cpython-|python-)?(3)\.(\d{1,2})\b", folder.text(".python-version"))
        found = [(int(major), int(minor)) for major, minor in named]
    return max(found, default=None)


def check_compile(folder, code):
    """Every .py file compiles, its code is in sight, and train_gpt.py can have trained a model. A wrapper passes where
    it could be opened and the source inside compiles too."""
    if not code:
        yield Finding(UNVERIFIED, "no code to compile", SCRIPT, ".")
    for name, found in code.items():
        if found["error"]:
            yield Finding(FAIL, f"does not compile: {found['error']}", "it compiles", name)
        if found["needs"]:
            meaning = "A newer Python on PATH would compile it. The code was read all the same."
            yield Finding(UNVERIFIED, f"needs Python {found['needs']}", "a Python that compiles it", name, meaning)
        for text in found["wrapped"]:
            yield Finding(WARN if found["error"] else PASS, f"a wrapper, opened: {text}", "", name)
        for line, text in found["hidden"]:
            yield Finding(UNVERIFIED, text, "code in sight", f"{name}:{line}", IN_SIGHT)
    reached = reached_files(code)
    for name in sorted(reached):
        if name.endswith(COMPILED):
            yield Finding(UNVERIFIED, "compiled code, which is not opened", "its source", name, IN_SIGHT)
    if code.get(SCRIPT, {"error": "no such file"})["error"] == "":
        yield from _can_train([code[name] for name in sorted(reached) if name in code], reached)
        yield from _knows_its_score(folder, {name: code[name] for name in sorted(reached) if name in code})


def _can_train(found, reached):
    """train_gpt.py and the files it reaches show data, a model and training; where some of their code is not in sight,
    what they do not show is not verified."""
    signs = [part["signs"] for part in found if part["signs"]]
    other = sorted({package for part in signs for package in part["opaque"]})
    in_sight = not any(part["hidden"] or part["needs"] for part in found)
    in_sight = in_sight and all(name.endswith(".py") for name in reached)
    for sign, (observed, expected) in SIGNS.items():
        if any(part[sign] for part in signs):
            continue
        if in_sight and not other:
            meaning = "This code cannot have made the logs: ship the code that ran."
            yield Finding(FAIL, observed, expected, SCRIPT, meaning)
        else:
            hides = f"{', '.join(other[:3])} may" if other else "code that is not in sight may"
            yield Finding(UNVERIFIED, f"{observed}; {hides}", expected, SCRIPT, IN_SIGHT)


def _knows_its_score(folder, code):
    """No printed number is the claimed score: the code that ran could not know it."""
    scores = {f"{name} of submission.json": folder.fields.get(name) for name in ("val_loss", "val_bpb")}
    for log in folder.logs:
        for label, values in log.scores.items():
            scores |= {f"{name} of {label} in {log.name}": v for name, v in zip(("val_loss", "val_bpb"), values)}
    for name, found in code.items():
        for line, text in found["signs"].get("numbers", ()):
            decimals = len(text.partition(".")[2])
            same = [what for what, score in scores.items() if score and f"{score:.{decimals}f}" == text]
            if same and decimals >= LEAST_DECIMALS:
                observed = f"prints the constant {text}, {same[0]}"
                meaning = "The code that ran could not know its score: ship the code that ran."
                yield Finding(FAIL, observed, "a score that is computed", f"{name}:{line}", meaning)


def check_hazards(code):
    """What a reviewer should look at, with file and line."""
    if not code:
        yield Finding(UNVERIFIED, "no code to read", SCRIPT, ".")
    for name, found in code.items():
        for line, text in found["hazards"]:
            yield Finding(WARN, text, "reviewed by a person", f"{name}:{line}")
