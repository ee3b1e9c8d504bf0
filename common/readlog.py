"""The parser of the lines in runlog.py, for those who read logs: the verifier and the tests."""
import re
import string
from functools import cache

from common.runlog import LOG_LINES

_FORMS = {  # last letter of a field's format: pattern, type
    "d": (r"-?\d{1,18}", int),
    "f": (r"-?\d{1,18}(?:\.\d{1,18})?|nan|-?inf", float),
    "s": (r"\S+", str),
    "*": (r".*", str),
}


@cache
def _line_pattern(kind):
    """(compiled pattern, dict field -> type) of the lines of one kind."""
    pattern, types = "", {}
    for text, name, form, _ in string.Formatter().parse(LOG_LINES[kind]):
        pattern += re.escape(text)
        if name:
            shape, types[name] = _FORMS[form[-1]]
            pattern += f"(?P<{name}>{shape})"
    return re.compile(pattern), types


def parse_line(line):
    """(kind, dict of typed values), or None for a line that no run prints."""
    if len(line) > 100_000:
        return None
    for kind in LOG_LINES:
        pattern, types = _line_pattern(kind)
        if match := pattern.fullmatch(line):
            return kind, {name: types[name](value) for name, value in match.groupdict().items()}
    return None


def parse_log(text):
    """list of (kind, values) of the known lines of a log."""
    return [known for known in map(parse_line, text.splitlines()) if known]
