"""Bytes of code and model on equal weights, here and as the challenge's script has them: `python -m
tests.bench.bundle`.

The weights are normal numbers in the shape of the baseline. The challenge's script stores the same int8 codes and
float16 scales in a stream of stock zlib at level 9, and counts 47,642 bytes of code.
"""
import zlib

import numpy as np

from common.artifact import encode_model
from common.bundle import bundle
from common.params import param_table
from common.settings import Settings
from tests.conftest import BACKENDS, ROOT

CHALLENGE_CODE = 47_642

if __name__ == "__main__":
    settings, random = Settings(vocab_size=1024), np.random.Generator(np.random.Philox(0))
    weights = {name: 0.02 * random.standard_normal(p.shape).astype(np.float32)
               for name, p in param_table(settings).items()}
    model, payload = encode_model(settings, weights)
    sizes = {name: (len(bundle(ROOT / script)), len(model)) for name, script in BACKENDS.items()}
    sizes["challenge"] = CHALLENGE_CODE, len(zlib.compress(payload, 9))
    for name, (code, size) in sizes.items():
        print(f"{name:<10} code {code:>7,} + model {size:>11,} = {code + size:>11,}")
