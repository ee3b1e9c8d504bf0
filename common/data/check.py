"""Check that a data folder is what it says: every header, count, id and digest, and every byte of every document.

The bytes are counted three ways: by the table that scoring uses; by decoding each document (our decoder and that of the
tokenizer's library must agree); and from the source text, where it is available: then the documents are tokenized again
and compared id by id.
"""
import hashlib
import itertools
from argparse import Namespace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import path_argument
from common.data.documents import add_input, block_texts, find_files, read_blocks
from common.data.encode import encode_block, place_documents, progress
from common.data.folder import (
    DOCUMENT_TOKENS,
    DataFolder,
    add_folder,
    cached_stream,
    file_sha256,
    in_whole_windows,
    read_documents,
    where,
)
from common.data.tokenizers import cached_tokenizer, decode_ids, is_lossless, tokenizer_entry
from common.data.workers import add_workers, in_order, worker_pool
from common.dataset import CHALLENGE_NAME
from common.published import VAL_BYTES, VAL_BYTES_TOLERANCE, VAL_TOKENS
from common.settings import UserError
from common.shards import check_ids, find_shards, open_shard
from common.tokenizer import count_bytes

SHOWN = 20  # disagreements that are printed
NATURAL_COPIES = 0.001  # the share of validation documents that may be in training where copies were not left out


class Report:
    """Prints each thing that was checked, and counts the disagreements."""

    def __init__(self):
        self.bad = 0

    def compare(self, what: str, **values) -> None:
        """All values must be equal."""
        shown = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in values.items()}
        first = next(iter(values))
        if len(set(map(str, values.values()))) > 1:
            self.disagree(what, ", ".join(f"{name} {text}" for name, text in shown.items()))
        elif isinstance(values[first], int):
            print(f"ok    {what}: {shown[first]}")
        else:
            print(f"ok    {what}")

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
        return 0, "", str(error).removeprefix(f"{path}: ")


def check_files(report: Report, pool, folder: DataFolder) -> None:
    tokenizer, manifest = folder.tokenizer, folder.manifest
    if manifest:
        entry = tokenizer_entry(folder.tokenizer_path, tokenizer)
        for key in ("sha256", "vocab_size"):
            named = manifest["tokenizer"].get(key)
            report.compare(f"tokenizer {folder.tokenizer_path}, {key}", manifest=named, file=entry[key])
    for split in ("train", "val"):
        paths = find_shards(folder.path, split)
        promised = {shard["file"]: shard for shard in folder.table(split).get("shards", [])}
        if manifest:
            names = [path.name for path in paths]
            report.compare(f"{split}, names of the shards", manifest=sorted(promised), folder=names)
        before = report.bad
        jobs = [(str(path), tokenizer.vocab_size) for path in paths]
        results = tqdm(in_order(pool, check_shard, jobs, 8), f"{split} shards", len(jobs), disable=None)
        for (path, _), (tokens, sha256, problem) in results:
            name = Path(path).name
            if problem:
                report.disagree(f"{split} {name}", problem)
                continue
            for key, found in (("tokens", tokens), ("sha256", sha256)):
                named = promised.get(name, {}).get(key, found)
                if named != found:
                    report.disagree(f"{split} {name}", f"{key} {found}, in the manifest {named}")
        if report.bad == before:
            print(f"ok    {split}: headers, lengths, digests and ids of {len(paths)} shards")


# ----------------------------------------------------------------------------------------------------------------------
# Documents

def check_piece(job) -> tuple[list, list, bytes, list]:
    """For the documents that begin in a piece: the bytes of each by the table, and decoded; their hashes, joined; and
    disagreements, as (document, what)."""
    folder, load_as, split, start, end = job
    tokenizer, stream = cached_tokenizer(*load_as), cached_stream(folder, split)
    first, tokens, borders = read_documents(stream, tokenizer.bos_id, start, end)
    counts = count_bytes(tokenizer, np.append(tokenizer.bos_id, tokens[:-1]), tokens)
    counted = np.add.reduceat(counts, borders[:-1]).tolist() if len(borders) > 1 else []
    decoded, hashes, problems = [], [], []
    for number, (begin, b) in enumerate(itertools.pairwise(borders.tolist())):
        a = begin + int(tokens[begin] == tokenizer.bos_id)
        ids = tokens[a:b].tolist()
        text = decode_ids(tokenizer, ids)
        other = tokenizer.decode(ids)
        decoded.append(len(text))
        hashes.append(hashlib.sha256(text).digest())
        if counted[number] != len(text) or other != text:
            index, how = locate(tokenizer, ids, counts[a:b], text, other)
            problems.append((number, f"{where(stream, first + a + index)} {how}"))
    return counted, decoded, b"".join(hashes), problems


def locate(tokenizer, ids, counts, text: bytes, other: bytes) -> tuple[int, str]:
    """(token of a document, what is wrong with it): the first whose count is not its length, or where the two decoded
    texts part."""
    lengths = []
    for before, i in zip([tokenizer.bos_id, *ids], ids):
        lengths.append(len(decode_ids(tokenizer, [before, i])) - len(decode_ids(tokenizer, [before])))
    for index, (count, length) in enumerate(zip(counts.tolist(), lengths)):
        if count != length:
            return index, f"(id {ids[index]}): the table counts {count} bytes, it stands for {length}"
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other))
    byte = sum(1 for _ in same)
    index = min(int(np.searchsorted(np.cumsum(lengths), byte, side="right")), max(len(ids) - 1, 0))
    return index, (f"(byte {byte} of the document): stands for {text[byte:byte + 12]!r}, "
                   f"SentencePiece decodes {other[byte:byte + 12]!r}")


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
    report.compare(f"{split}, bytes of {total.documents:,} documents in {total.tokens:,} tokens",
                   table=total.bytes, decoded=total.decoded)
    table = folder.table(split)
    for key in ("documents", "tokens", "bytes"):
        if key in table:
            report.compare(f"{split}, {key}", manifest=table[key], found=getattr(total, key))
    if "documents_sha256" in table and is_lossless(folder.tokenizer):
        report.compare(f"{split}, digest of the texts", manifest=table["documents_sha256"], decoded=total.chain.hex())
    return total


def check_overlap(report: Report, folder: DataFolder, copies: list, val_documents: int) -> None:
    """copies: (training document, validation document) of each training document whose text is also in validation."""
    if not copies:
        print("ok    no document of validation is in training")
        return
    how = (f"{len(copies):,} training documents are copies of validation documents, the first: training "
           f"{copies[0][0]:,} of validation {copies[0][1]:,}")
    # Different texts may become equal by normalization.
    exact = "source" in folder.manifest and is_lossless(folder.tokenizer)
    if not exact and len({val for _, val in copies}) <= NATURAL_COPIES * val_documents:
        print(f"note  {how}; so few are usual where copies were not left out or the tokenizer changes text")
    else:
        report.disagree("overlap", how)


def check_published(report: Report, folder: DataFolder, total: Namespace) -> None:
    """Compare validation with the challenge's numbers, which count whole windows."""
    variant = folder.manifest.get("name", "").removeprefix(CHALLENGE_NAME)
    if variant in VAL_TOKENS:
        scored = in_whole_windows(total.tokens)
        tail = folder.stream("val").read(scored, total.tokens - scored)
        counted = total.bytes - int(count_bytes(folder.tokenizer, tail[:-1], tail[1:]).sum())
        report.compare(f"scored tokens of {variant}", published=VAL_TOKENS[variant], found=scored)
        if abs(counted - VAL_BYTES) > VAL_BYTES_TOLERANCE * VAL_BYTES:
            report.disagree(f"bytes of the scored tokens of {variant}", f"published {VAL_BYTES:,}, found {counted:,}")
        else:
            print(f"ok    bytes of the scored tokens of {variant}: {counted:,}, published {VAL_BYTES:,}")


# ----------------------------------------------------------------------------------------------------------------------
# Source

def check_source(report: Report, pool, folder: DataFolder, options, totals: dict) -> None:
    """Tokenize the documents again and compare id by id. Where a tokenizer may change text, say by how many bytes."""
    files, source = find_files(options.docs), folder.manifest.get("source")
    rules = {"text_key": options.text_key, "separator": options.separator.decode("latin-1"),
             "val_docs": totals["val"].documents} | (source or {})
    if source:
        found = [[file.name, file.stat().st_size] for file in files]
        report.compare("names and sizes of the documents' files", manifest=source["files"], found=found)
    blocks = read_blocks(files, rules["text_key"], rules["separator"].encode("latin-1"))
    jobs = ((block, folder.load_as, rules["text_key"]) for block in blocks)
    seen, val_hashes = 0, set()
    sums = {split: np.zeros(3, np.int64) for split in totals}
    position = dict.fromkeys(totals, 0)
    for (block, *_), encoded in progress("source", files, in_order(pool, encode_block, jobs, 2 * options.workers)):
        for placed, part in place_documents(encoded, seen, rules["val_docs"], val_hashes):
            split = "train" if placed == "copies" and not source else placed
            if split != "copies" and (source or position[split] < totals[split].tokens):
                sums[split] += np.sum(part.sizes, axis=0)
                position[split] = compare_part(report, folder, block, split, part, position[split])
        seen += len(encoded.hashes)
        if not source and position["train"] >= totals["train"].tokens:
            break  # only the first shards are published
    for split, (counted, size, changed) in sums.items():
        if source:
            named = folder.table(split).get("text_bytes")
            report.compare(f"{split}, bytes of the source text", manifest=named, text=int(size))
            report.compare(f"{split}, tokens of the source text", text=position[split], found=totals[split].tokens)
        if is_lossless(folder.tokenizer):
            report.compare(f"{split}, bytes", source=int(size), table=int(counted))
        else:
            print(f"note  {split}: the tokenizer changes {changed:,} documents; it counts {counted:,} bytes, "
                  f"the text has {size:,}, {size - counted:+,}")


def check_texts(report: Report, folder: DataFolder, options, totals: dict) -> None:
    """Compare the decoded documents, validation first, with the source: a table does not say how to tokenize it."""
    blocks = read_blocks(find_files(options.docs), options.text_key, options.separator)
    texts = (text for block in blocks for _, text, _ in block_texts(block, options.text_key) if text is not None)
    for split in ("val", "train"):
        chain = b""
        for text in itertools.islice(texts, totals[split].documents):
            chain = hashlib.sha256(chain + hashlib.sha256(text.encode()).digest()).digest()
        report.compare(f"{split}, digest of the texts", source=chain.hex(), decoded=totals[split].chain.hex())


def compare_part(report: Report, folder: DataFolder, block, split: str, part, position: int) -> int:
    """The position in the split after the documents of the part."""
    stream = folder.stream(split)
    end = position + len(part.tokens)
    if end <= stream.length and np.array_equal(stream.read(position, len(part.tokens)), part.tokens):
        return end
    documents = np.split(part.tokens, np.cumsum(part.lengths)[:-1])
    for number, ids, after in zip(part.numbers, documents, [*documents[1:], None]):
        there = read_up_to(stream, position, len(ids) + 1)
        at_end = position + len(there) == stream.length
        if stands_at(stream, position, ids):
            position += len(ids)
        elif "source" not in folder.manifest and at_end and np.array_equal(there, ids[:len(there)]):
            return stream.length  # the last published shard ends inside a document
        else:
            same = int(np.argmin(np.append(there[:len(ids)] == ids[:len(there)], False)))
            ours, theirs = (str(array[same]) if same < len(array) else "none" for array in (there, ids))
            place = where(stream, position + same) if position + same < stream.length else "the end"
            report.disagree(f"{split}, {block.file}:{number}",
                            f"{place} has id {ours}, the text gives {theirs} as its token {same:,}")
            if after is None or not stands_at(stream, position, after):  # else this document is missing
                starts = np.flatnonzero(read_up_to(stream, position + 1, DOCUMENT_TOKENS) == ids[0])
                position = position + 1 + int(starts[0]) if len(starts) else stream.length
    return position


def read_up_to(stream, position: int, count: int) -> np.ndarray:
    return stream.read(position, max(0, min(count, stream.length - position)))


def stands_at(stream, position: int, ids: np.ndarray) -> bool:
    """Whether exactly this document, BOS first, is at a position."""
    there = read_up_to(stream, position, len(ids) + 1)
    return np.array_equal(there[:len(ids)], ids) and (len(there) == len(ids) or there[-1] == ids[0])


# ----------------------------------------------------------------------------------------------------------------------
# Command

def add_command(subparsers) -> None:
    parser = subparsers.add_parser("check", help="check that a data folder is what it says, byte by byte")
    add_folder(parser)
    parser.add_argument("--docs", nargs="+", type=path_argument,
                        help="the source documents, in the order of the export (default: *docs*.jsonl* in DIR)")
    add_input(parser)
    add_workers(parser)
    parser.set_defaults(run=run)


def run(options) -> None:
    """UserError: there is a disagreement; what was printed says where."""
    folder, report = DataFolder(options.folder, options.tokenizer), Report()
    val_hashes, totals = {}, {}
    found = sorted(options.folder.glob("*docs*.jsonl*"))
    options.docs = options.docs or [path for path in found if path.name[0] != "."]
    with worker_pool(options.workers) as pool:
        check_files(report, pool, folder)
        if report.bad:
            raise UserError(f"{options.folder}: {report.bad} disagreements; the documents were not checked")
        for split in ("val", "train"):
            totals[split] = check_documents(report, pool, folder, split, options.workers, val_hashes)
        check_overlap(report, folder, totals["train"].copies, totals["val"].documents)
        check_published(report, folder, totals["val"])
        if options.docs and folder.tokenizer.encode is None and "source" not in folder.manifest:
            check_texts(report, folder, options, totals)
        elif options.docs:
            check_source(report, pool, folder, options, totals)
        else:
            print("note  the source text is not available: --docs compares with it")
    if report.bad:
        raise UserError(f"{options.folder}: {report.bad} disagreements, of which {min(report.bad, SHOWN)} are shown")
