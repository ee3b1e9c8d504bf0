"""The one file a record submits: a trainer and the common/ modules it reaches, in reading order under banners.

    python -m common.bundle train_gpt.py > bundled.py

The trainer's text stays, but for tabs as indentation. Of a common module comes what is reached, word for word, without
docstrings and comments (each byte counts against the cap), imports already made and its `if __name__ == "__main__":`.
Of this module comes one function: a bundle imports nothing from common/, so it is its own bundle.
"""
import ast
import builtins
import dis
import io
import re
import tokenize
from pathlib import Path

from common.settings import UserError

_BUNDLED_SELF = "from pathlib import Path\n\n\ndef bundle(path):\n    return Path(path).read_bytes()\n\n\ndef bundle_source(path):\n    return Path(path).read_text()\n"
_IMPORTS = ast.Import, ast.ImportFrom
_DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
_PASSIVE = *_DEFINITIONS, ast.Assign, ast.AnnAssign, ast.Expr, ast.Pass  # these do no more than the expressions in them
_HARMLESS = "dataclasses.dataclass", "dataclasses.field", "functools.cache", "re.compile", "typing.Protocol"


class BundleError(UserError):
    """The script cannot become one file that behaves as before. The message starts with `file:line:`."""


def bundle(path):
    """Bytes of a script and what it reaches in the `common` folder beside it; its own bytes if it imports none of it, so
    that `bundle(__file__)` is the same in the repository and in a record. Raises BundleError."""
    modules, owners = {}, {}
    script = _SourceFile([Path(path)], modules)
    if not modules:
        return script.path.read_bytes()
    for file in [*modules.values(), script]:
        for name, (meaning, place) in file.names.items():
            if not name.isidentifier() or hasattr(builtins, name):
                file.fail(place, f"`{name}` would change meaning in one file; do without it")
            other = owners.setdefault(name, file)
            if other is not file and (not meaning or meaning != other.names[name][0]):
                file.fail(place, f"`{name}` is also bound at {other.path}:{other.names[name][1].lineno}; rename one")
    cut_unreached(script, modules.values())
    inlined = [f"{file.banner}\n{file.text()}\n\n" for file in modules.values()]
    return (script.text("\n".join(["\n", *inlined, script.banner])) + "\n").encode()


def bundle_source(path):
    return bundle(path).decode()


def cut_unreached(script, modules):
    """Cuts from the modules what only binds names that neither the script imports nor a statement that stays contains, in
    whatever place (strings too: there are annotations and getattr); and imports already made."""
    owners = {node: file for file in modules for node in file.tree.body}
    code = {node: ast.unparse(node) for node in owners}
    binds = {node: _only_binds(node, file.names) for node, file in owners.items()}
    names, reached = {alias.name for node in script.imports for alias in node.names}, set()
    while new := {node for node in binds if node not in reached and (not binds[node] or names & binds[node])}:
        reached |= new
        names.update(*(re.findall(r"\w+", code[node]) for node in new))
    made = {ast.unparse(node) for node in script.tree.body if node.lineno < script.imports[0].lineno}
    for node, file in owners.items():
        if node not in reached or (isinstance(node, _IMPORTS) and code[node] in made):
            file.tree.body.remove(node)
            file.cuts.append(node)
        made.add(code[node])


def _only_binds(node, meanings):
    """Names for whose sake alone a top-level statement stands. Empty: it may do more than bind them, so it stays."""
    if isinstance(node, _IMPORTS):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    later = [line for part in ast.walk(node) if isinstance(part, _DEFINITIONS[:2]) for line in part.body]
    for part in set(ast.walk(node)).difference(*map(ast.walk, later)):
        calls = [part.func] if isinstance(part, ast.Call) else [
            call for field in ("decorator_list", "bases", "keywords") for call in getattr(part, field, [])]
        stores = isinstance(part, (ast.Attribute, ast.Subscript)) and not isinstance(part.ctx, ast.Load)
        acts = isinstance(part, (ast.stmt, ast.NamedExpr)) and not isinstance(part, _PASSIVE)
        if stores or acts or not all(_is_harmless(call, meanings) for call in calls):
            return set()
    targets = [part for target in getattr(node, "targets", []) for part in ast.walk(target)]
    return {node.name} if isinstance(node, _DEFINITIONS) else {part.id for part in targets if isinstance(part, ast.Name)}


def _is_harmless(call, meanings):
    """Whether to call, decorate with or inherit from it is known to have no effect elsewhere."""
    first, dot, rest = ast.unparse(getattr(call, "func", call)).partition(".")
    name = meanings.get(first, [first])[0] + dot + rest
    return name in _HARMLESS or (isinstance(getattr(builtins, name, 0), type) and name not in ("filter", "map", "type"))


class _SourceFile:
    """The last of `chain` (script, module, its import, ...). What it reaches joins `modules`, dependencies first."""

    def __init__(self, chain, modules):
        self.path, inlined = chain[-1], len(chain) > 1
        self.banner = f"# ===== {'common/' * inlined}{self.path.name}"
        try:
            text = _BUNDLED_SELF if inlined and self.path.name == "bundle.py" else self.path.read_text("utf-8-sig")
            self.tree = tree = ast.parse(text)
            self.cuts = [node for node in tree.body if inlined and isinstance(node, ast.If) and not node.orelse
                         and ast.unparse(node.test) == "__name__ == '__main__'"]
            tree.body = [node for node in tree.body if node not in self.cuts]
            self.names = _bound_names(compile(tree, "", "exec"))
        except (OSError, SyntaxError, ValueError) as error:
            self.fail(error, getattr(error, "msg", error))
        self.lines, self.fixed, self.imports = text.split("\n"), set(), []  # splitlines() also splits at form feeds
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            (row, column), (end, _) = token.start, token.end
            self.fixed.update(range(row, end))  # indices of lines that start inside a string
            if inlined and token.type == tokenize.COMMENT:
                self.lines[row - 1] = self.lines[row - 1][:column].rstrip() or None
        for node in ast.walk(tree):
            code = ast.unparse(node) if isinstance(node, _IMPORTS) or getattr(node, "attr", "") == "__doc__" else ""
            if code.endswith(("*", ".__doc__")) or code.startswith("from __future__"):
                self.names[code] = "", node
            if re.match(r"from (\.|common\b)|import (.*, )?common\b", code):
                if node not in tree.body or not re.fullmatch(r"from common\.(?!data )\w+ import \w+(, \w+)*", code):
                    self.fail(node, f"`{code}`: only top-level `from common.module import name`, no common.data")
                self.imports.append(node)
            if inlined and getattr(node, "id", "") in ("__file__", "__name__", "__doc__", "globals", "eval", "exec"):
                self.fail(node, f"`{node.id}` would see the trainer's names")
            prose = inlined and isinstance(node, (ast.Module, *_DEFINITIONS)) and ast.get_docstring(node) is not None
            if prose and (len(node.body) > 1 or node is tree):
                self.cuts.append(node.body.pop(0))
        for node in self.imports:
            path = chain[0].parent / "common" / f"{node.module[7:]}.py"
            if path in chain or not path.is_file():
                self.fail(node, f"{'import cycle through' if path in chain else 'there is no'} {path}")
            if path not in modules:
                modules[path] = _SourceFile([*chain, path], modules)
            for alias in node.names:
                if alias.name not in modules[path].names:
                    self.fail(node, f"{path} does not define `{alias.name}`")
            tree.body.remove(node)

    def fail(self, place, text):
        raise BundleError(f"{self.path}:{getattr(place, 'lineno', None) or 1}: {text}") from None

    def text(self, inlined=""):
        """What stays of the source, with `inlined` in place of the script's first import from common/. Tabs indent it, and
        no two lines of a module in a row are blank."""
        lines, parts, place = self.lines, ([], []), self.imports[0].lineno if inlined else 0
        for node in [*self.cuts, *self.imports]:
            start, end = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])]) - 1, node.end_lineno
            after = lines[end - 1].encode()[node.end_col_offset:].split(b"#")[0]
            if lines[start][:node.col_offset].strip() or after.strip():
                self.fail(node, "give this statement a line of its own")
            while start and not lines[start - 1]:  # blank lines above go too
                start -= 1
            lines[start:end] = [None] * (end - start)
        for row, line in enumerate(lines):
            if line is not None and (line or row in self.fixed or inlined or parts[1][-1:] != [""]):
                tabs = 0 if row in self.fixed else (len(line) - len(line.lstrip(" "))) // 4
                parts[row >= place].append("\t" * tabs + line[4 * tabs:])
        try:
            if ast.dump(ast.parse("\n".join([*parts[0], *parts[1]]))) != ast.dump(self.tree):
                raise SyntaxError
        except SyntaxError:
            self.fail(None, "what stays would not mean the same; indent by four spaces, write decorators in one line")
        return "\n".join([*parts[0], inlined, *parts[1]]).strip("\n")


def _bound_names(code, binds=("STORE_NAME", "DELETE_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")):
    """What compiled code binds at top level: name -> (import that it stands for, or "" for anything else; place)."""
    names, meaning = {}, ""
    for op in dis.get_instructions(code):
        if op.opname == "IMPORT_NAME":
            module, meaning = op.argval, op.argval.split(".")[0]
        elif op.opname == "IMPORT_FROM":
            meaning = f"{module}.{op.argval}"
        elif op.opname in binds:
            if op.argval[-2:] != "__" and meaning[:7] != "common.":
                first, place = names.setdefault(op.argval, (meaning, op.positions))
                names[op.argval] = meaning if meaning == first else "", place
            meaning = ""
    inner = [_bound_names(const, binds[2:]) for const in code.co_consts if isinstance(const, type(code))]
    return names | {name: ("", place) for bound in inner for name, (_, place) in bound.items()}


if __name__ == "__main__":
    import argparse
    import hashlib
    import sys
    parser = argparse.ArgumentParser("python -m common.bundle")
    parser.add_argument("script")
    try:
        code = bundle(parser.parse_args().script)
    except BundleError as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.buffer.write(code)
    print(f"{len(code)} bytes, SHA-256 {hashlib.sha256(code).hexdigest()}", file=sys.stderr)
