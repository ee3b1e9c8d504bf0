"""What makes a step faster on a CPU computes the same: `python -m pytest tests/common/test_cpu.py`."""
import dataclasses

import numpy as np
import pytest

from common.params import initial_weights
from tests.conftest import tiny_settings, trainer_class


@pytest.mark.parametrize("length", [1, 64, 100, 256, 300])
def test_blocks_of_queries_are_causal_attention(length):
    import torch

    from train_gpt import attend
    q, k, v = (torch.randn(2, heads, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(heads))
               for heads in (4, 2, 2))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_streams_share_rows_and_matrices(rows, data_path):
    """More streams than rows, as many, and rows that cannot be shared equally."""
    import mlx.core as mx
    s = dataclasses.replace(tiny_settings("mlx", data_path, compute_dtype="float64"), vocab_size=260)
    tokens = np.random.Generator(np.random.Philox(3)).integers(0, 260, (rows, 33)).astype(np.int32)
    found = []
    for streams in (1, 2):
        trainer = trainer_class("mlx")(s, initial_weights(s))
        trainer.streams[:] = [mx.new_stream(mx.cpu) for _ in range(streams)]
        nats, (_, grads) = trainer.token_nats(tokens), trainer.gradients(tokens)
        loss = float(trainer.train_step(tokens, 1.0, 0.9))
        found.append({"nats": nats, "loss": loss, **grads, **{f"new {n}": w for n, w in trainer.weights().items()}})
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=0, atol=1e-10, err_msg=name)
