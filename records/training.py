"""Whether a source can have made a log: it reads data, builds a model, takes training steps, and prints no number that
it only knows. Read from the statements that can run: those after an exit, under `if False` and in functions that
nothing names are left out. Standard library only.

The signs are broad, since models are trained in many ways: by gradients, evolution, counts or linear algebra. A source
without any of a sign does not do the thing.
"""
import ast
import re
import sys

from records.values import dotted

_READERS = {"open", "fromfile", "memmap", "load", "frombuffer", "from_file", "from_buffer", "read_bytes", "read_text",
            "readinto", "mmap", "load_file", "safe_open", "loadtxt", "genfromtxt", "read_parquet", "read_csv",
            "read_table", "pread", "fdopen", "FileIO", "load_data_shard", "stdin"}
_STEPS = {"backward", "grad", "grad_fn", "value_and_grad", "loss_and_grad", "vjp", "jvp", "jacrev", "jacfwd",
          "gradient", "apply_gradients", "apply_updates", "minimize", "step", "train_step", "fit", "partial_fit",
          "train", "lstsq", "solve", "pinv", "inv", "cholesky", "eigh", "svd", "bincount", "Counter", "histogram",
          "index_add_", "at", "scatter_add_", "scatter_add", "add_", "sub_", "addcmul_", "addcdiv_", "lerp_",
          "copy_", "_foreach_add_", "_foreach_lerp_", "scan", "fori_loop", "while_loop", "reduce"}
_MODELS = {"Parameter", "Linear", "Embedding", "Module", "Sequential", "Tensor", "tensor", "array", "asarray", "zeros",
           "ones", "empty", "full", "eye", "randn", "rand", "normal", "normal_", "uniform", "standard_normal", "gauss",
           "random", "init", "glorot_uniform", "truncated_normal", "bincount", "Counter", "histogram", "defaultdict",
           "lstsq", "compile", "from_numpy", "load", "zeros_like"}
_ARRAYS = {"numpy", "torch", "mlx", "jax", "jaxlib", "tinygrad", "cupy", "scipy", "triton", "sentencepiece",
           "safetensors", "tqdm", "zstandard", "brotli", "tiktoken", "tokenizers", "flash_attn", "einops", "numba"}
_PRINTERS = re.compile(r"(.*\.)?(print|log|log0|print0|info|write|writelines|dump|dumps|format|say|echo)")
_DIGITS = re.compile(r"(?<![\w.])\d{1,3}\.\d{4,17}(?!\w|\.\d)")
_EXITS = {"exit", "quit", "sys.exit", "os._exit"}
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
MOST_NUMBERS = 100  # of one source


def look(tree, values):
    """{"reads", "steps", "models": whether a source has a sign of it, "opaque": other packages that may do it,
    "numbers": [[line, text]] of numbers of at least 4 decimals that it prints}."""
    nodes = _live(tree)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    words = {_last(node) for node in calls}
    counts = any(isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript) for node in nodes)
    return {
        "reads": any(_reads(node, values) for node in calls),
        "steps": bool(words & _STEPS) or counts or any(map(_updates, nodes)),
        "models": bool(words & _MODELS) or counts or any(isinstance(n, ast.ClassDef) and n.bases for n in nodes),
        "opaque": sorted(_packages(nodes) - _ARRAYS - sys.stdlib_module_names),
        "numbers": sorted(set(_printed_numbers(nodes, values)))[:MOST_NUMBERS],
    }


def _last(call):
    """The last word of what is called; of a call of a call, as in grad(f)(x), that of the first."""
    function = call.func.func if isinstance(call.func, ast.Call) else call.func
    return getattr(function, "attr", getattr(function, "id", ""))


def _packages(nodes):
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def _reads(call, values):
    """Whether a call reads a file other than the source itself, or the standard input."""
    if _last(call) not in _READERS:
        return False
    names = {n.id for n in ast.walk(call) if isinstance(n, ast.Name)}
    modes = [getattr(part, "value", None) for part in (*call.args[1:2], *(k.value for k in call.keywords))]
    writes = any(isinstance(mode, str) and re.fullmatch(r"[wax][bt+]*", mode) for mode in modes)
    return "__file__" not in names and not writes


def _updates(node):
    """Whether a loop changes a value by itself and something that is not constant: w -= lr * g, or p = update(p)."""
    if not isinstance(node, ast.For | ast.While | ast.AsyncFor):
        return False
    for part in ast.walk(node):
        if isinstance(part, ast.AugAssign) and not isinstance(part.value, ast.Constant):
            return True
        if isinstance(part, ast.Assign):
            bound = {n.id for target in part.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            used = {n.id for n in ast.walk(part.value) if isinstance(n, ast.Name)}
            others = any(isinstance(n, ast.Call | ast.Name) and getattr(n, "id", "") not in bound
                         for n in ast.walk(part.value))
            if bound & used and others:
                return True
    return False


def _printed_numbers(nodes, values):
    """Yields (line, digits) of constants that are printed, or that a printed name stands for, and of those in
    strings."""
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    printed = set()
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from ((node.lineno, text) for text in _DIGITS.findall(node.value[:10_000]))
        elif _prints(node, values):
            printed.add(node)
    names = set()
    for node in printed:
        for part in ast.walk(node):
            names.add(getattr(part, "id", getattr(part, "attr", "")))
            yield from _float(part)
    for name in names - {""}:
        for _, value in values.assigned.get(name, ()):
            yield from _float(value)


def _prints(node, values):
    """Whether a node makes text of its values, or prints them."""
    if isinstance(node, ast.Call):
        return bool(_PRINTERS.fullmatch(dotted(node.func, values.aliases) or _last(node)))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod))


def _float(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        text = repr(node.value)
        if _DIGITS.fullmatch(text):
            yield node.lineno, text


# ----------------------------------------------------------------------------------------------------------------------
# The statements that can run
# ----------------------------------------------------------------------------------------------------------------------


def _live(tree):
    """The nodes of a source that can run, as far as names show: a function or class counts once a node that can run
    names it, or a decorator takes it."""
    waiting = {}  # name -> definitions that nothing has named yet
    pending, found = list(_running(tree.body)), []
    named = set()
    while pending:
        node = pending.pop()
        defines = isinstance(node, _FUNCTIONS | ast.ClassDef) and not node.decorator_list
        if defines and node.name not in named and not _is_special(node.name):
            waiting.setdefault(node.name, []).append(node)
            continue
        found.append(node)
        words = {getattr(node, "id", ""), getattr(node, "attr", "")}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= set(re.findall(r"\w+", node.value[:1000]))  # getattr(self, "name")
        if isinstance(node, ast.keyword | ast.alias):
            words.add(getattr(node, "arg", None) or getattr(node, "name", ""))
        for word in words - named - {""}:
            named.add(word)
            pending += waiting.pop(word, ())
        pending += _inside(node)
    return found


def _is_special(name):
    """A method that a library calls by its name."""
    return name.startswith("__") or name in ("forward", "call", "setup", "backward")


def _inside(node):
    """What runs of a node's children."""
    parts = []
    dead = _dead_branch(node)
    for name, value in ast.iter_fields(node):
        if name == dead:
            continue
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            parts += _running(value)
        elif isinstance(value, list):
            parts += [part for part in value if isinstance(part, ast.AST)]
        elif isinstance(value, ast.AST):
            parts.append(value)
    return parts


def _dead_branch(node):
    """"body" or "orelse" of an `if` or `while` on a constant, else ""."""
    if isinstance(node, ast.If | ast.While) and isinstance(node.test, ast.Constant):
        return "orelse" if node.test.value else "body"
    return ""


def _running(statements):
    """Statements up to one that ends them."""
    for node in statements:
        yield node
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(node, ast.Return | ast.Raise | ast.Break | ast.Continue):
            return
        if isinstance(call, ast.Call) and ast.unparse(call.func) in _EXITS:
            return
