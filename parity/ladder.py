"""The ladder: compares what two sides show, rung by rung, against one table of bounds."""
import dataclasses

import numpy as np

from parity.problem import RUNGS
from parity.reference import reference_logits, reference_nats

# Bounds of the rungs that are not exact. Measured: the worst difference that `python -m parity` showed on three kinds of CPU with two
# cores each (20 steps; tied and untied; several seeds; with --compile) and that the tests' small model showed; no bound is more than 4
# times that. "absolute": largest difference; "relative": largest difference over the tensor's largest entry.
# Adam divides by the root of tiny second moments, which is why a step magnifies what the gradients differ by.
# Every rung that is not named here is exact at every dtype.
BOUNDS = {
    # rung: (measure, {dtype: (bound, measured)})
    "logits": ("absolute", {"float64": (5e-14, 1.4e-14), "float32": (3e-5, 8.6e-6), "bfloat16": (0.2, 5.8e-2)}),
    "token nats": ("absolute", {"float64": (4e-14, 1.1e-14), "float32": (2e-5, 5.7e-6), "bfloat16": (0.15, 4.6e-2)}),
    "loss": ("absolute", {"float64": (6e-15, 1.8e-15), "float32": (4e-6, 1.4e-6), "bfloat16": (2.5e-4, 6.8e-5)}),
    "gradients": ("relative", {"float64": (3e-14, 8.5e-15), "float32": (2e-5, 6.7e-6), "bfloat16": (0.08, 2.1e-2)}),
    "one step": ("relative", {"float64": (6e-12, 1.9e-12), "float32": (8e-3, 2.1e-3), "bfloat16": (0.6, 0.16)}),
    "training losses": ("absolute", {"float64": (1.2e-13, 3.5e-14), "float32": (7e-5, 2e-5), "bfloat16": (2.5e-2, 7.5e-3)}),
    "validation": ("absolute", {"float64": (4e-15, 1e-15), "float32": (3e-5, 7.9e-6), "bfloat16": (3e-2, 8.7e-3)}),
    "definition": ("absolute", {"float64": (5e-14, 1.5e-14), "float32": (3e-5, 8.2e-6), "bfloat16": (0.4, 0.1)}),
}


@dataclasses.dataclass
class Row:
    """One line of the table. worst: largest difference, or the share of entries that differ where the rung is exact."""

    rung: str
    compared: str
    worst: float
    where: str
    bound: float
    passed: bool
    first: str
    second: str


def climb(dtype, first, second):
    """list[Row] for two results of problem.observe. An absent rung or tensor is a failure."""
    rows = [compare(rung, dtype, first.get(rung, {}), second.get(rung, {})) for rung in RUNGS]
    if dtype == "float64" and rows[RUNGS.index("logits")].passed:
        rows.insert(RUNGS.index("logits") + 1, rounded_logits(first["logits"]["logits"], second["logits"]["logits"]))
    return rows


def compare(rung, dtype, first, second):
    measure, bounds = BOUNDS.get(rung, ("exact", {}))
    bound = 0.0 if measure == "exact" else bounds[dtype][0]
    row = Row(rung, contents(first.values()), 0.0, "", bound, bool(first), "", "")
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            return dataclasses.replace(row, worst=np.inf, where=f"{name} is only on one side", passed=False)
        a, b = np.asarray(first[name]), np.asarray(second[name])
        if a.shape != b.shape:
            return dataclasses.replace(row, worst=np.inf, where=name, passed=False, first=f"shape {a.shape}", second=f"shape {b.shape}")
        if measure == "exact":
            differ = (a != b) & ~((a != a) & (b != b))
        else:
            differ = np.abs(a.astype(np.float64) - b.astype(np.float64))
            if measure == "relative":
                differ /= max(np.abs(a).max(initial=0), 1e-300)
            differ = np.where(np.isfinite(differ), differ, np.inf)
        worst = float(differ.mean() if measure == "exact" else differ.max(initial=0))
        if worst > row.worst:
            place = np.unravel_index(np.argmax(differ), differ.shape)
            row.worst, row.where = worst, f"{name}{[int(i) for i in place] if place else ''}"
            row.first, row.second = str(a[place]), str(b[place])
    row.passed = row.passed and row.worst <= bound
    return row if row.worst else dataclasses.replace(row, where="", first="", second="")


def contents(values):
    return f"{len(values)} tensor{'s' * (len(values) != 1)}, {sum(map(np.size, values)):,} numbers"


def rounded_logits(first, second):
    """Row: float64 logits (B, T, V) that passed their bound, rounded to float32: equal to the bit. Where one of float32's rounding borders
    (midway between two neighbours) lies between two values, closeness short of equality cannot make them round alike: about one entry in
    ten million at 1e-14. Such an entry is told and does not count."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    border = (a.astype(np.float64) + b) / 2
    straddled = (np.nextafter(a, b) == b) & ((first - border) * (second - border) <= 0) & (a != b)
    wrong = (a != b) & ~straddled
    row = Row("logits as float32", contents([a]), float(wrong.mean()), "", 0.0, not wrong.any(), "", "")
    if (a != b).any():
        place = np.unravel_index(np.argmax(wrong if wrong.any() else straddled), a.shape)
        row.first, row.second = (repr(float(side[place])) for side in (first, second))
        row.where = f"logits{[int(i) for i in place]}" if wrong.any() else f"{straddled.sum()} on a rounding border: {row.first} / {row.second}"
    return row


def against_definition(dtype, problem_settings, weights, tokens, side):
    """Row: one side's logits and nats against parity/reference.py."""
    defined = {"logits": reference_logits(problem_settings, weights, tokens[:, :-1]), "nats": reference_nats(problem_settings, weights, tokens)}
    return compare("definition", dtype, defined, {"logits": side["logits"]["logits"], "nats": side["token nats"]["nats"]})


def table(rows, names):
    """Text for people. names: the two sides."""
    lines = [f"{'rung':<18} {'compared':<28} {'worst':>9} {'bound':>8}  verdict  where"]
    for row in rows:
        worst = "equal" if row.worst == 0 else f"{row.worst:.1e}"
        lines.append(f"{row.rung:<18} {row.compared:<28} {worst:>9} {row.bound or 'exact':>8}  {'ok' if row.passed else 'FAILED':<7}  "
                     f"{row.where}")
    failed = next((row for row in rows if not row.passed), None)
    if failed:
        lines.append(f"\nfirst failing rung: {failed.rung}, at {failed.where}\n  {names[0]:>10}: {failed.first}\n  {names[1]:>10}: {failed.second}")
    return "\n".join(lines)
