"""Whether a data folder is what it says: every header, count, id and digest, and every byte of every document.

The bytes are counted three ways: from the table that scoring uses, by decoding each document (our own decoder and SentencePiece's
must agree), and from the source text, where it is at hand: then the documents are tokenized again and compared id by id.
"""
import functools
import hashlib
import itertools
from argparse import Namespace
from pathlib import Path

import numpy as np
import sentencepiece
from tqdm import tqdm

from common.data.documents import add_input, find_files, read_blocks
from common.data.encode import encode_block, place_documents, progress
from common.data.fineweb import PUBLISHED
from common.data.folder import (
    DOCUMENT_TOKENS,
    DataFolder,
    add_folder,
    cached_stream,
    file_sha256,
    read_documents,
    where,
)
from common.data.tokenizers import cached_tokenizer, is_lossless, tokenizer_entry
from common.data.workers import add_workers, in_order, worker_pool
from common.settings import UserError
from common.shards import check_ids, find_shards, open_shard
from common.tokenizer import count_bytes, decode_ids

SHOWN = 20  # disagreements that are printed
PUBLISHED_SHARE = 0.0005  # of the bytes: so far may they be from the published number
NATURAL_COPIES = 0.001  # of the validation documents: so many may be in training in a corpus that was not cleaned of copies


class Report:
    """Prints each thing that was checked, and counts the disagreements."""

    def __init__(self):
        self.bad = 0

    def compare(self, what: str, **values) -> None:
        """All values must be equal."""
        if len(set(map(str, values.values()))) > 1:
            self.disagree(what, ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in values.items()))
        else:
            print(f"ok    {what}: {next(iter(values.values())):,}" if isinstance([*values.values()][0], int) else f"ok    {what}")

    def disagree(self, what: str, how: str) -> None:
        self.bad += 1
        if self.bad <= SHOWN:
            print(f"BAD   {what}: {how}")


# ----------------------------------------------------------------------------------------------------------------------
# Files

def check_shard(job: tuple[str, int]) -> tuple[int, str, str]:
    """Job: (path, vocabulary size). (tokens, SHA-256, what is wrong)."""
    path, vocab_size = job
    try:
        tokens = open_shard(path)
        check_ids(tokens, vocab_size, path)
        return len(tokens), file_sha256(path), ""
    except UserError as error:
        return 0, "", str(error)


def check_files(report: Report, pool, folder: DataFolder) -> None:
    tokenizer, manifest = folder.tokenizer, folder.manifest
    if manifest:
        entry = tokenizer_entry(folder.tokenizer_path, tokenizer)
        for key in ("sha256", "vocab_size"):
            report.compare(f"tokenizer {folder.tokenizer_path}, {key}", manifest=manifest["tokenizer"].get(key), file=entry[key])
    for split in ("train", "val"):
        paths = find_shards(folder.path, split)
        table = manifest.get("splits", {}).get(split, {})
        promised = {shard["file"]: shard for shard in table.get("shards", [])}
        if manifest:
            report.compare(f"{split}, names of the shards", manifest=sorted(promised), folder=[path.name for path in paths])
        wrong = 0
        jobs = [(str(path), tokenizer.vocab_size) for path in paths]
        for (path, _), (tokens, sha256, problem) in tqdm(in_order(pool, check_shard, jobs, 8), f"{split} shards", len(jobs), disable=None):
            name = Path(path).name
            problems = [problem.removeprefix(f"{path}: ")] if problem else [
                f"{key} {found}, in the manifest {promised[name][key]}" for key, found in (("tokens", tokens), ("sha256", sha256))
                if promised.get(name, {}).get(key, found) != found]
            for how in problems:
                report.disagree(f"{split} {name}", how)
            wrong += len(problems)
        if not wrong:
            print(f"ok    {split}: headers, lengths, digests and ids of {len(paths)} shards")


# ----------------------------------------------------------------------------------------------------------------------
# Documents

@functools.cache
def library_decoder(tokenizer_path: str):
    """list of ids -> bytes, by other means than the tables of common/tokenizer.py."""
    if tokenizer_path == "bytes":
        return lambda ids: bytes(i - 4 for i in ids if i >= 4)
    model = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    return lambda ids: model.decode(ids).encode()


def check_piece(job) -> tuple[list, list, bytes, list]:
    """Of the documents that begin in a piece: bytes of each from the table, and decoded; their hashes, joined; and disagreements, as
    (document, what)."""
    folder, tokenizer_path, split, start, end = job
    tokenizer, decode, stream = cached_tokenizer(tokenizer_path), library_decoder(tokenizer_path), cached_stream(folder, split)
    first, tokens, borders = read_documents(stream, tokenizer.bos_id, start, end)
    counts = count_bytes(tokenizer, np.append(tokenizer.bos_id, tokens[:-1]), tokens)
    counted = np.add.reduceat(counts, borders[:-1]).tolist() if len(borders) > 1 else []
    decoded, hashes, problems = [], [], []
    for number, (begin, b) in enumerate(itertools.pairwise(borders.tolist())):
        a = begin + int(tokens[begin] == tokenizer.bos_id)
        ids = tokens[a:b].tolist()
        text = decode_ids(tokenizer, ids)
        other = decode(ids)
        decoded.append(len(text))
        hashes.append(hashlib.sha256(text).digest())
        if counted[number] != len(text) or other != text:
            index, how = locate(tokenizer, ids, counts[a:b], text, other)
            problems.append((number, f"{where(stream, first + a + index)} {how}"))
    return counted, decoded, b"".join(hashes), problems


def locate(tokenizer, ids, counts, text: bytes, other: bytes) -> tuple[int, str]:
    """(token of a document, what is wrong with it): the first whose count is not its length, or where the decoders part."""
    lengths = [len(decode_ids(tokenizer, [before, i])) - len(decode_ids(tokenizer, [before])) for before, i in zip([tokenizer.bos_id, *ids], ids)]
    for index, (count, length) in enumerate(zip(counts.tolist(), lengths)):
        if count != length:
            return index, f"(id {ids[index]}): the table counts {count} bytes, it stands for {length}"
    byte = next((i for i, pair in enumerate(zip(text, other)) if pair[0] != pair[1]), min(len(text), len(other)))
    index = min(int(np.searchsorted(np.cumsum(lengths), byte, side="right")), max(len(ids) - 1, 0))
    return index, f"(byte {byte} of the document): stands for {text[byte:byte + 12]!r}, SentencePiece decodes {other[byte:byte + 12]!r}"


def check_documents(report: Report, pool, folder: DataFolder, split: str, workers: int, val_hashes: dict) -> Namespace:
    """Totals of a split. Fills val_hashes, {hash: document}, from validation; compares training with it."""
    total = Namespace(documents=0, tokens=folder.stream(split).length, bytes=0, decoded=0, chain=b"", copies=[])
    jobs = list(folder.pieces(split))
    results = tqdm(in_order(pool, check_piece, jobs, 2 * workers), f"{split} documents", len(jobs), disable=None)
    for _, (counted, decoded, hashes, problems) in results:
        for number, how in problems:
            report.disagree(f"{split} document {total.documents + number:,}", how)
        for i in range(0, len(hashes), 32):
            key = hashes[i:i + 32]
            total.chain = hashlib.sha256(total.chain + key).digest()
            if split == "val":
                val_hashes.setdefault(key, total.documents + i // 32)
            elif key in val_hashes:
                total.copies.append((total.documents + i // 32, val_hashes[key]))
        total.documents += len(counted)
        total.bytes += sum(counted)
        total.decoded += sum(decoded)
    report.compare(f"{split}, bytes of {total.documents:,} documents in {total.tokens:,} tokens", table=total.bytes, decoded=total.decoded)
    table = folder.manifest.get("splits", {}).get(split, {})
    for key in ("documents", "tokens", "bytes"):
        if key in table:
            report.compare(f"{split}, {key}", manifest=table[key], found=getattr(total, key))
    if "documents_sha256" in table and is_lossless(folder.tokenizer):
        report.compare(f"{split}, digest of the texts", manifest=table["documents_sha256"], decoded=total.chain.hex())
    return total


def check_overlap(report: Report, folder: DataFolder, copies: list, val_documents: int) -> None:
    if not copies:
        print("ok    no document of validation is in training")
        return
    how = (f"{len(copies):,} training documents are copies of validation documents, the first: training {copies[0][0]:,} of "
           f"validation {copies[0][1]:,}")
    # Different texts may become equal by normalization.
    exact = "source" in folder.manifest and is_lossless(folder.tokenizer)
    if not exact and len({val for _, val in copies}) <= NATURAL_COPIES * val_documents:
        print(f"note  {how}; so few are usual where copies were not left out or the tokenizer changes text")
    else:
        report.disagree("overlap", how)


def check_published(report: Report, folder: DataFolder, total: Namespace) -> None:
    """Validation against the challenge's numbers, which count whole windows of 1024 tokens."""
    variant = folder.manifest.get("name", "").removeprefix("fineweb10B_")
    if variant in PUBLISHED:
        tokens, size = PUBLISHED[variant]
        scored = (total.tokens - 1) // 1024 * 1024
        tail = folder.stream("val").read(scored, total.tokens - scored)
        counted = total.bytes - int(count_bytes(folder.tokenizer, tail[:-1], tail[1:]).sum())
        report.compare(f"scored tokens of {variant}", published=tokens, found=scored)
        if abs(counted - size) > PUBLISHED_SHARE * size:
            report.disagree(f"bytes of the scored tokens of {variant}", f"published {size:,}, found {counted:,}")
        else:
            print(f"ok    bytes of the scored tokens of {variant}: {counted:,}, published {size:,}")


# ----------------------------------------------------------------------------------------------------------------------
# Source

def check_source(report: Report, pool, folder: DataFolder, options, totals: dict) -> None:
    """Tokenize the documents again, and compare id by id; where a tokenizer may change text, say by how many bytes."""
    files, source = find_files(options.docs), folder.manifest.get("source")
    rules = {"text_key": options.text_key, "separator": options.separator.decode("latin-1"), "val_docs": totals["val"].documents} | (source or {})
    if source:
        report.compare("names and sizes of the documents' files", manifest=source["files"],
                       found=[[file.name, file.stat().st_size] for file in files])
    jobs = ((block, folder.tokenizer_path, rules["text_key"])
            for block in read_blocks(files, rules["text_key"], rules["separator"].encode("latin-1")))
    seen, val_hashes = 0, set()
    sums = {split: np.zeros(3, np.int64) for split in totals}
    position = dict.fromkeys(totals, 0)
    for (block, *_), encoded in progress("source", files, in_order(pool, encode_block, jobs, 2 * options.workers)):
        for split, part in place_documents(encoded, seen, rules["val_docs"], val_hashes):
            split = "train" if split == "copies" and not source else split  # noqa: PLW2901
            if split != "copies" and (source or position[split] < totals[split].tokens):
                sums[split] += np.sum(part.sizes, axis=0)
                position[split] = compare_part(report, folder, block, split, part, position[split])
        seen += len(encoded.hashes)
        if not source and position["train"] >= totals["train"].tokens:
            break  # published are the first shards only
    for split, (counted, size, changed) in sums.items():
        if source:
            report.compare(f"{split}, bytes of the source text", manifest=folder.manifest["splits"][split]["text_bytes"], text=int(size))
            report.compare(f"{split}, tokens of the source text", text=position[split], found=totals[split].tokens)
        if is_lossless(folder.tokenizer):
            report.compare(f"{split}, bytes", source=int(size), table=int(counted))
        else:
            print(f"note  {split}: the tokenizer changes {changed:,} documents; it counts {counted:,} bytes, the text has {size:,}, "
                  f"{size - counted:+,}")


def compare_part(report: Report, folder: DataFolder, block, split: str, part, position: int) -> int:
    """Where the split goes on behind the part's documents."""
    stream = folder.stream(split)
    if position + len(part.tokens) <= stream.length and np.array_equal(stream.read(position, len(part.tokens)), part.tokens):
        return position + len(part.tokens)
    documents = np.split(part.tokens, np.cumsum(part.lengths)[:-1])
    for number, ids, after in zip(part.numbers, documents, [*documents[1:], None]):
        there = read_up_to(stream, position, len(ids) + 1)
        if stands_at(stream, position, ids):
            position += len(ids)
        elif "source" not in folder.manifest and position + len(there) == stream.length and np.array_equal(there, ids[:len(there)]):
            return stream.length  # the last published shard ends inside of a document
        else:
            same = int(np.argmin(np.append(there[:len(ids)] == ids[:len(there)], False)))
            ours, theirs = (str(array[same]) if same < len(array) else "none" for array in (there, ids))
            place = where(stream, position + same) if position + same < stream.length else "the end"
            report.disagree(f"{split}, {block.file}:{number}", f"{place} has id {ours}, the text gives {theirs} as its token {same:,}")
            if after is None or not stands_at(stream, position, after):  # else this document is missing
                starts = np.flatnonzero(read_up_to(stream, position + 1, DOCUMENT_TOKENS) == ids[0])
                position = position + 1 + int(starts[0]) if len(starts) else stream.length
    return position


def read_up_to(stream, position: int, count: int) -> np.ndarray:
    return stream.read(position, max(0, min(count, stream.length - position)))


def stands_at(stream, position: int, ids: np.ndarray) -> bool:
    """Whether a document, BOS first, is at a position, and no more than it."""
    there = read_up_to(stream, position, len(ids) + 1)
    return np.array_equal(there[:len(ids)], ids) and (len(there) == len(ids) or there[-1] == ids[0])


# ----------------------------------------------------------------------------------------------------------------------
# Command

def add_command(subparsers) -> None:
    parser = subparsers.add_parser("check", help="whether a data folder is what it says, byte by byte")
    add_folder(parser)
    parser.add_argument("--docs", nargs="+", type=Path, help="the source documents, in the order of the export (default: *docs*.jsonl* in DIR)")
    add_input(parser)
    add_workers(parser)
    parser.set_defaults(run=run)


def run(options) -> None:
    """UserError: there is a disagreement, and what was printed says where."""
    folder, report, val_hashes, totals = DataFolder(options.folder, options.tokenizer), Report(), {}, {}
    options.docs = options.docs or sorted(options.folder.glob("*docs*.jsonl*"))
    with worker_pool(options.workers) as pool:
        check_files(report, pool, folder)
        if report.bad:
            raise UserError(f"{options.folder}: {report.bad} disagreements; the documents were not looked at")
        for split in ("val", "train"):
            totals[split] = check_documents(report, pool, folder, split, options.workers, val_hashes)
        check_overlap(report, folder, totals["train"].copies, totals["val"].documents)
        check_published(report, folder, totals["val"])
        if options.docs:
            check_source(report, pool, folder, options, totals)
        else:
            print("note  the source text is not at hand: --docs compares with it")
    if report.bad:
        raise UserError(f"{options.folder}: {report.bad} disagreements, of which {min(report.bad, SHOWN)} are shown")
