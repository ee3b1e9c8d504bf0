"""What a data folder holds, in numbers: counts, document lengths and unigram entropy, as text and as a picture."""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import path_argument
from common.data.folder import DataFolder, add_folder, cached_stream, read_documents
from common.data.tokenizers import cached_tokenizer
from common.data.workers import add_workers, in_order, worker_pool
from common.files import as_utf8, with_remedy
from common.settings import UserError
from common.tokenizer import count_bytes

BINS = 25  # document lengths in tokens, BOS too: 1, 2 to 3, 4 to 7, ...


def unigram_bits(train_counts: np.ndarray, val_counts: np.ndarray) -> float:
    """Bits that tokens with val_counts (vocabulary,) cost under the frequencies of train_counts, where each id is
    counted once more so that none has 0."""
    counts = train_counts + 1
    return -float((val_counts * np.log2(counts / counts.sum())).sum())


def count_piece(job) -> tuple[np.ndarray, np.ndarray, int]:
    """For the documents that begin in a piece: the count of each id (vocabulary,), the count of each length class
    (BINS,), and the bytes. UserError: ids that the tokenizer does not have."""
    folder, load_as, split, start, end = job
    tokenizer = cached_tokenizer(*load_as)
    _, tokens, borders = read_documents(cached_stream(folder, split), tokenizer.bos_id, start, end)
    if len(tokens) and tokens.max() >= tokenizer.vocab_size:
        raise UserError(f"{folder}: {split} has ids beyond the tokenizer's {tokenizer.vocab_size}: "
                        "`python -m common.data check` says where")
    classes = np.log2(np.diff(borders)).astype(int)
    before = np.append(tokenizer.bos_id, tokens[:-1])
    size = int(count_bytes(tokenizer, before, tokens).sum(dtype=np.int64))
    return np.bincount(tokens, minlength=tokenizer.vocab_size), np.bincount(classes, minlength=BINS)[:BINS], size


def count_split(pool, folder: DataFolder, split: str, workers: int):
    """The same for a split."""
    jobs = list(folder.pieces(split))
    totals = np.zeros(folder.tokenizer.vocab_size, np.int64), np.zeros(BINS, np.int64), 0
    for _, part in tqdm(in_order(pool, count_piece, jobs, 2 * workers), split, len(jobs), disable=None):
        totals = tuple(total + more for total, more in zip(totals, part))
    return totals


def describe(split: str, counts, lengths, size: int) -> list[str]:
    """Lines about one split."""
    tokens, documents = int(counts.sum()), int(lengths.sum())
    used = counts[counts > 0]
    bits = -float((used * np.log2(used / tokens)).sum())
    lines = [f"{split}: {tokens:,} tokens, {documents:,} documents, {size:,} bytes, "
             f"{size / tokens:.3f} bytes per token, {size / documents:,.0f} bytes per document",
             f"  ids that occur: {len(used):,} of {len(counts):,}",
             f"  unigram entropy: {bits / max(size, 1):.4f} bits per byte, the floor for a model that knows these "
             "frequencies and no context",
             "  documents by length in tokens:"]
    classes = np.flatnonzero(lengths)
    lines += [f"  {2**i:>10,} to {2**(i + 1) - 1:<10,} {lengths[i]:>12,} {'#' * round(50 * lengths[i] / lengths.max())}"
              for i in range(classes[0], classes[-1] + 1)]
    return lines


def draw(path: Path, title: str, found: dict) -> None:
    """found: {split: (counts, lengths, bytes)}."""
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for split, (counts, lengths, _) in found.items():
        left.stairs(lengths / lengths.sum(), 2.0 ** np.arange(BINS + 1), label=split)
        ranked = np.sort(counts)[::-1] / counts.sum()
        right.plot(np.arange(1, len(ranked) + 1), np.where(ranked > 0, ranked, np.nan), label=split)
    left.set(xscale="log", xlabel="tokens of a document", ylabel="share of documents", title=title)
    right.set(xscale="log", yscale="log", xlabel="rank of the token", ylabel="share of tokens",
              title="token frequencies")
    left.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def add_command(subparsers) -> None:
    parser = subparsers.add_parser("stats", help="counts, document lengths and unigram entropy of a data folder")
    add_folder(parser)
    parser.add_argument("--png", type=path_argument, help="picture to write (default: stats.png in the folder)")
    add_workers(parser)
    parser.set_defaults(run=run)


def run(options) -> None:
    if options.png and (options.png.suffix != ".png" or not options.png.parent.is_dir()):
        raise UserError(f"--png {options.png} cannot be written: name a .png in a folder that exists")
    folder = DataFolder(options.folder, options.tokenizer)
    with worker_pool(options.workers) as pool:
        found = {split: count_split(pool, folder, split, options.workers) for split in ("train", "val")}
    for split, numbers in found.items():
        print(*describe(split, *numbers), sep="\n")
    bits = unigram_bits(found["train"][0], found["val"][0]) / max(found["val"][2], 1)
    print(f"unigram entropy of val under the frequencies of train: {bits:.4f} bits per byte")
    picture = options.png or options.folder / "stats.png"
    try:
        draw(picture, as_utf8(folder.manifest.get("name", options.folder.name)), found)
    except OSError as error:
        if options.png:
            raise
        print(f"no picture: {with_remedy(error)}; --png FILE.png puts it elsewhere")
    else:
        print(f"picture: {picture}")
