"""X^T X of the matrices' inputs over GPTQ_TOKENS tokens for training, by which gptq.py rounds.

It is measured inside the training clock, as the challenge rules: it reads tokens for training.
"""
import contextlib
import functools
import time

from common.ranks import Agreed


@contextlib.contextmanager
def exported_weights(trainer, settings):
    """Inside, the trainer has the weights that the model file is made of: with EMA_DECAY their average."""
    if not settings.ema_decay:
        yield
        return
    own = trainer.weights()
    trainer.load_state(trainer.weights(averaged=True))
    try:
        yield
    finally:
        trainer.load_state(own)


def calibrate(trainer, settings, stream):
    """dict name -> float64 (columns, columns) over the first GPTQ_TOKENS tokens of a stream, the same on every rank.
    Raises Agreed."""
    length = settings.train_seq_len
    rows = stream.read(0, settings.gptq_tokens // length * length).reshape(-1, length)
    if len(rows) < trainer.world_size:
        raise Agreed(f"GPTQ_TOKENS={settings.gptq_tokens} is {len(rows)} rows of TRAIN_SEQ_LEN={length} for "
                     f"{trainer.world_size} ranks: use {trainer.world_size * length} or more", "bad_settings")
    with exported_weights(trainer, settings):
        found = trainer.input_products(rows[trainer.rank::trainer.world_size])
    return {name: trainer.all_sum(found[name].astype("float64")) for name in sorted(found)}


def rehearse_calibration(trainer, settings, stream):
    """Seconds that calibrate() takes, when it has run before."""
    for _ in range(2):
        start = time.perf_counter()
        calibrate(trainer, settings, stream)
    return time.perf_counter() - start


def collect(layers, square, passes):
    """dict name -> sum of square(inputs of that layer) over the passes, an iterator that runs the model. layers: dict
    name -> module, which calls its attribute `seen`."""
    found = {}

    def add(name, x):
        found[name] = square(x) + found.get(name, 0)

    for name, layer in layers.items():
        layer.seen = functools.partial(add, name)
    for _ in passes:
        pass
    for layer in layers.values():
        del layer.seen
    return found
