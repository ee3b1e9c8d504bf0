"""The ladder: compares what two sides show, rung by rung, against one table of bounds."""
import dataclasses

import numpy as np

from parity.problem import RUNGS
from parity.reference import reference_logits, reference_nats

# Bounds of the rungs that are not exact. Measured: the worst difference that `python -m parity` (20 steps) showed on two CPU cores;
# no bound is more than 4 times that. "absolute": largest difference; "relative": largest difference over the tensor's largest entry.
# Adam divides by the root of tiny second moments, which is why a step magnifies what the gradients differ by.
# Every rung that is not named here is exact at every dtype.
BOUNDS = {
    # rung: (measure, {dtype: (bound, measured)})
    "logits": ("absolute", {"float64": (5e-14, 1.4e-14), "float32": (2e-5, 6.7e-6)}),
    "loss": ("absolute", {"float64": (3e-14, 7.1e-15), "float32": (1.5e-5, 4.8e-6)}),
    "gradients": ("relative", {"float64": (3e-14, 8.5e-15), "float32": (1.2e-5, 3.5e-6)}),
    "one step": ("relative", {"float64": (5e-12, 1.4e-12), "float32": (6e-3, 1.7e-3)}),
    "training losses": ("absolute", {"float64": (1e-14, 2.7e-15), "float32": (4e-5, 1.2e-5)}),
    "validation": ("absolute", {"float64": (4e-15, 1e-15), "float32": (2.5e-6, 7e-7)}),
    "definition": ("absolute", {"float64": (5e-14, 1.4e-14), "float32": (3e-5, 8.2e-6)}),
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
