"""zlib streams (RFC 1950) with equal bytes on every machine: Huffman-coded literals, no matches.

zlib and its forks write different bytes for equal input, and matches cost more than they save on int8 weights. All is
integer arithmetic, so neither libm nor the numpy version can change a bit.
"""
import re
import zlib
from functools import cache

import numpy as np

_CHUNK_BYTES = 512  # grid of the first block borders
_MOVE_BYTES = 1 << 14  # how far a border may then move
_PIECE_BYTES = 1 << 18  # packed at a time, to bound memory
_STORED_BYTES = 65_535  # limit of a stored block
_HEADER_BITS = 600  # 270 to 610 in practice; more gives better borders
_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)


def zlib_encode(data):
    """The zlib stream of bytes (less than 2 GiB), at most 6 bytes longer, plus 6 per 65,535 bytes begun."""
    bits = bytearray()  # the lowest of each byte, so that the digits 0 and 1 serve too
    for start, stop, (_, head, lengths) in _blocks(data):
        bits.append(stop == len(data))
        if head:
            words = [code.encode() for code in _canonical_codes(lengths)]
            bits += head.encode()
            for i in range(start, stop, _PIECE_BYTES):
                bits += b"".join(map(words.__getitem__, data[i:min(stop, i + _PIECE_BYTES)]))
            bits += words[256]
        else:
            bits += bytes(2)  # the type: stored
            bits += bytes(-len(bits) % 8)
            size = stop - start
            part = (size | (size ^ 0xFFFF) << 16).to_bytes(4, "little") + data[start:stop]
            bits.extend(np.unpackbits(np.frombuffer(part, np.uint8), bitorder="little"))
    flat = np.frombuffer(bits, np.uint8)
    flat &= 1
    return b"\x78\xda" + np.packbits(flat, bitorder="little").tobytes() + zlib.adler32(data).to_bytes(4, "big")


def zlib_size(data):
    """len(zlib_encode(data)), without its slow part, the packing of bits."""
    bits = 0
    for start, stop, (size, head, _) in _blocks(data):
        bits = bits + size if head else -(-(bits + 3) // 8) * 8 + 32 + 8 * (stop - start)
    return 2 + -(-bits // 8) + 4


def _blocks(data):
    """list of (start, stop, code as in _block_code)."""
    n = len(data)
    symbols = np.frombuffer(data, np.uint8)
    cuts = np.append(np.arange(0, max(n, 1), _CHUNK_BYTES), n)
    counts = np.zeros((len(cuts) - 1, 256), np.int32)
    for i, start in enumerate(cuts[:-1]):
        counts[i] = np.bincount(symbols[start:start + _CHUNK_BYTES], minlength=256)
    whole = _block_code(counts.sum(0))
    cuts, codes = _move_cuts(symbols, *_merge_chunks(cuts, counts))
    if whole[0] <= sum(code[0] for code in codes):
        cuts, codes = [0, n], [whole]
    blocks = []
    for start, stop, code in zip(cuts, cuts[1:], codes):
        step = stop - start if code[1] else _STORED_BYTES
        blocks += [(i, min(stop, i + step), code) for i in range(start, max(stop, 1), step)]
    return blocks


def _canonical_codes(lengths):
    """The codes (RFC 1951, section 3.2.2) of up to 15 bits as text, high bit first."""
    codes, code = [""] * len(lengths), 0
    for length, symbol in sorted((int(length), s) for s, length in enumerate(lengths) if length):
        codes[symbol] = f"{code:015b}"[:length]
        code += 1 << 15 - length
    return codes


def _huffman_lengths(counts, limit):
    """Optimal code lengths up to `limit`, 0 for unused symbols: package-merge (Larmore and Hirschberg 1990)."""
    used = np.flatnonzero(counts)
    used = used[np.argsort(counts[used], kind="stable")]
    coins = leaves = counts[used].astype(np.int64) * 2  # the low bit marks a package
    levels = [coins & 1]
    for _ in range(limit - 1):
        pairs = coins[:len(coins) // 2 * 2].reshape(-1, 2) >> 1
        coins = np.sort(np.append(leaves, pairs.sum(1) * 2 + 1))
        levels.append(coins & 1)
    lengths = np.zeros(len(counts), np.int64)
    taken = 2 * len(used) - 2
    for level in reversed(levels):
        packages = int(level[:taken].sum())
        lengths[used[:taken - packages]] += 1
        taken = 2 * packages
    return lengths


def _dynamic_head(lengths):
    """The head of a dynamic block after its first bit, as text. One distance code of 0 bits: all symbols are literals
    (RFC 1951, section 3.2.7)."""
    text = "".join(chr(65 + length) for length in [*lengths, 0])
    tokens = []  # (symbol, its extra bits)
    for run in re.finditer(r"A{11,138}|A{3,10}|(?<=(.))\1{3,6}(?!\1{1,2}(?!\1))|.", text):  # 7 repeats as 4 + 3
        size = len(run[0])
        symbol, least, extra = (16, 3, 2) if run[1] else (17, 3, 3) if size < 11 else (18, 11, 7)
        tokens.append((symbol, _field(size - least, extra)) if size > 1 else (ord(run[0]) - 65, ""))
    sizes = _huffman_lengths(np.bincount([symbol for symbol, _ in tokens], minlength=19), 7)
    codes = _canonical_codes(sizes)
    sent = max(i for i, symbol in enumerate(_LENGTH_ORDER, 1) if sizes[symbol] or i == 4)
    head = "01" + "0" * 10 + _field(sent - 4, 4) + "".join(_field(sizes[symbol], 3) for symbol in _LENGTH_ORDER[:sent])
    return head + "".join(codes[symbol] + extra for symbol, extra in tokens)


def _field(value, size):
    return f"{value:0{size}b}"[::-1]


def _block_code(counts):
    """(bits, head, code lengths) of the smallest block of this histogram. Stored bytes have no head."""
    n = int(counts.sum())
    stored = 8 * n + 42 * max(1, -(-n // _STORED_BYTES)), "", np.full(257, 8)  # up to 7 of the 42 pad to a byte
    if not n:
        return stored
    counts = np.append(counts, 1)  # the end-of-block symbol
    lengths = _huffman_lengths(counts, 15)
    head = _dynamic_head(lengths)
    return min(stored, (1 + len(head) + int(counts @ lengths), head, lengths), key=lambda code: code[0])


@cache
def _log2_table():
    """log2(i) * 2**16 for 0 < i < 2**16, -1 << 16 at 0; the floor of log2 is exact."""
    odd = np.arange(3, (1 << 17) - 1, 2, np.int64)
    term = 3_172_519_945_584 // odd  # 2 log2(e) * 2**40; ln(i / (i - 1)) = 2 atanh(1 / (2 i - 1))
    steps = np.zeros_like(odd)
    for k in range(1, 24, 2):
        steps += term // k
        term //= odd * odd
    return np.append([-1 << 16, 0], np.cumsum(steps) + (1 << 22) >> 24)


def _entropy_bits(counts):
    """Order-0 entropies (n,) of histograms (n, 256), in bits. A log2 uses the leading 16 bits of a count."""
    log = _log2_table()
    bits = []
    for i in range(0, len(counts), 1024):  # to bound memory
        cells = counts[i:i + 1024]
        cells = np.append(cells, cells.sum(1, keepdims=True), 1)
        shift = (log[cells >> 16] >> 16) + 1
        cells = cells * (log[cells >> shift] + (shift << 16))
        bits.append(2 * cells[:, -1] - cells.sum(1) >> 16)
    return np.concatenate(bits)


def _merge_chunks(cuts, counts):
    """Join neighbours, best gains first, while a header costs more than it saves."""
    bits = _entropy_bits(counts)
    while len(bits) > 1:
        joint = _entropy_bits(counts[:-1] + counts[1:])
        gain = np.pad(bits[:-1] + bits[1:] - joint + _HEADER_BITS, 1)
        gain[::2] += gain[::2] >> 2  # else equal or rising gains would join one pair a round
        here = gain[1:-1]
        picked = np.flatnonzero((here > 0) & (here > gain[:-2]) & (here >= gain[2:]))  # never two neighbours
        if not len(picked):
            break
        counts[picked] += counts[picked + 1]
        bits[picked] = joint[picked]
        cuts, bits, counts = (np.delete(x, picked + 1, 0) for x in (cuts, bits, counts))
    return cuts, counts


def _move_cuts(symbols, cuts, counts):
    """Move each border to where its two codes cost least, if the exact size falls. (cuts, codes)."""
    cuts, codes = cuts.tolist(), [_block_code(row) for row in counts]
    for i in [*range(1, len(codes))] * 2:  # two passes
        low, high = max(cuts[i - 1] + 1, cuts[i] - _MOVE_BYTES), min(cuts[i + 1] - 1, cuts[i] + _MOVE_BYTES)
        left, right = (np.where(code[2] > 0, code[2], 20) for code in codes[i - 1:i + 1])  # 20: a new symbol
        cut = low + int(np.append(0, np.cumsum((left - right)[symbols[low:high]])).argmin())
        moved = np.bincount(symbols[min(cut, cuts[i]):max(cut, cuts[i])], minlength=256)
        if cut < cuts[i]:
            moved = -moved
        pair = [_block_code(counts[i - 1] + moved), _block_code(counts[i] - moved)]
        if pair[0][0] + pair[1][0] < codes[i - 1][0] + codes[i][0]:
            counts[i - 1] += moved
            counts[i] -= moved
            cuts[i] = cut
            codes[i - 1:i + 1] = pair
    return cuts, codes
