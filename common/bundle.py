"""The one file a record submits: a trainer and the common/ modules it reaches, in reading order under banners.

    python -m common.bundle train_gpt.py > bundled.py

The trainer's own text stays as it is, but for tabs as indentation. Of a common module come the definitions that are reached, word for
word, without docstrings and comments (every byte counts against the cap; the banner says where they are); imports from common/ and the
module's own `if __name__ == "__main__":` go. Of this module comes one line: a bundle imports nothing from common/, so it is its own bundle.
"""
import ast
import builtins
import dis
import io
import re
import tokenize
from pathlib import Path

from common.settings import UserError

_BUNDLED_SELF = "from pathlib import Path\n\n\ndef bundle(path):\n    return Path(path).read_bytes()\n"


class BundleError(UserError):
    """The script cannot become one file that behaves as before. The message starts with `file:line:`."""


def bundle(path):
    """Bytes of a script and what it reaches in the `common` folder beside it; its own bytes if it imports none of it.

    So `len(bundle(__file__))` is the same in the repository and in a record. Raises BundleError.
    """
    modules, owners = {}, {}
    script = _SourceFile([Path(path)], modules)
    if not modules:
        return script.path.read_bytes()
    files = [*modules.values(), script]
    for file in files:
        for name, (meaning, place) in file.names.items():
            other = owners.setdefault(name, file)
            if other is not file and (not meaning or meaning != other.names[name][0]):
                file.fail(place, f"`{name}` is also bound at {other.path}:{other.names[name][1].lineno}; rename one")
            if name == "*" or hasattr(builtins, name):
                file.fail(place, f"binding `{name}` may change what other modules mean")
    leave_out_unreached(files)
    futures = sorted(set().union(*(file.futures for file in files)))
    inlined = [f"{file.banner}\n{file.text()}\n\n" for file in modules.values()]
    return indent_with_tabs(script.text("\n".join(["\n", *inlined, script.banner]), futures) + "\n").encode()


def indent_with_tabs(text):
    """A tab for each four leading spaces, a tenth of all bytes; lines that continue a string stay as they are."""
    inside = {row for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.STRING
              for row in range(token.start[0] + 1, token.end[0] + 1)}
    return "\n".join(line if row in inside else re.sub(r"^( {4})+", lambda spaces: "\t" * (len(spaces[0]) // 4), line)
                     for row, line in enumerate(text.split("\n"), 1))


def leave_out_unreached(files):
    """Marks what nothing in the bundle names: top-level definitions and imports of the inlined files (all but the last)."""
    references = {node: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} for file in files for node in file.tree.body}
    defines = {node: defined_names(node) for node in references}
    kept = {node for node in references if not defines[node]} | set(files[-1].tree.body)
    todo = list(kept)
    while todo:
        names = references[todo.pop()]
        more = [node for node in references if node not in kept and names & defines[node]]
        kept.update(more)
        todo += more
    for file in files[:-1]:
        file.cuts += [node for node in file.tree.body if node not in kept]


def defined_names(node):
    """Names for whose sake alone a top-level statement stands; empty: it stays whatever is named."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign) and all(isinstance(n, (ast.Name, ast.Tuple)) for n in node.targets):
        return {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", "").split(".")[0] not in ("common", "__future__"):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return set()


class _SourceFile:
    """The last of `chain` (script, module, its import, ...). What it reaches joins `modules`, dependencies first."""

    def __init__(self, chain, modules):
        self.path, inlined = chain[-1], len(chain) > 1
        self.banner = f"# ===== {'common/' * inlined}{self.path.name} ".ljust(100, "=")
        try:
            text = self.path.read_text("utf-8-sig")
            if inlined and self.path.name == "bundle.py":
                text = _BUNDLED_SELF
            self.tree = tree = ast.parse(text)
            self.cuts = [node for node in tree.body if inlined and isinstance(node, ast.If) and not node.orelse
                         and ast.unparse(node.test) == "__name__ == '__main__'"]
            tree.body = [node for node in tree.body if node not in self.cuts]
            self.names = _bound_names(compile(tree, "", "exec"))
        except (OSError, SyntaxError, ValueError) as error:
            self.fail(error, getattr(error, "msg", error))
        self.lines = text.split("\n")  # splitlines() also splits at form feeds
        if inlined:
            self.leave_out_prose(text)
        self.top = text.startswith("#!") if ast.get_docstring(tree) is None else tree.body[0].end_lineno
        self.imports, self.futures = [], set()
        for node in ast.walk(tree):
            if inlined and getattr(node, "id", "") in ("__file__", "__name__", "__doc__"):
                self.fail(node, f"{node.id} would be the trainer's")
            code = ast.unparse(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else ""
            if code.endswith("*"):
                self.names["*"] = "", node
            if code.startswith("from __future__"):
                self.cuts.append(node)
                self.futures.add(code)
            if re.match(r"from (\.|common\b)|import (.*, )?common\b", code):
                if node not in tree.body or not re.fullmatch(r"from common\.(?!data )\w+ import \w+(, \w+)*", code):
                    self.fail(node, f"`{code}`: only top-level `from common.module import name`, no common.data")
                self.imports.append(node)
        for node in self.imports:
            path = chain[0].parent / "common" / f"{node.module[7:]}.py"
            if path in chain or not path.is_file():
                self.fail(node, f"{'import cycle through' if path in chain else 'there is no'} {path}")
            if path not in modules:
                modules[path] = _SourceFile([*chain, path], modules)
            for alias in node.names:
                if alias.name not in modules[path].names:
                    self.fail(node, f"{path} does not define `{alias.name}`")

    def leave_out_prose(self, text):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                before = self.lines[row - 1][:column].rstrip()
                self.lines[row - 1] = before or None
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
                self.cuts += node.body[:1] if len(node.body) > 1 or isinstance(node, ast.Module) else []

    def fail(self, place, text):
        raise BundleError(f"{self.path}:{getattr(place, 'lineno', None) or 1}: {text}") from None

    def text(self, inlined="", futures=()):
        """What stays of the source, with `inlined` in place of the script's first import from common/."""
        lines = self.lines.copy()
        for node in self.cuts + self.imports:
            start, end = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])]) - 1, node.end_lineno
            if lines[start] is None:  # inside a definition that is left out
                continue
            if lines[start][:node.col_offset].strip() or lines[end - 1].encode()[node.end_col_offset:].strip()[:1] not in (b"", b"#"):
                self.fail(node, "give this statement a line of its own")
            start -= start > 0 and not lines[start - 1]  # a blank line above goes too
            lines[start:end] = [None] * (end - start)
        if inlined:
            lines[self.imports[0].lineno - 1] = inlined
        lines[self.top:self.top] = futures
        return "\n".join(line for line in lines if line is not None).strip("\n")


def _bound_names(code, stores=("STORE_NAME", "STORE_GLOBAL")):
    """What compiled code binds at top level: name -> (import that it stands for, or "" for anything else; place)."""
    names, meaning = {}, ""
    for op in dis.get_instructions(code):
        if op.opname == "IMPORT_NAME":
            module, meaning = op.argval, op.argval.split(".")[0]
        elif op.opname == "IMPORT_FROM":
            meaning = f"{module}.{op.argval}"
        elif op.opname in stores:
            if op.argval[-2:] != "__" and meaning[:7] != "common.":
                first, place = names.setdefault(op.argval, (meaning, op.positions))
                names[op.argval] = meaning if meaning == first else "", place
            meaning = ""
    inner = [_bound_names(const, ["STORE_GLOBAL"]) for const in code.co_consts if isinstance(const, type(code))]
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
