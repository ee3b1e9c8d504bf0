"""The ladder: compares what two sides show, rung by rung, against one table of bounds."""
import dataclasses
import json
import time

import numpy as np

from parity.reference import reference_logits, reference_nats
from parity.rungs import OPTIONS_DIGEST, RUNGS

# Bounds of the rungs that are not exact. Measured: the worst difference that `python -m parity` showed on three kinds
# of CPU with two cores each (20 steps; tied and untied; several seeds; with --compile) and that the tests' small model
# showed. No bound is more than 4 times that. "absolute": the largest difference; "relative": the largest difference
# over the tensor's largest entry; "norm": the norm of the difference over the tensor's norm. One float32 step at a
# loss of 8 nats is 9.5e-7. Every rung that is not named here is exact at every dtype.
BOUNDS = {
    # rung: (measure, {dtype: (bound, measured)})
    "logits": ("absolute", {"float64": (5e-14, 1.4e-14), "float32": (3e-5, 8.6e-6), "bfloat16": (0.2, 5.8e-2)}),
    "token nats": ("absolute", {"float64": (4e-14, 1.1e-14), "float32": (2e-5, 5.7e-6), "bfloat16": (0.15, 4.6e-2)}),
    "loss": ("absolute", {"float64": (6e-15, 1.8e-15), "float32": (4e-6, 1.4e-6), "bfloat16": (2.5e-4, 6.8e-5)}),
    "gradients": ("relative", {"float64": (3e-14, 8.5e-15), "float32": (2e-5, 6.7e-6), "bfloat16": (0.08, 2.1e-2)}),
    "one step": ("norm", {"float64": (1e-13, 3e-14), "float32": (9e-5, 2.5e-5), "bfloat16": (0.3, 8.7e-2)}),
    "training losses": (
        "absolute", {"float64": (1.2e-13, 3.5e-14), "float32": (7e-5, 2e-5), "bfloat16": (2.5e-2, 7.5e-3)}
    ),
    "validation": ("absolute", {"float64": (4e-15, 1e-15), "float32": (3e-5, 7.9e-6), "bfloat16": (3e-2, 8.7e-3)}),
    "options": ("absolute", {"float64": (7e-15, 1.8e-15), "float32": (1.2e-4, 3.2e-5), "bfloat16": (1.8e-2, 4.6e-3)}),
    "definition": ("absolute", {"float64": (5e-14, 1.5e-14), "float32": (3e-5, 8.2e-6), "bfloat16": (0.4, 0.1)}),
}


@dataclasses.dataclass
class Row:
    """One line of the table. worst: what the measure says, the share of entries that differ where the rung is exact, or
    None where nothing can be measured; first, second: the values of the two sides at the worst place."""

    rung: str
    compared: str
    sides: tuple
    bound: float
    worst: float | None = 0.0
    where: str = ""
    passed: bool = True
    first: str = ""
    second: str = ""


def climb(dtype, first, second, sides, left_out=()):
    """list[Row] for two dicts rung -> dict name -> array; sides: their names; left_out: rungs. An absent rung or tensor
    is a failure."""
    if "options" in left_out:  # a side may have them nevertheless
        for side in (first, second):
            side.get("compressed bytes", {}).pop(OPTIONS_DIGEST, None)
    rows = []
    for rung in RUNGS:
        if rung in left_out:
            continue
        rows.append(compare(rung, dtype, first.get(rung, {}), second.get(rung, {}), sides))
        if rung == "logits" and dtype == "float64" and rows[-1].passed:
            rows.append(rounded_logits(first[rung]["logits"], second[rung]["logits"], sides))
    return rows


def compare(rung, dtype, first, second, sides):
    """Row for two dicts name -> array."""
    measure, bounds = BOUNDS.get(rung, ("exact", {}))
    bound = 0.0 if measure == "exact" else bounds[dtype][0]
    row = Row(rung, contents(first.values()), sides, bound, passed=bool(first))
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            texts = ["there" if name in side else "absent" for side in (first, second)]
            return dataclasses.replace(row, worst=None, where=name, passed=False, first=texts[0], second=texts[1])
        a, b = np.asarray(first[name]), np.asarray(second[name])
        if wrong := incomparable(name, a, b):
            return dataclasses.replace(row, worst=None, passed=False, **wrong)
        worst, differ = difference(measure, a, b)
        if worst > row.worst:
            place = np.unravel_index(np.argmax(differ), differ.shape)
            row.worst, row.where = float(worst), f"{name}{index(place)}"
            row.first, row.second = str(a[place]), str(b[place])
    row.passed = row.passed and row.worst <= row.bound
    return row


def incomparable(name, a, b):
    """dict of the fields of a Row that say why two arrays cannot be compared; empty where they can."""
    if (a.shape, a.dtype) != (b.shape, b.dtype) or a.dtype.kind not in "biuf" or not a.size:
        return {"where": name, "first": f"{a.dtype} {a.shape}", "second": f"{b.dtype} {b.shape}"}
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        place = np.unravel_index(np.argmin(finite), a.shape)
        return {"where": f"{name}{index(place)}", "first": str(a[place]), "second": str(b[place])}
    return {}


def difference(measure, a, b):
    """(number, array): how much two arrays differ by a measure, and where."""
    if measure == "exact":
        return (a != b).mean(), a != b
    differ = np.abs(a.astype(np.float64) - b)
    if measure == "norm":
        return np.linalg.norm(differ) / max(np.linalg.norm(a), 1e-300), differ
    if measure == "relative":
        return differ.max() / max(np.abs(a).max(), 1e-300), differ
    return differ.max(), differ


def rounded_logits(first, second, sides):
    """Row: float64 logits (B, T, V) that passed their bound, rounded to float32: equal to the bit. Only equal values
    are sure to round alike where a rounding border of float32 (midway between two neighbours) lies between them, about
    one entry in ten million at 1e-14, or where they are so near 0 that float32 is finer than the bound. Such entries
    are reported and do not count."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    border = (a.astype(np.float64) + b) / 2
    straddled = (a != b) & (np.nextafter(a, b) == b) & ((first - border) * (second - border) <= 0)
    fine = np.spacing(np.maximum(np.abs(a), np.abs(b))) < BOUNDS["logits"][1]["float64"][0]
    near_zero = (a != b) & fine & ~straddled
    wrong = (a != b) & ~straddled & ~near_zero
    row = Row("logits as float32", contents([a]), sides, 0.0, float(wrong.mean()), passed=not wrong.any())
    if (a != b).any():
        place = np.unravel_index(np.argmax(wrong if wrong.any() else a != b), a.shape)
        row.first, row.second = (repr(float(side[place])) for side in (first, second))
        counts = {"on a rounding border": straddled.sum(), "near 0": near_zero.sum()}
        text = ", ".join(f"{count} {where}" for where, count in counts.items() if count)
        row.where = f"logits{index(place)}" if wrong.any() else f"{text}: {row.first} / {row.second}"
    return row


def against_definition(dtype, settings, weights, tokens, side, name):
    """Row: the logits and nats of one side, of that name, against parity/reference.py; tokens (B, T + 1)."""
    defined = {"logits": reference_logits(settings, weights, tokens[:, :-1]),
               "nats": reference_nats(settings, weights, tokens)}
    shown = {"logits": side["logits"]["logits"], "nats": side["token nats"]["nats"]}
    shown = {key: array.astype(np.float64) for key, array in shown.items()}
    row = compare("definition", dtype, defined, shown, ("definition", name))
    return dataclasses.replace(row, rung=f"definition: {name}")


def contents(values):
    plural = "" if len(values) == 1 else "s"
    return f"{len(values)} tensor{plural}, {sum(map(np.size, values)):,} numbers"


def index(place):
    return [int(i) for i in place] if place else ""


def table(rows, left_out=None):
    """Text for people; left_out: dict rung -> reason. Text from a file is shown in ASCII."""
    lines = [f"{'rung':<18} {'compared':<28} {'worst':>9} {'bound':>8}  verdict  where"]
    for row in rows:
        worst = "-" if row.worst is None else f"{row.worst:.1e}" if row.worst else "equal"
        verdict = "ok" if row.passed else "FAILED"
        bound = row.bound or "exact"
        lines.append(f"{row.rung:<18} {row.compared:<28} {worst:>9} {bound:>8}  {verdict:<7}  {row.where}")
    lines += [f"{rung:<18} left out: {reason}" for rung, reason in (left_out or {}).items()]
    failed = next((row for row in rows if not row.passed), None)
    if failed:
        lines.append(f"\nfirst failing rung: {failed.rung}, at {failed.where}")
        lines += [f"  {name:>12}: {value}" for name, value in zip(failed.sides, (failed.first, failed.second))]
    return "\n".join(line.rstrip().encode("ascii", "backslashreplace").decode() for line in lines)


def entries(rows, dtype):
    """dict rung -> (bound, measured), as an entry of BOUNDS would be with what these rows showed as all that was
    measured. A rung that is exact has none: a difference there is a defect."""
    shown = {row.rung: row.worst for row in rows if row.worst and dtype in BOUNDS.get(row.rung, ("", {}))[1]}
    return {rung: (float(f"{3.5 * worst:.1e}"), float(f"{worst:.1e}")) for rung, worst in shown.items()}


def unmeasured(rows, dtype):
    """Text about the rows of a device that BOUNDS were not measured on: what was seen, and new entries where it is
    beyond a bound."""
    lines = ["The bounds were measured on CPUs only. Please report this table, whether it holds or not."]
    for rung, entry in entries(rows, dtype).items():
        bound, measured = BOUNDS[rung][1][dtype]
        if entry[1] > bound:
            lines.append(f"  {rung}: {entry[1]} is beyond the bound {bound} (CPUs: {measured}); if it is rounding and "
                         f"not a defect, the entry for {dtype} in parity/ladder.py would be {entry}")
    if len(lines) == 1 and (shares := [row.worst / row.bound for row in rows if row.bound]):
        lines.append(f"  every rung that has a bound is at {max(shares):.0%} of its bound or less")
    return "\n".join(lines)


def report(title, rows, as_json, started, left_out, **more):
    """Prints one ladder; whether it holds. left_out: dict rung -> reason; more: dict name -> text."""
    if as_json:
        found = {"ladder": title, "rungs": [dataclasses.asdict(row) for row in rows]} | more
        if left_out:
            found["left_out"] = left_out
        print(json.dumps(found, sort_keys=True, allow_nan=False), flush=True)
    else:
        for name, text in more.items():
            print(f"{name}: {text}")
        print(title, table(rows, left_out), f"({time.perf_counter() - started:.0f} s)\n", sep="\n", flush=True)
    return all(row.passed for row in rows)
