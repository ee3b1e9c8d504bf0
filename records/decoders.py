"""How packed text is decoded, with a bound on what it expands to. Standard library only."""
import base64
import binascii
import bz2
import lzma
import zlib

LIMIT_BYTES = 8 << 20  # of one decoded value


class Unreadable(Exception):
    """Data that cannot be decoded; the message is the reason."""


def applied(name, function, *values):
    """The value of a function. Raises Unreadable where it refuses its values."""
    try:
        return function(*values)
    except _BAD_DATA as error:
        raise Unreadable(f"{name}: {error}") from None


def _inflate(data):
    for bits in (15, -15, 31):
        try:
            return _bounded(zlib.decompressobj(bits), data)
        except zlib.error as error:
            last = error
    raise last


def _unlzma(data):
    try:
        return _streams(lambda: lzma.LZMADecompressor(memlimit=256 << 20), data)
    except lzma.LZMAError:
        return unlzma_raw(data)


def unlzma_raw(data):
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]), data)


def _streams(new, data):
    """All streams in data, joined as the library's own functions join them. What follows the last is ignored."""
    parts, room = [], LIMIT_BYTES
    while data:
        stream = new()
        try:
            parts.append(_bounded(stream, data, room))
        except (OSError, lzma.LZMAError, zlib.error):
            if not parts:
                raise
            break
        room -= len(parts[-1])
        data = stream.unused_data
    return b"".join(parts)


def _bounded(stream, data, room=LIMIT_BYTES):
    out = stream.decompress(data, room + 1)
    if len(out) > room:
        raise Unreadable(f"expands to more than {LIMIT_BYTES:,} bytes")
    if not stream.eof:
        raise EOFError("it is cut off")
    return out


_BAD_DATA = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError, EOFError, zlib.error,
             lzma.LZMAError)
CODECS = {"utf-8", "utf8", "ascii", "latin-1", "latin1"}
DECODERS = {
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.urlsafe_b64decode": base64.urlsafe_b64decode,
    "base64.decodebytes": base64.decodebytes,
    "base64.b32decode": base64.b32decode,
    "base64.b16decode": base64.b16decode,
    "binascii.unhexlify": binascii.unhexlify,
    "binascii.a2b_base64": binascii.a2b_base64,
    "bytes.fromhex": bytes.fromhex,
    "zlib.decompress": _inflate,
    "gzip.decompress": lambda data: _streams(lambda: zlib.decompressobj(31), data),
    "bz2.decompress": lambda data: _streams(bz2.BZ2Decompressor, data),
    "lzma.decompress": _unlzma,
}
RAW_FORMAT = r"format=(\w+)\.FORMAT_RAW filters=\[\{'id': \1\.FILTER_LZMA2\}\]"
