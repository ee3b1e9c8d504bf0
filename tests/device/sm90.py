"""Compiles for sm_90 what Inductor wrote for the fake device, with Triton's own assembler, which needs no GPU."""
import re
import subprocess
import tempfile

import triton
from torch._inductor import config
from torch._inductor.codecache import PyCodeCache

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def unique(kernels):
    """dict name -> source of kernels that differ in more than their names."""
    found = {}
    for name, source in kernels.items():
        found.setdefault(source.replace(name.rstrip("+"), "kernel"), name)
    return {name: kernels[name] for name in found.values()}


def compiled(name, source):
    """list of (configuration, registers per thread, bytes on the stack per thread) of one kernel, one for each
    configuration that Inductor would time on the device."""
    config.use_static_triton_launcher = False
    tuner = getattr(PyCodeCache.load(source), name.rstrip("+"))
    tuner._precompile_worker()
    return [(str(result.config), *usage(result.kernel.asm["cubin"])) for result in tuner.compile_results]


def usage(cubin):
    """(registers per thread, bytes of stack and of spilled registers per thread)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, _, local = map(int, USAGE.search(text).groups())
    return registers, stack + local
