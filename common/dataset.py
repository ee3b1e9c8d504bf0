"""A data folder: its shards, tokenizer and manifest, checked against each other and against the settings."""
import hashlib
from collections import namedtuple
from pathlib import Path

from common.batches import TokenStream
from common.files import read_json
from common.settings import UserError
from common.shards import check_ids, find_shards, open_shard
from common.tokenizer import load_tokenizer, locate_tokenizer

MANIFEST_FORMAT = "parity-golf-data 1"
CHALLENGE_NAME = "fineweb10B_"  # begins the name of what `python -m common.data fineweb` downloads

# val_tokens: how many are read in validation; partial: empty, or the label of a validation that is not in full;
# sha256: of length and samples of every shard and of the manifest; overcounted: empty, or why a score is too good;
# warnings: what a run is not refused for
Data = namedtuple("Data", "train val val_tokens partial tokenizer tokenizer_path tokenizer_sha256 manifest_sha256 "
                  "sha256 overcounted warnings")


def open_data(settings):
    """Data of settings.data_path. Raises UserError."""
    folder = Path(settings.data_path)
    train, val = ([open_shard(path) for path in find_shards(folder, split)] for split in ("train", "val"))
    manifest, text = read_manifest(folder)
    _check_shards(folder, manifest, train, val)
    path, tokenizer = _open_tokenizer(folder, manifest, settings)
    for shard in val:
        check_ids(shard, tokenizer.vocab_size, shard.filename)
    sha256 = _sample_digest(text, [*train, *val])
    train, val = TokenStream(train), TokenStream(val)
    if val.length <= settings.train_seq_len:
        raise UserError(f"validation in {folder} has {val.length} tokens, too few for one row and its target: "
                        f"TRAIN_SEQ_LEN={settings.train_seq_len} must be less")
    count = min(settings.val_tokens_limit or val.length, val.length)
    partial = f" partial:{count}/{val.length}" if count < val.length else ""
    named = hashlib.sha256(text).hexdigest() if text else "none"
    overcounted = _overcounted(folder, manifest)
    warnings = [text for text in (overcounted, _unlisted(folder, manifest, train.shards)) if text]
    return Data(train, val, count, partial, tokenizer, path, tokenizer.sha256, named, sha256, overcounted, warnings)


def read_manifest(folder):
    """(dict, bytes) of a folder's manifest.json; ({}, b"") without one. UserError: it is not one of MANIFEST_FORMAT."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}, b""
    found = read_json(path)
    made = found.get("format", MANIFEST_FORMAT)
    if made != MANIFEST_FORMAT:
        raise UserError(f"{path}: is of format {made}, not {MANIFEST_FORMAT}: make the data again, or use newer code")
    try:
        names = [shard["file"] for split in found.get("splits", {}).values() for shard in split["shards"]]
        names += [found["tokenizer"]["file"], found["tokenizer"]["sha256"], found.get("name", "")]
        if isinstance(found.get("source", {}), dict) and all(isinstance(name, str) for name in names):
            return found, path.read_bytes()
    except (LookupError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: is not a data manifest: make the data again")


def _check_shards(folder, manifest, train, val):
    """UserError: not the shards that the manifest lists. More may be trained on, but not scored."""
    splits = manifest.get("splits", {}).values()
    listed = {shard["file"]: shard.get("tokens") for split in splits for shard in split["shards"]}
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]} is missing ({len(missing)} of {len(listed)} shards in manifest.json): "
                        "get the data again")
    for shards, unlisted in ((train, None), (val, "nothing of it")) if listed else ():
        for shard in shards:
            tokens = listed.get(shard.filename.name, unlisted)
            if tokens not in (None, len(shard)):
                raise UserError(f"{shard.filename} has {len(shard)} tokens, manifest.json says {tokens}: "
                                "get the data again, or remove it if it is a copy")


def is_challenge(manifest):
    """Whether a folder is the challenge's downloaded data, whose bytes are counted as published scores count them."""
    return manifest.get("name", "").startswith(CHALLENGE_NAME)


def _overcounted(folder, manifest):
    """Why a score on this validation would be too good, by its manifest; empty where it is not."""
    table = manifest.get("splits", {}).get("val", {})
    counted, text = table.get("bytes"), table.get("text_bytes")
    if isinstance(counted, int) and isinstance(text, int) and counted > text:
        return (f"{folder}/manifest.json counts {counted} bytes of validation, but its text has {text}: scores are too "
                "good; make the data again, with a tokenizer that keeps the text")
    return ""


def _unlisted(folder, manifest, train):
    """A line about the first shard that is trained on but not in the manifest; empty where there are none."""
    listed = [shard["file"] for split in manifest.get("splits", {}).values() for shard in split["shards"]]
    for shard in train if listed else ():
        if shard.filename.name not in listed:
            return f"{shard.filename} is trained on but not named in manifest.json: remove it if it is a copy"
    return ""


def _open_tokenizer(folder, manifest, settings):
    """(path, Tokenizer) that the settings or the manifest name. UserError: neither does, or it is not the shards'."""
    entry, path = manifest.get("tokenizer"), settings.tokenizer_path
    if not entry and not path:
        raise UserError(f"DATA_PATH={folder} has no manifest.json: set TOKENIZER_PATH to the tokenizer of its shards")
    path = path or locate_tokenizer(folder, entry["file"])
    tokenizer = load_tokenizer(path, is_challenge(manifest))
    if entry and entry["sha256"] not in ("", tokenizer.sha256):
        raise UserError(f"tokenizer {path} is not the one of the shards (SHA-256 {tokenizer.sha256[:12]}, in "
                        f"manifest.json {entry['sha256'][:12]}): leave TOKENIZER_PATH empty, or make the data again")
    if settings.vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(f"VOCAB_SIZE={settings.vocab_size}, but tokenizer {path} has {tokenizer.vocab_size} ids: "
                        "leave VOCAB_SIZE unset")
    return path, tokenizer


def _sample_digest(manifest, shards):
    """SHA-256 of the manifest's bytes, and of the length and samples of each shard: all of it would take seconds."""
    whole = hashlib.sha256(manifest)
    for shard in shards:
        whole.update(b"%d" % len(shard))
        for start in range(0, len(shard), max(4096, len(shard) // 64)):
            whole.update(shard[start:start + 4096].tobytes())
        whole.update(shard[-4096:].tobytes())
    return whole.hexdigest()
