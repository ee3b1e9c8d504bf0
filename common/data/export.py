"""Documents to tokenizer, token shards and manifest.

The first --val-docs documents are validation, the rest is training, in their order; a training document whose text is that of a
validation document is left out. BOS stands before each. The folder is built beside its place, as .NAME.partial, and renamed when it is
whole: the bytes are the same whatever the number of workers and interruptions. What was begun is taken up at the last whole shard.
"""
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from common.data.documents import add_input, find_files, read_blocks
from common.data.encode import (
    Encoded,
    check_count,
    encode_block,
    place_documents,
    progress,
    sample_documents,
    stop_at_bad,
)
from common.data.folder import alone, file_sha256, read_manifest, write_manifest
from common.data.tokenizers import KINDS, tokenizer_entry, train_tokenizer, try_model
from common.data.workers import add_workers, in_order, worker_pool
from common.files import write_file
from common.settings import UserError
from common.shards import write_shard
from common.tokenizer import load_tokenizer

NAME = "docs"


def add_command(subparsers) -> None:
    parser = subparsers.add_parser("export", help="documents to tokenizer, shards and manifest")
    parser.add_argument("docs", nargs="+", type=Path, metavar="DOCS", help=".jsonl, .jsonl.gz, .parquet or .txt files, or folders of them")
    parser.add_argument("--tokenizer", required=True, help="bpe:SIZE or unigram:SIZE to make one, bytes, or a SentencePiece .model file")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--val-docs", type=int, default=50_000, help="the first so many are validation (default: %(default)s)")
    parser.add_argument("--shard-tokens", type=int, default=100_000_000, help="tokens of a shard (default: %(default)s)")
    parser.add_argument("--sample-bytes", type=int, default=16_000_000,
                        help="text that a tokenizer is made from: training documents chosen by their hash (default: %(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out lines without a text, and say how many; default: stop at the first")
    add_input(parser)
    add_workers(parser)
    parser.set_defaults(run=run)


class Shards:
    """The splits under way. state can be saved and taken up: `blocks` were read; counts of what was in them; shards on disk, which may
    hold more than that."""

    def __init__(self, folder: Path, shard_tokens: int, state: dict | None):
        self.folder, self.shard_tokens = folder, shard_tokens
        empty = {"documents": 0, "tokens": 0, "bytes": 0, "text_bytes": 0, "changed_documents": 0, "documents_sha256": ""}
        self.state = state or {"blocks": 0, "counts": {split: dict(empty) for split in ("train", "val", "copies")},
                               "shards": {"train": [], "val": []}, "problems": {"bad": [0, ""], "mended": [0, ""]}}
        self.waiting = {"train": [], "val": []}  # tokens of the next shard, in parts

    def add(self, split: str, part: Encoded) -> None:
        counts, position = self.state["counts"][split], self.state["counts"][split]["tokens"]
        chain = bytes.fromhex(counts["documents_sha256"])
        for key in part.hashes:
            chain = hashlib.sha256(chain + key).digest()
        totals = np.sum(part.sizes, axis=0).tolist()
        for name, more in zip(counts, (len(part.hashes), len(part.tokens), *totals)):
            counts[name] += more
        counts["documents_sha256"] = chain.hex()
        if split == "copies":
            return
        if split == "train":
            self.flush("val")  # so that what waits is of this block alone when a shard has been written
        there = sum(shard["tokens"] for shard in self.state["shards"][split])
        self.waiting[split].append(part.tokens[max(0, there - position):])
        while sum(map(len, self.waiting[split])) >= self.shard_tokens:
            self.flush(split)

    def flush(self, split: str) -> None:
        """Write a shard of what waits, if anything does."""
        tokens = np.concatenate([np.zeros(0, np.uint16), *self.waiting[split]])
        self.waiting[split] = [tokens[self.shard_tokens:].copy()]
        if tokens.size:
            shards = self.state["shards"][split]
            path = self.folder / f"{NAME}_{split}_{len(shards):06}.bin"
            write_shard(path, tokens[:self.shard_tokens])
            shards.append({"file": path.name, "tokens": min(len(tokens), self.shard_tokens), "sha256": file_sha256(path)})


def write_shards(pool, options, files, staging: Path, model: str, state: dict | None, save) -> Shards:
    """Encode all documents. save(state) is called when a shard has been written. UserError: no training documents."""
    shards, val_hashes = Shards(staging, options.shard_tokens, state), set()
    if state:
        print(f"goes on behind {sum(map(len, state['shards'].values()))} whole shards", file=sys.stderr)
        hashes = (staging / "val_hashes").read_bytes()
        val_hashes.update(hashes[i:i + 32] for i in range(0, len(hashes), 32))
    blocks = itertools.islice(read_blocks(files, options.text_key, options.separator), shards.state["blocks"], None)
    jobs = ((block, model, options.text_key) for block in blocks)
    for (block, *_), encoded in progress("encoding", files, in_order(pool, encode_block, jobs, 2 * options.workers)):
        stop_at_bad(options, block, encoded.bad)
        before = json.loads(json.dumps({key: shards.state[key] for key in ("blocks", "counts", "problems")}))
        for kind, problems in (("bad", encoded.bad), ("mended", encoded.mended)):
            total, first = shards.state["problems"][kind]
            shards.state["problems"][kind] = [total + len(problems), first or "".join(f"{block.file}:{n} {what}" for n, what in problems[:1])]
        seen = sum(counts["documents"] for counts in shards.state["counts"].values())
        written = sum(map(len, shards.state["shards"].values()))
        for split, part in place_documents(encoded, seen, options.val_docs, val_hashes):
            shards.add(split, part)
        if written < sum(map(len, shards.state["shards"].values())):
            write_file(staging / "val_hashes", b"".join(sorted(val_hashes)))  # before the state that counts on it
            save(shards.state | before)  # this block will be read again, but for the tokens that are on disk
        shards.state["blocks"] += 1
    check_count(options, sum(counts["documents"] for counts in shards.state["counts"].values()))
    for split in ("val", "train"):
        shards.flush(split)
        if not shards.state["shards"][split]:
            raise UserError("all training documents are copies of validation documents: nothing is left")
    return shards


# ----------------------------------------------------------------------------------------------------------------------
# Command

def run(options) -> None:
    """Make the folder, or go on making it. UserError: it cannot be done, or something else is there."""
    for name, low, high in (("val_docs", 1, 10**9), ("shard_tokens", 1, 2**31 - 1), ("sample_bytes", 1, 2**40)):
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {low} to {high}")
    kind, _, size = options.tokenizer.partition(":")
    made = kind in KINDS
    if made and not (size.isdecimal() and 260 <= int(size) <= 65536):
        raise UserError(f"--tokenizer {options.tokenizer}: the size must be 260 (control ids, bytes) to 65536 (16 bits)")
    if not made and options.tokenizer != "bytes":
        if not options.tokenizer.endswith(".model"):
            raise UserError(f"--tokenizer {options.tokenizer} is none of bpe:SIZE, unigram:SIZE, bytes or a file that ends in .model")
        try_model(options.tokenizer)
    files = find_files(options.docs)
    source = {"files": [[file.name, file.stat().st_size] for file in files], "separator": options.separator.decode("latin-1"),
              "tokenizer": options.tokenizer if made or kind == "bytes" else file_sha256(options.tokenizer)}
    source |= {name: getattr(options, name) for name in ("text_key", "val_docs", "shard_tokens", "sample_bytes", "skip_bad")}
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
                build(pool, options, files, staging, source, plan)
            os.replace(staging, out)
    except KeyboardInterrupt:
        raise UserError("interrupted; whole shards are kept: run the same command again to go on") from None
    finally:
        with contextlib.suppress(OSError):
            staging.rmdir()  # where nothing was begun


def already_there(out: Path, source: dict) -> bool:
    """UserError: something else is there, or not whole."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    with contextlib.suppress(UserError):
        if read_manifest(out).get("source") == source:
            return True
    raise UserError(f"{out} is there and is not this export; choose another --out, or remove it")


def build(pool, options, files, staging: Path, source: dict, plan: dict) -> None:
    """Fill the staging folder, the manifest last, and say what is in it."""
    progress_file, model = staging / "state.json", staging / "tokenizer.model"

    def save(state):
        write_file(progress_file, json.dumps({"plan": plan, "state": state}).encode())

    try:
        found = json.loads(progress_file.read_bytes())
    except (OSError, ValueError):
        found = {}
    if found.get("plan") != plan:
        found = {}
        for file in staging.iterdir():
            file.unlink()
    kind, _, size = options.tokenizer.partition(":")
    if not found and kind in KINDS:
        texts = sample_documents(pool, options, files)
        model.write_bytes(pool.submit(train_tokenizer, texts, int(size), kind).result())
        del texts
    elif not found and kind != "bytes":
        shutil.copyfile(options.tokenizer, model)
    path = "bytes" if kind == "bytes" else str(model)
    tokenizer = load_tokenizer(path)
    if not found:
        save(None)
    state = write_shards(pool, options, files, staging, path, found.get("state"), save).state
    splits = {split: state["counts"][split] | {"shards": state["shards"][split]} for split in ("train", "val")}
    splits["val"]["first_document"] = 0
    splits["train"]["copies_left_out"] = state["counts"]["copies"]["documents"]
    for name in ("state.json", "val_hashes"):
        (staging / name).unlink(missing_ok=True)
    write_manifest(staging, {"name": NAME, "source": source, "splits": splits, "tokenizer": tokenizer_entry(path, tokenizer)})
    print(f"{options.out}: vocabulary {tokenizer.vocab_size}, from {len(files)} files")
    for split, counts in splits.items():
        print(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes, "
              f"{counts['bytes'] / counts['tokens']:.3f} bytes per token")
        if changed := counts["changed_documents"]:
            print(f"{split}: the tokenizer changes {changed:,} documents: it counts {counts['bytes']:,} bytes, the text has "
                  f"{counts['text_bytes']:,}, {counts['text_bytes'] - counts['bytes']:+,}")
    for what, (count, first) in (("left out", state["problems"]["bad"]), ("mended", state["problems"]["mended"])):
        if count:
            print(f"{what}: {count:,} lines or rows, the first: {first}")
    if copies := splits["train"]["copies_left_out"]:
        print(f"left out of training: {copies:,} copies of validation documents")
