"""The code of a record, read and never run: whether it compiles, what it wraps and reaches, and which hazards it holds.

    python -m records.code < JSON       [folder, .py files, other files that count where a source names them]

prints JSON. A process of its own with hard limits does this, since a hostile source can exhaust the compiler. This
module and what it imports need the standard library only.
"""
import ast
import base64
import builtins
import bz2
import contextlib
import hashlib
import json
import lzma
import operator
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

from common.bundle import unpack, wrapper

LIMIT_BYTES = 8 << 20  # of one unwrapped source
LIMIT_SECONDS, LIMIT_MEMORY, LAYERS = 20, 1 << 30, 5
_NETWORK = {"socket", "urllib", "requests", "http", "httpx", "ftplib", "smtplib", "aiohttp", "huggingface_hub", "boto3",
            "wandb", "paramiko", "websocket", "websockets", "xmlrpc", "telnetlib", "datasets", "gdown"}
_PROCESS = {"subprocess", "pty", "pexpect"}
_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_IMPORTS = ((_NETWORK, "network"), (_PROCESS, "other processes"), (_PICKLES, "pickle, which runs code as it loads"))
_SYSTEM = {"os.system", "os.popen", "os.fork", "os.forkpty", "os.execv", "os.execve", "os.execvp", "os.execl",
           "os.spawnv", "os.posix_spawn"}
_HUB = {"torch.hub.load", "torch.hub.download_url_to_file", "torch.hub.load_state_dict_from_url"}
_EXEC = {"exec", "eval", "builtins.exec"}
_HIDDEN = {"exec", "eval", "__import__", "importlib.import_module"}
_VALIDATION = ("val_tokens", "val_data", "val_loader", "eval_tokens", "valid_tokens")


class Unreadable(Exception):
    """Source that cannot be examined; the message is the reason."""


def inspect_code(folder, names, others=()):
    """What is in .py files, from a process with limits. dict name -> {
    "error": why it does not compile, or "",
    "wrapped": list of what was opened,
    "source_sha256": SHA-256 of the text in a file that only unwraps and runs it, else of the file's bytes,
    "reaches": those of `names` and `others` that it imports or names,
    "hazards": [[line, text]]}. Raises RuntimeError if that process died."""
    given = json.dumps([os.path.abspath(folder), list(names), list(others)]).encode()
    command = [sys.executable, "-E", "-s", "-S", "-m", "records.code"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=2 * LIMIT_SECONDS, env={}, input=given,
                              cwd=Path(__file__).parents[1])
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"reading it took more than {2 * LIMIT_SECONDS} s") from None
    if done.returncode:
        what = "its time" if done.returncode == -24 else "the memory or the stack of the compiler"
        raise RuntimeError(f"reading it exhausted {what}")
    return json.loads(done.stdout)


def examine(source, names, package=""):
    """What inspect_code says of one file's bytes. package: the folder that it lies in, as part of its name."""
    found = {"error": "", "wrapped": [], "source_sha256": "", "reaches": [], "hazards": []}
    only_wrappers = True  # so far: what stands beside a wrapper runs too, so that the text inside is not the program
    for layer in range(LAYERS + 1):
        data = _encoded(source)
        if only_wrappers:
            found["source_sha256"] = hashlib.sha256(data).hexdigest()
        try:
            if b"\0" in data:
                raise Unreadable("holds NUL bytes")
            inner, opened = _examine_layer(source, "(unwrapped) " if layer else "", names, package, found)
            only_wrappers = only_wrappers and opened is not None
        except SyntaxError as error:
            found["error"] = f"line {error.lineno}: {error.msg}"
        except (RecursionError, MemoryError):
            found["error"] = "is nested too deeply for the compiler"
        except (Unreadable, ValueError) as error:
            found["error"] = str(error)
        if found["error"] or inner is None:
            return found
        if layer == LAYERS:
            found["error"] = f"wraps source more than {LAYERS} times"
            return found
        found["wrapped"].append(f"{len(data):,} bytes hold {len(_encoded(inner)):,} bytes of source")
        source = inner
    return found


def _encoded(source):
    return source if isinstance(source, bytes) else source.encode(errors="surrogatepass")


def _examine_layer(source, prefix, names, package, found):
    """Add what is in one source to `found`. Returns (the source that it wraps, or None; the call that runs it, if the
    source does nothing else). Sources are bytes or str, as exec() is given them: a coding line means nothing in a
    str."""
    tree = ast.parse(source)
    compile(source, "train_gpt.py", "exec", dont_inherit=True)
    aliases = imported_aliases(tree)
    inner, opened = None, None
    try:
        inner, opened = wrapped_source(tree, aliases)
    finally:
        texts = set(hazards(tree, aliases, opened))
        found["hazards"] += [[line, prefix + text] for line, text in sorted(texts)]
        found["reaches"] += sorted(set(reached_files(tree, names, package)) - set(found["reaches"]))
    return inner, opened


def imported_aliases(tree):
    """dict: name in the file -> dotted name that it stands for."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                aliases[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            aliases |= {a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names}
    return aliases


def dotted(node, aliases):
    """Full dotted name of a name or attribute, "" for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)]) if isinstance(node, ast.Name) else ""


def reached_files(tree, names, package=""):
    """Files of the folder that a source imports, or names in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            yield from (n for n in names if text.removeprefix("./") == n)
        for module in _imported_modules(node, package):
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                path = "/".join(parts[:end])
                yield from (n for n in (f"{path}.py", f"{path}/__init__.py") if n in names)


def _imported_modules(node, package):
    """Dotted names that a statement or call may import; relative ones start at the folder of the record."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        folders = package.split("/") if node.level and package else []
        parts = folders[:len(folders) - node.level + 1] + ([node.module] if node.module else [])
        start = ".".join(parts)
        return [start, *(f"{start}.{a.name}" if start else a.name for a in node.names)]
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("import_module", "__import__", "run_module"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            return [text.lstrip(".") for text in texts]
    return []


# ----------------------------------------------------------------------------------------------------------------------
# Wrappers: source that a file decodes, decompresses and gives to exec()
# ----------------------------------------------------------------------------------------------------------------------


def wrapped_source(tree, aliases):
    """(what the source gives to exec(), str or bytes, or None if that cannot be known without running it; the call of
    exec, or None if something else in the source could change what it runs). Raises Unreadable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func, aliases) in _EXEC and node.args:
            layer = _Layer(tree, aliases)
            value = layer.value(node.args[0])
            if value is not None:
                return value, node if layer.is_only_a_wrapper(node) else None
    return None, None


class _Layer:
    """A source that may decode and decompress constants. Known functions compute its expressions here."""

    def __init__(self, tree, aliases):
        self.body, self.aliases = tree.body, aliases
        self.constants = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value
        self.used = set()  # names of constants that a value needed
        self.exact = True  # False: a call has arguments that were ignored
        self.decoders = dict(_DECODERS)
        if any(isinstance(node, ast.FunctionDef) and ast.dump(node) == _UNPACK for node in tree.body):
            self.decoders["unpack"] = unpack

    def value(self, node, depth=0):
        """The str or bytes of an expression; None if it is not of constants and known functions. Raises Unreadable."""
        if depth > 12:
            return None
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str | bytes) else None
        if isinstance(node, ast.Name) and node.id in self.constants:
            self.used.add(node.id)
            return self.value(self.constants[node.id], depth + 1)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.value(node.left, depth + 1), self.value(node.right, depth + 1)
            return left + right if left is not None and type(left) is type(right) else None
        if isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "::-1":
            value = self.value(node.value, depth + 1)
            return None if value is None else value[::-1]
        return self._call(node, depth) if isinstance(node, ast.Call) else None

    def _call(self, node, depth):
        name = dotted(node.func, self.aliases)
        extra = [ast.unparse(part) for part in (*node.args[1:], *node.keywords)]
        if name == "compile" and node.args:
            self.exact &= len(extra) == 2 and extra[1] == "'exec'"
            return self.value(node.args[0], depth + 1)
        if name == "lzma.decompress" and re.fullmatch(_RAW, " ".join(extra)):
            name, extra = "lzma.decompress of FORMAT_RAW", []
        if name in self.decoders and node.args:
            self.exact &= not extra
            return self._applied(name, self.decoders[name], self.value(node.args[0], depth + 1))
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("decode", "encode"):
            arguments = [getattr(part, "value", None) for part in node.args]
            codec = arguments[0] if arguments else "utf-8"
            if not isinstance(codec, str) or codec.lower() not in _CODECS:
                return None
            self.exact &= len(arguments) < 2 and not node.keywords
            method = operator.methodcaller(node.func.attr, codec)
            return self._applied(node.func.attr, method, self.value(node.func.value, depth + 1))
        return None

    def _applied(self, name, function, value):
        try:
            return None if value is None else function(value)
        except _BAD_DATA as error:
            raise Unreadable(f"wraps source that cannot be unwrapped ({name}: {error})") from None

    def is_only_a_wrapper(self, call):
        """Whether `call` surely runs what value() found: the source holds imports, the constants that value() used, the
        call itself and statements of the wrapper of common.bundle, nothing else, and binds no name twice."""
        names = []
        for node in self.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names += [alias.asname or alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and ast.unparse(node.targets[0]) in self.used:
                names.append(node.targets[0].id)
            elif isinstance(node, ast.FunctionDef) and ast.dump(node) == _UNPACK:
                names.append(node.name)
            elif isinstance(node, ast.Expr) and (node.value is call or isinstance(node.value, ast.Constant)):
                continue
            elif ast.dump(node) not in _WRAPPER:
                return False
        unique = len(names) == len(set(names)) and "*" not in names
        return self.exact and unique and not set(names) & set(dir(builtins))


def _inflate(data):
    for bits in (15, -15, 31):
        try:
            return _bounded(zlib.decompressobj(bits), data)
        except zlib.error as error:
            last = error
    raise last


def _unlzma(data):
    try:
        return _streams(lambda: lzma.LZMADecompressor(memlimit=256 << 20), data)
    except lzma.LZMAError:
        return _unlzma_raw(data)


def _unlzma_raw(data):
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]), data)


def _streams(new, data):
    """All streams in data, joined as the library's own functions join them. What follows the last is ignored."""
    parts, room = [], LIMIT_BYTES
    while data:
        stream = new()
        try:
            parts.append(_bounded(stream, data, room))
        except (OSError, lzma.LZMAError, zlib.error):
            if not parts:
                raise
            break
        room -= len(parts[-1])
        data = stream.unused_data
    return b"".join(parts)


def _bounded(stream, data, room=LIMIT_BYTES):
    out = stream.decompress(data, room + 1)
    if len(out) > room:
        raise Unreadable(f"wraps source that expands to more than {LIMIT_BYTES:,} bytes")
    if not stream.eof:
        raise EOFError("it is cut off")
    return out


_BAD_DATA = (ValueError, TypeError, AttributeError, OverflowError, OSError, EOFError, zlib.error, lzma.LZMAError)
_CODECS = {"utf-8", "utf8", "ascii", "latin-1", "latin1"}
_DECODERS = {
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.b32decode": base64.b32decode,
    "bytes.fromhex": bytes.fromhex,
    "zlib.decompress": _inflate,
    "gzip.decompress": lambda data: _streams(lambda: zlib.decompressobj(31), data),
    "bz2.decompress": lambda data: _streams(bz2.BZ2Decompressor, data),
    "lzma.decompress": _unlzma,
    "lzma.decompress of FORMAT_RAW": _unlzma_raw,
}
_RAW = r"format=(\w+)\.FORMAT_RAW filters=\[\{'id': \1\.FILTER_LZMA2\}\]"
_WRAPPER = {ast.dump(node): node for node in ast.parse(wrapper("")).body}  # of common.bundle, with its decoder
_UNPACK = next(text for text, node in _WRAPPER.items() if isinstance(node, ast.FunctionDef))


# ----------------------------------------------------------------------------------------------------------------------
# Hazards
# ----------------------------------------------------------------------------------------------------------------------


def hazards(tree, aliases, opened=None):
    """Yields (line, text) of what a reviewer should look at. opened: a call of exec whose source is examined itself."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for first in {module.split(".")[0] for module in modules}:
            for group, what in _IMPORTS:
                if first in group:
                    yield line, f"imports {first}: {what}"
        if isinstance(node, ast.Call) and node is not opened:
            text = _call_hazard(node, dotted(node.func, aliases))
            if text:
                yield line, text
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _trains_on_validation(node)


def _call_hazard(node, name):
    given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    if name in _SYSTEM:
        return f"calls {name}: other processes"
    if name == "torch.load" and given.get("weights_only") is not True:
        return "torch.load without weights_only=True: a pickle runs code as it loads"
    if name in ("numpy.load", "np.load") and given.get("allow_pickle") is True:
        return "numpy.load with allow_pickle: a pickle runs code as it loads"
    if name in _HUB:
        return f"calls {name}: network"
    if name in _HIDDEN:
        return f"calls {name}: code that is not in sight"
    return ""


def _trains_on_validation(function):
    """A loop that reads validation tokens and steps an optimizer on them."""
    for loop in ast.walk(function):
        if not isinstance(loop, ast.For | ast.While):
            continue
        lines = {}  # word -> where it stands first
        for node in ast.walk(loop):
            word = getattr(node, "id", getattr(node, "attr", ""))
            if isinstance(node, ast.Name | ast.Attribute) and word:
                lines.setdefault(word, node.lineno)
        tokens = [word for word in lines if word.startswith(_VALIDATION)]
        if tokens and "backward" in lines:
            yield lines["backward"], (f"{tokens[0]} is read in a loop that calls backward(): "
                                      "are tokens scored before they are trained on?")
            return


def main(folder, names, others):
    import resource
    with contextlib.suppress(ValueError, OSError):  # macOS does not limit the address space
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_MEMORY, LIMIT_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS + 1))
    found = {}
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = examine(file.read(), {*names, *others} - {name}, os.path.dirname(name))
    json.dump(found, sys.stdout, sort_keys=True)


if __name__ == "__main__":
    import warnings
    warnings.simplefilter("ignore")
    main(*json.load(sys.stdin))
