"""A fast BLAS for MLX on Linux, where its wheel links the reference BLAS (1 to 4 GFLOP/s on 2 cores).

OpenBLAS (70 to 200 GFLOP/s) takes its place if it is loaded globally before MLX looks the functions up. The C++
compiler, which mx.compile needs too, gives them the plain names.
"""
import contextlib
import ctypes
import functools
import platform
import subprocess
import sys
import tempfile

# MLX calls cblas_sgemm; in the wheel of OpenBLAS it is scipy_cblas_sgemm. A jump leaves the arguments in place.
JUMP = "jmp" if platform.machine() == "x86_64" else "b"
PLAIN_NAMES = "".join(f'asm(".globl cblas_{x}gemm; cblas_{x}gemm: {JUMP} scipy_cblas_{x}gemm");' for x in "sd")


@functools.cache
def load_openblas():
    """Load it before the first matrix product, to use one thread. The number of threads that it would have used (its
    own variables and OMP_NUM_THREADS count), or 0 without it."""
    if sys.platform != "linux":
        return 0
    with contextlib.suppress(OSError, ImportError, subprocess.SubprocessError), tempfile.TemporaryDirectory() as folder:
        import scipy_openblas32
        path = f"{scipy_openblas32.get_lib_dir()}/{scipy_openblas32.get_library(fullname=True)}"
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        command = ["g++", "-shared", "-fPIC", "-O1", "-xc++", "-", "-o", f"{folder}/names.so"]
        subprocess.run(command, input=PLAIN_NAMES.encode(), check=True, capture_output=True)
        ctypes.CDLL(f"{folder}/names.so", mode=ctypes.RTLD_GLOBAL)
        return one_thread(library.scipy_openblas_get_num_threads, library.scipy_openblas_set_num_threads)
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)  # the system's
        return one_thread(library.openblas_get_num_threads, library.openblas_set_num_threads)
    return 0


def one_thread(get_threads, set_threads):
    threads = get_threads()
    set_threads(1)
    return threads
