"""float32 weights <-> whole codes with one scale a row, or float16. numpy only, order-independent operations only: backends cannot
disagree.

The rule, which whoever trains with it repeats on the device. L is the number of levels, a real number from 2 on, 127 by default:
all in float32, for each row w of a matrix,

    step = float32(float16(max|w| / L))               the float16 above where rint(L) > 127, the nearest otherwise
    q    = clip(rint(w / step), -rint(L), rint(L))    0 where step is 0; rint takes halves to the even number
    w    ~ q * step

There is no floor under the step: a row of zeros has step 0. Stored are NAME.scale, the step as float16, and NAME, q as int8. Where
rint(L) > 127, q = NAME * 2**k + low with the smallest k for which NAME fits int8, and low, from 0 to 2**k - 1, in NAME.low: uint8, k bits
a number, the highest first, rows filled up with 0. A Huffman code of bytes then costs what the numbers are worth, at any L; and no step is
too small, or the largest weights would be cut. A group that is "fp16" has NAME float16 alone.
"""
import numpy as np

from common.params import check_tensors, param_table
from common.settings import group_levels

MOST_LEVELS = 32767


def tensor_levels(settings):
    """dict name -> levels of the tensors that are rounded when they are stored."""
    levels = group_levels(settings)
    return {name: levels[p.group] for name, p in param_table(settings).items() if p.group != "scalar"}


def quantize_rows(weight, levels=127):
    """(q (rows, columns) int8, or int16 above 127; scale (rows,) float16) of a float32 matrix, by the rule above."""
    top = round(levels)
    exact = np.abs(weight).max(axis=1) / np.float32(levels)
    scale = exact.astype(np.float16)
    if top > 127:
        scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    step = scale.astype(np.float32)[:, None]
    q = np.divide(weight, step, out=np.zeros_like(weight), where=step > 0)
    return np.clip(np.rint(q), -top, top).astype(np.int8 if top <= 127 else np.int16), scale


def dequantize_rows(q, scale):
    """float32 (rows, columns)."""
    return q * scale.astype(np.float32)[:, None]


def low_bits(levels):
    """k of the rule above: bits of a code that NAME.low holds, 0 where there is none."""
    return max(0, round(levels).bit_length() - 7)


def store_matrix(name, weight, levels):
    """dict of the stored tensors of one float32 matrix; levels: a number or "fp16"."""
    if levels == "fp16":
        return {name: weight.astype(np.float16)}
    q, scale = quantize_rows(weight, levels)
    if not (bits := low_bits(levels)):
        return {name: q, name + ".scale": scale}
    low = np.unpackbits((q & (1 << bits) - 1).astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - bits:]
    return {name: (q >> bits).astype(np.int8), name + ".low": np.packbits(low.reshape(len(q), -1), axis=1), name + ".scale": scale}


def stored_kinds(name, shape, levels):
    """dict name -> (shape, dtype as text): what store_matrix gives."""
    if levels == "fp16":
        return {name: (shape, "float16")}
    low = {name + ".low": ((shape[0], -(-shape[1] * low_bits(levels) // 8)), "uint8")} if low_bits(levels) else {}
    return {name: (shape, "int8"), name + ".scale": (shape[:1], "float16")} | low


def load_matrix(name, stored, levels):
    """The float32 matrix of stored tensors of the right kinds. Raises ValueError where a code is larger than the levels."""
    if levels == "fp16":
        return stored[name].astype(np.float32)
    q, top = stored[name], round(levels)
    if bits := low_bits(levels):
        low = np.unpackbits(stored[name + ".low"], axis=1)
        if low[:, q.shape[1] * bits:].any():
            raise ValueError(f"tensor {name}.low does not end in zeros")
        low = np.packbits(low[:, :q.shape[1] * bits].reshape(*q.shape, bits), axis=2)[:, :, 0] >> (8 - bits)
        q = (q.astype(np.int16) << bits) + low
    if q.max() > top or q.min() < -top:
        raise ValueError(f"tensor {name} holds a code beyond its {levels} levels")
    return dequantize_rows(q, stored[name + ".scale"])


def weight_limit(levels):
    """Weights must stay below, for a scale to be a float16, or a weight itself; 8e6 at 127 levels."""
    if isinstance(levels, str):
        levels = {"fp16": 1, "auto": 2}[levels]
    return 8e6 * min(levels, 127) / 127


def unstorable(settings, weights, levels=None):
    """Name of the first tensor with a value that is not finite or too large to be stored, else None."""
    levels = {"scalar": 127} | (levels or group_levels(settings))
    return next((name for name, p in param_table(settings).items()
                 if not (np.abs(weights[name]) < weight_limit(levels[p.group])).all()), None)


def quantize_weights(settings, weights, levels=None):
    """dict of float32 weights -> dict of stored tensors: those of the rule above for matrices, embedding and head, NAME float32 for the
    scalar group. levels: dict group -> number or "fp16"; those of the settings by default. Raises ValueError on a weight that is not
    finite or too large: 8e6 at 127 levels."""
    levels, stored = levels or group_levels(settings), {}
    if name := unstorable(settings, weights, levels):
        raise ValueError(f"{name} holds a value that is not finite, or too large for a float16 scale")
    for name, p in param_table(settings).items():
        weight = np.ascontiguousarray(weights[name], np.float32)  # the safetensors library writes memory as it lies
        stored |= {name: weight} if p.group == "scalar" else store_matrix(name, weight, levels[p.group])
    return stored


def dequantize_weights(settings, stored, levels=None):
    """The inverse: dict[str, float32 array]. Raises ValueError where a tensor is missing, unknown, of another shape or dtype, or holds
    what quantize_weights does not write."""
    levels, table, expected, weights = levels or group_levels(settings), param_table(settings), {}, {}
    for name, p in table.items():
        expected |= {name: (p.shape, "float32")} if p.group == "scalar" else stored_kinds(name, p.shape, levels[p.group])
    check_tensors(expected, {name: (tensor.shape, str(tensor.dtype)) for name, tensor in stored.items()})
    for name, p in table.items():
        weights[name] = stored[name] if p.group == "scalar" else load_matrix(name, stored, levels[p.group])
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"tensor {name} holds a value that is not finite")
    return weights


def relative_error(settings, weights, stored_weights):
    """Root mean square of what storing changes, over that of the weights; the scalar group, which is stored as it is, left out."""
    names = [name for name, p in param_table(settings).items() if p.group != "scalar"]
    lost = sum(float(np.square(weights[name] - stored_weights[name]).sum(dtype=np.float64)) for name in names)
    return (lost / (sum(float(np.square(weights[name]).sum(dtype=np.float64)) for name in names) or 1.0)) ** 0.5
