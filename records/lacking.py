"""What only the reviewer's machine lacks, by the last words of a program that failed: a GPU, a package, a compiler, the
data. The record's own machine may have had it."""
import re
import sys

END_LINES, LINE_LIMIT = 40, 500  # of a traceback's last exception that are read

LACKING = (  # what is missing, words of the error
    ("a CUDA GPU", r"cuda[^\n]*\b(is|are) (not |un)?(required|needed|available|enabled|found|supported)|no cuda gpus|"
     r"requires? [^\n]*\b(cuda|gpu)\b|needs? an? [^\n]*\bgpu\b|not compiled with cuda|no nvidia driver|sees no gpu|"
     r"no (nvidia )?gpus? (is|are|was|were)|cuda driver|libcuda|libcudart|libnvrtc|nvidia-smi|no hip gpus|cuda error|"
     r"AssertionError: [^\n]*\b(cuda|gpu)\b|invalid device ordinal|nccl|no available kernel|'_cuda_|"
     r"no backend type associated with device type cpu"),
    ("a Metal GPU", r"no metal|metal[^\n]*not (available|supported)|mps[^\n]*not (available|built)"),
    ("a C compiler", r"InvalidCxxCompiler|Failed to find C compiler|no working c\+\+ compiler|Python\.h: No such file|"
     r"Ninja is required|CUDA_HOME environment variable is not set"),
    ("a working Triton", r"Cannot find a working triton|0 active drivers"),
    ("a home folder or user", r"KeyError: '(HOME|USER|LOGNAME)'|getpwuid|could not determine home"),
    ("a sandbox", r"^(unshare|nice): "),
    ("torchrun", r"KeyError: '(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)'|"
     r"environment variable (RANK|WORLD_SIZE) expected"),
)
_TABLE = [(what, re.compile(words, re.IGNORECASE)) for what, words in LACKING]
_MODULE = re.compile(r"No module named '?([\w.]+)'?")
_TOLD = re.compile(r"\b(\w[\w-]*) (?:is|was) not installed|pip3? install (?:-\S+ )*['\"]?([\w-]+)", re.IGNORECASE)
_NAME = re.compile(r"cannot import name '\w+' from '([\w.]+)'|module '([\w.]+)' has no attribute '\w+'")
_LIBRARY = re.compile(r"(\w[\w.+-]*\.so[\w.]*): cannot open shared object")
_FILE = re.compile(r"(?:No such file or directory|No files found for pattern|Not found|not found)[^\n]*?[:'\" ]"
                   r"([\w./*-]+)['\"]?\s*$", re.MULTILINE)


def last_error(lines):
    """(the last source line of a traceback, the words of its exception); without a traceback "" and the last line."""
    lines = [line[:LINE_LIMIT] for line in lines]
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback ")), default=None)
    if start is None:
        return "", lines[-1] if lines else ""
    frames = [i for i in range(start + 1, len(lines)) if lines[i].startswith(" ")]
    words = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    source = [lines[i].strip() for i in frames if i < words and set(lines[i].strip()) - set("^~ ")]
    return (source or [""])[-1], "\n".join(lines[words:words + END_LINES])


def lacking(source, error, files):
    """What is missing here, by the words of an error and the line that raised it; "" where the error is the program's
    own. files: names in the record's folder."""
    own = {name.partition("/")[0].removesuffix(".py") for name in files}
    if found := _MODULE.search(error):
        module = found[1].split(".")[0]
        return "" if module in own else f"the Python package {module}"
    if found := _NAME.search(error):
        module = (found[1] or found[2]).split(".")[0]
        outside = module not in own and module not in sys.stdlib_module_names and module != "__main__"
        return f"another version of the Python package {module}" if outside else ""
    if found := _LIBRARY.search(error):
        return f"the library {found[1]}"
    for what, words in _TABLE:
        if words.search(error):
            return what
    if found := _TOLD.search(error):
        return found[1] or found[2]
    if error.strip() == "AssertionError" and re.search(r"\bassert\b.*cuda", source):
        return "a CUDA GPU"
    found = _FILE.search(error)
    return _missing_file(found[1]) if found else ""


def _missing_file(path):
    """A command, or data outside the folder; a file of the folder itself must be there."""
    if "/" not in path and "." not in path and "*" not in path:
        return f"the command {path}"
    outside = path.startswith("/") or re.search(r"(^|/)(data|datasets|tokenizers)/|\*|fineweb", path)
    return f"the data at {path}: the script does not take DATA_PATH or TOKENIZER_PATH" if outside else ""
