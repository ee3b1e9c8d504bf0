"""Windows of a data folder as text, with the borders of the tokens."""

import numpy as np

from common.data.folder import DataFolder, add_folder, where
from common.settings import UserError


def add_command(subparsers) -> None:
    parser = subparsers.add_parser("samples", help="decoded windows of the shards, with token borders")
    add_folder(parser)
    parser.add_argument("--split", choices=("train", "val"), default="val", help="(default: %(default)s)")
    parser.add_argument("--shard", type=int, help="number of the shard, from 0 (default: any)")
    parser.add_argument("--at", type=int, help="first token of the window (default: random)")
    parser.add_argument("--windows", type=int, default=3, help="how many, consecutive with --at (default: %(default)s)")
    parser.add_argument("--length", type=int, default=100, help="tokens per window (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random places (default: %(default)s)")
    parser.set_defaults(run=run)


def show_character(character: str) -> str:
    if character == "|":
        return r"\|"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def show_tokens(tokenizer, ids) -> str:
    """ids (tokens,) between bars, each document on a line of its own. Control characters, bars and parts of characters
    are escaped."""
    shown = ""
    for i in ids.tolist():
        if i == tokenizer.bos_id:
            shown += "\n<BOS>"
        elif i >= tokenizer.vocab_size:
            shown += f"|<id {i}>"
        elif not tokenizer.token_bytes[i]:
            shown += f"|<control {i}>"
        else:
            text = tokenizer.token_bytes[i].decode(errors="backslashreplace")
            shown += "|" + "".join(map(show_character, text))
    return shown.removeprefix("\n")


def run(options) -> None:
    """UserError: there is no such place."""
    folder = DataFolder(options.folder, options.tokenizer)
    stream = folder.stream(options.split)
    first, end = 0, stream.length
    if options.shard is not None:
        if not 0 <= options.shard < len(stream.shards):
            raise UserError(f"--shard {options.shard}: {options.split} has shards 0 to {len(stream.shards) - 1}")
        end = stream.ends[options.shard]
        first = end - len(stream.shards[options.shard])
    if options.windows < 1 or options.length < 1:
        raise UserError(f"--windows {options.windows} --length {options.length}: both are at least 1")
    length = min(options.length, end - first)
    if options.at is None:
        starts = np.sort(np.random.default_rng(options.seed).integers(first, end - length + 1, options.windows))
    else:
        if not 0 <= options.at < end - first:
            raise UserError(f"--at {options.at}: there are {end - first:,} tokens")
        starts = range(first + options.at, min(end, first + options.at + options.windows * length), length)
    for start in starts:
        ids = stream.read(int(start), min(length, end - int(start)))
        print(f"--- {where(stream, int(start))}, {len(ids)} tokens", show_tokens(folder.tokenizer, ids), sep="\n")
