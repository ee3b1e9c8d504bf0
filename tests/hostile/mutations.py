"""Seeded changes of valid samples for campaign.py: bytes, JSON, text and safetensors files. r: a random.Random."""
import json

NUMBERS = [0, 1, 2, 3, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63,
           2**64 - 1]
VALUES = [None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "1", "\0", "\ud800",
          [], {}, [[]], {"a": 1}, "x" * 300]
WORDS = ["nan", "inf", "-inf", "-0", "1e999", "0x10", "1_000", "\u0663", "\u2028", "\0", " ", "  ", "\t", "true", "=",
         "--", "{", "}", "9" * 30, "9" * 5000, "None", "\ud800", "\U0010ffff", ":", "/", "."]


def mutated(r, sample, times=4):
    """bytes with one to `times` changes: bits, bytes or numbers set, and pieces cut, repeated, inserted or copied."""
    data = bytearray(sample)
    for _ in range(1 + int(r.random() * times)):
        n = len(data)
        at = int(r.random() * n) if n else 0
        how = int(r.random() * 9)
        if how < 2 and n:
            data[at] ^= 1 << int(r.random() * 8)
        elif how == 2 and n:
            data[at] = int(r.random() * 256)
        elif how == 3:
            width = r.choice((1, 2, 4, 8))
            number = r.choice(NUMBERS) & (1 << 8 * width) - 1
            data[at:at + width] = number.to_bytes(width, r.choice(("little", "big")))
        elif how == 4:
            del data[at:at + 1 + int(r.random() ** 3 * n)]
        elif how == 5:
            data[at:at] = data[at:at + 1 + int(r.random() ** 3 * 64)] * (1 + int(r.random() * 3))
        elif how == 6:
            data[at:at] = bytes(int(r.random() * 256) for _ in range(1 + int(r.random() * 6)))
        elif how == 7:
            del data[at:]
        else:
            other = int(r.random() * n) if n else 0
            data[at:at + 8] = data[other:other + 8]
    return bytes(data)


def mutated_json(r, value):
    """A copy of parsed JSON in which one value or key is replaced, removed or added."""
    if isinstance(value, dict) and value and r.random() < 0.9:
        copy, key = dict(value), r.choice([*value])
        how = r.random()
        if how < 0.7:
            copy[key] = mutated_json(r, copy[key])
        elif how < 0.8:
            del copy[key]
        elif how < 0.9:
            copy[r.choice(WORDS)] = copy.pop(key)
        else:
            copy[r.choice(WORDS)] = copy[key]
        return copy
    if isinstance(value, list) and value and r.random() < 0.8:
        copy = list(value)
        at = int(r.random() * len(copy))
        copy[at] = mutated_json(r, copy[at])
        return copy
    if isinstance(value, int) and r.random() < 0.5:
        return value + r.choice((-1, 1, 8, -value, value, 10**9))
    return r.choice(VALUES)


def mutated_text(r, text):
    """text in which characters are removed, repeated or replaced, or words inserted. It may hold lone surrogates, as
    command lines and environments do."""
    for _ in range(1 + int(r.random() * 3)):
        at, end = int(r.random() * (len(text) + 1)), int(r.random() * 12)
        how = int(r.random() * 4)
        piece = (r.choice(WORDS), chr(int(r.random() * 0x3000)), text[at:at + end] * 2, "")[how]
        text = text[:at] + piece + text[at + (how > 0) * end:]
    return text


def repacked(header, body):
    """Bytes of a safetensors file with any header (a JSON value) and body."""
    text = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def unpacked(data):
    """(header dict, body) of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + size]), data[8 + size:]


def mutated_tensors(r, header, body, key):
    """A safetensors file with a change in its body, its header, the JSON inside its header, or anywhere."""
    how = r.random()
    if how < 0.2:
        return repacked(header, mutated(r, body))
    if how < 0.5:
        return repacked(mutated_json(r, header), body)
    if how < 0.8:
        meta = json.dumps(mutated_json(r, json.loads(header["__metadata__"][key])))
        return repacked(header | {"__metadata__": {key: meta}}, body)
    return mutated(r, repacked(header, body))
