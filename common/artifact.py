"""The submitted model file: weights <-> canonical bytes <-> one zlib stream.

Format 1. The file is one zlib stream (RFC 1950) of a safetensors file of the tensors of quantize.py, in the order of
the safetensors library (dtype, then name). Its header has one metadata key, "parity_golf": JSON with sorted keys and no
spaces, {"format": 1, "settings": {the model's, sparse ones only where they are not the default}}. "levels": {"embed":
"fp16", "matrix": 18.342} names groups whose levels are not 127 (whole numbers without a point). The reader refuses
every payload but the one that these determine.
"""
import json
import zlib

import safetensors.numpy

from common.params import count_params
from common.quantize import MOST_LEVELS, dequantize_weights, quantize_weights
from common.settings import (
    Settings,
    UserError,
    group_levels,
    model_conflicts,
    model_settings,
    parse_setting,
    settings_of,
)
from common.zstream import zlib_encode

MODEL_FORMAT = 1


def pack_payload(settings, stored, levels=None):
    """The canonical uncompressed bytes of the stored tensors; levels: as for quantize_weights."""
    head = {"format": MODEL_FORMAT, "settings": model_settings(settings)}
    other = {group: value if value == "fp16" or value % 1 else int(value)
             for group, value in (levels or group_levels(settings)).items() if value != 127}
    if other:
        head["levels"] = other
    text = json.dumps(head, sort_keys=True, separators=(",", ":"))
    return safetensors.numpy.save(stored, metadata={"parity_golf": text})


def encode_model(settings, weights, levels=None, factors=None):
    """(file bytes, payload bytes) of float32 weights; levels, factors: as for quantize_weights."""
    payload = pack_payload(settings, quantize_weights(settings, weights, levels, factors), levels)
    return zlib_encode(payload), payload


def inflate_bounded(data, limit):
    """The bytes of one whole zlib stream, at most `limit` of them. Raises ValueError."""
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"is not a zlib stream ({error})") from None
    if stream.unconsumed_tail:
        raise ValueError(f"expands to more than {limit} bytes")
    if not stream.eof:
        raise ValueError("is cut short")
    if stream.unused_data:
        raise ValueError(f"has {len(stream.unused_data)} bytes after its end")
    return payload


def read_header(payload):
    """(Settings, dict group -> levels) of a payload. Raises ValueError."""
    try:
        size = min(int.from_bytes(payload[:8], "little"), 1 << 20)
        meta = json.loads(json.loads(payload[8:8 + size])["__metadata__"]["parity_golf"])
        found, given, other = meta["format"], dict(meta["settings"]), dict(meta.get("levels", {}))
    except (LookupError, TypeError, ValueError, RecursionError):
        raise ValueError("has no readable parity_golf header") from None
    if found != MODEL_FORMAT:
        raise ValueError(f"is of format {found}, this program reads {MODEL_FORMAT}")
    fields = settings_of("model")
    if wrong := (given.keys() ^ fields.keys()) - {name for name, field in fields.items() if field.metadata["sparse"]}:
        raise ValueError(f"has settings {sorted(wrong, key=str)} that are missing or unknown")
    for name, value in given.items():
        is_text = isinstance(value, str) and issubclass(fields[name].type, str)
        given[name] = parse_setting(fields[name], value if is_text else repr(value))  # repr: "2" is not a number
    settings = Settings(**given)
    wrong = model_conflicts(settings)
    if not settings.vocab_size:
        wrong.append("VOCAB_SIZE=0")
    if wrong:
        raise ValueError("has settings that cannot be used: " + "; ".join(wrong))
    levels = group_levels(settings)
    for group, value in other.items():
        if group not in levels:
            raise ValueError(f"has levels for {group!r:.40}, which is not one of {', '.join(levels)}")
        if value != "fp16" and not (type(value) in (int, float) and 2 <= value <= MOST_LEVELS):
            raise ValueError(f"has {group} levels that are neither a number from 2 to {MOST_LEVELS} nor fp16")
    return settings, levels | other


def decode_model(data, max_payload=1 << 28):
    """(Settings, float32 weights) of a model file, which may come from anyone: memory is bounded, no code is run.
    Raises UserError."""
    settings, _, _, weights = read_model(data, max_payload)
    return settings, weights


def read_model(data, max_payload=1 << 28):
    """The same, with more: (Settings, dict group -> levels, stored tensors, float32 weights)."""
    try:
        payload = inflate_bounded(data, max_payload)
        settings, levels = read_header(payload)
        if (params := count_params(settings)) > len(payload):
            raise ValueError(f"has {len(payload)} bytes inside, too few for the {params} parameters of its settings")
        stored = safetensors.numpy.load(payload)
        weights = dequantize_weights(settings, stored, levels)
        if pack_payload(settings, stored, levels) != payload:
            raise ValueError("is not in canonical form")
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"the model file {error}: it was damaged or not written by this program") from None
    return settings, levels, stored, weights
