"""Seconds of GPTQ for the matrices of the default model, and the error of their outputs: `python -m tests.bench.gptq`.

Weights and inputs are normal; neighbouring inputs are correlated, by 0.5.
"""
import time

import numpy as np

from common.gptq import factor
from common.params import param_table
from common.quantize import dequantize_rows, quantize_rows
from common.settings import Settings

TOKENS = 2048


def main():
    random, seconds, lost = np.random.default_rng(0), 0.0, {31: np.zeros(2), 7: np.zeros(2)}
    table = {name: p for name, p in param_table(Settings(vocab_size=1024)).items() if p.group == "matrix"}
    for p in table.values():
        weight = random.standard_normal(p.shape, dtype=np.float32)
        inputs = random.standard_normal((TOKENS, p.shape[1] + 1))
        inputs = inputs[:, 1:] + inputs[:, :-1]
        products = inputs.T @ inputs
        for levels, errors in lost.items():
            start = time.perf_counter()
            rounded = quantize_rows(weight, levels, 0, factor(products))
            seconds += (time.perf_counter() - start) * (levels == 31)
            for i, found in enumerate((quantize_rows(weight, levels), rounded)):
                errors[i] += np.square((weight - dequantize_rows(*found)) @ inputs.T).sum()
    ratios = ", ".join(f"{gptq / plain:.3f} at {levels} levels" for levels, (plain, gptq) in lost.items())
    print(f"{len(table)} matrices in {seconds:.1f} s; squared error of the outputs against plain rounding: {ratios}")


if __name__ == "__main__":
    main()
