"""The ladder: compares what two sides show, rung by rung, against one table of bounds."""
import dataclasses

import numpy as np

from parity.problem import RUNGS
from parity.reference import reference_logits, reference_nats

# Bounds of the rungs that are not exact. Measured: the worst difference that `python -m parity` showed on three kinds of CPU with two
# cores each (20 steps; tied and untied; several seeds; with --compile) and that the tests' small model showed; no bound is more than 4
# times that. "absolute": largest difference; "relative": largest difference over the tensor's largest entry; "norm": norm of the
# difference over the tensor's norm. One float32 step at a loss of 8 nats is 9.5e-7.
# Every rung that is not named here is exact at every dtype.
BOUNDS = {
    # rung: (measure, {dtype: (bound, measured)})
    "logits": ("absolute", {"float64": (5e-14, 1.4e-14), "float32": (3e-5, 8.6e-6), "bfloat16": (0.2, 5.8e-2)}),
    "token nats": ("absolute", {"float64": (4e-14, 1.1e-14), "float32": (2e-5, 5.7e-6), "bfloat16": (0.15, 4.6e-2)}),
    "loss": ("absolute", {"float64": (6e-15, 1.8e-15), "float32": (4e-6, 1.4e-6), "bfloat16": (2.5e-4, 6.8e-5)}),
    "gradients": ("relative", {"float64": (3e-14, 8.5e-15), "float32": (2e-5, 6.7e-6), "bfloat16": (0.08, 2.1e-2)}),
    "one step": ("norm", {"float64": (1e-13, 3e-14), "float32": (9e-5, 2.5e-5), "bfloat16": (0.3, 8.7e-2)}),
    "training losses": ("absolute", {"float64": (1.2e-13, 3.5e-14), "float32": (7e-5, 2e-5), "bfloat16": (2.5e-2, 7.5e-3)}),
    "validation": ("absolute", {"float64": (4e-15, 1e-15), "float32": (3e-5, 7.9e-6), "bfloat16": (3e-2, 8.7e-3)}),
    "options": ("absolute", {"float64": (7e-15, 1.8e-15), "float32": (1.2e-4, 3.2e-5), "bfloat16": (1.8e-2, 4.6e-3)}),
    "definition": ("absolute", {"float64": (5e-14, 1.5e-14), "float32": (3e-5, 8.2e-6), "bfloat16": (0.4, 0.1)}),
}


@dataclasses.dataclass
class Row:
    """One line of the table. worst: what the measure says, the share of entries that differ where the rung is exact, or None where
    nothing can be measured; first, second: the values of the two sides at the worst place."""

    rung: str
    compared: str
    sides: tuple
    bound: float
    worst: float | None = 0.0
    where: str = ""
    passed: bool = True
    first: str = ""
    second: str = ""


def climb(dtype, first, second, sides):
    """list[Row] for two results of problem.observe; sides: their names. An absent rung or tensor is a failure."""
    rows = [compare(rung, dtype, first.get(rung, {}), second.get(rung, {}), sides) for rung in RUNGS]
    if dtype == "float64" and rows[RUNGS.index("logits")].passed:
        rows.insert(RUNGS.index("logits") + 1, rounded_logits(first["logits"]["logits"], second["logits"]["logits"], sides))
    return rows


def compare(rung, dtype, first, second, sides):
    """Row for two dicts name -> array."""
    measure, bounds = BOUNDS.get(rung, ("exact", {}))
    row = Row(rung, contents(first.values()), sides, 0.0 if measure == "exact" else bounds[dtype][0], passed=bool(first))
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            texts = ["there" if name in side else "absent" for side in (first, second)]
            return dataclasses.replace(row, worst=None, where=name, passed=False, first=texts[0], second=texts[1])
        a, b = np.asarray(first[name]), np.asarray(second[name])
        if (a.shape, a.dtype) != (b.shape, b.dtype) or a.dtype.kind not in "biuf" or not a.size:
            return dataclasses.replace(row, worst=None, where=name, passed=False, first=f"{a.dtype} {a.shape}", second=f"{b.dtype} {b.shape}")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            place = np.unravel_index(np.argmin(np.isfinite(a) & np.isfinite(b)), a.shape)
            return dataclasses.replace(row, worst=None, where=f"{name}{index(place)}", passed=False, first=str(a[place]), second=str(b[place]))
        if measure == "exact":
            differ = a != b
            worst = differ.mean()
        else:
            differ = np.abs(a.astype(np.float64) - b)
            worst = np.linalg.norm(differ) if measure == "norm" else differ.max()
            if measure != "absolute":
                worst /= max(np.linalg.norm(a) if measure == "norm" else np.abs(a).max(), 1e-300)
        if worst > row.worst:
            place = np.unravel_index(np.argmax(differ), differ.shape)
            row.worst, row.where, row.first, row.second = float(worst), f"{name}{index(place)}", str(a[place]), str(b[place])
    row.passed = row.passed and row.worst <= row.bound
    return row


def rounded_logits(first, second, sides):
    """Row: float64 logits (B, T, V) that passed their bound, rounded to float32: equal to the bit. Where one of float32's rounding borders
    (midway between two neighbours) lies between two values, closeness short of equality cannot make them round alike: about one entry in
    ten million at 1e-14. Such an entry is told and does not count."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    border = (a.astype(np.float64) + b) / 2
    straddled = (np.nextafter(a, b) == b) & ((first - border) * (second - border) <= 0) & (a != b)
    wrong = (a != b) & ~straddled
    row = Row("logits as float32", contents([a]), sides, 0.0, float(wrong.mean()), passed=not wrong.any())
    if (a != b).any():
        place = np.unravel_index(np.argmax(wrong if wrong.any() else straddled), a.shape)
        row.first, row.second = (repr(float(side[place])) for side in (first, second))
        row.where = f"logits{index(place)}" if wrong.any() else f"{straddled.sum()} on a rounding border: {row.first} / {row.second}"
    return row


def against_definition(dtype, settings, weights, tokens, side, name):
    """Row: the logits and nats of one side, of that name, against parity/reference.py; tokens (B, T + 1)."""
    logits, nats = reference_logits(settings, weights, tokens[:, :-1]), reference_nats(settings, weights, tokens)
    shown = {"logits": side["logits"]["logits"].astype(np.float64), "nats": side["token nats"]["nats"].astype(np.float64)}
    return dataclasses.replace(compare("definition", dtype, {"logits": logits, "nats": nats}, shown, ("definition", name)),
                               rung=f"definition: {name}")


def contents(values):
    return f"{len(values)} tensor{'s' * (len(values) != 1)}, {sum(map(np.size, values)):,} numbers"


def index(place):
    return [int(i) for i in place] if place else ""


def table(rows):
    """Text for people. Text from a file is shown in ASCII."""
    lines = [f"{'rung':<18} {'compared':<28} {'worst':>9} {'bound':>8}  verdict  where"]
    for row in rows:
        worst = "-" if row.worst is None else f"{row.worst:.1e}" if row.worst else "equal"
        lines.append(f"{row.rung:<18} {row.compared:<28} {worst:>9} {row.bound or 'exact':>8}  {'ok' if row.passed else 'FAILED':<7}  {row.where}")
    failed = next((row for row in rows if not row.passed), None)
    if failed:
        lines.append(f"\nfirst failing rung: {failed.rung}, at {failed.where}\n  {failed.sides[0]:>12}: {failed.first}\n  "
                     f"{failed.sides[1]:>12}: {failed.second}")
    return "\n".join(line.rstrip().encode("ascii", "backslashreplace").decode() for line in lines)
