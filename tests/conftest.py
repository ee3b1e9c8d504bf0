"""What the tests share: a small text in byte tokens, and a model that trains on it in a second; the two tiers; what
becomes of a test whose package is not installed."""
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {  # extra of pyproject.toml -> its packages, as they are imported; "": what is always installed
    extra: [re.split(r"[\[<>=;]", line)[0].replace("-", "_") for line in lines]
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items()}
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
    from common.data.folder import write_shard
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
    from common.data.folder import write_shard
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


# what runs ------------------------------------------------------------------------------------------------------------

LONGEST = ("device/test_step", "runs/test_train", "parity/test_ladder", "records/test_tampering", "hostile/",
           "runs/test_ranks", "runs/test_faults", "test_imports")


def tiered(cases, every):
    """The cases of a parametrization, of which one in so many is in the fast tier, and all are in one of the two."""
    return [case if i % every == 0 else pytest.param(*(case if type(case) is tuple else [case]),
                                                     marks=pytest.mark.slow) for i, case in enumerate(cases)]


def pytest_addoption(parser):
    parser.addoption("--complete", action="store_true", help="fail where a package or Chromium is not installed; "
                     "without it such a test is skipped, and says what would run it")


def pytest_collection_modifyitems(items):
    """The longest files begin first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")


def pytest_runtest_setup(item):
    """Tests marked `cuda` and `metal` run wherever there is such a device. A test with a parameter that is a backend,
    or marked `needs`, runs where that is installed."""
    for name in ("cuda", "metal"):
        if item.get_closest_marker(name) and not has_device(name):
            pytest.skip(f"no {name} device")
    values = getattr(item, "callspec", None) and item.callspec.params.values()
    needed = [value for value in values or () if isinstance(value, str) and value in BACKENDS]
    for name in needed + [name for mark in item.iter_markers("needs") for name in mark.args]:
        if not installed(name):
            missing(item.config, remedy(name))


def has_device(name):
    if name == "cuda":
        import torch
        return torch.cuda.is_available()
    import mlx.core as mx
    return mx.metal.is_available()


def remedy(package):
    """What to do where an optional package is missing; "" for any other module."""
    for extra, names in EXTRAS.items():
        if package in names:
            return f"{package} is not installed: `pip install '.{f'[{extra}]' if extra else ''}'` provides it"
    return ""


def missing(config, what):
    """Skip a test for lack of something, or fail it where all is to be there: `make test` installs all."""
    (pytest.fail if config.getoption("complete") else pytest.skip)(what)


def installed(package):
    try:
        return bool(find_spec(package))
    except ModuleNotFoundError:  # who blocks an import raises it here
        return False


def lacking(error):
    """remedy() of a package that is not installed, as a failure says of this process or one that the test started."""
    found = re.search(r"No module named '(\w+)", f"{error} {error.__cause__}")
    return found and not installed(found[1]) and remedy(found[1])


def skip_for_lack(config, report, call):
    """Turns the failure of a file or a test for lack of a package into a skip that names it, but with --complete."""
    what = report.failed and not config.getoption("complete") and call.excinfo and lacking(call.excinfo.value)
    if what:
        report.outcome, report.longrepr = "skipped", (__file__, 0, f"Skipped: {what}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return skip_for_lack(collector.config, report, report.call)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return skip_for_lack(item.config, (yield), call)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend in turn."""
    return request.param


def trainer_class(name):
    if name == "mlx":
        import train_gpt_mlx
        return train_gpt_mlx.MlxTrainer
    import train_gpt
    return train_gpt.TorchTrainer


with contextlib.suppress(ModuleNotFoundError):
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
