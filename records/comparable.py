"""Which scores can be compared: those on the same validation text."""
from common.published import VAL_BYTES, VAL_BYTES_TOLERANCE, VAL_TOKENS
from records.folder import data_of, on_fineweb
from records.page import plain
from records.rules import TRACKS

# groups of scores that can be compared, besides the names of other data sets
FINEWEB, OTHER_TEXT = "FineWeb", "FineWeb, other validation text"
SEVERAL, UNSTATED = "several data sets", "data not stated"
TOKENS_TOLERANCE = 1e-3  # relative: windows of another length end elsewhere


def score_group(folder, logs):
    """The name of the group of scores with which those of `logs`, some of the folder's, can be compared."""
    names = {plain(data_of(folder, log)).lower()[:80] for log in logs or [None]} - {""}
    if len(names) > 1:
        return SEVERAL
    fineweb = any(on_fineweb(folder, log) for log in logs or [None])
    if fineweb or (not names and folder.track == TRACKS["10min"]):
        return OTHER_TEXT if any(map(_other_text, logs)) else FINEWEB
    return names.pop() if names else UNSTATED


def _other_text(log):
    """Whether a log of a run on FineWeb says that it scored another text than the validation split: other bytes, a part
    of it, or, with a published tokenizer, another number of tokens."""
    if log.val_bytes:
        return bool(log.partial) or abs(log.val_bytes / VAL_BYTES - 1) > VAL_BYTES_TOLERANCE
    published = VAL_TOKENS.get(log.dataset.rpartition("_")[2].lower())
    off = abs(log.val_tokens / published - 1) if published and log.val_tokens else 0.0
    return bool(log.partial) or off > TOKENS_TOLERANCE
