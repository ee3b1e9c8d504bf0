"""Passes and seconds of QUANT_LEVELS=auto at the real size: `python -m tests.bench.fit`.

The weights are normal. The models have 0.46 to 3 times the 16,000,000 bytes at 127 levels.
"""
import dataclasses
import time

import numpy as np

from common.artifact import decode_model, encode_model
from common.challenge import BUDGET_BYTES
from common.fit import fit_levels
from common.params import count_params, param_table
from common.settings import Settings


def normal_weights(settings):
    random = np.random.default_rng(0)
    return {name: random.standard_normal(p.shape, dtype=np.float32) for name, p in param_table(settings).items()}


def main():
    budget = BUDGET_BYTES - 85_000  # what a trainer's code leaves
    print(f"{'layers':>6} {'MLP':>3} {'parameters':>11} {'at 127':>6} {'levels':>9} {'bytes':>11} {'left':>7} "
          f"{'error':>7} {'passes':>6} {'fit s':>6} {'encode s':>8}")
    for layers, mlp in ((4, 2), (3, 4), (7, 2), (9, 2), (14, 2), (18, 2), (28, 2)):
        settings = Settings(vocab_size=1024, num_layers=layers, mlp_mult=mlp, quant_levels="auto")
        weights = normal_weights(settings)
        plain = len(encode_model(dataclasses.replace(settings, quant_levels="127"), weights)[0])
        start = time.perf_counter()
        levels, tried = fit_levels(settings, weights, budget)
        fitted = time.perf_counter()
        model, _ = encode_model(settings, weights, levels)
        encoded = time.perf_counter()
        if len(model) != tried[-1][1] or len(model) > budget:
            raise SystemExit(f"{layers} layers: {len(model):,} bytes, {tried[-1][1]:,} expected")
        decode_model(model)
        print(f"{layers:6} {mlp:3} {count_params(settings):11,} {plain / budget:5.2f}x {levels['matrix']:9} "
              f"{len(model):11,} {1 - len(model) / budget:7.3%} {tried[-1][2]:7.2%} {len(tried):6} "
              f"{fitted - start:6.1f} {encoded - fitted:8.1f}", flush=True)


if __name__ == "__main__":
    main()
