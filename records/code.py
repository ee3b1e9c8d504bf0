"""The code of a record, read and never run: it compiles, wrappers are opened, what it reaches is found, hazards are named.

    python records/code.py < JSON       [folder, .py files, other files that count where a source names them]; JSON on standard output

A process of its own with hard limits does this, since a hostile source can exhaust the compiler. Standard library only."""
import ast
import base64
import bz2
import contextlib
import json
import lzma
import os
import subprocess
import sys
import zlib

LIMIT_BYTES = 8 << 20  # of one unwrapped source
LIMIT_SECONDS, LIMIT_MEMORY, LAYERS = 20, 1 << 30, 5
_NETWORK = {"socket", "urllib", "requests", "http", "httpx", "ftplib", "smtplib", "aiohttp", "huggingface_hub", "boto3", "wandb", "paramiko",
            "websocket", "websockets", "xmlrpc", "telnetlib", "datasets", "gdown"}
_PROCESS = {"subprocess", "pty", "pexpect"}
_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_SYSTEM = {"os.system", "os.popen", "os.fork", "os.forkpty", "os.execv", "os.execve", "os.execvp", "os.execl", "os.spawnv", "os.posix_spawn"}


class Unreadable(Exception):
    pass


def inspect_code(folder, names, others=()):
    """dict name -> {"error" or "": why it does not compile, "wrapped": list of what was opened, "reaches": those of `names` and `others`
    that it imports or names, "hazards": [[line, text]]} of .py files, from a process with limits. Raises RuntimeError where that died."""
    given = json.dumps([str(folder), list(names), list(others)]).encode()
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=2 * LIMIT_SECONDS, env={}, input=given)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"reading it took more than {2 * LIMIT_SECONDS} s") from None
    if done.returncode:
        raise RuntimeError("reading it exhausted " + ("its time" if done.returncode == -24 else "the memory or the stack of the compiler"))
    return json.loads(done.stdout)


def examine(source, names, package=""):
    """What inspect_code says of one file's bytes. package: the folder that it lies in, as part of its name."""
    found = {"error": "", "wrapped": [], "reaches": [], "hazards": []}
    for layer in range(LAYERS + 1):
        try:
            if b"\0" in source:
                raise Unreadable("holds NUL bytes")
            tree = ast.parse(source)
            compile(source, "train_gpt.py", "exec", dont_inherit=True)
            aliases = imported_aliases(tree)
            found["hazards"] += [[line, f"{'(unwrapped) ' * bool(layer)}{text}"] for line, text in sorted(set(hazards(tree, aliases)))]
            found["reaches"] += sorted(set(reached_files(tree, names, package)) - set(found["reaches"]))
            inner = wrapped_source(tree, aliases)
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
        found["wrapped"].append(f"{len(source):,} bytes hold {len(inner):,} bytes of source")
        source = inner
    return found


def imported_aliases(tree):
    """dict: name in the file -> dotted name that it stands for."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
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
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            folders = package.split("/") if node.level and package else []
            start = ".".join([*folders[:len(folders) - node.level + 1], *([node.module] if node.module else [])])
            modules = [start, *(f"{start}.{a.name}" if start else a.name for a in node.names)]
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__", "run_module"):
            modules = [a.value.lstrip(".") for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for module in modules:
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                path = "/".join(parts[:end])
                yield from (n for n in (f"{path}.py", f"{path}/__init__.py") if n in names)


def wrapped_source(tree, aliases):
    """Bytes that the source would give to exec(), where they can be told without running it; None where it has no such call."""
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = node.value
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func, aliases) in ("exec", "eval", "builtins.exec") and node.args:
            value = _unwrap(node.args[0], aliases, constants, 0)
            if value is not None:
                return value.encode() if isinstance(value, str) else value
    return None


def _unwrap(node, aliases, constants, depth):
    """The str or bytes of an expression of constants, decoders and decompressors; None for any other."""
    if depth > 12:
        return None
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str | bytes) else None
    if isinstance(node, ast.Name) and node.id in constants:
        return _unwrap(constants[node.id], aliases, constants, depth + 1)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = (_unwrap(side, aliases, constants, depth + 1) for side in (node.left, node.right))
        return left + right if left is not None and type(left) is type(right) else None
    if not isinstance(node, ast.Call):
        return None
    name = dotted(node.func, aliases)
    if name == "compile" and node.args:
        return _unwrap(node.args[0], aliases, constants, depth + 1)
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("decode", "encode") and not name.startswith(("base64.", "codecs.")):
        return _unwrap(node.func.value, aliases, constants, depth + 1)
    decoder = {"base64.b85decode": base64.b85decode, "base64.a85decode": base64.a85decode, "base64.b64decode": base64.b64decode,
               "base64.b32decode": base64.b32decode, "bytes.fromhex": bytes.fromhex, "zlib.decompress": _inflate, "lzma.decompress": _unlzma,
               "bz2.decompress": lambda data: _bounded(bz2.BZ2Decompressor(), data),
               "gzip.decompress": lambda data: _bounded(zlib.decompressobj(31), data)}.get(name)
    value = _unwrap(node.args[0], aliases, constants, depth + 1) if decoder and node.args else None
    if value is None:
        return None
    try:
        return decoder(value)
    except (ValueError, TypeError, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise Unreadable(f"wraps source that cannot be unwrapped ({name}: {error})") from None


def _inflate(data):
    for bits in (15, -15, 31):
        try:
            return _bounded(zlib.decompressobj(bits), data)
        except zlib.error as error:
            last = error
    raise last


def _unlzma(data):
    try:
        return _bounded(lzma.LZMADecompressor(memlimit=256 << 20), data)
    except lzma.LZMAError:
        return _bounded(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]), data)


def _bounded(stream, data):
    out = stream.decompress(data, LIMIT_BYTES + 1)
    if len(out) > LIMIT_BYTES:
        raise Unreadable(f"wraps source that expands to more than {LIMIT_BYTES:,} bytes")
    return out


def hazards(tree, aliases):
    """Yields (line, text) of what a reviewer should look at."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for first in {m.split(".")[0] for m in modules}:
            for group, what in ((_NETWORK, "network"), (_PROCESS, "other processes"), (_PICKLES, "pickle, which runs code as it loads")):
                if first in group:
                    yield line, f"imports {first}: {what}"
        if isinstance(node, ast.Call):
            name = dotted(node.func, aliases)
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in _SYSTEM:
                yield line, f"calls {name}: other processes"
            elif name == "torch.load" and given.get("weights_only") is not True:
                yield line, "torch.load without weights_only=True: a pickle runs code as it loads"
            elif name in ("numpy.load", "np.load") and given.get("allow_pickle") is True:
                yield line, "numpy.load with allow_pickle: a pickle runs code as it loads"
            elif name in ("torch.hub.load", "torch.hub.download_url_to_file", "torch.hub.load_state_dict_from_url"):
                yield line, f"calls {name}: network"
            elif name in ("exec", "eval", "__import__", "importlib.import_module"):
                yield line, f"calls {name}: code that is not in sight"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _trains_on_validation(node)


def _trains_on_validation(function):
    """A loop that reads validation tokens and steps an optimizer on them."""
    for loop in ast.walk(function):
        if not isinstance(loop, ast.For | ast.While):
            continue
        words, last = {}, {}
        for node in ast.walk(loop):
            word = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if word:
                words.setdefault(word, node.lineno)
                last[word] = node.lineno
        tokens = [w for w in words if w.startswith(("val_tokens", "val_data", "val_loader", "eval_tokens", "valid_tokens"))]
        learns = [w for w in words if w == "backward"]
        if tokens and learns:
            yield words[learns[0]], f"{tokens[0]} is read in a loop that calls backward(): are tokens scored before they are trained on?"
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
