"""The model file: `python -m pytest tests/common/test_artifact.py`."""
import dataclasses
import hashlib
import json
import random
import tracemalloc
import zlib

import numpy as np
import pytest

from common.artifact import decode_model, encode_model, read_model
from common.params import initial_weights, param_table
from common.quantize import dequantize_weights, quantize_weights
from common.settings import Settings, UserError, model_settings
from common.zstream import zlib_encode

TINY = Settings(vocab_size=11, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1, train_seq_len=16,
                rope_base=500.0, tie_embeddings=False)
META = ('{"format":1,"settings":{"logit_softcap":30.0,"mlp_mult":2,"model_dim":8,"num_heads":2,"num_kv_heads":1,'
        '"num_layers":2,"rms_norm_eps":1e-06,"rope_base":500.0,"tie_embeddings":false,'
        '"train_seq_len":16,"vocab_size":11}}')


def made_weights(settings):
    """Multiples of 2**-24 from raw integers, the same on every machine. The first row of each matrix is zero."""
    weights = {}
    for name, p in param_table(settings).items():
        words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(p.shape))).reshape(p.shape)
        weights[name] = (words >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
        if p.group != "scalar":
            weights[name][0] = 0
    return weights


WEIGHTS = made_weights(TINY)


@pytest.fixture(scope="module")
def model():
    """(file, header as text, tensor bytes)"""
    file, payload = encode_model(TINY, WEIGHTS)
    size = int.from_bytes(payload[:8], "little")
    return file, payload[8:8 + size].decode(), payload[8 + size:]


def wrap(header, body):
    """A model file with any header and body."""
    header = header if isinstance(header, bytes) else header.encode()
    return zlib_encode(len(header).to_bytes(8, "little") + header + body)


def padded(header):
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    return text + " " * (-len(text.encode()) % 8)


def refused(file, words=None, **limits):
    with pytest.raises(UserError, match=words) as error:
        decode_model(file, **limits)
    assert str(error.value).startswith("the model file ")


def same(a, b):
    return [*a] == [*b] and all(a[name].tobytes() == b[name].tobytes() and a[name].dtype == b[name].dtype for name in a)


# what is written ------------------------------------------------------------------------------------------------------


def test_golden_bytes(model):
    file, header, body = model
    payload = len(header).to_bytes(8, "little") + header.encode() + body
    assert hashlib.sha256(payload).hexdigest() == "c8ae0ad17ce07d72c13b01eabbd58efe1cbd036c2eb7b66e4635d516d2458ae6"
    assert hashlib.sha256(file).hexdigest() == "cc09b214ce2e5ab2f61a544e78a4430fd16d06078571a1746024940bc2a13369"


def test_the_format_as_described(model):
    file, header, body = model
    payload = zlib.decompress(file)
    assert int.from_bytes(payload[:8], "little") == len(header) and len(header) % 8 == 0 and payload.endswith(body)
    tensors = json.loads(header)
    assert tensors.pop("__metadata__") == {"parity_golf": META}
    stored = quantize_weights(TINY, WEIGHTS)
    assert set(tensors) == set(stored)
    rank = {"F32": 0, "F16": 1, "I8": 2}
    assert [*tensors] == sorted(tensors, key=lambda name: (rank[tensors[name]["dtype"]], name))
    end = 0
    for name, tensor in tensors.items():
        start, stop = tensor["data_offsets"]
        assert start == end and body[start:stop] == stored[name].tobytes() and tensor["shape"] == [*stored[name].shape]
        end = stop
    assert end == len(body)


@pytest.mark.parametrize("settings", [
    TINY, Settings(vocab_size=5, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1),
    dataclasses.replace(TINY, train_seq_len=999_999),  # fits no default batch, which is not part of a model
])
def test_round_trip(settings):
    weights = made_weights(settings)
    file, payload = encode_model(settings, weights)
    read, found = decode_model(file, max_payload=len(payload))
    assert model_settings(read) == model_settings(settings)
    assert same(found, dequantize_weights(settings, quantize_weights(settings, weights)))


def test_equal_weights_give_equal_bytes(model):
    """Whatever the order of the dict, the layout in memory, or the wider dtype of reference mode."""
    for change in (np.array, np.asfortranarray, np.float64, lambda w: np.repeat(w, 2, axis=-1)[..., ::2]):
        assert encode_model(TINY, {name: change(WEIGHTS[name]) for name in reversed(WEIGHTS)})[0] == model[0]


def test_settings_outside_the_model_leave_no_trace(model):
    other = dataclasses.replace(TINY, seed=1, iterations=5, compute_dtype="float64", data_path="elsewhere")
    assert encode_model(other, WEIGHTS)[0] == model[0]
    assert encode_model(dataclasses.replace(TINY, rope_base=501.0), WEIGHTS)[0] != model[0]


def test_the_deepest_model_fits_the_header():
    deep = dataclasses.replace(TINY, num_layers=256, model_dim=4)
    decode_model(encode_model(deep, initial_weights(deep))[0])


@pytest.mark.parametrize("levels, words", [
    ({"matrix": 5, "embed": 5, "head": 5}, '"levels":{"embed":5,"head":5,"matrix":5},'),
    ({"matrix": 18.342, "embed": "fp16", "head": 127}, '"levels":{"embed":"fp16","matrix":18.342},'),
    ({"matrix": 127, "embed": 300.0, "head": 2}, '"levels":{"embed":300,"head":2},'),
    ({"matrix": 127, "embed": 127, "head": 127}, ""),
])
def test_levels_are_in_the_header_where_they_are_not_127(levels, words):
    file, payload = encode_model(TINY, WEIGHTS, levels)
    meta = json.loads(payload[8:8 + int.from_bytes(payload[:8], "little")])["__metadata__"]["parity_golf"]
    assert meta == META.replace('"settings"', words + '"settings"', 1)
    settings, found, _, weights = read_model(file)
    assert found == levels and model_settings(settings) == model_settings(TINY)
    assert same(weights, dequantize_weights(TINY, quantize_weights(TINY, WEIGHTS, levels), levels))


# untrusted files ------------------------------------------------------------------------------------------------------


def test_truncated(model):
    file = model[0]
    for size in [*range(0, len(file), 37), *range(len(file) - 8, len(file))]:
        refused(file[:size], "is cut short")


def test_flipped_bits(model):
    """The padding bits between the last code and the checksum mean nothing; a change of any other bit is caught."""
    file, padding = model[0], len(model[0]) - 5
    places = [*range(8 * 40), *range(8 * 40, 8 * len(file), 13), *range(8 * padding, 8 * len(file))]
    for bit in places:
        changed = bytearray(file)
        changed[bit // 8] ^= 1 << bit % 8
        if bit // 8 == padding and zlib.decompressobj().decompress(changed[:-4]) == zlib.decompress(file):
            continue
        refused(bytes(changed))


def test_bytes_after_the_end(model):
    refused(model[0] + b"\0", "has 1 bytes after its end")
    refused(model[0] * 2, "bytes after its end")


def test_a_bomb_is_refused_in_bounded_memory():
    bomb = zlib.compress(bytes(1 << 26), 9)
    tracemalloc.start()
    refused(bomb, "expands to more than 1000000 bytes", max_payload=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_the_limit_is_inclusive(model):
    size = len(zlib.decompress(model[0]))
    decode_model(model[0], max_payload=size)
    refused(model[0], f"expands to more than {size - 1} bytes", max_payload=size - 1)


def test_what_is_not_a_zlib_stream():
    refused(b"PK\3\4" * 9, "is not a zlib stream")
    refused(b"\x78\xbb" + bytes(20), "is not a zlib stream")  # asks for a dictionary
    refused(b"", "is cut short")


@pytest.mark.parametrize("payload", [
    b"", bytes(8), b"\xff" * 8, b"\2" + bytes(7), b"\2" + bytes(7) + b"{}", b"\2" + bytes(7) + b"[]",
    b"\3" + bytes(7) + b"\xff\xfe{", b"\2" + bytes(7) + b"10",
    b"\0\0\x10" + bytes(5) + b"[" * (1 << 20), (1 << 21).to_bytes(8, "little") + b" " * (1 << 21),
])
def test_what_has_no_header(payload):
    refused(zlib_encode(payload), "header")


@pytest.mark.parametrize("meta", [
    "", "1", "null", "[]", "{", "[" * 50_000, '{"format":1}', '{"settings":{}}', '{"format":1,"settings":[]}',
    '{"format":1,"settings":7}', '{"format":1,"settings":{}}', '{"format":1,"settings":"abc"}',
    '{"format":1,"settings":[["a"],1]}', '{"format":1,"settings":[[1,2]]}', '{"format":{},"settings":{}}',
    '{"format":' + "1" * 5000 + ',"settings":{}}', META.replace('"format":1', '"format":"1"'),
    META.replace('"format":1', '"format":1.0'), META.replace('"format":1', '"format":true'),
    META.replace('"format":1,', ""), json.dumps({"format": 1, "settings": [*json.loads(META)["settings"]]}),
    META.replace(":", ": "), META + " ", META.replace('"mlp_mult":2', '"mlp_mult":3,"mlp_mult":2'),
    META.replace("500.0", "500.00"), META.replace("500.0", "5e2"),
    META.replace('"mlp_mult"', '"mlp\\u005fmult"'), '{"settings":{}' + META[1:],
])
def test_other_metadata(model, meta):
    _, header, body = model
    assert meta != META
    refused(wrap(padded(json.loads(header) | {"__metadata__": {"parity_golf": meta}}), body))


@pytest.mark.parametrize("old, new, words", [
    ('"format":1', '"format":2', "is of format 2, this program reads 1"),
    ('"mlp_mult":2,', "", r"has settings \['mlp_mult'\] that are missing or unknown"),
    ('"mlp_mult":2', '"mlp_mult":2,"seed":1', r"has settings \['seed'\] that are missing or unknown"),
])
def test_another_version(model, old, new, words):
    _, header, body = model
    refused(wrap(padded(json.loads(header) | {"__metadata__": {"parity_golf": META.replace(old, new)}}), body), words)


@pytest.mark.parametrize("levels, words", [
    ('{"matrix":4}', "beyond its 4 levels"), ('{"matrix":127}', "canonical"), ("{}", "canonical"),
    ('{"matrix":5.0}', "canonical"), ('{"matrix":5.00}', "canonical"), ('[["matrix",5]]', "canonical"),
    ('{"matrix":1.9}', "number"), ('{"matrix":32768}', "number"), ('{"matrix":"auto"}', "number"),
    ('{"matrix":true}', "number"), ('{"matrix":null}', "number"), ('{"matrix":NaN}', "number"),
    ('{"matrix":1e999}', "number"), ('{"matrix":1%s}' % ("0" * 400), "number"), ('{"matrix":[5]}', "number"),
    ('{"scalar":5}', "scalar"), ('{"matrix":5,"x":5}', "'x'"), ("5", "header"), ("null", "header"),
    ('{"matrix":"fp16"}', "tensor"), ('{"matrix":300}', "tensor"),
])
def test_other_levels(levels, words):
    groups = {"matrix": 5, "embed": 127, "head": 127}
    payload = encode_model(TINY, WEIGHTS, groups)[1]
    size = int.from_bytes(payload[:8], "little")
    tensors, body = json.loads(payload[8:8 + size]), payload[8 + size:]
    meta = tensors["__metadata__"]["parity_golf"]
    decode_model(wrap(padded(tensors), body))
    changed = meta.replace('{"matrix":5}', levels)
    assert changed != meta
    refused(wrap(padded(tensors | {"__metadata__": {"parity_golf": changed}}), body), words)


@pytest.mark.parametrize("name, value, words", [
    ("num_layers", 0, "NUM_LAYERS=0 is not a whole number from 1 to 256"), ("num_layers", 257, "NUM_LAYERS=257 is not"),
    ("num_layers", -2, "whole number"), ("num_layers", True, "whole number"), ("num_layers", 2.0, "whole number"),
    ("num_layers", "2", "whole number"), ("num_layers", None, "whole number"),
    ("num_layers", [2], "whole number"), ("num_layers", 10**400, "whole number"),
    ("tie_embeddings", 0, "canonical"), ("rope_base", 500, "canonical"),
    ("rope_base", float("nan"), "number"), ("logit_softcap", float("inf"), "number"),
    ("logit_softcap", 0.0, "number"), ("num_heads", 3, "must be a multiple of NUM_HEADS=3"),
    ("num_kv_heads", 256, "must be a multiple of NUM_KV_HEADS=256"), ("model_dim", 6, "must be even"),
    ("num_layers", 256, "too few for the"), ("model_dim", 16384, "too few for the"),
    ("vocab_size", 65536, "too few for the"), ("num_layers", 1, "tensor"),
    ("tie_embeddings", True, "tensor lm_head.weight"), ("vocab_size", 12, "tensor"), ("mlp_mult", 1, "tensor"),
])
def test_other_settings(model, name, value, words):
    _, header, body = model
    meta = json.loads(META)
    meta["settings"][name] = value
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    refused(wrap(padded(json.loads(header) | {"__metadata__": {"parity_golf": text}}), body), words)


def swapped(header):
    """The header with its first two float16 tensors, which have the same size, swapped."""
    tensors = list(json.loads(header).items())
    i = next(i for i, (_, tensor) in enumerate(tensors)
             if tensor.get("dtype") == "F16" and tensor["shape"] == tensors[i + 1][1]["shape"])
    (a, first), (b, second) = tensors[i:i + 2]
    tensors[i:i + 2] = [(b, first), (a, second)]
    return padded(dict(tensors))


def replaced(header, name, **change):
    tensors = json.loads(header)
    tensors[name] = tensors.get(name, {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}) | change
    return padded(tensors)


@pytest.mark.parametrize("spell, words", [
    (lambda h, b: (swapped(h), b), "canonical"),
    (lambda h, b: (padded(dict(sorted(json.loads(h).items()))), b), "canonical"),
    (lambda h, b: (padded(h.replace('"__metadata__":{', '"__metadata__":{"more":"",')), b), "canonical"),
    (lambda h, b: (padded(h.replace("{", '{"skip_weights":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},', 1)), b),
     None),
    (lambda h, b: (padded(h.replace('"shape":[11,8]', '"shape":[1,8],"shape":[11,8]')), b), None),
    (lambda h, b: (padded(h.replace(",", ", ")), b), "canonical"),
    (lambda h, b: (h + " " * 8, b), "canonical"),
    (lambda h, b: (h + " ", b), "canonical"),  # the data is no longer aligned
    (lambda h, b: (" " + h, b), None),
    (lambda h, b: (h.encode("utf-16"), b), None),
    (lambda h, b: (h, b + b"\0"), None),
    (lambda h, b: (h, b[:-1]), None),
    (lambda h, b: (replaced(h, "extra", data_offsets=[len(b)] * 2), b), "tensor extra"),
    (lambda h, b: (replaced(h, "extra", data_offsets=[len(b)] * 2, shape=[0, 2**63]), b), None),
    (lambda h, b: (replaced(h, "extra", data_offsets=[len(b)] * 2, shape=[0] * 70), b), None),
    (lambda h, b: (replaced(h, "extra", data_offsets=[len(b)] * 2, dtype="BF16"), b), None),
    (lambda h, b: (replaced(h, "tok_emb.weight", dtype="U8"), b), "tensor tok_emb.weight"),
    (lambda h, b: (replaced(h, "tok_emb.weight", dtype="F8_E4M3"), b), None),
    (lambda h, b: (replaced(h, "tok_emb.weight", shape=[8, 11]), b), "tensor tok_emb.weight"),
    (lambda h, b: (replaced(h, "tok_emb.weight", shape=[2**63, 88]), b), None),
    (lambda h, b: (replaced(h, "tok_emb.weight", data_offsets=[0, 88]), b), None),
    (lambda h, b: (padded({k: v for k, v in json.loads(h).items() if k != "tok_emb.weight"}), b), None),
    (lambda h, b: (h, b"\xff" * 4 + b[4:]), "not finite"),
])
def test_other_spellings(model, spell, words):
    _, header, body = model
    spelled = spell(header, body)
    assert spelled != (header, body)
    refused(wrap(*spelled), words)


def test_random_damage_below_the_checksum(model):
    """Random edits of the header, compressed again, are refused with UserError and no other exception."""
    _, header, body = model
    choose = random.Random(0)
    for _ in range(1000):
        text = bytearray(header.encode())
        for _ in range(choose.randint(1, 3)):
            place = choose.randrange(len(text))
            pieces = [b"", b"0", b"9" * 20, b"[", b'"', b"-", b"1e9", b"null", b"\\ud800", b"\xff"]
            text[place:place + choose.randint(0, 4)] = choose.choice(pieces)
        if bytes(text) != header.encode():
            refused(zlib.compress(len(text).to_bytes(8, "little") + text + body, 1))
