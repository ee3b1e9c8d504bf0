"""QUANT_LEVELS=auto: the most levels with which the model file fits the bytes that the code leaves.

The size grows almost linearly with log2 of the levels, so a secant needs few passes.
"""
import dataclasses
import math

from common.artifact import encode_model, pack_payload
from common.gptq import factor
from common.params import count_params, param_table
from common.quantize import MOST_LEVELS, dequantize_weights, quantize_weights, relative_error
from common.settings import UserError, group_levels, model_conflicts
from common.zstream import zlib_size

LEAST_LEVELS = 2
PASSES = 8
LOOSE = 0.001  # of the budget: what may be left of it


def search_levels(size, budget, slope):
    """The largest number of levels, to 5 digits, with size(levels) <= budget; up to LOOSE of the budget may be left.
    None where LEAST_LEVELS do not fit. slope: bytes that one more bit in the levels costs, roughly."""
    low, high = math.log2(LEAST_LEVELS), math.log2(MOST_LEVELS)  # bounds of x, log2 of the levels
    fits = over = last = None  # the most levels that fit; whether `high` was too large; (x, bytes) of the last pass
    x = math.log2(127)
    for number in range(1, PASSES + 2):
        levels = min(MOST_LEVELS, max(LEAST_LEVELS, float(f"{2**x:.5g}")))
        found = size(levels)
        if last and (found - last[1]) * (x - last[0]) > 0:
            slope = (found - last[1]) / (x - last[0])
        last = x, found
        if found <= budget:
            low, fits = x, levels
        else:
            high, over = x, True
        end = levels == (MOST_LEVELS if found <= budget else LEAST_LEVELS)
        narrow = fits and over and high - low < 0.01  # bytes jump where codes get wider
        if end or narrow or 0 <= budget - found <= LOOSE * budget or (fits and number >= PASSES):
            break
        x = min(high, max(low, x + (budget * (1 - LOOSE / 2) - found) / slope)) if number < PASSES else low
        if (fits and x == low) or (over and x == high):  # the line leads to what was tried, or beyond
            x = (low + high) / 2
    return fits


def with_auto(groups, levels):
    """dict group -> number or "fp16": `levels` for every group that is "auto"."""
    return {group: levels if value == "auto" else value for group, value in groups.items()}


def levels_text(levels):
    """matrix=18.342,embed=fp16 of a dict group -> number or "fp16"."""
    return ",".join(f"{group}={value if value == 'fp16' else f'{value:.5g}'}" for group, value in levels.items())


def bit_bytes(settings, groups):
    """Bytes that one more bit in the levels of the "auto" groups costs."""
    return sum(math.prod(p.shape) for p in param_table(settings).values() if groups.get(p.group) == "auto") / 8


def fit_levels(settings, weights, budget, factors=None):
    """(levels, tried): dict group -> number or "fp16" with which the file has at most `budget` bytes, and a list of
    (levels, bytes, relative error), the chosen one last. Raises UserError."""
    groups, tried = group_levels(settings), {}

    def size(number):
        levels = with_auto(groups, number)
        stored = quantize_weights(settings, weights, levels, factors)
        found = zlib_size(pack_payload(settings, stored, levels))
        tried[number] = levels, found, relative_error(settings, weights, dequantize_weights(settings, stored, levels))
        return found

    chosen = search_levels(size, budget, bit_bytes(settings, groups))
    if chosen is None:
        raise UserError(too_large(settings, tried[LEAST_LEVELS][1], budget), "over_budget")
    tried[chosen] = tried.pop(chosen)
    return tried[chosen][0], [*tried.values()]


def too_large(settings, least, budget):
    """The message if the file has `least` bytes at the fewest levels."""
    params = count_params(settings)
    many = math.ceil(params * (1 - budget / least))
    smaller = (dataclasses.replace(settings, num_layers=n) for n in range(settings.num_layers - 1, 0, -1))
    fewer = next((s.num_layers for s in smaller if not model_conflicts(s) and count_params(s) <= params - many), None)
    hint = f"NUM_LAYERS={fewer} would fit" if fewer else "use a smaller MODEL_DIM"
    return (f"QUANT_LEVELS={settings.quant_levels}: at {LEAST_LEVELS} levels the model has {least:,} bytes, "
            f"{least - budget:,} more than the {budget:,} that the code leaves: about {many:,} of its {params:,} "
            f"parameters are too many; {hint}")


def encode_within(settings, weights, budget, log, products=None):
    """(file bytes, payload bytes), with levels for "auto" that fit the budget. products: dict name -> H of gptq.py.
    Raises UserError."""
    levels, tried = group_levels(settings), []
    factors = {name: factor(product) for name, product in (products or {}).items()}
    if "auto" in levels.values():
        levels, tried = fit_levels(settings, weights, budget, factors)
    for found, size, error in tried:
        log("quant", levels=levels_text(found), bytes=size, error=error)
    return encode_model(settings, weights, levels, factors)
