"""The embedded corpus: the documentation inside every Python, so that data is there in seconds and offline.

Its texts are the language reference of `pydoc_data.topics` and the docstrings of the standard library, read from the
sources without importing them. The same Python and sentencepiece always give the same bytes.

A document is a run of paragraphs of one topic or module, about 4 KB. A hash of its text decides whether it is
validation. The guarantee: no 8 consecutive words of a validation document occur in a training document. Topics and
docstrings repeat each other, so training paragraphs that would break it are dropped (2.5 % of the text).
"""
import ast
import hashlib
import importlib
import os
import platform
import re
import shutil
import sysconfig
import warnings
from pathlib import Path

import numpy as np

from common.command import path_argument
from common.data.folder import file_sha256, manifest_named, write_manifest, write_shard
from common.data.stats import unigram_bits
from common.data.tokenizers import encode_document, tokenizer_entry, train_tokenizer
from common.settings import UserError
from common.tokenizer import load_tokenizer

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
DOCUMENT_CHARACTERS = 4000  # a topic or module that is longer becomes several documents
VALIDATION_SHARE = 0.08
SHINGLE_WORDS = 8


# ----------------------------------------------------------------------------------------------------------------------
# Text

def documents() -> list[list[str]]:
    """The paragraphs of every document; joined by empty lines they are its text."""
    texts = (text.encode(errors="replace").decode() for text in [*_topics(), *_modules()])  # "\ud800" is not text
    return [part for text in texts for part in _cut(text)]


def _cut(text: str) -> list[list[str]]:
    """Paragraphs in groups of at most DOCUMENT_CHARACTERS; a longer paragraph is a group of its own."""
    parts, size = [], DOCUMENT_CHARACTERS
    for paragraph in text.split("\n\n"):
        if size + len(paragraph) > DOCUMENT_CHARACTERS:
            parts.append([])
            size = 0
        parts[-1].append(paragraph)
        size += len(paragraph)
    return parts


def _topics() -> list[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UserError(f"this Python has no pydoc_data.topics ({error}); install its full standard library") from error
    return [topics[name].strip() for name in sorted(topics)]


def _modules() -> list[str]:
    """One text per module that has docstrings: each docstring under its qualified name, in source order."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in old sources
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
            parts = path.relative_to(root).with_suffix("").parts
            if SKIPPED_FOLDERS.intersection(parts):
                continue
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
            name = ".".join(parts).removesuffix(".__init__")
            texts.append("\n\n".join(f"{name}\n\n{doc}" for name, doc in _docstrings(tree, name)))
    return [text for text in texts if text]


def _docstrings(node: ast.AST, name: str):
    """(qualified name, docstring) of a module or class and everything in it except functions inside functions."""
    function, named = ast.FunctionDef | ast.AsyncFunctionDef, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    if isinstance(node, named | ast.Module) and (doc := ast.get_docstring(node)):  # cleaned as inspect.cleandoc does
        yield name, doc
    if not isinstance(node, function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.excepthandler):  # definitions also stand inside if and try
                yield from _docstrings(child, f"{name}.{child.name}" if isinstance(child, named) else name)


def split(parts: list[list[str]]) -> dict[str, list[str]]:
    """The texts of {"train", "val"} out of documents given as paragraphs, with the guarantee above."""
    val = [text for text in map("\n\n".join, parts) if _is_validation(text)]
    held_out = {shingle for text in val for shingle in shingles(words(text))}
    train = []
    for paragraphs in parts:
        if _is_validation("\n\n".join(paragraphs)):
            continue
        kept, tail = [], []
        for paragraph in paragraphs:
            # With the words before it, so that two kept paragraphs do not make a held-out shingle at their border.
            joined = tail + words(paragraph)
            if held_out.isdisjoint(shingles(joined)):
                kept.append(paragraph)
                tail = joined[-(SHINGLE_WORDS - 1) :]
        if any(kept):
            train.append("\n\n".join(kept))
    return {"train": train, "val": val}


def _is_validation(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < VALIDATION_SHARE * 2**64


def words(text: str) -> list[str]:
    """The words that the guarantee is about: letters, digits and underscores, in lower case."""
    return re.findall(r"\w+", text.lower())


def shingles(sequence: list[str]) -> set[str]:
    """Every run of SHINGLE_WORDS words."""
    return {" ".join(sequence[i : i + SHINGLE_WORDS]) for i in range(len(sequence) - SHINGLE_WORDS + 1)}


# ----------------------------------------------------------------------------------------------------------------------
# Shards

def build(folder: Path, vocab_size: int) -> list[str]:
    """Write the data set into an empty folder, the manifest last. Returns a summary in lines."""
    texts = split(documents())
    model = folder / "tokenizer.model"
    model.write_bytes(train_tokenizer(texts["train"], vocab_size))
    tokenizer = load_tokenizer(model)
    tokens, splits, summary = {}, {}, []
    for name in ("train", "val"):
        tokens[name] = np.concatenate([encode_document(tokenizer, text)[0] for text in texts[name]])
        shard = folder / f"pydoc_{name}_000000.bin"
        write_shard(shard, tokens[name])
        size = sum(len(text.encode()) for text in texts[name])
        splits[name] = {"documents": len(texts[name]), "tokens": tokens[name].size, "bytes": size,
                        "shards": [{"file": shard.name, "tokens": tokens[name].size, "sha256": file_sha256(shard)}]}
        summary.append(f"{name}: {len(texts[name]):,} documents, {tokens[name].size:,} tokens, {size:,} bytes, "
                       f"{size / tokens[name].size:.3f} bytes per token")
    counts = {name: np.bincount(tokens[name], minlength=vocab_size) for name in tokens}
    bits = unigram_bits(counts["train"], counts["val"]) / splits["val"]["bytes"]
    summary.append(f"unigram entropy of val under the frequencies of train: {bits:.3f} bits per byte")
    write_manifest(folder, {"name": "pydoc", "python": platform.python_version(), "splits": splits,
                            "tokenizer": tokenizer_entry(model, tokenizer)})
    return summary


# ----------------------------------------------------------------------------------------------------------------------
# Command

def add_command(subparsers) -> None:
    parser = subparsers.add_parser("pydoc", help="embedded corpus: the documentation inside Python; seconds, offline")
    parser.add_argument("--vocab-size", type=int, default=1024,
                        help="vocabulary size of the tokenizer (default: %(default)s)")
    parser.add_argument("--out", type=path_argument, help="folder to make (default: data/pydoc_spVOCAB_SIZE)")
    parser.add_argument("--force", action="store_true", help="replace a pydoc data set that is there")
    parser.set_defaults(run=run)


def run(options) -> None:
    """Build beside the target and rename, so that a folder of that name is a complete data set."""
    out = options.out or Path(f"data/pydoc_sp{options.vocab_size}")
    target = out.resolve()
    manifest = _present(target)
    if manifest and not options.force:
        _check(out, manifest, options.vocab_size)
        print(f"{out} is already there: vocabulary {options.vocab_size}, from Python {manifest.get('python')}")
        return
    partial, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    partial.mkdir(parents=True)
    try:
        summary = build(partial, options.vocab_size)
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)  # not before the new one is in place
    print(f"{out}: vocabulary {options.vocab_size}, from Python {platform.python_version()}", *summary, sep="\n")


def _present(folder: Path) -> dict:
    """The manifest of a pydoc data set; empty where nothing is there. UserError: something else is there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    return manifest_named(folder, "pydoc")


def _check(folder: Path, manifest: dict, vocab_size: int) -> None:
    """UserError: the data set has another vocabulary, or its files are not those of its manifest."""
    found = manifest["tokenizer"].get("vocab_size", vocab_size)
    if found != vocab_size:
        raise UserError(f"{folder} has vocabulary {found}, not {vocab_size}; choose another --out, or --force")
    files = [manifest["tokenizer"]]
    for part in manifest.get("splits", {}).values():
        files += part["shards"]
    try:
        whole = all(file_sha256(folder / file["file"]) == file.get("sha256") for file in files)
    except OSError:
        whole = False
    if not whole:
        raise UserError(f"{folder} is damaged: its files are not those of its manifest; make it again with --force")
