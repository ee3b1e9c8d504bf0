"""The zlib encoder: `python -m pytest tests/common/test_zstream.py`."""
import hashlib
import heapq
import itertools
import math
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import zstream
from common.zstream import zlib_encode, zlib_size

STORED = 65_535
PIECE = 1 << 18


def raw(seed, n):
    """n uniform bytes from a counter-based generator's raw integers, which are the same in every numpy version."""
    words = np.random.Philox(key=seed).random_raw(-(-n // 8))
    return np.frombuffer(words.astype("<u8").tobytes(), np.uint8)[:n]


def bells(seed, n, top):
    """n int8 bytes, roughly normal with standard deviation top / 4: integer sums of eight uniform bytes."""
    sums = raw(seed, 8 * n).reshape(-1, 8).sum(1, dtype=np.int64) - 1020
    return (sums * top // 836).clip(-top, top).astype(np.int8).tobytes()


def halves(seed, n):
    """n numbers like fp16: a noisy low byte and a high byte with few values."""
    pairs = raw(seed, 2 * n).reshape(-1, 2).copy()
    pairs[:, 1] = 0x24 + pairs[:, 1] % 5
    return pairs.tobytes()


def stored_bound(n):
    return n + 6 + 6 * max(1, -(-n // STORED))


def check(data):
    encoded = zlib_encode(data)
    inflater = zlib.decompressobj()
    assert inflater.decompress(encoded) == data
    assert inflater.eof and not inflater.unused_data
    assert len(encoded) <= stored_bound(len(data))
    return encoded


def huffman_only(data):
    stock = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return stock.compress(data) + stock.flush()


GOLDEN = {
    "empty": b"",
    "one byte": b"\x80",
    "one symbol": bytes(70_000),
    "every byte": bytes(range(256)) * 40,
    "text": b"".join(b"%d bottles of beer on the wall, " % i for i in range(999)),
    "uniform": raw(1, 150_000).tobytes(),
    "weights": bells(2, 300_001, 127),
    "small weights": bells(3, 100_000, 7),
    "many ranges": b"".join(bells(s, 3_000 + 777 * s, 3 + 11 * s) for s in range(12)),
    "model": b"".join([b'{"a":1}', halves(4, 2_000), bells(5, 40_000, 90), raw(6, 70_000).tobytes(), bytes(9_999),
                       halves(7, 333)]),
}
DIGESTS = {
    "empty": "174c8dbe4e5daa15a218adb0c19311109798abd48f3429043a17fcf9c8fa3afe",
    "one byte": "7055b290229d70e39c3339287db5f82c1f394d6237b2aceba4d9c5a4af7bd384",
    "one symbol": "15fc18ccc1fa8d4f09185a20f7e9498357fccab5d1147bd424d349890ca4fa33",
    "every byte": "09573cdea4fdd067a9b198f84ada6e7b441fc1894a91a6d4fcbecea834253f2a",
    "text": "edeee7f93cf81b23c3a8dc6224edae1250f61d16798b128e4415155bd2d43760",
    "uniform": "dc4d8649a3b4fe87a5153621a84644d2972d57ca8037dfe4eb69b1b1983836fa",
    "weights": "2374a09338caf615b0d1677c02333b9fd345bc326a9394890e0e8d0173b56069",
    "small weights": "90db25e93b5142cfb614d2581e509996905649293dbabf9bfe51d35b8bb4d8a1",
    "many ranges": "dca92dd558039b17ec3d0026a04ffb6bd3086b207467fe2e58bf355c7a6c9d59",
    "model": "d513265745a551bfe242affe2606d622e16b122104a0f6b63c697edaf0ebefc0",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    assert hashlib.sha256(check(GOLDEN[name])).hexdigest() == DIGESTS[name]


def test_golden_stream_in_full():
    assert zlib_encode(b"") == bytes.fromhex("78da 01 0000 ffff 00000001")
    assert zlib_encode(b"a") == bytes.fromhex("78da 01 0100 feff 61 00620062")


segment = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(0, 3_000)),
    st.builds(bells, st.integers(0, 99), st.integers(0, 3_000), st.integers(1, 127)),
    st.builds(halves, st.integers(0, 99), st.integers(0, 1_500)),
    st.builds(lambda seed, n: raw(seed, n).tobytes(), st.integers(0, 99), st.integers(0, 3_000)),
)


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(segment, max_size=8).map(b"".join))
def test_round_trip(data):
    check(data)


@pytest.mark.parametrize("edge", [1, 2, 512, 1_024, STORED, 2 * STORED, PIECE])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_sizes_at_the_edges(edge, shift):
    n = edge + shift
    check(b"\xff" * n)
    check(bells(8, n, 20))
    check(raw(9, n).tobytes())
    check(bells(8, n, 20) + raw(9, n).tobytes())


def test_equal_chunks_make_one_block_of_literals():
    assert 500_000 < len(check(bytes(4_000_000))) < 500_050  # one bit each, no matches


@pytest.mark.parametrize("top", [7, 15, 40, 127])
def test_no_larger_than_stock_zlib_on_weights(top):
    data = bells(11, 400_000, top) + bells(12, 200_000, max(3, top // 3)) + halves(13, 4_000)
    assert len(zlib_encode(data)) <= min(len(huffman_only(data)), len(zlib.compress(data, 9)))


def test_close_to_the_entropy():
    data = bells(14, 500_000, 127)
    counts = np.bincount(np.frombuffer(data, np.uint8))
    counts = counts[counts > 0]
    assert len(zlib_encode(data)) < 1.01 * -(counts * np.log2(counts / len(data))).sum() / 8


def test_borders_are_found_to_the_byte():
    parts = [bells(15, 50_123, 127), bells(16, 33_333, 5), raw(17, 20_001).tobytes(), bells(18, 70_007, 30)]
    assert len(zlib_encode(b"".join(parts))) <= sum(len(zlib_encode(part)) for part in parts)
    cuts = np.array([0, 50_176, 50_123 + 33_333])
    symbols = np.frombuffer(b"".join(parts[:2]), np.uint8)
    counts = np.array([np.bincount(symbols[a:b], minlength=256) for a, b in itertools.pairwise(cuts)])
    cuts, _ = zstream._move_cuts(symbols, cuts, counts)
    assert abs(cuts[1] - 50_123) < 10


def test_memory_is_bounded():
    data = bells(19, 1 << 21, 60)
    tracemalloc.start()
    zlib_encode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data)


count = st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 100_000))
histogram = st.lists(count, min_size=2, max_size=257).filter(lambda counts: len(counts) - counts.count(0) > 1)


def lengths_of(counts, limit=15):
    counts = np.array(counts)
    lengths = zstream._huffman_lengths(counts, limit)
    assert ((lengths > 0) == (counts > 0)).all()
    assert sum(1 << limit >> int(length) for length in lengths if length) == 1 << limit  # Kraft: a complete code
    return lengths


def huffman_cost(counts):
    """Bits of an optimal code without a limit on lengths: the sum of all inner nodes of the Huffman tree."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        node = heapq.heappop(heap) + heapq.heappop(heap)
        cost += node
        heapq.heappush(heap, node)
    return cost


@settings(deadline=None, database=None, derandomize=True)
@given(histogram)
def test_lengths_are_optimal(counts):
    assert int(lengths_of(counts, 40) @ counts) == huffman_cost(counts)
    assert int(lengths_of(counts) @ counts) >= huffman_cost(counts)


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.integers(1, 1_000), min_size=2, max_size=7), st.integers(3, 4))
@example([1, 1, 2, 3, 5, 8, 13], 3)
def test_limited_lengths_are_optimal(counts, limit):
    """No complete code of at most `limit` bits is better."""
    falling = sorted(counts, reverse=True)
    best = min(sum(map(math.prod, zip(falling, code, strict=True)))
               for code in itertools.combinations_with_replacement(range(1, limit + 1), len(counts))
               if sum(1 << limit >> length for length in code) == 1 << limit)
    assert int(lengths_of(counts, limit) @ counts) == best


def test_fibonacci_counts_keep_the_limit():
    counts = [1, 1]
    while len(counts) < 24:
        counts.append(counts[-1] + counts[-2])
    assert lengths_of(counts, 30).max() == 23
    assert lengths_of(counts).max() == 15
    assert lengths_of(counts[:19], 7).max() == 7
    check(b"".join(bytes([s]) * count for s, count in enumerate(counts)))


def test_canonical_codes():
    """The example of RFC 1951, section 3.2.2."""
    codes = zstream._canonical_codes([3, 3, 3, 3, 3, 2, 4, 4])
    assert codes == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


def test_log2_table():
    table = zstream._log2_table()
    assert table.dtype == np.int64 and len(table) == 1 << 16
    assert all(table[i] >> 16 == i.bit_length() - 1 for i in range(1, 1 << 16))
    assert max(abs(table[i] - 65_536 * math.log2(i)) for i in range(1, 1 << 16)) < 1


@given(st.lists(st.integers(0, 1 << 22), min_size=256, max_size=256))
@settings(deadline=None, database=None, derandomize=True)
def test_entropy(counts):
    n = sum(counts)
    exact = sum(count * math.log2(n / count) for count in counts if count)
    assert abs(int(zstream._entropy_bits(np.array([counts], np.int32))[0]) - exact) <= 1 + n / 10_000


@pytest.mark.parametrize("seed", range(6))
def test_the_size_is_known_without_the_bytes(seed):
    """Streams with coded blocks, stored blocks and both."""
    random = np.random.Generator(np.random.Philox(seed))
    parts = [random.integers(0, 256, 70_000 * (seed % 3), np.uint8),
             random.integers(0, 1 + 9 * seed, 40_001, np.uint8), random.integers(0, 256, 999, np.uint8)]
    for data in (b"".join(part.tobytes() for part in parts), b"", b"a", bytes(parts[0])):
        assert zlib_size(data) == len(zlib_encode(data))
