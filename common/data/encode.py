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
    """Documents of a block. tokens: uint16 (tokens,). Of each document: length in tokens; SHA-256 of its text; number of its line or
    row; sizes: bytes that scoring counts, bytes of the text, 1 if the tokenizer changed it. bad, mended: (number, problem)."""

    tokens: np.ndarray
    lengths: list
    hashes: list
    numbers: list
    sizes: list
    bad: list
    mended: list


def encode_block(job: tuple[Block, str, str]) -> Encoded:
    """Job: (block, tokenizer path, text key). UserError: a document that the tokenizer promises to keep, and does not."""
    block, tokenizer_path, text_key = job
    tokenizer, tokens = cached_tokenizer(tokenizer_path), [np.zeros(0, np.uint16)]
    found = Encoded(tokens[0], [], [], [], [], [], [])
    for number, text, problem in block_texts(block, text_key):
        if problem:
            (found.bad if text is None else found.mended).append((number, problem))
        if text is not None:
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
    """Job: (block, text key, limit). (number of documents, [(hash, index in the block, text)] of those below the limit, bad)."""
    block, text_key, limit = job
    count, chosen, bad = 0, [], []
    for number, text, problem in block_texts(block, text_key):
        if text is None:
            bad.append((number, problem))
            continue
        if (key := hashlib.sha256(text.encode()).digest()) < limit:
            chosen.append((key, count, text))
        count += 1
    return count, chosen, bad


def sample_documents(pool, options, files) -> list[str]:
    """Training documents of about --sample-bytes: those with the smallest hashes, in their order. UserError: there are none."""
    heap, size, count = [], 0, 0  # heap of (-hash, -number, text): the largest first

    def jobs():
        for block in read_blocks(files, options.text_key, options.separator):
            yield block, options.text_key, b"\xff" * 32 if size < options.sample_bytes else (-heap[0][0]).to_bytes(32, "big")

    for (block, *_), (documents, chosen, bad) in progress("sampling", files, in_order(pool, sample_block, jobs(), 2 * options.workers)):
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
    """UserError: a line has no text, and such lines are not to be left out."""
    if bad and not options.skip_bad:
        raise UserError(f"{block.file}:{bad[0][0]} {bad[0][1]}; mend it, or leave such lines out with --skip-bad")


def check_count(options, count: int) -> None:
    if count <= options.val_docs:
        raise UserError(f"{count:,} documents, of which the first {options.val_docs:,} are validation: nothing is left for training; "
                        "take a smaller --val-docs")


def progress(what: str, files, results):
    """The results, with a bar of the bytes read."""
    with tqdm(total=sum(file.stat().st_size for file in files), desc=what, unit="B", unit_scale=True, disable=None) as bar:
        for job, result in results:
            yield job, result
            bar.update(job[0].place - bar.n)


def place_documents(encoded: Encoded, seen: int, val_docs: int, val_hashes: set):
    """(split, its part of a block), in order; seen: documents before. The hashes of validation documents go into the set. A training
    document that is a copy of one comes as of the split "copies"."""
    val_hashes.update(encoded.hashes[:max(0, val_docs - seen)])
    splits = ["val" if seen + i < val_docs else "copies" if key in val_hashes else "train" for i, key in enumerate(encoded.hashes)]
    bounds = np.cumsum([0, *encoded.lengths]).tolist()
    for split, run in itertools.groupby(range(len(splits)), splits.__getitem__):
        first, *_, last = [*run] * 2
        yield split, Encoded(encoded.tokens[bounds[first]:bounds[last + 1]],
                             *(part[first:last + 1] for part in (encoded.lengths, encoded.hashes, encoded.numbers, encoded.sizes)), [], [])
