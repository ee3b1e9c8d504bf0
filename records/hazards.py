"""What a reviewer should look at in a source: network, other processes, pickles, code that is not in sight, validation
tokens that are trained on before they are scored. Standard library only."""
import ast
from pathlib import Path

from records.values import dotted

_NETWORK = {"socket", "urllib", "requests", "http", "httpx", "ftplib", "smtplib", "aiohttp", "huggingface_hub", "boto3",
            "wandb", "paramiko", "websocket", "websockets", "xmlrpc", "telnetlib", "datasets", "gdown"}
_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_IMPORTS = ((_NETWORK, "network"), (_PICKLES, "pickle, which runs code as it loads"))
_SYSTEM = {"os.system", "os.popen", "os.fork", "os.forkpty", "os.execv", "os.execve", "os.execvp", "os.execl",
           "os.spawnv", "os.posix_spawn"}
_PROCESS = {"subprocess", "pty", "pexpect"}
_HARMLESS = {"nvidia-smi", "sysctl", "uname", "lscpu", "gcc", "g++", "cc", "clang", "nvcc"}  # commands
_REPORT = Path(__file__).resolve().parents[1] / "common" / "report.py"
_BRINGS = {"use_artifact", "use_model", "restore", "download"}  # methods of a run and of what it gives
_HUB = {"torch.hub.load", "torch.hub.download_url_to_file", "torch.hub.load_state_dict_from_url"}
_HIDDEN = {"exec", "eval", "__import__", "importlib.import_module"}
_BY_NAME = {"__import__", "importlib.import_module"}


def hazards(tree, values, opened=()):
    """Yields (line, text) of what a reviewer should look at. opened: calls of exec whose source is examined itself."""
    for node in values.nodes:
        line = getattr(node, "lineno", 0)
        for first in {module.split(".")[0] for module in _modules(node, values)}:
            for group, what in _IMPORTS:
                if first in group and not (first == "wandb" and _sends_only(node, values)):
                    yield line, f"imports {first}: {what}"
        if isinstance(node, ast.Call) and node not in opened:
            text = _call_hazard(node, dotted(node.func, values.aliases), values)
            if text:
                yield line, text
    yield from trained_before_scored(tree)


def _sends_only(node, values):
    """Whether an `import wandb` is the one of our own function that sends curves, word for word, and nothing calls what
    would bring something in."""
    ours = values.functions.get("start_wandb")
    if ours is None or node not in ours.body:
        return False
    sends = next(n for n in ast.parse(_REPORT.read_bytes()).body if getattr(n, "name", "") == ours.name)
    return (ast.dump(ours) == ast.dump(sends)
            and not any(n.attr in _BRINGS for n in values.nodes if isinstance(n, ast.Attribute)))


def _modules(node, values):
    """Names of the modules that a node imports, as far as they are known."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    if isinstance(node, ast.Call) and node.args and dotted(node.func, values.aliases) in _BY_NAME:
        name = values.text(node.args[0])
        return [name] if isinstance(name, str) else []
    return []


def _call_hazard(node, name, values):
    given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    starts = name.split(".")[0] in _PROCESS and _command(node, values) not in _HARMLESS
    if name in _SYSTEM or (starts and not _waits_only(node, values)):
        return f"calls {name}: other processes"
    if name == "torch.load" and given.get("weights_only") is not True:
        return "torch.load without weights_only=True: a pickle runs code as it loads"
    if name in ("numpy.load", "np.load") and given.get("allow_pickle") is True:
        return "numpy.load with allow_pickle: a pickle runs code as it loads"
    if name in _HUB:
        return f"calls {name}: network"
    if name in _HIDDEN and not _modules(node, values):
        return f"calls {name}: code that is not in sight"
    return ""


def _waits_only(node, values):
    """Whether a call starts this Python with a text that imports nothing but `select` and `sys`, and opens and runs
    nothing."""
    line = node.args[0] if node.args else None
    if not isinstance(line, ast.List) or len(line.elts) < 3 or dotted(line.elts[0], values.aliases) != "sys.executable":
        return False
    option, text = (values.text(part) for part in line.elts[1:3])
    if not isinstance(option, str) or not option.endswith("c") or not isinstance(text, str):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return False
    imported = {alias.name for part in nodes if isinstance(part, ast.Import) for alias in part.names}
    called = {part.func.id for part in nodes if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)}
    return imported <= {"select", "sys"} and called <= {"float", "print"} and not any(
        isinstance(part, ast.ImportFrom) for part in nodes)


def _command(node, values):
    """The first word of the command line that a call is given; "" where it is not known."""
    line = node.args[0] if node.args else None
    if isinstance(line, ast.Name) and line.id in values.assigned:
        line = values.assigned[line.id][-1][1]
    if isinstance(line, ast.List | ast.Tuple) and line.elts:
        line = line.elts[0]
    text = line.value if isinstance(line, ast.Constant) and isinstance(line.value, str) else ""
    return text if text in _HARMLESS else ""


# ----------------------------------------------------------------------------------------------------------------------
# Validation tokens. A value is of validation if its expression names such tokens, or another such value.
# ----------------------------------------------------------------------------------------------------------------------

_VALIDATION = ("val_tokens", "val_data", "val_loader", "val_stream", "eval_tokens", "valid_tokens")
_SPLITS = ("val", "valid", "validation")  # as in get_batch("val")
_SIZES = {"numel", "size", "shape", "device", "dtype", "length", "nbytes"}  # of tokens, not tokens
_GRADIENTS = {"value_and_grad", "loss_and_grad", "loss_and_grads", "grad_fn", "grad"}
_STEPS = _GRADIENTS | {"backward"}
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
_ROUNDS = 4  # calls deep


def trained_before_scored(tree):
    """Yields (line, text) of each training step on validation tokens that nothing before it in its function scored."""
    called = {scope: _called_in(scope) for scope in ast.walk(tree) if isinstance(scope, _FUNCTIONS)}
    trains = {}  # name of a function -> places of the parameters that it trains on, unscored
    for _ in range(_ROUNDS):
        before = {name: set(places) for name, places in trains.items()}
        for function in (f for f, words in called.items() if words & (_STEPS | trains.keys())):
            for place, name in enumerate(_parameters(function)):
                if _unscored(function, {name}, False, trains):
                    trains.setdefault(function.name, set()).add(place)
        if trains == before:
            break
    called[tree] = _called_in(tree)
    for scope in (scope for scope, words in called.items() if words & (_STEPS | trains.keys())):
        for line, name in _unscored(scope, set(), True, trains):
            yield line, f"{name} is trained on before it is scored"


def _called_in(scope):
    return {_called(node) for node in ast.walk(scope) if isinstance(node, ast.Call)} - {""}


def _parameters(function):
    return [a.arg for a in function.args.args if a.arg not in ("self", "cls")]


def _unscored(scope, tainted, by_name, trains):
    """list of (line, name) of steps on tainted values that none scored before. tainted: names; by_name: so are those of
    validation tokens."""
    return _scan(ast.iter_child_nodes(scope), _Taint(set(tainted), by_name), trains)[0]


def _scan(nodes, taint, trains):
    """(list of (line, name) as above, whether tainted values are scored) of statements in order."""
    found = []
    for node in nodes:
        if isinstance(node, _FUNCTIONS | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and node.orelse:
            inner, scored = _scan_branches(node, taint, trains)
        elif _scores(node, taint):
            return found, True
        else:
            taint.follow(node, before=True)
            inner, scored = _scan(ast.iter_child_nodes(node), taint, trains)
            taint.follow(node)
        found += inner
        if scored:
            return found, True
        if isinstance(node, ast.Call) and (word := _steps_on(node, taint, trains)):
            found.append((node.lineno, word))
    return found, False


def _scan_branches(node, taint, trains):
    """Of `if` and `else`: in a loop, what one branch trains on may be what the other has scored."""
    names, found, known = taint.names, [], set()
    for branch in (node.body, node.orelse):
        taint.names = names
        inner, scored = _scan(branch, taint, trains)
        known |= taint.names
        if scored:
            return inner, True
        found += inner
    taint.names = known
    return found, False


def _scores(node, taint):
    """Whether a node computes tainted losses without gradients, or keeps them."""
    if isinstance(node, ast.With):
        contexts = " ".join(ast.unparse(item.context_expr) for item in node.items)
        inner = _Taint(taint.names, taint.by_name)
        for part in ast.walk(node):
            inner.follow(part, before=True)
            inner.follow(part)
        calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
        off = "no_grad" in contexts or "inference_mode" in contexts
        return off and any(inner.of(part) for call in calls for part in call.args)
    if isinstance(node, ast.AugAssign):
        return bool(taint.of(node.value))  # a sum of losses
    is_call = isinstance(node, ast.Call) and _called(node) in ("append", "add_", "extend")
    return is_call and any(map(taint.of, node.args))


def _called(call):
    """The last word of what is called; of a call of a call, as in value_and_grad(f)(x), that of the first."""
    function = call.func.func if isinstance(call.func, ast.Call) else call.func
    return getattr(function, "attr", getattr(function, "id", ""))


def _steps_on(node, taint, trains):
    """The name of the values that a call trains on, or ""."""
    name = _called(node)
    if name == "backward":
        return taint.of(node)
    if name in _GRADIENTS:
        return next(filter(None, map(taint.of, node.args)), "")
    places = trains.get(name, ())
    return next((taint.of(part) for at, part in enumerate(node.args) if at in places and taint.of(part)), "")


class _Taint:
    """Which names stand for values of validation."""

    def __init__(self, names, by_name):
        self.names, self.by_name = names, by_name

    def of(self, node):
        """The name in an expression by which it is of validation; "" where it is not."""
        word = getattr(node, "id", getattr(node, "attr", ""))
        if word in self.names or (self.by_name and word.startswith(_VALIDATION)):
            return word
        if isinstance(node, ast.Attribute) and word in _SIZES:
            return ""
        if isinstance(node, ast.Call):
            if getattr(node.func, "id", "") in ("len", "range"):
                return ""
            if self.by_name and any(getattr(part, "value", None) in _SPLITS for part in node.args):
                return next(part.value for part in node.args if getattr(part, "value", None) in _SPLITS)
        return next(filter(None, map(self.of, ast.iter_child_nodes(node))), "")

    def follow(self, node, before=False):
        """Take up the names that a statement binds: a loop before what is in it, an assignment after its value. What
        is written into an array, as x[i] = tokens or x.copy_(tokens), makes it one of these."""
        if isinstance(node, ast.Assign) and not before:
            targets, value = node.targets, node.value
        elif isinstance(node, ast.For | ast.comprehension) and before:
            targets, value = [node.target], node.iter
        elif isinstance(node, ast.Call) and _called(node).endswith("_") and any(map(self.of, node.args)):
            self.names = self.names | _arrays([node.func])
            return
        else:
            return
        bound = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
                 and isinstance(n.ctx, ast.Store)}
        if self.of(value):
            self.names = self.names | bound | _arrays(targets)
        else:
            self.names = self.names - bound


def _arrays(targets):
    """The names of the arrays that are written into."""
    found = set()
    for target in targets:
        inner = target
        while isinstance(inner, ast.Subscript | ast.Attribute):
            inner = inner.value
        if inner is not target and isinstance(inner, ast.Name) and inner.id not in ("self", "cls"):
            found.add(inner.id)
    return found
