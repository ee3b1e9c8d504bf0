"""A data folder: its shards, tokenizer and manifest, checked against each other and against the settings."""
import hashlib
import json
from collections import namedtuple
from pathlib import Path

from common.batches import TokenStream
from common.settings import UserError
from common.shards import check_ids, find_shards, open_shard
from common.tokenizer import load_tokenizer

# val_tokens: how many are read in validation; partial: empty, or the label of a validation that is not in full;
# sha256: of length and samples of every shard and of the manifest
Data = namedtuple("Data", "train val val_tokens partial tokenizer tokenizer_path tokenizer_sha256 manifest_sha256 sha256")


def open_data(settings):
    """Data of settings.data_path. Raises UserError."""
    folder = Path(settings.data_path)
    train, val = ([open_shard(path) for path in find_shards(folder, split)] for split in ("train", "val"))
    file, manifest, named, promised = folder / "manifest.json", b"", "", ""
    if file.is_file():
        manifest = file.read_bytes()
        try:
            found = json.loads(manifest)
            named, promised = (str(found["tokenizer"][key]) for key in ("file", "sha256"))
            listed = {str(shard["file"]): shard.get("tokens") for split in found.get("splits", {}).values() for shard in split["shards"]}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{file} is no data manifest: make the data again") from None
        if missing := [name for name in listed if not (folder / name).is_file()]:
            raise UserError(f"{folder / missing[0]} is missing ({len(missing)} of {len(listed)} shards that {file.name} names): get the data again")
        for shards, unlisted in ((train, None), (val, 0)) if listed else ():  # more may be trained on than it names, but not scored
            for shard in shards:
                name = Path(shard.filename).name
                if listed.get(name, unlisted) not in (None, len(shard)):
                    raise UserError(f"{shard.filename} has {len(shard)} tokens, {file.name} says {listed.get(name, 'nothing of it')}: "
                                    "get the data again")
    path = settings.tokenizer_path or (named if named in ("", "bytes") else str(folder / named))
    if not path:
        raise UserError(f"DATA_PATH={folder} has no manifest.json: set TOKENIZER_PATH to the tokenizer of its shards")
    tokenizer = load_tokenizer(path)
    digest = hashlib.sha256(b"bytes" if path == "bytes" else Path(path).read_bytes()).hexdigest()
    if promised not in ("", digest):
        raise UserError(f"tokenizer {path} is not the one of the shards (SHA-256 {digest[:12]}, in {file} {promised[:12]}): "
                        "leave TOKENIZER_PATH empty, or make the data again")
    if settings.vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(f"VOCAB_SIZE={settings.vocab_size}, but tokenizer {path} has {tokenizer.vocab_size} ids: leave VOCAB_SIZE unset")
    for shard in val:
        check_ids(shard, tokenizer.vocab_size, shard.filename)
    whole = hashlib.sha256(manifest)
    for shard in [*train, *val]:
        whole.update(b"%d" % len(shard))
        for start in range(0, len(shard), max(4096, len(shard) // 64)):  # a sample: all of it would take seconds
            whole.update(shard[start:start + 4096].tobytes())
        whole.update(shard[-4096:].tobytes())
    train, val = TokenStream(train), TokenStream(val)
    if val.length <= settings.train_seq_len:
        raise UserError(f"validation in {folder} has {val.length} tokens, too few for one row and its target: "
                        f"TRAIN_SEQ_LEN={settings.train_seq_len} must be less")
    count = min(settings.val_tokens_limit or val.length, val.length)
    partial = f" partial:{count}/{val.length}" if count < val.length else ""
    named = hashlib.sha256(manifest).hexdigest() if manifest else "none"
    return Data(train, val, count, partial, tokenizer, path, digest, named, whole.hexdigest())
