"""Data and settings that the tests share: a small text in byte tokens, and a model that trains on it in a second."""
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.data.folder import write_shard

ROOT = Path(__file__).parents[1]
TINY = {
    "vocab_size": 260,
    "num_layers": 3,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": 32,
    "train_batch_tokens": 256,
    "micro_batch_tokens": 256,
    "iterations": 12,
    "max_wallclock_seconds": 0.0,
    "warmup_steps": 1,
    "val_loss_every": 0,
    "muon_momentum_warmup_steps": 5,
    "compile": False,
    "device": "cpu",
}
BACKENDS = {"torch": "train_gpt.py", "mlx": "train_gpt_mlx.py"}
GPUS = [pytest.param("torch", marks=pytest.mark.cuda), pytest.param("mlx", marks=pytest.mark.metal)]
DEVICES = [  # values of (backend, device)
    ("torch", "cpu"), ("mlx", "cpu"),
    pytest.param("torch", "gpu", marks=pytest.mark.cuda), pytest.param("mlx", "gpu", marks=pytest.mark.metal)]


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    """A data folder in byte tokens: about 12,000 training tokens in two shards, 1,500 for validation."""
    folder = tmp_path_factory.mktemp("data")
    words = "the cat sat on a mat and then ran off to see what there was to eat in the old red barn".split()
    random = np.random.Generator(np.random.Philox(7))
    text = " ".join(words[i] for i in random.integers(0, len(words), 4000)).encode()
    tokens = np.frombuffer(text, np.uint8)[:13_500].astype(np.uint16) + 4
    for name, part in {
        "text_train_000000": tokens[:7000],
        "text_train_000001": tokens[7000:12_000],
        "text_val_000000": tokens[12_000:],
    }.items():
        write_shard(folder / f"{name}.bin", part)
    digest = hashlib.sha256(b"bytes").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": {"file": "bytes", "sha256": digest}}))
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A data folder in byte tokens of documents that begin with a BOS: 8,000 tokens for training, 700 for
    validation."""
    folder, random = tmp_path_factory.mktemp("documents"), np.random.Generator(np.random.Philox(5))
    words = "the cat sat on a mat and then ran off to see what there was to eat in the old red barn".split()
    tokens = []
    while len(tokens) < 8700:
        text = " ".join(words[i] for i in random.integers(0, len(words), random.integers(3, 60)))
        tokens += [1, *(4 + b for b in text.encode())]
    for name, part in {"text_train_000000": tokens[:8000], "text_val_000000": tokens[8000:8700]}.items():
        write_shard(folder / f"{name}.bin", np.array(part, np.uint16))
    digest = hashlib.sha256(b"bytes").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": {"file": "bytes", "sha256": digest}}))
    return folder


def pytest_runtest_setup(item):
    """Tests marked `cuda` and `metal` run wherever there is such a device; they fail where their framework is not
    installed."""
    for name in ("cuda", "metal"):
        if item.get_closest_marker(name) and not has_device(name):
            pytest.skip(f"no {name} device")


def has_device(name):
    if name == "cuda":
        import torch
        return torch.cuda.is_available()
    import mlx.core as mx
    return mx.metal.is_available()


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend in turn; one that is not installed fails."""
    return request.param


def trainer_class(name):
    if name == "mlx":
        import train_gpt_mlx
        return train_gpt_mlx.MlxTrainer
    import train_gpt
    return train_gpt.TorchTrainer


with contextlib.suppress(ModuleNotFoundError):  # tests of MLX fail where it is not installed
    # before any plain `import mlx`, which would tie MLX to its own slow BLAS; pytest imports this file first
    trainer_class("mlx")


def tiny_settings(backend, data_path, **changes):
    return trainer_class(backend).settings_class(**TINY | {"data_path": str(data_path)} | changes)


def environment(data_path, **changes):
    """Environment of a subprocess that runs a trainer at the tiny size."""
    clean = {
        name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV")
    }
    values = TINY | {"data_path": data_path, "omp_num_threads": 1, "openblas_num_threads": 1} | changes
    return clean | {
        name.upper(): str(int(value) if isinstance(value, bool) else value) for name, value in values.items()
    }


def run_script(command, folder, env):
    """The finished process of `python COMMAND` in a folder."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
