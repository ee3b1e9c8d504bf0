"""Malformed input for every reader of untrusted bytes: `python -m tests.hostile.campaign --inputs 10000000` prints
totals.

An input is a valid sample with a few seeded mutations that know its structure. A reader returns a valid result or
raises its own error. Anything else is a finding: it is written to tests/hostile/found/, and `python -m pytest
tests/hostile/test_readers.py` tries it from then on. Inputs are made in blocks, each from the seed "TARGET BLOCK", so
that any of them can be made again. Each target is read in its own process with limited memory; a process that dies or
hangs is a finding too.
"""
import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import sentencepiece

from common.artifact import decode_model, encode_model, inflate_bounded
from common.checkpoint import decode_checkpoint, write_checkpoint
from common.data.folder import write_shard
from common.params import initial_weights
from common.readlog import parse_line
from common.runlog import LOG_LINES, log_line
from common.settings import Settings, UserError, load_settings
from common.shards import SHARD_MAGIC, check_ids, open_shard
from common.tokenizer import load_tokenizer
from common.zstream import zlib_encode
from records.folder import Folder, declared_seeds, take_fields
from records.strict_json import load_json
from tests.hostile.mutations import NUMBERS, WORDS, mutated, mutated_json, mutated_tensors, mutated_text, unpacked

FINDINGS = Path(__file__).with_name("found")
BLOCK = 10_000  # inputs made from one seed
MEMORY = 1 << 30  # bytes that a reader may use beyond what its process has at the start
BLOCK_SECONDS = 300  # a block takes about a second


# targets: make(r) returns an input; read(input) raises if it is not valid ---------------------------------------------


class Shard:
    """shards.py: a header of three numbers that must fit the file's length, then ids."""
    errors = (UserError,)

    def __init__(self, folder):
        self.path = Path(folder) / "hostile_train_0.bin"
        write_shard(self.path, range(64))
        self.sample = self.path.read_bytes()
        self.file = open(self.path, "r+b", buffering=0)  # noqa: SIM115

    def make(self, r):
        how = r.random()
        if how < 0.5:
            numbers = [SHARD_MAGIC, 1, 64]
            numbers[int(r.random() * 3)] = r.choice(NUMBERS) if how < 0.3 else int(r.random() * 128)
            data = struct.pack("<3I", *(number & 0xFFFFFFFF for number in numbers)) + self.sample[12:]
            return data[:int(r.random() * 200) + 1000] if how > 0.4 else data
        return mutated(r, self.sample)

    def read(self, data):
        self.file.truncate(0)
        os.pwrite(self.file.fileno(), data, 0)
        tokens = open_shard(self.path)
        assert len(tokens) == int.from_bytes(data[8:12], "little") and len(data) == 1024 + 2 * len(tokens)
        check_ids(tokens, 64, "it")
        assert tokens.max() < 64


class Artifact:
    """artifact.py: the model file."""
    errors = (UserError,)

    def __init__(self, folder):
        settings = Settings(vocab_size=2, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, train_seq_len=4,
                            mlp_mult=1)
        self.samples = []
        for levels in (127, 127, 2, 5.5, 300, "fp16"):
            file, payload = encode_model(settings, initial_weights(settings),
                                         {"matrix": levels, "embed": 127 if levels == 5.5 else levels})
            self.samples.append((file, *unpacked(payload)))

    def make(self, r):
        file, header, body = r.choice(self.samples)
        if r.random() < 0.3:
            return mutated(r, file)
        return zlib.compress(mutated_tensors(r, header, body, "parity_golf"), 0)

    def read(self, data):
        settings, weights = decode_model(data, 1 << 20)
        assert all(np.isfinite(weight).all() for weight in weights.values())
        assert settings.model_dim >= 4 and settings.vocab_size


class Inflate:
    """artifact.py: one zlib stream of bounded size."""
    errors = (ValueError,)

    def __init__(self, folder):
        text = bytes(range(256)) + b"parity" * 60
        self.samples = [*(zlib.compress(text, level) for level in (0, 1, 9)), zlib_encode(text), zlib_encode(b""),
                        zlib.compress(bytes(1 << 20), 9)]

    def make(self, r):
        data = r.choice(self.samples)
        if r.random() < 0.5:
            return mutated(r, data) + (r.choice(self.samples) if r.random() < 0.05 else b"")
        stream, inner = mutated(r, data[2:-4], 2), zlib.decompressobj(-15)  # with the checksum of what it expands to
        try:
            return data[:2] + stream + zlib.adler32(inner.decompress(stream, 1 << 13)).to_bytes(4, "big")
        except zlib.error:
            return data[:2] + stream + data[-4:]

    def read(self, data):
        assert len(inflate_bounded(data, 1 << 12)) <= 1 << 12


class RunLog:
    """runlog.py: a line of a log."""
    errors = ()

    def __init__(self, folder):
        self.samples = []
        for kind, template in LOG_LINES.items():
            names = [part.split("}")[0].split(":") for part in template.split("{")[1:]]
            values = {name: 3 if form == "d" else 1.5 if form.endswith("f") else "word" for name, form in names}
            self.samples.append(log_line(kind, **values))

    def make(self, r):
        line = mutated_text(r, r.choice(self.samples))
        return line * 2000 if r.random() < 0.0005 else line

    def read(self, line):
        found = parse_line(line)
        if found is None:
            raise Refused
        kind, values = found
        assert kind in LOG_LINES and all(type(value) in (int, float, str) for value in values.values())


class TokenizerModel:
    """tokenizer.py: a SentencePiece model, a protocol buffer of pieces (text, score, type) and settings."""
    errors = (UserError,)

    def __init__(self, folder):
        self.path = Path(folder) / "hostile.model"
        pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("\u2581", 1), ("a", 1), ("b", 1), ("\u2581a", 1), ("ab", 1),
                  ("\u2581b", 4)]
        self.fields = []
        for i, (text, kind) in enumerate(pieces):
            score, type_ = self.field(2, struct.pack("<f", -i), 5), self.field(3, bytes([kind]), 0)
            self.fields.append(self.field(1, self.field(1, text.encode()) + score + type_))
        # trainer: unigram, 9 ids; normalizer: identity, with a marker before the text
        self.fields.append(self.field(2, b"\x18\x01\x20\x09"))
        self.fields.append(self.field(3, self.field(1, b"identity") + b"\x18\x01\x20\x01"))
        model = sentencepiece.SentencePieceProcessor()
        model.LoadFromSerializedProto(b"".join(self.fields))
        assert model.vocab_size() == 9
        self.file = open(self.path, "w+b", buffering=0)  # noqa: SIM115

    @staticmethod
    def field(number, data, wire=2):
        return bytes([number << 3 | wire]) + (bytes([len(data)]) if wire == 2 else b"") + data

    def make(self, r):
        fields, how = list(self.fields), r.random()
        at = int(r.random() * len(fields))
        if how < 0.5:  # the length of the changed field stays right
            fields[at] = self.field(fields[at][0] >> 3, mutated(r, fields[at][2:])[:127])
        elif how < 0.6:
            fields[at] *= int(r.random() * 4)
        elif how < 0.7:
            r.shuffle(fields)
        else:
            return mutated(r, b"".join(fields))
        return b"".join(fields)

    def read(self, data):
        self.file.truncate(0)
        os.pwrite(self.file.fileno(), data, 0)
        tokenizer = load_tokenizer(self.path)
        assert 0 < tokenizer.vocab_size <= 65536 and len(tokenizer.byte_counts) == tokenizer.vocab_size


class SettingsTarget:
    """settings.py: flags and environment."""
    errors = (UserError,)

    def __init__(self, folder):
        self.names = [*Settings.__dataclass_fields__]
        self.samples = [f"--{name.replace('_', '-')}={getattr(Settings, name)}" for name in self.names]

    def make(self, r):
        flags, how = [r.choice(self.samples), r.choice(self.samples)], r.random()
        name, value = r.choice(self.samples).split("=")
        if how < 0.3:
            flags.append(mutated_text(r, flags[0]))
        elif how < 0.7:
            flags.append(f"{name}={r.choice(WORDS) if how < 0.5 else r.choice(NUMBERS)}")
        return flags, {name[2:].replace("-", "_").upper(): mutated_text(r, value) if how > 0.6 else value}

    def read(self, given):
        flags, environment = given
        settings = load_settings(Settings, flags, environment, str)
        assert 0 <= settings.vocab_size <= 65536 and 0 <= settings.matrix_lr <= 100
        assert settings.model_dim % settings.num_heads == 0


class Checkpoint:
    """checkpoint.py: a file, in most cases with the right digest."""
    errors = (UserError, ValueError)

    def __init__(self, folder):
        self.arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "v": np.ones(3),
                       "adam_step": np.array(7, np.float32)}
        self.expected = {name: (array.shape, str(array.dtype)) for name, array in self.arrays.items()}
        self.identity = {"SEED": 1, "code": "ab"}
        self.sample = write_checkpoint(Path(folder), 3, 1.5, self.identity, self.arrays).read_bytes()
        self.header, self.body = unpacked(self.sample[:-32])

    def make(self, r):
        if r.random() < 0.2:
            return mutated(r, self.sample)
        data = mutated_tensors(r, self.header, self.body, "parity_golf")
        return data + hashlib.sha256(data).digest()

    def read(self, data):
        step, elapsed, arrays = decode_checkpoint(io.BytesIO(data), self.identity, self.expected)
        assert step >= 0 and elapsed >= 0 and {name: array.shape for name, array in arrays.items()} == {
            name: array.shape for name, array in self.arrays.items()}


class Submission:
    """records/folder.py: the submission.json of a record folder, whose every field is taken or named as invalid."""
    errors = (ValueError,)

    def __init__(self, folder):
        self.sample = {"author": "A", "github_id": "a", "name": "N", "blurb": "B", "date": "2026-01-31",
                       "track": "track_non_record_16mb", "val_loss": 2.07, "val_bpb": 1.22, "bytes_total": 15_900_000,
                       "bytes_code": 47_642, "step_stop": 20_000, "wallclock_seconds": 600.5, "seeds": [1, 2],
                       "seed_results": {"1": {"val_loss": 2.07, "val_bpb": 1.22}}}

    def make(self, r):
        if r.random() < 0.5:
            return mutated(r, json.dumps(self.sample).encode())
        value = self.sample
        for _ in range(1 + int(r.random() * 3)):
            value = mutated_json(r, value)
        return json.dumps(value).encode()

    def read(self, data):
        folder = Folder(Path("2026-01-31_x"), "track_non_record_16mb", raw=load_json(data))
        take_fields(folder)
        declared_seeds(folder)
        assert all(isinstance(value, str | int | float) and value == value for value in folder.fields.values())
        assert all(len(what) < 1000 for what, _ in folder.invalid)


class Refused(Exception):
    """Raised here where a reader refuses without an exception of its own."""


TARGETS = {"shard": Shard, "artifact": Artifact, "zlib": Inflate, "runlog": RunLog, "tokenizer": TokenizerModel,
           "settings": SettingsTarget, "checkpoint": Checkpoint, "submission": Submission}


def attempt(target, given):
    """True for a valid result, False if refused. Raises AssertionError, or whatever the reader must not raise."""
    try:
        target.read(given)
    except (Refused, *target.errors):
        return False
    return True


def as_bytes(given):
    """An input as the bytes of a regression file."""
    return given if isinstance(given, bytes) else json.dumps(given).encode()


def from_bytes(name, data):
    given = data if name in ("shard", "artifact", "zlib", "tokenizer", "checkpoint", "submission") else json.loads(data)
    return tuple(given) if isinstance(given, list) else given


def keep(name, given, error):
    """Write a finding; returns its path."""
    data = as_bytes(given)
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{name}-{zlib.crc32(data):08x}"
    path.write_bytes(data)
    print(f"{path}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return path


def read_block(name, target, block, count):
    """Numbers of the inputs of a block that are [valid, refused, findings]."""
    r = random.Random(f"{name} {block}")
    totals = [0, 0, 0]
    for _ in range(count):
        given = target.make(r)
        try:
            totals[not attempt(target, given)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            totals[2] += 1
            keep(name, given, error)
    return totals


def read_many(name, first, blocks, count, folder, pipe):
    """Read blocks in this process; send the totals of each."""
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    np.seterr(all="ignore")
    target = TARGETS[name](folder)
    for block in range(first, first + blocks):
        signal.alarm(BLOCK_SECONDS)
        pipe.send(read_block(name, target, block, count))
    if sys.platform == "linux":  # ru_maxrss would include the parent's peak
        pipe.send(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)
    else:
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20)
    pipe.close()


def campaign(name, inputs, first=0):
    """dict of totals for one target, read in its own process: inputs, valid, refused, findings, seconds, peak MiB."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None  # in memory: a file is written for each input
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        return campaign_in(folder, name, inputs, first)


def campaign_in(folder, name, inputs, first):
    start = time.perf_counter()
    totals = np.zeros(3, np.int64)
    context = multiprocessing.get_context("spawn")
    block_size = min(BLOCK, inputs)
    ours, theirs = context.Pipe(False)
    process = context.Process(target=read_many, args=(name, first, inputs // block_size, block_size, folder, theirs))
    process.start()
    theirs.close()
    memory = None
    try:
        while memory is None:
            got = ours.recv()
            if isinstance(got, list):
                totals += got
            else:
                memory = got
    except EOFError:
        process.join()
        block = first + int(totals.sum()) // block_size
        print(f"{name}: the process died (exit code {process.exitcode}) in block {block}", file=sys.stderr)
        totals[2] += 1
    process.join()
    valid, refused, findings = totals.tolist()
    return {"target": name, "inputs": valid + refused + findings, "valid": valid, "refused": refused,
            "findings": findings, "seconds": time.perf_counter() - start, "MiB": memory or 0}


def main():
    parser = argparse.ArgumentParser("python -m tests.hostile.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=250_000, help="inputs per target (default 250,000)")
    parser.add_argument("--target", choices=TARGETS, help="read only this target")
    parser.add_argument("--first-block", type=int, default=0, help="start at other seeds")
    given = parser.parse_args()
    print(f"{'target':<12}{'inputs':>12}{'valid':>12}{'refused':>12}{'findings':>10}{'seconds':>9}{'MiB':>6}")
    clock = time.perf_counter()
    whole = np.zeros(4, np.int64)
    for name in [given.target] if given.target else TARGETS:
        t = campaign(name, given.inputs, given.first_block)
        print(f"{name:<12}{t['inputs']:>12,}{t['valid']:>12,}{t['refused']:>12,}{t['findings']:>10,}"
              f"{t['seconds']:>9.0f}{t['MiB']:>6}", flush=True)
        whole += [t["inputs"], t["valid"], t["refused"], t["findings"]]
    print("{:<12}{:>12,}{:>12,}{:>12,}{:>10,}{:>9.0f}".format("all", *whole.tolist(), time.perf_counter() - clock))
    return 1 if whole[3] else 0


if __name__ == "__main__":
    sys.exit(main())
