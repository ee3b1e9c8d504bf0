"""QUANT_LEVELS=auto: the most levels with which the model file fits the bytes that the code leaves.

The bytes grow almost linearly with log2 of the levels, so a secant comes close in a few passes. A pass quantizes everything and finds
the exact size of the file; the slow part of the encoder, packing bits, is left out.
"""
import dataclasses
import math

from common.artifact import encode_model, pack_payload
from common.params import count_params, param_table
from common.quantize import MOST_LEVELS, dequantize_weights, quantize_weights, relative_error
from common.settings import UserError, group_levels, model_conflicts
from common.zstream import zlib_size

LEAST_LEVELS, PASSES = 2, 8
LOOSE = 0.001  # of the budget: what may be left of it


def search_levels(size, budget, slope):
    """The largest number of levels, to 5 digits, with size(levels) <= budget, but for LOOSE of it; None where LEAST_LEVELS do not fit.
    slope: bytes that one more bit in the levels costs, roughly."""
    low, high = math.log2(LEAST_LEVELS), math.log2(MOST_LEVELS)
    x, fits, over, last = math.log2(127), None, None, None  # points: (log2 of the levels, bytes, levels)
    for number in range(1, PASSES + 2):
        levels = min(MOST_LEVELS, max(LEAST_LEVELS, float(f"{2**x:.5g}")))
        found = size(levels)
        point = x, found, levels
        if last and (found - last[1]) * (x - last[0]) > 0:
            slope = (found - last[1]) / (x - last[0])
        last = point
        if found <= budget:
            fits = max(fits or point, point)
        else:
            over = min(over or point, point)
        end = levels == (MOST_LEVELS if found <= budget else LEAST_LEVELS)
        close = 0 <= budget - found <= LOOSE * budget or (fits and over and over[0] - fits[0] < 0.01)  # bytes jump where codes get wider
        if end or close or (fits and number >= PASSES):
            break
        x = min(high, max(low, x + (budget * (1 - LOOSE / 2) - found) / slope)) if number < PASSES else low
        if (fits and x <= fits[0]) or (over and x >= over[0]):  # the line leads out of what is left
            x = ((fits or (low,))[0] + (over or (high,))[0]) / 2
    return fits and fits[2]


def with_auto(groups, levels):
    """dict group -> number or "fp16": `levels` for every group that is "auto"."""
    return {group: levels if value == "auto" else value for group, value in groups.items()}


def bit_bytes(settings, groups):
    """Bytes that one more bit in the levels of the "auto" groups costs."""
    return sum(math.prod(p.shape) for p in param_table(settings).values() if groups.get(p.group) == "auto") / 8


def fit_levels(settings, weights, budget):
    """(levels, tried): dict group -> number or "fp16" with which the file of float32 weights has at most `budget` bytes, and list of
    (levels, bytes of the file, relative error of the weights), the chosen one last. Every "auto" group gets the same number.
    Raises UserError."""
    groups, tried = group_levels(settings), {}

    def size(number):
        levels = with_auto(groups, number)
        stored = quantize_weights(settings, weights, levels)
        tried[number] = (levels, zlib_size(pack_payload(settings, stored, levels)),
                         relative_error(settings, weights, dequantize_weights(settings, stored, levels)))
        return tried[number][1]

    chosen = search_levels(size, budget, bit_bytes(settings, groups))
    if chosen is None:
        raise UserError(too_large(settings, tried[LEAST_LEVELS][1], budget), "over_budget")
    return with_auto(groups, chosen), [tried[number] for number in sorted(tried, key=lambda number: number == chosen)]


def too_large(settings, least, budget):
    """What is wrong where the file has `least` bytes at the fewest levels, and what would fit."""
    params = count_params(settings)
    many = math.ceil(params * (1 - budget / least))
    smaller = (dataclasses.replace(settings, num_layers=n) for n in range(settings.num_layers - 1, 0, -1))
    fewer = next((s.num_layers for s in smaller if not model_conflicts(s) and count_params(s) <= params - many), None)
    hint = f"NUM_LAYERS={fewer} would fit" if fewer else "use a smaller MODEL_DIM"
    return (f"QUANT_LEVELS={settings.quant_levels}: at {LEAST_LEVELS} levels the model has {least:,} bytes, {least - budget:,} more than "
            f"the {budget:,} that the code leaves: of its {params:,} parameters about {many:,} are too many; {hint}")


def encode_within(settings, weights, budget, log):
    """(file bytes, payload bytes) of float32 weights, with levels that fit where some are "auto"; log: called for each that was tried.
    Raises UserError."""
    levels, tried = group_levels(settings), []
    if "auto" in levels.values():
        levels, tried = fit_levels(settings, weights, budget)
    for found, size, error in tried:
        text = ",".join(f"{group}={value}" if value == "fp16" else f"{group}={value:.5g}" for group, value in found.items())
        log("quant", levels=text, bytes=size, error=error)
    return encode_model(settings, weights, levels)
