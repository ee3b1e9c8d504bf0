"""Custom kernels, which are off by default: `python -m pytest tests/device/test_kernels.py`.

No GPU is needed: numbers come from Triton's interpreter, machine code from its compiler for an H100, launches from the
fake device of tests/device/.
"""
import collections
import json
import os
import subprocess
import sys

import pytest

import common.kernels
from common.bundle import bundle
from common.kernels import head_nats, load_kernels, relu2_mlp, relu2_mlp_grad, symmetric, use_kernels
from common.settings import Settings, UserError
from tests.conftest import BACKENDS, ROOT, environment, run_script
from tests.device.cost import counted

triton_runs = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


# who may use them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    ({}, "KERNELS=triton needs a CUDA device, and this run has none; or use KERNELS=none"),
    ({"device": "mps"}, "needs a CUDA device"),
    ({"device": "cuda", "dtype": "float32"}, "needs COMPUTE_DTYPE=auto and a GPU that has bfloat16"),
    ({"device": "cuda", "model_dim": 480}, r"that are multiples of 64, not \[240, 480\]; or use KERNELS=none"),
    ({"device": "cuda", "num_kv_heads": 1, "num_heads": 16}, r"that are multiples of 64, not \[32\]"),
])
def test_where_they_cannot_serve_they_are_refused(changes, words):
    import torch
    given = {"device": "cpu", "dtype": "bfloat16"} | changes
    device, dtype = torch.device(given.pop("device")), getattr(torch, given.pop("dtype"))
    with pytest.raises(UserError, match=words):
        use_kernels(Settings(vocab_size=1024, kernels="triton", **given), device, dtype)


@pytest.mark.parametrize("backend, words", [
    ("torch", "error: KERNELS=triton needs a CUDA device, and this run has none; or use KERNELS=none\n"),
    ("mlx", "error: KERNELS=triton is for train_gpt.py on CUDA: use KERNELS=none\n"),
])
def test_a_run_that_cannot_have_them_says_so(backend, words, tmp_path, data_path):
    done = run_script([ROOT / BACKENDS[backend]], tmp_path, environment(data_path, kernels="triton"))
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


IN_A_BUNDLE = """
import sys
import torch
import train_gpt
s, device = train_gpt.Settings(vocab_size=1024, kernels="triton"), torch.device("cuda")
triton, sys.modules["triton"] = sys.modules.pop("triton", None), None
try:
    train_gpt.use_kernels(s, device, torch.bfloat16)
except train_gpt.UserError as error:
    print(error)
del sys.modules["triton"]
train_gpt.use_kernels(s, device, torch.bfloat16)
print(type(train_gpt.relu2_product).__name__, train_gpt.relu2_product.src.splitlines()[0])
"""


@pytest.mark.slow
@triton_runs
def test_in_a_bundle_triton_finds_their_source_and_may_be_missing(tmp_path):
    (tmp_path / "train_gpt.py").write_bytes(bundle(ROOT / "train_gpt.py"))
    done = run_script(["-c", IN_A_BUNDLE], tmp_path, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    missing, found = done.stdout.splitlines()
    assert missing.startswith("KERNELS=triton needs the package triton (`pip install triton`): ")
    assert found.startswith("JITFunction def relu2_product(a, b, post, out, M, N: tl.constexpr,")


# what they compute ----------------------------------------------------------------------------------------------------


def errors(device, **variables):
    """Rows of tests/device/kernel_errors.py."""
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tests.device.kernel_errors", device]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@triton_runs
def test_in_the_interpreter_they_compute_what_the_trainer_does():
    rows = errors("cpu", TRITON_INTERPRET="1")
    assert len(rows) > 90 and [row for row in rows if not row[1] < row[2]] == []


@pytest.mark.cuda
def test_on_a_gpu_they_compute_what_the_trainer_does():
    rows = errors("cuda")
    assert len(rows) > 50 and [row for row in rows if not row[1] < row[2]] == []


# what becomes of them on an H100 --------------------------------------------------------------------------------------


class Launches(list):
    """In place of wrap_triton: a list of (kernel, arguments, options) that would be launched, on whatever grid."""

    def __call__(self, kernel):
        return collections.defaultdict(lambda: lambda *given, **options: self.append((kernel, given, options)))


TYPES = {"torch.bfloat16": "*bf16", "torch.float32": "*fp32", "torch.int64": "*i64", int: "i32", float: "fp32"}
SIZES = {"C": 512, "H": 1024, "V": 1024, "M": 65536}


def machine_code(kernel, arguments, options, folder):
    """(SASS, bytes of stack and of spilled registers per thread) of a launch, compiled for an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests.device.sm90 import usage
    given = dict(zip(kernel.arg_names, arguments)) | options
    named = {name: given.pop(name) for name in kernel.arg_names}
    constant = {p.num: named[p.name] for p in kernel.params if p.is_constexpr or named[p.name] is None}
    signature = {name: "constexpr" if i in constant else TYPES[str(x.dtype) if hasattr(x, "dtype") else type(x)]
                 for i, (name, x) in enumerate(named.items())}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, {(i,): value for i, value in constant.items()}, aligned)
    cubin = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=given).asm["cubin"]
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [triton.knobs.nvidia.nvdisasm.path, folder / "kernel.cubin"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout, usage(cubin)[1]


@pytest.mark.slow
@triton_runs
@pytest.mark.parametrize("operator, shapes, more, product", [
    (head_nats, [("M", "C"), ("V", "C")], ["targets", 30.0], False),
    (relu2_mlp, [("M", "C"), ("H", "C"), ("C", "H")], [], True),
    (relu2_mlp_grad, [("M", "C"), ("C", "H"), ("M", "H")], [], True),
    (symmetric, [(18, "C", "C")], [2.0315, -4.775], True),
])
def test_on_an_h100_they_use_its_matrix_units_and_do_not_spill(operator, shapes, more, product, tmp_path, monkeypatch):
    """At the sizes of the default model."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    import torch
    load_kernels()
    launches = Launches()
    monkeypatch.setattr(common.kernels, "wrap_triton", launches)
    sizes = [[SIZES.get(side, side) for side in shape] for shape in shapes]
    more = [torch.empty(SIZES["M"], dtype=torch.int64, device="meta") if x == "targets" else x for x in more]
    operator(*(torch.empty(size, dtype=torch.bfloat16, device="meta") for size in sizes), *more)
    [launch] = launches
    sass, stack = machine_code(*launch, tmp_path)
    assert stack == 0 and ("HGMMA" in sass) == product


@pytest.mark.slow
@triton_runs
def test_the_compiled_step_holds_them_and_moves_fewer_bytes():
    """For an H100, on the fake device: one graph; Inductor launches the kernels themselves; less memory."""
    plain, own = (counted("step", "8", "cudnn", "num_layers=1", "vocab_size=4096", f"kernels={kernels}")
                  for kernels in ("none", "triton"))
    assert own["graph_breaks"] == {} and own["graphs"] == plain["graphs"]
    assert own["host_reads"] == plain["host_reads"] and own["host_numbers"] == plain["host_numbers"]
    names = [launch["name"] for launch in own["launches"]]
    assert {"nats_in_place": 1, "relu2_product": 1, "relu2_product+": 1, "parity_golf.symmetric.default": 40} == {
        name: names.count(name) for name in names if not name.startswith(("aten.", "triton_", "c10d", "_c10d"))}
    assert len(names) <= len(plain["launches"])
    moved = [sum(launch["bytes"] for launch in step["launches"]) for step in (plain, own)]
    assert moved[0] - moved[1] > 1.2e9
    assert plain["peak"] - own["peak"] > 65536 * 4096 * 2 * 0.9  # the gradient of the logits takes no memory of its own


@triton_runs
def test_the_cache_of_compiled_graphs_knows_every_kernel():
    """PyTorch finds a kernel by its name in the source of an operator. Unseen, an old kernel would outlive a change."""
    from torch._library.triton import get_triton_kernels_for_op
    load_kernels()
    for name in ("head_nats", "relu2_mlp", "relu2_mlp_grad", "symmetric"):
        assert len(get_triton_kernels_for_op(f"parity_golf::{name}")) == 1, name
