"""KERNELS=triton: Triton kernels in place of some of PyTorch's operations in train_gpt.py.

    head_nats   softcap, softmax and nats of the head's product, which becomes its own gradient, in one buffer
    relu2_mlp   relu^2 at the end of the product before it; its derivative at the end of that of the backward pass
    symmetric   x x^T and its polynomial for Newton-Schulz: half of the blocks are computed, the others mirrored

They are operators, torch.ops.parity_golf.*, once load_kernels() has run; Inductor sees the kernels in them. Each is
what the trainer computes without the setting, up to rounding. Sides of matrices are multiples of SIDE; the number of
rows and the vocabulary may be anything. No two programs add into one place, so equal inputs give equal bytes.
"""
import functools
import types

from common.params import param_table
from common.settings import UserError

SIDE = 64
tl = types.SimpleNamespace(constexpr="constexpr")  # until load_kernels() puts triton.language there


def use_kernels(s, device, dtype):
    """Load the kernels. Raises UserError where they cannot serve a run on this device, in this compute dtype."""
    sides = {side for p in param_table(s).values() if p.group == "matrix" for side in p.shape if side % SIDE}
    wrong = None
    if device.type != "cuda":
        wrong = "a CUDA device, and this run has none"
    elif dtype.itemsize != 2:
        wrong = f"COMPUTE_DTYPE=auto and a GPU that has bfloat16, and this run is in {dtype}"
    elif sides:
        wrong = f"MODEL_DIM and MODEL_DIM * NUM_KV_HEADS / NUM_HEADS that are multiples of {SIDE}, not {sorted(sides)}"
    elif s.mlp_slope:
        wrong = f"MLP_SLOPE=0, not {s.mlp_slope}: no kernel has a leaky relu^2"
    else:
        try:
            load_kernels()
        except ModuleNotFoundError as missing:
            wrong = f"the package triton (`pip install triton`): {missing}"
    if wrong:
        raise UserError(f"KERNELS=triton needs {wrong}; or use KERNELS=none")


# ----------------------------------------------------------------------------------------------------------------------
# Kernels, in Triton's language. The trainer multiplies in bfloat16, the tests in float32 and float16
# ----------------------------------------------------------------------------------------------------------------------


def squash(x):
    """tanh(x), which Triton's interpreter does not have."""
    return 2 / (1 + tl.exp(-2 * x)) - 1


def nats_in_place(logits, targets, nats, V: tl.constexpr, cap: tl.constexpr, BLOCK: tl.constexpr):
    """One program per row of logits (M, V): nats (M,) of targets (M,); the row becomes the gradient of its nats."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    target = tl.load(targets + row)
    capped = cap * squash(tl.load(logits + target).to(tl.float32) / cap)  # read before another thread writes there
    top, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, mask=columns < V, other=0.0).to(tl.float32)
        z = tl.where(columns < V, cap * squash(x / cap), float("-inf"))
        highest = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - highest) + tl.sum(tl.exp(z - highest), 0)
        top = highest
    total = top + tl.log(total)
    tl.store(nats + row, total - capped)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        t = squash(tl.load(logits + columns, mask=columns < V, other=0.0).to(tl.float32) / cap)
        d = (tl.exp(cap * t - total) - (columns == target).to(tl.float32)) * (1 - t * t)
        tl.store(logits + columns, d.to(logits.dtype.element_ty), mask=columns < V)


def relu2_product(a, b, post, out, M, N: tl.constexpr, K: tl.constexpr, SN: tl.constexpr, SK: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """One program per block (BM, BN) of h = a b^T; a (M, K) is contiguous, b (N, K) has strides SN and SK.

    out (M, N) is relu(h)^2 where post is None. Else h is the gradient of post = relu(y)^2, and out that of y, which is
    2 h relu(y), with relu(y) as the root of post."""
    m, n = tl.program_id(0) // (N // BN), tl.program_id(0) % (N // BN)
    rows, columns, ks = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN), tl.arange(0, BK)
    inside, rows = rows[:, None] < M, rows[:, None].to(tl.int64)
    h = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rows * K + (k + ks)[None, :], mask=inside, other=0.0)
        y = tl.load(b + columns[None, :] * SN + (k + ks)[:, None] * SK)
        h = tl.dot(x, y, h, input_precision="ieee")
    h = h.to(out.dtype.element_ty).to(tl.float32)
    place = rows * N + columns[None, :]
    if post is None:
        h = tl.where(h < 0, 0.0, h)  # a NaN stays one, unlike in maximum()
        h *= h
    else:
        h *= 2 * tl.sqrt(tl.load(post + place, mask=inside, other=0.0).to(tl.float32))
    tl.store(out + place, h.to(out.dtype.element_ty), mask=inside)


def symmetric_product(x, out, alpha, beta, R: tl.constexpr, K: tl.constexpr, SR: tl.constexpr, SK: tl.constexpr,
                      BM: tl.constexpr, BK: tl.constexpr, ADD: tl.constexpr):
    """Programs (block of out, matrix): out (n, R, R) = alpha x x^T, ADD: + beta x; x (n, R, K), strides R K, SR, SK."""
    i, j, matrix = tl.program_id(0) // (R // BM), tl.program_id(0) % (R // BM), tl.program_id(1).to(tl.int64)
    if j <= i:
        rows, columns, ks = i * BM + tl.arange(0, BM), j * BM + tl.arange(0, BM), tl.arange(0, BK)
        x += matrix * R * K
        out += matrix * R * R
        total = tl.zeros((BM, BM), tl.float32)
        for k in range(0, K, BK):
            left = tl.load(x + rows[:, None] * SR + (k + ks)[None, :] * SK)
            right = tl.load(x + columns[None, :] * SR + (k + ks)[:, None] * SK)
            total = tl.dot(left, right, total, input_precision="ieee")
        total *= alpha
        if ADD:
            total += beta * tl.load(x + rows[:, None] * SR + columns[None, :] * SK).to(tl.float32)
        total = total.to(out.dtype.element_ty)
        tl.store(out + rows[:, None] * R + columns[None, :], total)
        if j < i:
            tl.store(out + columns[None, :] * R + rows[:, None], total)


# ----------------------------------------------------------------------------------------------------------------------
# Operators and their gradients. M: all leading dimensions together
# ----------------------------------------------------------------------------------------------------------------------


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.set_materialize_grads(False)


def head_nats(x: "Tensor", head: "Tensor", targets: "Tensor", cap: float) -> "tuple[Tensor, Tensor]":
    """float32 nats (M,) of targets (M,) with logits cap tanh(x head^T / cap), and for the gradient that of the product
    (M, V), of each row's own nats; x (..., C), head (V, C)."""
    logits, nats = x.flatten(0, -2) @ head.T, x.new_empty(len(targets), dtype=float32)
    wrap_triton(nats_in_place)[len(targets),](logits, targets.contiguous(), nats, len(head), cap, BLOCK=1024)
    return nats, logits


def backward_of_head(ctx, grad, _):
    x, head, _, d = ctx.saved_tensors
    rows, grad = x.flatten(0, -2), grad[:, None]
    return ((d @ head) * grad).to(x.dtype).view(x.shape), d.T @ (rows * grad).to(x.dtype), None, None


def relu2_mlp(x: "Tensor", fc: "Tensor", proj: "Tensor") -> "tuple[Tensor, Tensor]":
    """relu(x fc^T)^2 proj^T (..., C), and for the gradient relu(x fc^T)^2 (M, H); x (..., C), fc (H, C), proj (C, H).
    """
    post = launch_product(x.flatten(0, -2), fc, None)
    return (post @ proj.T).view(x.shape), post


def relu2_mlp_grad(grad: "Tensor", proj: "Tensor", post: "Tensor") -> "Tensor":
    """The gradient (M, H) of x fc^T from that of the output (M, C)."""
    return launch_product(grad, proj.T, post)


def launch_product(a, b, post):
    a, (M, K), N = a.contiguous(), a.shape, len(b)
    BM, BN, out = 128, 256 if N % 256 == 0 else SIDE, a.new_empty(M, N)
    wrap_triton(relu2_product)[-(-M // BM) * (N // BN),](
        a, b, post, out, M, N, K, *b.stride(), BM, BN, SIDE, num_warps=8, num_stages=3)
    return out


def backward_of_mlp(ctx, grad, _):
    x, fc, proj, post = ctx.saved_tensors
    rows, grad = x.flatten(0, -2), grad.flatten(0, -2)
    d = ops.parity_golf.relu2_mlp_grad(grad, proj, post)
    return (d @ fc).view(x.shape), d.T @ rows, grad.T @ post


def symmetric(x: "Tensor", alpha: float, beta: float) -> "Tensor":
    """alpha x x^T + beta x (n, R, R) of x (n, R, K); where beta is not 0, x is symmetric."""
    if 1 not in x.stride()[1:] or x.stride(0) != x[0].numel():
        x = x.contiguous()
    n, R, K = x.shape
    out, BM = x.new_empty(n, R, R), 128 if R % 128 == 0 else SIDE
    wrap_triton(symmetric_product)[(R // BM) ** 2, n](
        x, out, alpha, beta, R, K, *x.stride()[1:], BM, SIDE, ADD=beta != 0, num_warps=8, num_stages=3)
    return out


@functools.cache
def load_kernels():
    """Import Triton, which a Mac does not have; make kernels of the functions above; register the operators."""
    global Tensor, float32, ops, tl, wrap_triton, squash, nats_in_place, relu2_product, symmetric_product
    import triton
    import triton.language as tl
    from torch import Tensor, float32, ops
    from torch.library import triton_op, wrap_triton
    functions = squash, nats_in_place, relu2_product, symmetric_product
    squash, nats_in_place, relu2_product, symmetric_product = map(triton.jit, functions)
    made = [triton_op(f"parity_golf::{operator.__name__}", operator, mutates_args=())
            for operator in (head_nats, relu2_mlp, relu2_mlp_grad, symmetric)]
    made[0].register_autograd(backward_of_head, setup_context=keep)
    made[1].register_autograd(backward_of_mlp, setup_context=keep)
