"""What an expression is, where constants, known functions and files of the folder decide it: computed here, never run.

The functions are those with which a source is packed (base64, zlib, lzma, joining, slicing) and those that make paths.
Standard library only.
"""
import ast
import codecs
import functools
import operator
import posixpath
import re

from records.decoders import CODECS, DECODERS, LIMIT_BYTES, RAW_FORMAT, Unreadable, applied, unlzma_raw

LIMIT_STEPS = 1 << 20  # of all the work for one source
LIMIT_DEPTH = 60


class Unknown(Exception):
    """A value that only a run could tell; the message says of what kind, or is empty."""


class FolderPath(str):
    """A path relative to the record's folder."""


class Opened(str):
    """A path of a file that was opened. binary: whether it is read as bytes."""
    binary = False


def imported_aliases(tree):
    """dict: name in the file -> dotted name that it stands for, from imports and from `name = module.function`."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                aliases[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            aliases |= {a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, full = node.targets[0].id, dotted(node.value, aliases)
            if full and name not in aliases and (full in _BUILTINS or full.split(".")[0] in aliases.values()):
                aliases[name] = full
    return aliases


_BUILTINS = {"exec", "eval", "compile", "open", "__import__"}


def dotted(node, aliases):
    """Full dotted name of a name, an attribute, getattr(x, "name") or __import__("name"); "" for anything else."""
    parts = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
            continue
        text = _constant_key(node)
        if text is None:
            return ""
        of = ast.unparse(node.value if isinstance(node, ast.Subscript) else node.func)
        if of in ("__import__", "importlib.import_module"):
            return ".".join([text, *reversed(parts)])
        if of == "getattr":
            parts.append(text)
            node = node.args[0]
        elif of in ("__builtins__", "globals()", "locals()", "vars(builtins)", "vars(__builtins__)",
                    "__builtins__.__dict__", "builtins.__dict__"):
            node = ast.Name(text)
        else:
            return ""
    full = ".".join([aliases.get(node.id, node.id), *reversed(parts)])
    return full.removeprefix("builtins.").removeprefix("__builtins__.")


def _constant_key(node):
    """The text in x["text"], getattr(x, "text") or f("text"), else None."""
    if isinstance(node, ast.Subscript):
        key = node.slice
    elif isinstance(node, ast.Call) and 0 < len(node.args) < 4:
        key = node.args[min(1, len(node.args) - 1)] if ast.unparse(node.func) == "getattr" else node.args[0]
    else:
        return None
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


class Values:
    """The values in one source. nodes: all of its tree; read: function of a file's name that returns its bytes or
    raises Unknown; place: the name of the file that holds the source; decoders: name -> function of one value, besides
    DECODERS."""

    def __init__(self, tree, aliases, read, place, decoders=()):
        self.aliases, self.read, self.place = aliases, read, place
        self.decoders = DECODERS | dict(decoders)
        self.steps = 0
        self.forget()
        self.assigned, self.functions, self.nodes = {}, {}, [*ast.walk(tree)]
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            for name, value in _bindings(node):
                self.assigned.setdefault(name, []).append((node.lineno, value))
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
                names = [a.arg for a in self.functions[node.func.id].args.args]
                for name, value in zip(names, node.args):
                    self.assigned.setdefault(name, []).append((0, value))  # a parameter
        for found in self.assigned.values():
            found.sort(key=operator.itemgetter(0))

    def forget(self):
        """Start anew with .used, the names whose values were needed, and .exact: no argument was ignored."""
        self.used, self.exact = set(), True

    def of(self, node):
        """The value of an expression: str, bytes, int, a path or a list of them. Raises Unknown or Unreadable."""
        try:
            return self._value(node, {}, 0)
        except RecursionError:
            raise Unknown("") from None

    def text(self, node):
        """The str or bytes of an expression, else None. Raises nothing."""
        try:
            value = self.of(node)
        except (Unknown, Unreadable):
            return None
        return value if isinstance(value, str | bytes) else None

    def _value(self, node, local, depth):
        self.steps += 1
        if depth > LIMIT_DEPTH or self.steps > LIMIT_STEPS:
            raise Unknown("")
        method = _METHODS.get(type(node))
        if not method:
            raise Unknown("")
        value = method(self, node, local, functools.partial(self._value, local=local, depth=depth + 1))
        if isinstance(value, str | bytes | list) and len(value) > LIMIT_BYTES:
            raise Unreadable(f"expands to more than {LIMIT_BYTES:,} bytes")
        return value

    def _name(self, node, local, value):
        if node.id in local:
            return local[node.id]
        if node.id == "__file__":
            return FolderPath(self.place)
        found = self.assigned.get(node.id, ())
        before = [bound for line, bound in found if line < getattr(node, "lineno", 0)]
        if not found:
            raise Unknown("")
        self.used.add(node.id)
        return value((before or [bound for _, bound in found])[-1])

    def _binary(self, node, local, value):
        left, right = value(node.left), value(node.right)
        if isinstance(node.op, ast.Div) and isinstance(left, FolderPath):
            return _joined_path(left, right)
        function = _OPERATORS.get(type(node.op))
        size = len(left) * right if isinstance(node.op, ast.Mult) and isinstance(left, str | bytes | list) else 0
        if not function or not isinstance(size, int) or size > LIMIT_BYTES:
            raise Unknown("")
        return _known(function, left, right)

    def _subscript(self, node, local, value):
        of = _items(value(node.value))
        if isinstance(node.slice, ast.Slice):
            key = slice(*(part and value(part) for part in (node.slice.lower, node.slice.upper, node.slice.step)))
        else:
            key = value(node.slice)
        return _known(operator.getitem, of, key)

    def _joined(self, node, local, value):
        parts = [value(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values]
        return "".join(str(part) for part in parts)

    def _comprehension(self, node, local, value):
        loop = node.generators[0]
        if len(node.generators) > 1 or loop.ifs or not isinstance(loop.target, ast.Name):
            raise Unknown("")
        return [self._value(node.elt, local | {loop.target.id: item}, 1) for item in _items(value(loop.iter))]

    def _attribute(self, node, local, value):
        if dotted(node, self.aliases) == "sys.path":
            return [FolderPath("")]
        of = value(node.value)
        if isinstance(of, FolderPath) and node.attr == "parent":
            return FolderPath(posixpath.dirname(of))
        raise Unknown("")

    def _call(self, node, local, value):
        name = dotted(node.func, self.aliases)
        extra = [ast.unparse(part) for part in (*node.args[1:], *node.keywords)]
        if name == "compile" and node.args:
            self.exact &= len(extra) == 2 and extra[1] == "'exec'"
            return value(node.args[0])
        if name in ("marshal.loads", "marshal.load"):
            raise Unknown("bytecode of marshal")
        if name == "lzma.decompress" and re.fullmatch(RAW_FORMAT, " ".join(extra)):
            return applied("lzma.decompress", unlzma_raw, value(node.args[0]))
        if name in self.decoders and node.args:
            self.exact &= not extra
            return applied(name, self.decoders[name], value(node.args[0]))
        if name == "map" and len(node.args) == 2:
            function = _FUNCTIONS.get(dotted(node.args[0], self.aliases))
            return [_known(function, item) for item in _items(value(node.args[1]))]
        if name in _FUNCTIONS:
            return _known(_FUNCTIONS[name], *map(value, node.args))
        function = self._function(node.func)
        if function:
            return self._returned(function, [value(part) for part in node.args])
        if isinstance(node.func, ast.Attribute):
            return self._method(node, value(node.func.value), value)
        raise Unknown("")

    def _function(self, node):
        """The lambda or def that a call runs, or None."""
        if isinstance(node, ast.Name):
            bound = [value for _, value in self.assigned.get(node.id, ()) if isinstance(value, ast.Lambda)]
            node = bound[-1] if bound else self.functions.get(node.id)
        return node if isinstance(node, ast.Lambda | ast.FunctionDef) else None

    def _returned(self, function, given):
        local = dict(zip([a.arg for a in function.args.args], given))
        if isinstance(function, ast.Lambda):
            return self._value(function.body, local, 1)
        returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        if len(returns) != 1 or self.steps > LIMIT_STEPS // 2:
            raise Unknown("")
        self.steps += 1000  # functions that call themselves end soon
        return self._value(returns[0], local, 1)

    def _method(self, node, of, value):
        name, given = node.func.attr, [value(part) for part in node.args]
        if name in ("decode", "encode"):
            codec = given[0] if given else "utf-8"
            if not isinstance(codec, str) or codec.lower() not in CODECS:
                raise Unknown("")
            self.exact &= len(given) < 2 and not node.keywords
            return applied(name, operator.methodcaller(name, codec), of)
        if name in ("read", "read_text", "read_bytes") and isinstance(of, FolderPath | Opened):
            self.exact = False  # the file could change
            data = self.read(posixpath.normpath(of).lstrip("/"))
            return data if name == "read_bytes" or getattr(of, "binary", False) else data.decode("utf-8", "replace")
        if isinstance(of, FolderPath):
            if name in _PATH_METHODS:
                return _known(_PATH_METHODS[name], of, *given)
        elif name in _TEXT_METHODS and isinstance(of, str | bytes):
            return _known(getattr(of, name), *given)
        raise Unknown("")


def _bindings(node):
    """(name, expression) pairs that a statement binds."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from ((t.id, v) for t, v in zip(target.elts, node.value.elts) if isinstance(t, ast.Name))
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name) and node.value:
        yield node.target.id, node.value
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        before = ast.copy_location(ast.Name(node.target.id), node)
        yield node.target.id, ast.BinOp(before, node.op, node.value)
    elif isinstance(node, ast.With):
        yield from ((i.optional_vars.id, i.context_expr) for i in node.items if isinstance(i.optional_vars, ast.Name))


def _known(function, *values):
    """The value of a function. Raises Unknown where it refuses its values."""
    try:
        return function(*values)
    except _REFUSALS:
        raise Unknown("") from None


_REFUSALS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


def _items(value):
    if not isinstance(value, str | bytes | list | tuple | range):
        raise Unknown("")
    return value


def _joined_path(first, *rest):
    if not all(isinstance(part, str) for part in (first, *rest)):
        raise Unknown("")
    return FolderPath(posixpath.normpath(posixpath.join(first, *rest)))


def _open(path, mode="r", *_):
    opened = Opened(path)
    opened.binary = "b" in mode
    return opened


_OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul, ast.BitXor: operator.xor, ast.Sub: operator.sub,
              ast.Mod: operator.mod}
_TEXT_METHODS = {"replace", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "lower", "upper",
                 "removeprefix", "removesuffix", "join", "swapcase", "partition"}
_PATH_METHODS = {
    "resolve": lambda path, *_: path,
    "absolute": lambda path: path,
    "joinpath": _joined_path,
    "with_name": lambda path, name: _joined_path(posixpath.dirname(path), name),
    "open": _open,
}


def _rot13(text, codec):
    if codec.replace("_", "") != "rot13":
        raise ValueError(f"codec {codec}")
    return codecs.decode(text, "rot13")


def _first(path):
    return FolderPath(path)


_FUNCTIONS = {
    "open": _open,
    "io.open": _open,
    "pathlib.Path": lambda *parts: _joined_path(*parts) if parts else FolderPath(""),
    "os.path.join": _joined_path,
    "os.path.dirname": lambda path: FolderPath(posixpath.dirname(path)),
    "os.path.abspath": _first,
    "os.path.realpath": _first,
    "os.path.normpath": lambda path: FolderPath(posixpath.normpath(path)),
    "os.getcwd": lambda: FolderPath(""),
    "os.fspath": _first,
    "codecs.decode": _rot13,
    "chr": chr,
    "ord": ord,
    "bytes": lambda data, *_: data.encode() if isinstance(data, str) else bytes(_items(data)),
    "bytearray": lambda data, *_: bytes(_items(data)),
    "str": lambda data, *_: data if isinstance(data, str) else data.decode(),
    "list": lambda data: [*_items(data)],
    "reversed": lambda data: [*_items(data)][::-1],
}


def _constant(values, node, local, value):
    if not isinstance(node.value, str | bytes | int):
        raise Unknown("")
    return node.value


def _negative(values, node, local, value):
    number = value(node.operand)
    if not isinstance(node.op, ast.USub) or not isinstance(number, int):
        raise Unknown("")
    return -number


def _listed(values, node, local, value):
    return [value(part) for part in node.elts]


_METHODS = {
    ast.Constant: _constant,
    ast.Name: Values._name,
    ast.BinOp: Values._binary,
    ast.Subscript: Values._subscript,
    ast.JoinedStr: Values._joined,
    ast.UnaryOp: _negative,
    ast.List: _listed,
    ast.Tuple: _listed,
    ast.GeneratorExp: Values._comprehension,
    ast.ListComp: Values._comprehension,
    ast.Attribute: Values._attribute,
    ast.Call: Values._call,
}
