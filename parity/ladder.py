"""The ladder: compares what two sides show, rung by rung, against one table of bounds."""
import dataclasses

import numpy as np

from parity.problem import RUNGS
from parity.reference import reference_logits, reference_nats

# Bounds of rungs that are not exact, per dtype: (bound, what was measured on this ladder's problem, torch against MLX, on a CPU).
# "absolute": largest difference; "relative": largest difference over the largest entry of the tensor. No bound is more than 4 times
# what was measured. Every rung that is not named here is exact at every dtype.
BOUNDS = {
    "logits": ("absolute", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
    "loss": ("absolute", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
    "gradients": ("relative", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
    "one step": ("relative", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
    "training losses": ("absolute", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
    "validation": ("absolute", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
    "definition": ("absolute", dict.fromkeys(("float64", "float32", "bfloat16"), (1e-30, 0))),
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
    return [compare(rung, dtype, first.get(rung, {}), second.get(rung, {})) for rung in RUNGS]


def compare(rung, dtype, first, second):
    measure, bounds = BOUNDS.get(rung, ("exact", {}))
    bound = 0.0 if measure == "exact" else bounds[dtype][0]
    row = Row(rung, f"{len(first)} tensors, {sum(np.size(v) for v in first.values()):,} numbers", 0.0, "", bound, bool(first), "", "")
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            return dataclasses.replace(row, worst=np.inf, where=f"{name} is only on one side", passed=False)
        a, b = np.asarray(first[name]), np.asarray(second[name])
        if a.shape != b.shape:
            return dataclasses.replace(row, worst=np.inf, where=name, passed=False, first=f"shape {a.shape}", second=f"shape {b.shape}")
        if dtype == "float64" and rung in ("logits", "loss", "definition"):  # the standard: equal once rounded to float32
            a, b = a.astype(np.float32), b.astype(np.float32)
        if measure == "exact":
            differ = (a != b) & ~((a != a) & (b != b))
        else:
            differ = np.abs(a.astype(np.float64) - b.astype(np.float64))
            if measure == "relative":
                differ /= max(np.abs(a).max(initial=0), 1e-300)
            differ = np.where(np.isfinite(differ), differ, np.inf)
        worst = float(differ.mean() if measure == "exact" else differ.max(initial=0))
        if worst > row.worst or not row.where:
            place = np.unravel_index(np.argmax(differ), differ.shape)
            row.worst, row.where = worst, f"{name}{[int(i) for i in place] if place else ''}"
            row.first, row.second = str(a[place]), str(b[place])
    row.passed = row.passed and row.worst <= bound
    return row


def against_definition(dtype, problem_settings, weights, tokens, side):
    """Row: one side's logits and nats against parity/reference.py."""
    defined = {"logits": reference_logits(problem_settings, weights, tokens[:, :-1]), "nats": reference_nats(problem_settings, weights, tokens)}
    return compare("definition", dtype, defined, {"logits": side["logits"]["logits"], "nats": side["loss"]["nats"]})


def table(rows, names):
    """Text for people. names: the two sides."""
    lines = [f"{'rung':<18} {'compared':<28} {'worst':>9} {'bound':>8}  verdict  where"]
    for row in rows:
        worst = "equal" if row.worst == 0 else f"{row.worst:.1e}"
        lines.append(f"{row.rung:<18} {row.compared:<28} {worst:>9} {row.bound or 'exact':>8}  {'ok' if row.passed else 'FAILED':<7}  "
                     f"{row.where if row.worst else ''}")
    failed = next((row for row in rows if not row.passed), None)
    if failed:
        lines.append(f"\nfirst failing rung: {failed.rung}, at {failed.where}\n  {names[0]:>10}: {failed.first}\n  {names[1]:>10}: {failed.second}")
    return "\n".join(lines)
