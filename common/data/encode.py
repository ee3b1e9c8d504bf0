"""Documents to tokens, block by block in worker processes: what `export` writes, and what `check` compares with."""
import dataclasses
import hashlib
import heapq
import itertools

import numpy as np
from tqdm import tqdm

from common.data.documents import Block, block_texts, read_blocks
from common.data.tokenizers import cached_tokenizer, encode_document
from common.data.workers import in_order
from common.settings import UserError


@dataclasses.dataclass
class Encoded:
    """Documents of a block. tokens: uint16 (tokens,). For each document: its length in tokens; SHA-256 of its text;
    number of its line or row; sizes: bytes that scoring counts, bytes of the text, 1 if the tokenizer changed it. bad,
    mended: (number, problem) of lines that have no text, and of texts that were repaired."""

    tokens: np.ndarray
    lengths: list
    hashes: list
    numbers: list
    sizes: list
    bad: list = dataclasses.field(default_factory=list)
    mended: list = dataclasses.field(default_factory=list)


def encode_block(job: tuple[Block, tuple, str]) -> Encoded:
    """Job: (block, arguments of load_tokenizer, text key). UserError: the tokenizer promises to keep a document, and
    does not."""
    block, load_as, text_key = job
    tokenizer, tokens = cached_tokenizer(*load_as), [np.zeros(0, np.uint16)]
    found = Encoded(tokens[0], [], [], [], [])
    for number, text, problem in block_texts(block, text_key):
        if problem:
            (found.bad if text is None else found.mended).append((number, problem))
        if text is None:
            continue
        try:
            ids, size, kept = encode_document(tokenizer, text)
        except UserError as error:
            raise UserError(f"{block.file}:{number}: {error}") from None
        raw = text.encode()
        tokens.append(ids)
        found.lengths.append(len(ids))
        found.hashes.append(hashlib.sha256(raw).digest())
        found.numbers.append(number)
        found.sizes.append((size, len(raw), int(not kept)))
    found.tokens = np.concatenate(tokens)
    return found


def sample_block(job: tuple[Block, str, bytes]):
    """Job: (block, text key, limit). (number of documents, [(hash, index in the block, text)] of those whose hash is
    below the limit, bad)."""
    block, text_key, limit = job
    count, chosen, bad = 0, [], []
    for number, text, problem in block_texts(block, text_key):
        if text is None:
            bad.append((number, problem))
            continue
        key = hashlib.sha256(text.encode()).digest()
        if key < limit:
            chosen.append((key, count, text))
        count += 1
    return count, chosen, bad


def sample_documents(pool, options, files) -> list[str]:
    """Training documents of about --sample-bytes: those with the smallest hashes, in their order. UserError: there are
    none."""
    heap = []  # of (-hash, -number, text): the largest hash first
    size, count = 0, 0  # bytes of the texts in the heap, documents read

    def jobs():
        for block in read_blocks(files, options.text_key, options.separator):
            full = size >= options.sample_bytes
            yield block, options.text_key, (-heap[0][0]).to_bytes(32, "big") if full else b"\xff" * 32

    results = in_order(pool, sample_block, jobs(), 2 * options.workers)
    for (block, *_), (documents, chosen, bad) in progress("sampling", files, results):
        stop_at_bad(options, block, bad)
        for key, index, text in chosen:
            if count + index >= options.val_docs:
                heapq.heappush(heap, (-int.from_bytes(key, "big"), -count - index, text))
                size += len(text.encode())
                while size - (largest := len(heap[0][2].encode())) >= options.sample_bytes:
                    heapq.heappop(heap)
                    size -= largest
        count += documents
    check_count(options, count)
    return [text for _, _, text in sorted(heap, key=lambda found: -found[1])]


def stop_at_bad(options, block: Block, bad) -> None:
    """UserError: a line has no text, and such lines must not be left out."""
    if bad and not options.skip_bad:
        number, problem = bad[0]
        raise UserError(f"{block.file}:{number} {problem}; fix it, or leave such lines out with --skip-bad")


def check_count(options, count: int) -> None:
    """UserError: so many documents leave nothing for training."""
    if count <= options.val_docs:
        raise UserError(f"{count:,} documents, of which the first {options.val_docs:,} are validation: nothing is left "
                        "for training; use a smaller --val-docs")


def progress(what: str, files, results):
    """The results, with a bar of the bytes read."""
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None) as bar:
        for job, result in results:
            yield job, result
            bar.update(job[0].place - bar.n)


def place_documents(encoded: Encoded, seen: int, val_docs: int, val_hashes: set):
    """(split, its part of a block), in order. seen: how many documents came before. The hashes of validation documents
    are added to val_hashes. A training document whose text is among them comes under the split "copies"."""
    val_hashes.update(encoded.hashes[:max(0, val_docs - seen)])

    def split_of(index):
        if seen + index < val_docs:
            return "val"
        return "copies" if encoded.hashes[index] in val_hashes else "train"

    columns = encoded.lengths, encoded.hashes, encoded.numbers, encoded.sizes
    bounds = np.cumsum([0, *encoded.lengths]).tolist()
    first = 0
    for split, run in itertools.groupby(range(len(encoded.hashes)), split_of):
        end = first + len(list(run))
        yield split, Encoded(encoded.tokens[bounds[first]:bounds[end]], *(column[first:end] for column in columns))
        first = end
