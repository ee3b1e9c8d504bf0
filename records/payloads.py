"""Weights or code that hide where nothing is counted: in the text of a README, a log, submission.json or
requirements.txt, in invisible characters, or behind the end of a picture.

Text that people and trainers write compresses to 0.6 of its bytes or less, in pieces of 2,048 bytes (0.59 at the most
in 1,658 pieces of READMEs, package descriptions and logs); base64 to 0.77, base85 to 0.83, base32 to 0.66.
"""
import base64
import re
import zlib

from records.folder import Refused
from records.logs import LOG_LIMIT
from records.rules import FAIL, WARN, Finding

PIECE = 2048  # bytes
DENSE = 0.64  # of its bytes, to which a piece of encoded data compresses at best
PIECES_FAIL = 4  # of encoded data in one file; fewer are a warning
HEX = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{32,}(?![0-9a-fA-F])")
HEX_FAIL = 8_000  # digits; hundred SHA-256 digests have 6,400
NUMBERS = re.compile(r"[\d\s,;|.e+-]+")  # a table of weights
NUMBERS_MOST = 200  # in a row
TEXT_MOST = 200_000  # compressed bytes of a file without the source that it repeats; published logs have up to 51,000
TEXTS_MOST = 32 << 20  # bytes of all texts of a folder, which take some seconds
INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\U000e0000-\U000e01ef]")
INVISIBLE_MOST = 64  # characters; a few come with text that was copied from a page
PICTURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".gif": b"GIF8",
            ".webp": b"RIFF"}
PICTURE_LIMIT = 8 << 20  # bytes
EMBEDDED = re.compile(r"iVBORw0KGgo(?:[A-Za-z0-9+/=\s]|\\n)*")  # base64 of a PNG, as notebooks and plots hold it
CHUNKS_MOST = 64_000  # bytes of a PNG that are not pixels; a colour profile has 3,000
ELSEWHERE = re.compile(r"git\+|https?://|file:|^-[erfi]\b|^--(?:index|extra-index|find-links|editable)|\.whl\b|^\.{0,2}/")


def check_payloads(folder):
    """A Finding for each text with encoded data, and each picture of another format or with more after its end."""
    source = {line for name in folder.files if name.endswith(".py") for line in folder.text(name).splitlines()}
    left = TEXTS_MOST
    for name in sorted(folder.files):
        if folder.kinds[name] in ("text", "log") or name.lower().endswith(".svg"):
            left -= folder.files[name]
            if left < 0:
                yield Finding(WARN, f"more than {TEXTS_MOST:,} bytes of text", "as much as can be looked at", name)
                return
            yield from _hidden_in_text(folder, name, source)
        elif kind := next((kind for kind in PICTURES if name.lower().endswith(kind)), ""):
            yield from _hidden_in_picture(folder, name, kind)
    yield from _installs(folder)


def _hidden_in_text(folder, name, source):
    """source: set of the lines of the Python files, which are counted, and which a log may repeat."""
    try:
        lines = folder.read(name, LOG_LIMIT).decode(errors="replace").split("\n")
    except Refused:
        return  # reported where it is read
    text = _without_pictures("\n".join("" if line.strip("\r") in source else line for line in lines))
    drawing = name.lower().endswith(".svg")  # its curves are numbers in a row
    for start, size, status, observed in _payloads_of(text, drawing):
        line = text.count("\n", 0, start) + 1
        expected = "words and figures: code and weights are counted elsewhere"
        yield Finding(status, f"{size:,} {observed}", expected, f"{name}:{line}")


def _without_pictures(text):
    """The text with the base64 of each whole PNG as empty lines; a PNG beside the text is looked at in the same way."""
    def emptied(found):
        encoded = found[0].replace("\\n", "")
        try:
            data = base64.b64decode("".join(encoded.split()), validate=True)
        except ValueError:
            return found[0]
        end, other = _chunks(data)
        return "\n" * found[0].count("\n") if end == len(data) and other <= CHUNKS_MOST else found[0]
    return EMBEDDED.sub(emptied, text)


def _payloads_of(text, drawing=False):
    """(place, size, status, words) of each kind of payload in a text. drawing: its rows of numbers are curves."""
    data = text.encode(errors="replace")
    dense = [start for start in range(0, len(data), PIECE) if is_dense(data[start:start + PIECE])]
    if dense:
        place = len(data[:dense[0]].decode(errors="ignore"))
        status = FAIL if len(dense) >= PIECES_FAIL else WARN
        yield place, len(dense) * PIECE, status, "bytes that compress like encoded data"
    digits = list(HEX.finditer(text))
    if (count := sum(found.end() - found.start() for found in digits)) > HEX_FAIL:
        yield digits[0].start(), count, FAIL, "hexadecimal digits"
    for numbers in () if drawing else NUMBERS.finditer(text):
        if len(numbers[0]) > 2 * NUMBERS_MOST and len(re.findall(r"\d[\d.e+-]*", numbers[0])) > NUMBERS_MOST:
            status = FAIL if len(numbers[0]) > PIECES_FAIL * PIECE else WARN
            yield numbers.start(), len(numbers[0]), status, "characters of numbers in a row"
            break
    invisible = INVISIBLE.findall(text)
    if len(invisible) > INVISIBLE_MOST:
        yield text.index(invisible[0]), len(invisible), FAIL, "invisible characters"
    if (size := len(zlib.compress(data, 6))) > TEXT_MOST:
        yield 0, size, WARN, "bytes when compressed"


def is_dense(piece):
    """Whether a whole piece of bytes compresses no better than encoded data."""
    return len(piece) == PIECE and len(zlib.compress(piece, 9)) > DENSE * PIECE


def _hidden_in_picture(folder, name, kind):
    try:
        data = folder.read(name, PICTURE_LIMIT)
    except Refused as error:
        yield Finding(WARN, str(error), "a picture", name)
        return
    if not data.startswith(PICTURES[kind]):
        yield Finding(FAIL, f"is not a {kind[1:].upper()} file", "a picture", name)
    elif kind == ".png":
        end, other = _chunks(data)
        if end != len(data):
            yield Finding(FAIL, f"{len(data) - end:,} bytes after the end of the picture", "none", name)
        elif other > CHUNKS_MOST:
            yield Finding(WARN, f"{other:,} bytes that are not pixels", f"at most {CHUNKS_MOST:,}", name)


def _chunks(data):
    """(where a PNG ends, bytes of its chunks without pixels)."""
    place, other = 8, 0
    while place + 12 <= len(data):
        length, kind = int.from_bytes(data[place:place + 4], "big"), data[place + 4:place + 8]
        place += 12 + length
        if kind == b"IEND":
            break
        other += length if kind not in (b"IDAT", b"PLTE", b"IHDR") else 0
    return place, other


def _installs(folder):
    """requirements.txt names packages of the index, not files or repositories, which nobody counts."""
    for number, line in enumerate(folder.text("requirements.txt").splitlines(), 1):
        if not line.lstrip().startswith("#") and ELSEWHERE.search(line.partition(" #")[0].strip()):
            yield Finding(WARN, line.strip()[:100], "a package of the index", f"requirements.txt:{number}")
