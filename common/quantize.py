"""float32 weights <-> int8 with one float16 scale a row. numpy only, order-independent operations only: backends cannot disagree."""
import numpy as np

from common.params import check_tensors, param_table


def tensor_levels(settings):
    """dict of the tensors that are quantized: name -> largest code."""
    return {name: 15 for name, p in param_table(settings).items() if p.group != "scalar"}


def quantize_rows(weight, levels=127):
    """(q int8 (rows, columns), scale float16 (rows,)) with weight ~ q * scale. q is computed against the scale as stored.
    There is no floor under the scale: a row of zeros has scale 0."""
    scale = (np.abs(weight).max(axis=1) / levels).astype(np.float16)
    step = scale.astype(np.float32)[:, None]
    q = np.divide(weight, step, out=np.zeros_like(weight), where=step > 0)
    return np.clip(np.rint(q), -levels, levels).astype(np.int8), scale


def dequantize_rows(q, scale):
    """float32 (rows, columns)."""
    return q * scale.astype(np.float32)[:, None]


def quantize_weights(settings, weights):
    """dict of float32 weights -> dict of stored tensors: NAME int8 and NAME.scale float16 for matrices, embedding and head;
    NAME float32 for the scalar group. Raises ValueError on a weight that is not finite or above 8e6."""
    stored = {}
    for name, p in param_table(settings).items():
        weight = np.ascontiguousarray(weights[name], np.float32)  # the safetensors library writes memory as it lies
        if not (np.abs(weight) < 8e6).all():
            raise ValueError(f"{name} holds a value that is not finite, or too large for a float16 scale")
        stored[name] = weight
        if p.group != "scalar":
            stored[name], stored[name + ".scale"] = quantize_rows(weight)
    return stored


def dequantize_weights(settings, stored):
    """The inverse: dict[str, float32 array]. Raises ValueError where a tensor is missing, unknown, or of another shape or dtype."""
    expected, weights = {}, {}
    for name, p in param_table(settings).items():
        expected[name] = p.shape, "float32" if p.group == "scalar" else "int8"
        if p.group != "scalar":
            expected[name + ".scale"] = p.shape[:1], "float16"
    check_tensors(expected, {name: (tensor.shape, str(tensor.dtype)) for name, tensor in stored.items()})
    for name, p in param_table(settings).items():
        weights[name] = stored[name] if p.group == "scalar" else dequantize_rows(stored[name], stored[name + ".scale"])
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"tensor {name} holds a value that is not finite")
    return weights
