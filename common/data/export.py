"""Documents to tokenizer, token shards and manifest.

The first --val-docs documents are validation, the rest is training, in their order; a training document whose text is
that of a validation document is left out. BOS stands before each. The folder is built beside its place, as
.NAME.partial, and renamed when it is complete: the bytes are the same whatever the number of workers and interruptions.
An interrupted export continues after its last complete shard.
"""
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import path_argument
from common.data.documents import KNOWN, add_input, find_files, read_blocks
from common.data.encode import (
    Encoded,
    check_count,
    encode_block,
    place_documents,
    progress,
    sample_documents,
    stop_at_bad,
)
from common.data.folder import alone, file_sha256, manifest_named, write_manifest, write_shard
from common.data.tokenizers import parse_tokenizer, tokenizer_entry, train_tokenizer
from common.data.workers import Died, add_workers, in_order, worker_pool
from common.files import read_json, write_file
from common.published import VAL_DOCUMENTS
from common.settings import UserError
from common.tokenizer import TOKENIZER_KINDS, load_tokenizer

NAME = "docs"
MAKING_SHOWN = 30  # seconds between lines about a tokenizer that is being made
COUNTED = "documents", "tokens", "bytes", "text_bytes", "changed_documents"  # of a split, in its manifest


def add_command(subparsers) -> None:
    parser = subparsers.add_parser("export", help="documents to tokenizer, shards and manifest")
    parser.add_argument("docs", nargs="+", type=path_argument, metavar="DOCS",
                        help=f"{KNOWN} files, or folders of them")
    parser.add_argument("--tokenizer", type=os.path.expanduser, required=True,
                        help="bpe:SIZE or unigram:SIZE to make one, bytes, a SentencePiece .model file, or table:FILE, "
                        "of which the longest match is taken")
    parser.add_argument("--out", type=path_argument, required=True, help="folder to make")
    parser.add_argument("--val-docs", type=int, default=VAL_DOCUMENTS,
                        help="how many documents, the first ones, are validation (default: %(default)s)")
    parser.add_argument("--shard-tokens", type=int, default=100_000_000,
                        help="tokens per shard (default: %(default)s)")
    parser.add_argument("--sample-bytes", type=int, default=16_000_000,
                        help="bytes of text that a tokenizer is made from: training documents chosen by their hash "
                        "(default: %(default)s)")
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out lines without a text, and report how many (default: stop at the first)")
    add_input(parser)
    add_workers(parser)
    parser.set_defaults(run=run)


# ----------------------------------------------------------------------------------------------------------------------
# Shards

class Shards:
    """The splits under way. state can be saved and resumed: how many blocks were read; counts of what was in them; the
    shards on disk, which may hold more than that."""

    def __init__(self, folder: Path, shard_tokens: int, state: dict | None):
        self.folder, self.shard_tokens = folder, shard_tokens
        empty = dict.fromkeys(COUNTED, 0) | {"documents_sha256": ""}
        self.state = state or {
            "blocks": 0,
            "counts": {split: dict(empty) for split in ("train", "val", "copies")},
            "shards": {"train": [], "val": []},
            "problems": {"bad": [0, ""], "mended": [0, ""]},
        }
        self.waiting = {"train": [], "val": []}  # tokens of the next shard, in parts

    def documents(self) -> int:
        return sum(counts["documents"] for counts in self.state["counts"].values())

    def written(self) -> int:
        """How many shards are on disk."""
        return sum(map(len, self.state["shards"].values()))

    def add(self, split: str, part: Encoded) -> None:
        counts = self.state["counts"][split]
        position = counts["tokens"]
        chain = bytes.fromhex(counts["documents_sha256"])
        for key in part.hashes:
            chain = hashlib.sha256(chain + key).digest()
        totals = np.sum(part.sizes, axis=0).tolist()
        for name, more in zip(COUNTED, (len(part.hashes), len(part.tokens), *totals)):
            counts[name] += more
        counts["documents_sha256"] = chain.hex()
        if split == "copies":
            return
        if split == "train":
            self.flush("val")  # so that only tokens of this block wait when a shard has been written
        there = sum(shard["tokens"] for shard in self.state["shards"][split])
        self.waiting[split].append(part.tokens[max(0, there - position):])
        while sum(map(len, self.waiting[split])) >= self.shard_tokens:
            self.flush(split)

    def add_problems(self, kind: str, file: str, problems: list) -> None:
        """kind: "bad" or "mended". Counts the problems, and keeps the first as text."""
        total, first = self.state["problems"][kind]
        if problems and not first:
            number, what = problems[0]
            first = f"{file}:{number} {what}"
        self.state["problems"][kind] = [total + len(problems), first]

    def flush(self, split: str) -> None:
        """Write a shard of what waits, if anything does."""
        tokens = np.concatenate([np.zeros(0, np.uint16), *self.waiting[split]])
        self.waiting[split] = [tokens[self.shard_tokens:].copy()]
        if tokens.size:
            shards = self.state["shards"][split]
            path = self.folder / f"{NAME}_{split}_{len(shards):06}.bin"
            write_shard(path, tokens[:self.shard_tokens])
            size = min(len(tokens), self.shard_tokens)
            shards.append({"file": path.name, "tokens": size, "sha256": file_sha256(path)})


def write_shards(pool, options, files, staging: Path, model: str, state: dict | None, save) -> Shards:
    """Encode all documents. save(state) is called after a shard was written. UserError: no training documents."""
    shards, val_hashes = Shards(staging, options.shard_tokens, state), set()
    if state:
        print(f"continues after {shards.written()} complete shards", file=sys.stderr)
        hashes = (staging / "val_hashes").read_bytes()
        val_hashes.update(hashes[i:i + 32] for i in range(0, len(hashes), 32))
    blocks = itertools.islice(read_blocks(files, options.text_key, options.separator), shards.state["blocks"], None)
    jobs = ((block, (model,), options.text_key) for block in blocks)
    for (block, *_), encoded in progress("encoding", files, in_order(pool, encode_block, jobs, 2 * options.workers)):
        stop_at_bad(options, block, encoded.bad)
        # A copy of what the state was before this block, which will be read again but for the tokens that are on disk.
        before = json.loads(json.dumps({key: shards.state[key] for key in ("blocks", "counts", "problems")}))
        shards.add_problems("bad", block.file, encoded.bad)
        shards.add_problems("mended", block.file, encoded.mended)
        written = shards.written()
        for split, part in place_documents(encoded, shards.documents(), options.val_docs, val_hashes):
            shards.add(split, part)
        if written < shards.written():
            write_file(staging / "val_hashes", b"".join(sorted(val_hashes)))  # before the state that counts on it
            save(shards.state | before)
        shards.state["blocks"] += 1
    check_count(options, shards.documents())
    for split in ("val", "train"):
        shards.flush(split)
        if not shards.state["shards"][split]:
            raise UserError("all training documents are copies of validation documents: nothing is left")
    return shards


# ----------------------------------------------------------------------------------------------------------------------
# Command

def run(options) -> None:
    """Make the folder, or continue making it. UserError: it cannot be done, or something else is there."""
    for name, low, high in (("val_docs", 1, 10**9), ("shard_tokens", 1, 2**31 - 1), ("sample_bytes", 1, 2**40)):
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {low} to {high}")
    options.model_type, options.vocab_size = parse_tokenizer(options.tokenizer)
    options.file = "tokenizer.table" if options.tokenizer.startswith("table:") else "tokenizer.model"
    options.tokenizer = os.path.expanduser(options.tokenizer.removeprefix("table:"))
    files = find_files(options.docs)
    by_name = options.model_type or options.tokenizer in TOKENIZER_KINDS
    source = {
        "files": [[file.name, file.stat().st_size] for file in files],
        "separator": options.separator.decode("latin-1"),
        "tokenizer": options.tokenizer if by_name else file_sha256(options.tokenizer),
    }
    rules = "text_key", "val_docs", "shard_tokens", "sample_bytes", "skip_bad"
    source |= {name: getattr(options, name) for name in rules}
    plan = source | {"paths": [[str(file.resolve()), file.stat().st_mtime_ns] for file in files]}
    out = options.out.resolve()
    staging = out.with_name(f".{out.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    try:
        with alone(staging):  # before the look at what is there
            if already_there(out, source):
                print(f"{options.out} is already there, made from these documents in this way")
                staging.rmdir()
                return
            with worker_pool(options.workers) as pool:
                summary = build(pool, options, files, staging, source, plan)
            os.replace(staging, out)
        print(*summary, sep="\n")
    except KeyboardInterrupt:
        raise UserError("interrupted; complete shards are kept: run the same command again to continue") from None
    finally:
        with contextlib.suppress(OSError):
            staging.rmdir()  # where nothing was begun


def already_there(out: Path, source: dict) -> bool:
    """UserError: something else is there, or the folder is not complete."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if manifest_named(out, NAME).get("source") == source:
        return True
    raise UserError(f"{out} is there and is not this export; choose another --out, or remove it")


def build(pool, options, files, staging: Path, source: dict, plan: dict) -> list[str]:
    """Fill the staging folder, the manifest last. Returns a summary in lines."""
    progress_file, model = staging / "state.json", staging / options.file

    def save(state):
        write_file(progress_file, json.dumps({"plan": plan, "state": state}).encode())

    found = read_json(progress_file)
    if found.get("plan") != plan:
        found = {}
        for file in staging.iterdir():
            file.unlink()
    path = options.tokenizer if options.tokenizer in TOKENIZER_KINDS else str(model)
    if not found and options.model_type:
        model.write_bytes(make_tokenizer(pool, options, sample_documents(pool, options, files)))
    elif not found and path == str(model):
        shutil.copyfile(options.tokenizer, model)
    tokenizer = load_made(path, options) if options.model_type else load_tokenizer(path)
    if not found:
        save(None)
    state = write_shards(pool, options, files, staging, path, found.get("state"), save).state
    splits = {split: state["counts"][split] | {"shards": state["shards"][split]} for split in ("train", "val")}
    splits["val"]["first_document"] = 0
    splits["train"]["copies_left_out"] = state["counts"]["copies"]["documents"]
    for file in (progress_file, staging / "val_hashes", *staging.glob(".*.tmp")):  # .tmp: of a write that was killed
        file.unlink(missing_ok=True)
    entry = tokenizer_entry(path, tokenizer)
    write_manifest(staging, {"name": NAME, "source": source, "splits": splits, "tokenizer": entry})
    title = f"{options.out}: vocabulary {tokenizer.vocab_size}, from {len(files)} files"
    return [title, *summarize(splits, state["problems"])]


def make_tokenizer(pool, options, texts: list) -> bytes:
    """The model that --tokenizer asks for; shows that it is still being made. UserError: it cannot be made."""
    started = time.monotonic()
    try:
        job = pool.submit(train_tokenizer, texts, options.vocab_size, options.model_type)
        with tqdm(desc=f"making {options.tokenizer}", bar_format="{desc}: {elapsed}", disable=None) as bar:
            while not concurrent.futures.wait([job], timeout=MAKING_SHOWN if bar.disable else 1).done:
                bar.refresh()
                if bar.disable:
                    print(f"making {options.tokenizer}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        return job.result()
    except Died:
        raise UserError(f"--tokenizer {options.tokenizer}: the process that made it died, perhaps for lack of memory: "
                        "use a smaller --sample-bytes") from None


def load_made(path, options):
    """UserError: the tokenizer in the staging folder is not usable, in terms of what --tokenizer asked for."""
    try:
        return load_tokenizer(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: not a usable SentencePiece model: ")
        raise UserError(f"--tokenizer {options.tokenizer} is not possible for these texts: {reason}; use another size, "
                        "or bytes") from error


def summarize(splits: dict, problems: dict):
    """Lines about the splits, and about documents that were changed, repaired or left out."""
    for split, counts in splits.items():
        yield (f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes, "
               f"{counts['bytes'] / counts['tokens']:.3f} bytes per token")
        if changed := counts["changed_documents"]:
            size, text = counts["bytes"], counts["text_bytes"]
            yield (f"{split}: the tokenizer changes {changed:,} documents: it counts {size:,} bytes, the text has "
                   f"{text:,}, {text - size:+,}")
    for what, kind in (("left out", "bad"), ("repaired", "mended")):
        count, first = problems[kind]
        if count:
            yield f"{what}: {count:,} lines or rows, the first: {first}"
    if copies := splits["train"]["copies_left_out"]:
        yield f"left out of training: {copies:,} copies of validation documents"
