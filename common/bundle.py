"""The one file that ships: a trainer and the common/ modules that it reaches, as compressed source.

    python -m common.bundle train_gpt.py > bundled.py
    python -m common.bundle --source FILE           print the readable program in a trainer or a bundle; do not run it

`bundle_source` joins the sources word for word: the modules first, each after those that it imports, the trainer last.
Three things are left out: the imports between these files, a line that repeats an import of a file before, and the
`if __name__ == "__main__":` block of a module.
`bundle` compresses that text into a short file that unpacks and runs it. A bundle imports nothing from common/, so it
is its own bundle. In a bundle, OTHERS replaces two modules: this one, and preflight, which is used before a run and
whose bytes would count.
"""
import argparse
import ast
import builtins
import bz2
import dis
import hashlib
import inspect
import re
import sys
from pathlib import Path

from common.command import closed_pipe_is_quiet
from common.settings import UserError

SOURCE_LIMIT = 4 << 20  # bytes of the readable program in a bundle: a small payload can expand to gigabytes
LINE = 2000  # characters of payload: few lines cost few bytes, and editors still cope

OTHERS = {"bundle.py": '''\
import linecache
from pathlib import Path


def bundle(path):
    """The bytes of this file, which is its own bundle."""
    return Path(path).read_bytes()


def bundle_source(path):
    """The text of this program, which the first lines of a compressed file have given to linecache."""
    return "".join(linecache.getlines(f"{path} --source") or linecache.getlines(str(path)))
''', "preflight.py": '''\
from common.settings import UserError


def preflight(*run):
    raise UserError("--preflight is not part of the one-file trainer: use it in the repository")
'''}
WRAPPER = """\
# A trainer in one file: `python FILE --source` prints its source.
import bz2
import io
import linecache


{unpack}

PAYLOAD = r'''
{payload}'''
SOURCE = bz2.decompress(unpack(PAYLOAD)).decode()[::-1]
NAME = __file__ + " --source"  # no such file: tracebacks take its lines from linecache
linecache.cache[NAME] = len(SOURCE), None, [*io.StringIO(SOURCE)], NAME
exec(compile(SOURCE, NAME, "exec"))
"""


class BundleError(UserError):
    """The script cannot become one file that behaves as before. The message starts with the file, and the line where
    there is one."""


def bundle(path):
    """The bytes that ship: a self-extracting file of bundle_source(path), or those of the script itself if it imports
    nothing from the `common` folder beside it. Raises BundleError."""
    script, modules = _read(path)
    if not modules:
        return script.path.read_bytes()
    backwards = _join(script, modules)[::-1]  # bz2 makes that 0.3 % smaller
    return wrapper(pack(bz2.compress(backwards.encode()))).encode()


def bundle_source(path):
    """The readable program: the text of a script and of the common/ modules that it reaches, or the inner text of a
    bundle. It runs as a file of its own, and is then its own bundle. Raises BundleError."""
    script, modules = _read(path)
    if modules:
        return _join(script, modules)
    wrapped = re.search(r"^PAYLOAD = r'''\n(.*?)'''$", script.text, re.DOTALL | re.MULTILINE)
    if not wrapped or inspect.getsource(unpack) not in script.text:
        return script.text
    try:
        stream = bz2.BZ2Decompressor()
        text = stream.decompress(unpack(wrapped[1]), SOURCE_LIMIT).decode()[::-1]
        if not stream.eof:
            raise ValueError(f"it is cut off, or its program is longer than {SOURCE_LIMIT:,} bytes")
        return text
    except (ValueError, OverflowError, OSError, EOFError) as error:
        line = script.text.count("\n", 0, wrapped.start()) + 1
        raise BundleError(f"{path}:{line}: the payload cannot be unpacked: {error}") from None


# ----------------------------------------------------------------------------------------------------------------------
# Readable text: the files and what has to hold for them to share one namespace
# ----------------------------------------------------------------------------------------------------------------------


def _read(path):
    """(script, list of the modules that it reaches, each after those that it imports)."""
    modules = {}
    script = _SourceFile([Path(path)], modules)
    return script, list(modules.values())


def _join(script, modules):
    owners = {}
    for file in [*modules, script]:
        for name, (meaning, place) in file.names.items():
            if not name.isidentifier() or hasattr(builtins, name):
                file.fail(place, f"`{name}` would change meaning in one file; do without it")
            other = owners.setdefault(name, file)
            if other is not file and (not meaning or meaning != other.names[name][0]):
                file.fail(place, f"`{name}` is also bound at {other.path}:{other.names[name][1].lineno}; rename one")
        if "__doc__" in file.words:
            file.fail(file.words["__doc__"], "`__doc__` would be the docstring of another file")
    made = set()
    for file in [*modules, script]:
        made |= file.drop_repeated(made)
    text = "\n\n\n".join(file.remaining() for file in [*modules, script]) + "\n"
    try:
        compile(text, "", "exec", dont_inherit=True)
    except SyntaxError as error:
        script.fail(None, f"the joined text does not compile: {error}")
    return text


class _SourceFile:
    """The last file of `chain` (script, module, its import, ...). Modules that it reaches join `modules` before it."""

    def __init__(self, chain, modules):
        self.path = chain[-1]
        self.inlined = len(chain) > 1
        self.cuts = []  # statements that do not stay
        try:
            self.text = self.path.read_text("utf-8-sig")
            if self.inlined:
                self.text = OTHERS.get(self.path.name, self.text)
            self.tree = ast.parse(self.text)
            self.cut([node for node in self.tree.body if self.inlined and _is_main_block(node)])
            self.names = _bound_names(compile(self.tree, "", "exec", dont_inherit=True))
        except OSError as error:
            raise BundleError(f"{self.path}: {error.strerror}: name a trainer or a bundle") from None
        except (SyntaxError, ValueError) as error:
            self.fail(error, getattr(error, "msg", error))
        self.words = {node.id: node for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        for word in ("__file__", "__name__", "globals", "eval", "exec"):
            if self.inlined and word in self.words:
                self.fail(self.words[word], f"`{word}` would see the trainer's names")
        imports = list(self.imports())
        for node in imports:
            self.follow(node, chain, modules)
        self.cut(imports)

    def imports(self):
        """The imports from common/. Imports that no inlined text may hold join `names`, where _join refuses them."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            code = ast.unparse(node)
            if code.endswith("*") or code.startswith("from __future__"):
                self.names[code] = "", node
            if re.match(r"from (\.|common\b)|import (.*, )?common\b", code):
                allowed = re.fullmatch(r"from common\.(?!data )\w+ import \w+(, \w+)*", code)
                if not allowed or node not in self.tree.body:
                    self.fail(node, f"`{code}`: only top-level `from common.module import name`, no common.data")
                yield node

    def follow(self, node, chain, modules):
        """Read the module of an import, unless that is done."""
        path = chain[0].parent / "common" / f"{node.module.removeprefix('common.')}.py"
        if path in chain:
            self.fail(node, f"import cycle through {path}")
        if not path.is_file():
            self.fail(node, f"there is no {path}")
        if path not in modules:
            modules[path] = _SourceFile([*chain, path], modules)
        for alias in node.names:
            if alias.name not in modules[path].names:
                self.fail(node, f"{path} does not define `{alias.name}`")

    def cut(self, nodes):
        """Take statements out; whole lines go."""
        for node in nodes:
            self.tree.body.remove(node)
        for node in nodes:
            for other in self.tree.body:
                if other.lineno <= node.end_lineno and node.lineno <= other.end_lineno:
                    self.fail(node, "give this statement a line of its own")
        self.cuts += nodes

    def drop_repeated(self, made):
        """Take out the lines that are among the imports `made` before; this file's own imports, as a set of lines."""
        lines = self.text.split("\n")
        own = {node: lines[node.lineno - 1] for node in self.tree.body if isinstance(node, ast.Import | ast.ImportFrom)
               and lines[node.lineno - 1] == ast.unparse(node)}
        self.cut([node for node, line in own.items() if line in made])
        return set(own.values())

    def remaining(self):
        """The text under its banner, without what was cut."""
        lines = self.text.split("\n")  # splitlines() would also split at form feeds
        for node in self.cuts:
            lines[node.lineno - 1:node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
        text = "\n".join(line for line in lines if line is not None)
        folder = "common/" if self.inlined else ""
        return f"# ===== {folder}{self.path.name}\n" + text.strip("\n")

    def fail(self, place, text):
        raise BundleError(f"{self.path}:{getattr(place, 'lineno', None) or 1}: {text}") from None


def _is_main_block(node):
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "__name__ == '__main__'"


def _bound_names(code, binds=("STORE_NAME", "DELETE_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")):
    """What compiled code binds at top level: name -> (import that it stands for, or "" for anything else; place)."""
    names, meaning = {}, ""
    for op in dis.get_instructions(code):
        if op.opname == "IMPORT_NAME":
            module, meaning = op.argval, op.argval.split(".")[0]
        elif op.opname == "IMPORT_FROM":
            meaning = f"{module}.{op.argval}"
        elif op.opname in binds:
            if not op.argval.endswith("__") and not meaning.startswith("common."):
                first, place = names.setdefault(op.argval, (meaning, op.positions))
                names[op.argval] = meaning if meaning == first else "", place
            meaning = ""
    inner = [_bound_names(const, binds[2:]) for const in code.co_consts if isinstance(const, type(code))]
    return names | {name: ("", place) for bound in inner for name, (_, place) in bound.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Compressed file: bytes as text that is dense in UTF-8 and harmless to print. A digit of base 104 costs one byte: an
# ASCII character, or half of a two-byte letter, which stands for a digit from 94 on and the digit after it.
# `--source` and `records verify` recognize a bundle by the code of unpack(): keep the old one readable if that changes.
# ----------------------------------------------------------------------------------------------------------------------


def wrapper(payload):
    """Text of the file that unpacks and runs a payload, which is the lines that pack() gives."""
    return WRAPPER.format(unpack=inspect.getsource(unpack), payload=payload)


def unpack(text, pairs=(*range(161, 173), *range(174, 768), *range(931, 1155), *range(1162, 1328), *range(1369, 1419))):
    """Bytes of base-104 digits: "!" to "~" are 0 to 93, a letter of `pairs` is two. 80, lowest first, are 67 bytes."""
    digits, data = [], b""
    for code in map(ord, text.replace("\n", "")):
        digits += [code - 33] if code < 127 else divmod(94 * 104 + pairs.index(code), 104)
    for start in range(0, len(digits), 80):
        block, number = digits[start:start + 80], 0
        for digit in reversed(block):
            number = 104 * number + digit
        data += number.to_bytes(67 * len(block) // 80, "little")
    return data


PAIRS = inspect.signature(unpack).parameters["pairs"].default  # printable letters and signs; none is combining


def pack(data):
    """The lines of a payload. They unpack to data, or to data and a zero byte: bz2 ignores what follows its stream."""
    digits = []
    for start in range(0, len(data), 67):
        block = data[start:start + 67]
        number = int.from_bytes(block, "little")
        for _ in range(-(-80 * len(block) // 67)):
            number, digit = divmod(number, 104)
            digits.append(digit)
    digits.append(0)  # in case the last digit needs a second one
    characters, rest = [], iter(digits)
    for digit in rest:
        characters.append(chr(digit + 33) if digit < 94 else chr(PAIRS[104 * (digit - 94) + next(rest)]))
    text = "".join(characters)
    lines = "".join(text[start:start + LINE] + "\n" for start in range(0, len(text), LINE))
    return lines.replace("''", "'\n'")  # three quotes would end the string that holds them


def main():
    """`python -m common.bundle`: print the bundle or the readable program. Exit code 0, or 2 after an error message."""
    parser = argparse.ArgumentParser("python -m common.bundle", description="Make a trainer one file.")
    parser.add_argument("script", help="a trainer, or a bundle")
    parser.add_argument("--source", action="store_true", help="print the readable program")
    options = parser.parse_args()
    try:
        source = bundle_source(options.script).encode()
        code = source if options.source else bundle(options.script)
    except BundleError as error:
        parser.exit(2, f"error: {error}\n")
    with closed_pipe_is_quiet():
        sys.stdout.buffer.write(code)
        if not options.source:
            print(f"{len(code)} bytes, SHA-256 {hashlib.sha256(code).hexdigest()}", file=sys.stderr)
            print(f"source: {len(source)} bytes, SHA-256 {hashlib.sha256(source).hexdigest()}", file=sys.stderr)


if __name__ == "__main__":
    main()
