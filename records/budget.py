"""Where the bytes of a model file go, and what rounding costs, tensor by tensor, from the file alone."""
import dataclasses

import numpy as np

from common.artifact import read_model
from common.params import param_table

MODEL_LIMIT = 1 << 28  # bytes of a model file that is read
GROUPS = ("embedding", "attention", "mlp", "head", "controls", "scales")


@dataclasses.dataclass
class TensorBytes:
    """One stored tensor. bytes: its share of the file, by the order-0 entropy of its bytes; error: the expected
    rounding error, step / sqrt(12), as root mean square relative to that of the weights, None where nothing is
    rounded."""
    name: str
    group: str
    numbers: int
    bytes: float
    error: float | None


def entropy_bytes(array):
    """Order-0 entropy of an array's bytes, in bytes."""
    counts = np.bincount(np.frombuffer(array.tobytes(), np.uint8), minlength=256).astype(np.float64)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def group_of(name, param):
    """One of GROUPS, of a parameter."""
    named = {"embed": "embedding", "head": "head", "scalar": "controls"}
    return named.get(param.group, "attention" if ".attn." in name else "mlp")


def model_budget(data):
    """list of TensorBytes of a model file's bytes, in reading order; together they have the file's size. Raises
    UserError."""
    settings, levels, stored, weights = read_model(data)
    found = []
    for name, param in param_table(settings).items():
        group = group_of(name, param)
        if param.group == "scalar" or levels[param.group] == "fp16":
            found.append(TensorBytes(name, group, stored[name].size, entropy_bytes(stored[name]), None))
            continue
        step = stored[f"{name}.scale"].astype(np.float64)
        square = np.square(weights[name].astype(np.float64)).sum()
        error = float(np.sqrt(np.square(step).sum() / 12 * stored[name].shape[1] / square)) if square else 0.0
        size = sum(entropy_bytes(stored[part]) for part in (name, f"{name}.low") if part in stored)
        found.append(TensorBytes(name, group, stored[name].size, size, error))
        found.append(TensorBytes(f"{name}.scale", "scales", step.size, entropy_bytes(stored[f"{name}.scale"]), None))
    if not any(t.bytes for t in found):  # every byte is the same: by count
        found = [dataclasses.replace(t, bytes=t.numbers) for t in found]
    scale = len(data) / sum(t.bytes for t in found)
    return [dataclasses.replace(t, bytes=t.bytes * scale) for t in found]


def group_bytes(budget):
    """dict group -> bytes, whole numbers that add up to the file's size."""
    totals = {group: sum(t.bytes for t in budget if t.group == group) for group in GROUPS}
    edges = np.rint(np.cumsum([0.0, *totals.values()])).astype(int)
    return {group: int(high - low) for group, low, high in zip(totals, edges, edges[1:]) if high > low}


def completed(total, model, code):
    """(total, model, code): bytes of a submission; None: not stated. One that the other two give is filled in."""
    if total is None and None not in (model, code):
        total = model + code
    elif model is None and None not in (total, code):
        model = total - code if total >= code else None
    elif code is None and None not in (total, model):
        code = total - model if total >= model else None
    return total, model, code
