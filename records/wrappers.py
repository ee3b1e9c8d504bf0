"""Source that a file gives to exec() or eval(): decoded and decompressed here, from constants and files of the folder.
Standard library only."""
import ast
import builtins
from collections import namedtuple

from common.bundle import unpack, wrapper
from records.decoders import Unreadable
from records.values import Unknown, dotted

EXEC = {"exec", "eval"}
Run = namedtuple("Run", "call text why exact")  # what a call runs; None and why it cannot be known; see exact()

_WRAPPER = {ast.dump(node): node for node in ast.parse(wrapper("")).body}  # of common.bundle, with its decoder
_UNPACK = next(text for text, node in _WRAPPER.items() if isinstance(node, ast.FunctionDef))


def known_decoders(tree):
    """{"unpack": its function} where a source holds the decoder of common.bundle, word for word."""
    holds = any(isinstance(node, ast.FunctionDef) and ast.dump(node) == _UNPACK for node in tree.body)
    return {"unpack": unpack} if holds else {}


def runs(tree, values):
    """list of Run, one for each call of exec or eval. Raises Unreadable: a call that certainly runs cannot."""
    found = []
    for node in values.nodes:
        if isinstance(node, ast.Call) and node.args and dotted(node.func, values.aliases) in EXEC:
            found.append(_run(tree, node, values))
        elif isinstance(node, ast.Call) and dotted(node.func, values.aliases) in ("marshal.loads", "marshal.load"):
            found.append(Run(node, None, "bytecode of marshal", False))
    return found


def _run(tree, call, values):
    values.forget()
    what = dotted(call.func, values.aliases)
    try:
        value = values.of(call.args[0])
    except Unknown as error:
        return Run(call, None, str(error) or f"{what} of text that only a run would show", False)
    except Unreadable as error:
        if any(isinstance(node, ast.Expr) and node.value is call for node in tree.body):
            raise Unreadable(f"wraps source that cannot be unwrapped: {error}") from None
        return Run(call, None, f"{what} of text that cannot be unwrapped: {error}", False)
    if not isinstance(value, str | bytes):
        return Run(call, None, f"{what} of text that only a run would show", False)
    return Run(call, value, "", _is_only_a_wrapper(tree, call, values))


def _is_only_a_wrapper(tree, call, values):
    """Whether `call` surely runs what was found: the source holds imports, the constants that its value needed, the
    call itself and statements of the wrapper of common.bundle, nothing else, and binds no name twice."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and ast.unparse(node.targets[0]) in values.used:
            names.append(node.targets[0].id)
        elif isinstance(node, ast.FunctionDef) and ast.dump(node) == _UNPACK:
            names.append(node.name)
        elif isinstance(node, ast.Expr) and (node.value is call or isinstance(node.value, ast.Constant)):
            continue
        elif ast.dump(node) not in _WRAPPER:
            return False
    unique = len(names) == len(set(names)) and "*" not in names
    return values.exact and unique and not set(names) & set(dir(builtins))
