"""What a trainer offers to the run. Only types: the run accepts any object with these methods."""
from typing import Protocol, SupportsFloat


class Trainer(Protocol):
    """All that common/, parity/ and the tests use of a trainer. Arrays are numpy, under the names of params.py. Built
    from (settings, float32 weights)."""

    backend: str
    settings_class: type
    rank: int
    world_size: int
    steps_ahead: int  # steps that may still be running when train_step returns

    def train_step(self, tokens, lr_scale: float, momentum: float, rounding: bool = False) -> SupportsFloat:
        """One update from this rank's int32 rows (rows, train_seq_len + 1); mean nats per token of the global batch.
        rounding: the forward pass rounds weights as the model file does. After the first non-finite loss or gradient,
        which makes the result non-finite, no further update is made until load_state."""

    def update_average(self, decay: float): ...  # of the weights, with EMA_DECAY; part of the state

    def state(self) -> dict:
        """All that a run needs to go on: weights() and, as NAME.momentum, NAME.exp_avg, NAME.exp_avg_sq, NAME.ema and
        adam_step, what the optimizers and the average keep. float32, float64 in reference mode. Every rank calls it."""

    def load_state(self, state):
        """Take over the arrays of a state, all of them or the weights alone."""

    def weights(self, averaged: bool = False) -> dict:
        """Master weights, or their average: float32, float64 in reference mode."""

    def token_nats(self, tokens):
        """(B, T) nats of the targets of int32 tokens (B, T + 1); T is at most train_seq_len or eval_seq_len."""

    def sgd_step(self, tokens, lr: float):
        """Plain SGD of every parameter, or with TTT_RANK of adapters, on the mean nats of int32 rows (rows, T + 1), on
        this rank alone."""

    def undo_sgd(self): ...  # back to the weights before the first sgd_step since load_state

    def finite_alone(self, tokens) -> bool:
        """Whether loss and gradient of this rank's rows alone are finite. Changes nothing but gradients."""

    def input_products(self, tokens):
        """dict of the matrices: X^T X (columns, columns), float32, float64 in reference mode, of their inputs X when
        the model reads int32 tokens (rows, train_seq_len)."""

    def logits(self, tokens):
        """(B, T, V) float32, float64 in reference mode, of int32 tokens (B, T)."""

    def gradients(self, tokens):
        """(loss, dict of gradients) of the global mean loss, without an update."""

    def all_sum(self, array):
        """Sum over the ranks, the same on every rank."""

    def one_line(self, compiled: bool): ...  # a small function on the device
    def wait(self): ...  # until the device has finished
    def peak_memory(self) -> int: ...  # bytes

    def memory(self):
        """(bytes that the device has, bytes that training will take, roughly)."""

    def matmul_flops(self) -> float: ...  # measured peak, floating-point operations per second
    def describe(self) -> str: ...  # number and kind of devices, compute dtype, framework version
    def close(self): ...
