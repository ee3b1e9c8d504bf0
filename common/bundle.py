"""The one file a record submits: a trainer and the common/ modules it reaches, in reading order under banners.

    python -m common.bundle train_gpt.py > bundled.py

Source is moved, not rewritten. Imports from common/ go, and so does a common module's own `if __name__ == "__main__":`.
"""
import ast
import builtins
import dis
import re
from pathlib import Path

from common.settings import UserError


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
    futures = sorted(set().union(*(file.futures for file in files)))
    inlined = [f"{file.banner}\n{file.text()}\n\n" for file in modules.values()]
    return (script.text("\n".join(["\n", *inlined, script.banner]), futures) + "\n").encode()


class _SourceFile:
    """The last of `chain` (script, module, its import, ...). What it reaches joins `modules`, dependencies first."""

    def __init__(self, chain, modules):
        self.path, inlined = chain[-1], len(chain) > 1
        self.banner = f"# ===== {'common/' * inlined}{self.path.name} ".ljust(100, "=")
        try:
            text = self.path.read_text("utf-8-sig")
            tree = ast.parse(text)
            self.cuts = [node for node in tree.body if inlined and isinstance(node, ast.If) and not node.orelse
                         and ast.unparse(node.test) == "__name__ == '__main__'"]
            tree.body = [node for node in tree.body if node not in self.cuts]
            self.names = _bound_names(compile(tree, "", "exec"))
        except (OSError, SyntaxError, ValueError) as error:
            self.fail(error, getattr(error, "msg", error))
        self.lines = text.split("\n")  # splitlines() also splits at form feeds
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

    def fail(self, place, text):
        raise BundleError(f"{self.path}:{getattr(place, 'lineno', None) or 1}: {text}") from None

    def text(self, inlined="", futures=()):
        """What stays of the source, with `inlined` in place of the script's first import from common/."""
        lines = self.lines.copy()
        for node in self.cuts + self.imports:
            start, end = node.lineno - 1, node.end_lineno
            if node.col_offset or lines[end - 1].encode()[node.end_col_offset:].strip()[:1] not in (b"", b"#"):
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
