"""JSON from a stranger: nothing that two readers could read in two ways."""
import codecs
import json
import math

from records.digits import Decimal

DIGITS_LIMIT = 100  # of a whole number


def load_json(data):
    """The object in bytes of strict JSON: no duplicate keys, no NaN, no infinite number, no control character or lone
    surrogate in a string. Numbers with a fraction become Decimal. Raises ValueError."""
    try:
        value = json.loads(
            data.removeprefix(codecs.BOM_UTF8).decode(), object_pairs_hook=_unique_keys, parse_float=_finite_number,
            parse_int=_whole_number, parse_constant=_no_constant
        )
        _check_text(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _unique_keys(pairs):
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"has the key {name[:60]!r} twice")
        found[name] = value
    return found


def _finite_number(text):
    value = Decimal(text)
    value.text = text
    if not math.isfinite(value):
        raise ValueError(f"holds {text[:40]}, which is not a finite number")
    return value


def _whole_number(text):
    if len(text) > DIGITS_LIMIT:
        raise ValueError(f"holds {text[:20]}..., a number of {len(text):,} digits")
    return int(text)


def _no_constant(text):
    raise ValueError(f"holds {text}, which is not JSON")


def _check_text(value):
    """Raises ValueError for a string, anywhere in a JSON value, that is not text."""
    if isinstance(value, str):
        if any(0xD800 <= ord(c) < 0xE000 or (c < " " and c not in "\t\n\r") for c in value):
            raise ValueError("holds a string with a control character or half of a surrogate pair")
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
