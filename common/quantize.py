"""float32 weights <-> integer codes with one scale per row, or float16, by operations whose order cannot matter.

The rule, which training with QAT_START repeats on the device, for each row w of a matrix, all in float32. L is the
number of levels, a real number of at least 2:

    step = float32(float16(max|w| / L))               the nearest float16; where rint(L) > 127, rounded up
    q    = clip(rint(w / step), -rint(L), rint(L))    0 where step is 0; rint rounds halves to even
    w    ~ q * step

In group "matrix", QUANT_CLIP=k makes the step the nearest float16 of k * row_rms(w) / L, at most 65504, at any L, and
GPTQ_TOKENS has gptq.py choose q. An embedding has heavier rows, which would lose more than they save.

Stored are NAME.scale, the step as float16, and NAME, q as int8. Where rint(L) > 127, q = NAME * 2**k + low with the
smallest k for which NAME fits int8. The numbers low, from 0 to 2**k - 1, are in NAME.low: uint8, k bits each, highest
bit first, rows padded with 0. There the step is rounded up, or the largest weights would be clipped. A group that is
"fp16" has only NAME, as float16.
"""
import numpy as np

from common.gptq import round_columns
from common.params import check_tensors, param_table
from common.settings import group_levels

MOST_LEVELS = 32767


def tensor_levels(settings, levels=None):
    """dict name -> levels of the tensors that are rounded. levels: as for quantize_weights."""
    levels = levels or group_levels(settings)
    return {name: levels[p.group] for name, p in param_table(settings).items() if p.group != "scalar"}


def row_rms(weight):
    """float64 (rows,): root mean squares of float32 rows. Sums of integers, of 20 bits each, have no order."""
    exponent = np.frexp(np.abs(weight).max(axis=1))[1]
    whole = np.rint(weight * np.ldexp(1.0, 20 - exponent)[:, None]).astype(np.int64)
    return np.ldexp(np.sqrt(np.square(whole).sum(axis=1) / weight.shape[1]), exponent - 20)


def quantize_rows(weight, levels=127, clip=0, factor=None):
    """(q (rows, columns) int8, or int16 above 127; scale (rows,) float16) of a float32 matrix. factor: of
    gptq.py."""
    top = round(levels)
    exact = np.abs(weight).max(axis=1) / np.float32(levels)
    if clip:
        exact = np.minimum(clip * row_rms(weight) / levels, 65504)
    scale = exact.astype(np.float16)
    if top > 127 and not clip:
        scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    step = np.where(scale, scale, np.float16(1)).astype(np.float32)  # 1: such a row's weights are far below
    q = round_columns(weight, step, top, factor) if factor else np.clip(np.rint(weight / step[:, None]), -top, top)
    return q.astype(np.int8 if top <= 127 else np.int16), scale


def dequantize_rows(q, scale):
    """float32 (rows, columns)."""
    return q * scale.astype(np.float32)[:, None]


def low_bits(levels):
    """k of the rule above: bits of a code in NAME.low."""
    return max(0, round(levels).bit_length() - 7)


def store_matrix(name, weight, levels, clip=0, factor=None):
    """dict of the stored tensors of a float32 matrix. levels: a number, "fp16", or None to keep it."""
    if levels is None:
        return {name: weight}
    if levels == "fp16":
        return {name: weight.astype(np.float16)}
    q, scale = quantize_rows(weight, levels, clip, factor)
    stored = {name: q, name + ".scale": scale}
    if bits := low_bits(levels):
        low = np.unpackbits((q & (1 << bits) - 1).astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - bits:]
        stored |= {name: (q >> bits).astype(np.int8), name + ".low": np.packbits(low.reshape(len(q), -1), axis=1)}
    return stored


def load_matrix(name, stored, levels):
    """The float32 matrix of stored tensors. Raises ValueError if a code or the padding is wrong."""
    if levels in (None, "fp16"):
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


def unstorable(settings, weights, levels=None):
    """Name of a tensor with a value that is not finite or too large for a float16 scale, else None: 8e6 at 127 levels,
    in proportion at fewer; 8e6 / 127 with fp16."""
    levels = tensor_levels(settings, levels)
    for name in param_table(settings):
        number = levels.get(name, 127)
        number = {"fp16": 1, "auto": 2}.get(number, number)
        if not (np.abs(weights[name]) < 8e6 * min(number, 127) / 127).all():
            return name
    return None


def quantize_weights(settings, weights, levels=None, factors=None):
    """dict of float32 weights -> dict of stored tensors; scalars stay float32. levels: dict group -> number or "fp16",
    by default those of the settings. factors: dict name -> gptq.factor. Raises ValueError if a weight is not finite
    or too large."""
    if name := unstorable(settings, weights, levels):
        raise ValueError(f"{name} holds a value that is not finite, or too large for a float16 scale")
    levels, factors, stored = tensor_levels(settings, levels), factors or {}, {}
    for name, p in param_table(settings).items():
        weight = np.ascontiguousarray(weights[name], np.float32)  # the safetensors library writes memory as it lies
        clip = settings.quant_clip if p.group == "matrix" else 0
        stored |= store_matrix(name, weight, levels.get(name), clip, factors.get(name))
    return stored


def dequantize_weights(settings, stored, levels=None):
    """The inverse: dict[str, float32 array]. Raises ValueError where quantize_weights would not write such tensors."""
    levels, expected, weights = tensor_levels(settings, levels), {}, {}
    for name, p in param_table(settings).items():
        row = np.zeros((1, *p.shape[1:]), np.float32)
        for key, tensor in store_matrix(name, row, levels.get(name)).items():
            expected[key] = p.shape[:1] + tensor.shape[1:], str(tensor.dtype)
    check_tensors(expected, {name: (tensor.shape, str(tensor.dtype)) for name, tensor in stored.items()})
    for name in param_table(settings):
        weights[name] = load_matrix(name, stored, levels.get(name))
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"tensor {name} holds a value that is not finite")
    return weights


def relative_error(settings, weights, stored_weights):
    """Root mean square of the rounding error over that of the rounded weights."""
    lost = kept = 0.0
    for name in tensor_levels(settings):
        lost += float(np.square(weights[name] - stored_weights[name]).sum(dtype=np.float64))
        kept += float(np.square(weights[name]).sum(dtype=np.float64))
    return (lost / (kept or 1.0)) ** 0.5
