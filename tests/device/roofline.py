"""Milliseconds of a counted step on an H100, by a roofline of assumed rates.

The rates were chosen for the challenge's own script, which takes 43.5 ms a step on one of 8 H100: counted in the same
way they give 47.5 ms, so every sum is multiplied by CALIBRATION. A sum is an estimate of one process that computes
alone: it overlaps nothing, and the time of the collectives is a row of its own.
"""
CALIBRATION = 0.92  # 43.5 / 47.5
HBM = 2.7e12  # bytes per second
PRODUCTS = 620e12  # bfloat16 operations per second in a matrix product
LONG_PRODUCTS = 450e12  # where the sums have LONG terms or more: gradients of weights
LONG = 16384
ATTENTION = {"cudnn": (260e12, 270e12), "flash": (200e12, 165e12)}  # forward, backward, of the causal half
GAP = 1.5e-6  # seconds between two launches
SHORTEST, SHORTEST_PRODUCT = 2.5e-6, 4e-6  # seconds of a kernel
WIRE, WIRE_START = 300e9, 20e-6  # bytes per second that a rank sends in a collective, and seconds to start one
# bytes that each of n ranks sends, as a multiple of the largest tensor
SENT = {"allreduce": 2, "reducescatter": 1, "allgather": 1}  # times (n - 1) / n


def seconds_of(launch):
    """(kind of launch, seconds) of a dict as Launch has it."""
    name, flops, moved = launch["name"], launch["flops"], launch["bytes"] + launch["twice"]
    if "attention" in name:
        backend = next(key for key in ATTENTION if key in name)
        backward = "backward" in name
        kind = f"attention, {backend}, {'backward' if backward else 'forward'}"
        return kind, flops / 2 / ATTENTION[backend][backward] + GAP
    if flops:
        rate = LONG_PRODUCTS if launch["inner"] >= LONG else PRODUCTS
        kind = "products, sums of 16384 terms or more" if launch["inner"] >= LONG else "products"
        return kind, max(moved / HBM, flops / rate, SHORTEST_PRODUCT) + GAP
    origin = "Triton kernels" if name.startswith("triton") else "PyTorch's kernels"
    return f"{origin}, {'over' if moved > 1e6 else 'up to'} 1 MB", max(moved / HBM, SHORTEST) + GAP


def table(launches):
    """dict kind -> [launches, bytes, operations, calibrated milliseconds], without collectives."""
    rows = {}
    for launch in launches:
        if launch["name"].startswith(("c10d", "_c10d")):
            continue
        kind, seconds = seconds_of(launch)
        row = rows.setdefault(kind, [0, 0, 0, 0.0])
        flops = launch["flops"] // (2 if "attention" in kind else 1)  # causal
        for i, value in enumerate((1, launch["bytes"], flops, 1e3 * CALIBRATION * seconds)):
            row[i] += value
    return rows


def wire_ms(collectives, world_size):
    """Milliseconds of the collectives (name, bytes, dtype), were nothing else under way."""
    total = 0.0
    for name, size, _ in collectives:
        factor = next((sent for key, sent in SENT.items() if key in name.replace("_", "")), 1)
        total += WIRE_START + size * factor * (world_size - 1) / world_size / WIRE
    return 1e3 * total


def assumptions():
    """The rates, as text."""
    attention = "; ".join(f"{name} {fw / 1e12:.0f} and {bw / 1e12:.0f}" for name, (fw, bw) in ATTENTION.items())
    return (f"HBM {HBM / 1e12} TB/s; products {PRODUCTS / 1e12:.0f} TFLOP/s, with sums of {LONG} terms or more "
            f"{LONG_PRODUCTS / 1e12:.0f}; attention, forward and backward, {attention};\n{1e6 * GAP} us between "
            f"launches; a kernel takes {1e6 * SHORTEST} us or more, a product {1e6 * SHORTEST_PRODUCT:.0f}; "
            f"collectives {WIRE / 1e9:.0f} GB/s and {1e6 * WIRE_START:.0f} us each; everything times {CALIBRATION}")
