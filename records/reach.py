"""Which files of its folder a source reaches: imports them under any name, runs them, loads them, or names them.
Standard library only."""
import ast
import posixpath
import re

from records.values import FolderPath, dotted

_IMPORTERS = {"import_module", "__import__", "run_module", "find_spec"}
_RUNNERS = re.compile(  # they take command lines
    r"(subprocess|pexpect|pty)\..*|os\.(system|popen|exec|spawn|posix_spawn)\w*|asyncio\.create_sub.*"
)
_COMPUTED = ast.BinOp | ast.JoinedStr | ast.Call


def reached_files(values, names):
    """(set of those of `names` that a source reaches, list of (line, text) of imports whose name is not known)."""
    if not names:
        return set(), []
    roots = {""} | _import_folders(values, names)
    package = posixpath.dirname(values.place)
    texts, hidden = set(), []
    docstrings = {id(node.value) for node in values.nodes if isinstance(node, ast.Expr)}
    found = set()
    for node in values.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            texts.add(node.value)
        elif isinstance(node, _COMPUTED):
            text = values.text(node)
            texts |= {text} - {None}
        if isinstance(node, ast.Call) and _RUNNERS.fullmatch(dotted(node.func, values.aliases)):
            texts |= _words(node)
        modules, unknown = _imported_modules(node, package, values)
        if unknown:
            hidden.append((node.lineno, "imports a module whose name only a run would show"))
        for module in modules:
            found |= _module_files(module, roots, names)
    wanted = {_as_path(text) for text in texts}
    return found | {name for name in names if name in wanted or _is_named(name, wanted)}, hidden


def _as_path(text):
    """A text as the path that it may be, relative to the record's folder."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return posixpath.normpath(text).lstrip("/") if 0 < len(text) < 200 else ""


def _is_named(name, wanted):
    """Whether a file in a folder below is named without that folder."""
    return "/" in name and posixpath.basename(name) in wanted


def _words(node):
    """The words of the constants in a command line."""
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return {word for text in texts for word in re.findall(r"[\w./+-]+", text)}


def _import_folders(values, names):
    """Folders that the source puts on sys.path: all, where one is not known."""
    found = set()
    for node in values.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if dotted(node.func.value, values.aliases) == "sys.path":
                found.add(values.text(node.args[-1]))
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(dotted(t, values.aliases) == "sys.path" for t in targets if isinstance(t, ast.Attribute)):
                found.add(None)
    folders = {posixpath.dirname(name) for name in names}
    if None in found:
        return folders
    return {folder for folder in folders if folder in {_as_path(FolderPath(path)) for path in found}}


def _module_files(module, roots, names):
    parts = module.split(".")
    found = set()
    for root in roots:
        for end in range(1, len(parts) + 1):
            path = posixpath.join(root, *parts[:end])
            found |= {n for n in (f"{path}.py", f"{path}/__init__.py", f"{path}.pyc", f"{path}.so") if n in names}
            found |= {n for n in names if n.startswith(f"{path}.") and n.endswith((".so", ".pyd"))}
    return found


def _imported_modules(node, package, values):
    """(dotted names that a statement or call may import, whether there are others); relative ones start at the folder
    of the record."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names], False
    if isinstance(node, ast.ImportFrom):
        folders = package.split("/") if node.level and package else []
        parts = folders[:len(folders) - node.level + 1] + ([node.module] if node.module else [])
        start = ".".join(parts)
        return [start, *(f"{start}.{a.name}" if start else a.name for a in node.names)], False
    if isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        full = dotted(node.func, values.aliases).rpartition(".")[2]
        if {name, full} & _IMPORTERS:
            text = values.text(node.args[0])
            return ([], True) if not isinstance(text, str) else ([text.lstrip(".")], False)
    return [], False
