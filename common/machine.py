"""What this machine has: bytes of memory (also the most that this process took), and a compiler."""
import os
import sys


def host_peak_memory():
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def host_memory():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def compile_problem(trainer):
    """Why nothing can be compiled here, in one line, or empty."""
    for compiled in (False, True):
        try:
            trainer.one_line(compiled)
        except Exception as error:
            return compiled * (f"COMPILE=1 does not work here: {str(error).splitlines()[0][:300]}: install a C++ "
                               "compiler, choose a TMPDIR that is not noexec, or use COMPILE=0")
    return ""
