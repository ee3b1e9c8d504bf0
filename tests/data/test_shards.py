"""Token shards: `python -m pytest tests/data/test_shards.py`."""
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import shards
from common.data.folder import write_shard
from common.dataset import open_data
from common.settings import Settings, UserError
from common.shards import check_ids, find_shards, open_shard
from tests.conftest import ROOT


def shard_bytes(tokens, magic=20240520, version=1, count=None):
    header = [magic, version, len(tokens) if count is None else count] + [0] * 253
    return np.array(header, "<i4").tobytes() + np.array(tokens, "<u2").tobytes()


def test_golden_bytes(tmp_path):
    write_shard(tmp_path / "a.bin", [1, 258, 65535])
    assert (tmp_path / "a.bin").read_bytes() == (b"\x88\xd8\x34\x01" b"\x01\0\0\0" b"\x03\0\0\0" + bytes(1012)
                                                 + b"\x01\0" b"\x02\x01" b"\xff\xff")


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.integers(0, 65535), min_size=1), st.sampled_from(["u2", "i4", ">i8"]), st.sampled_from([1, 2, -1]))
def test_read_gives_what_was_written(tmp_path_factory, tokens, dtype, stride):
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    array = np.array(tokens, dtype)[::stride]
    write_shard(path, array)
    assert path.read_bytes() == shard_bytes(array)
    found = open_shard(path)
    assert found.dtype == np.uint16 and found.tolist() == array.tolist() and not found.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


@pytest.mark.parametrize("tokens, message", [
    ([], "shape"), ([[1, 2]], "shape"), (5, "shape"), ([1, -1], "-1"), ([65536], "65536"), ([1.0], "float"),
    ([True], "bool")])
def test_writes_only_ids(tmp_path, tokens, message):
    with pytest.raises(UserError, match=f"a.bin.*{message}"):
        write_shard(tmp_path / "a.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_shard(path, [1])

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="a.bin.*No space"):
        write_shard(path, [2])
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"] and open_shard(path).tolist() == [1]


def test_write_into_no_folder(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        write_shard(tmp_path / "none" / "a.bin", [1])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        write_shard(tmp_path / "file" / "a.bin", [1])


@pytest.mark.parametrize("data, message", [
    (b"", "0 bytes.*empty"),
    (shard_bytes([1])[:1023], "1023 bytes.*truncated"),
    (shard_bytes([1, 2, 3])[:-1], "3 tokens = 1030 bytes, the file has 1029: truncated"),
    (shard_bytes([1, 2, 3]) + b"\0", "3 tokens = 1030 bytes, the file has 1031: too long"),
    (shard_bytes([1, 2], count=3), "3 tokens = 1030 bytes, the file has 1028: truncated"),
    (shard_bytes([1, 2], count=1), "1 tokens = 1026 bytes, the file has 1028: too long"),
    (shard_bytes([1], magic=20240521), "magic 20240521"),
    (shard_bytes([1], version=2), "version 2"),
    (shard_bytes([]), "0 tokens"),
    (shard_bytes([1], count=-1), "-1 tokens"),
    (shard_bytes([1], count=2**31 - 1), "truncated"),
])
def test_refuses_what_is_not_a_whole_shard(tmp_path, data, message):
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(UserError, match=f"a.bin.*{message}"):
        open_shard(tmp_path / "a.bin")


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="a.bin.*No such file"):
        open_shard(tmp_path / "a.bin")
    with pytest.raises(UserError, match=tmp_path.name):
        open_shard(tmp_path)


def test_find_shards_sorted_and_of_one_split(tmp_path):
    for name in ("x_train_000010.bin", "x_train_000002.bin", "x_val_000000.bin", "train_0.bin", "x_train_0.bin.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(tmp_path, "train")] == ["x_train_000002.bin", "x_train_000010.bin"]
    assert find_shards(str(tmp_path), "val") == [tmp_path / "x_val_000000.bin"]


def test_no_shards_says_how_to_get_some(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as error:
            find_shards(folder, "val")
        for part in (str(folder), "_val_", "`python -m common.data pydoc`",
                     "`python -m common.data fineweb --variant sp1024`"):
            assert part in str(error.value)


def test_check_ids_names_the_first_bad_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHUNK", 4)
    write_shard(tmp_path / "a.bin", [0, 1, 9, 3, 9, 5, 11, 10, 12])
    tokens = open_shard(tmp_path / "a.bin")
    check_ids(tokens, 13, "a.bin")
    check_ids(tokens, 65536, "a.bin")
    with pytest.raises(UserError, match=r"a\.bin: token 6 \(byte 1036\) is 11.*vocabulary of 10"):
        check_ids(tokens, 10, "a.bin")
    with pytest.raises(UserError, match=r"token 8 \(byte 1040\) is 12"):
        check_ids(tokens, 12, "a.bin")


def test_attributes_that_a_mac_keeps_are_not_shards(tmp_path):
    for name in ("x_train_000000.bin", "._x_train_000000.bin", "x_val_000000.bin", "._x_val_000000.bin"):
        if name[0] == "x":
            write_shard(tmp_path / name, [1] * 200)
        else:
            (tmp_path / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "._docs.jsonl").write_bytes(b"\0\5\26\7")
    (tmp_path / "manifest.json").write_text(json.dumps(
        {"tokenizer": {"file": "bytes", "sha256": "", "vocab_size": 260},
         "splits": {split: {"shards": [{"file": f"x_{split}_000000.bin"}]} for split in ("train", "val")}}))
    assert open_data(Settings(data_path=str(tmp_path), train_seq_len=64)).train.length == 200
    assert [path.name for path in find_shards(tmp_path, "train")] == ["x_train_000000.bin"]


def test_shards_that_the_manifest_does_not_name_are_reported(tmp_path):
    """A copy of a shard beside it is read, as another shard of one's own is; the run warns."""
    for name in ("x_train_000000.bin", "x_val_000000.bin"):
        write_shard(tmp_path / name, [1] * 200)
    settings = Settings(data_path=str(tmp_path), train_seq_len=64)
    shards = {split: {"shards": [{"file": f"x_{split}_000000.bin"}]} for split in ("train", "val")}
    manifest = {"tokenizer": {"file": "bytes", "sha256": ""}, "splits": shards}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert open_data(settings).warnings == []
    for name in ("x_train_000000 (1).bin", "y_train_000000.bin"):
        write_shard(tmp_path / name, [1] * 200)
        [warning] = open_data(settings).warnings
        assert f"{tmp_path}/x_train_000000 (1).bin is trained on but not named" in warning
    write_shard(tmp_path / "x_val_000000 (1).bin", [1] * 200)
    with pytest.raises(UserError, match=r"x_val_000000 \(1\).bin .* or remove it if it is a copy"):
        open_data(settings)


def test_more_shards_than_files_that_may_be_open(tmp_path):
    """300 shards and at most 64 open files; what is no longer used is unmapped."""
    for i in range(300):
        write_shard(tmp_path / f"x_train_{i:06}.bin", [i] * 9)
    write_shard(tmp_path / "x_val_000000.bin", [1] * 200)
    code = (f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
            "from common.dataset import open_data; from common.settings import Settings; from common.shards import *\n"
            f"data = open_data(Settings(data_path={str(tmp_path)!r}, train_seq_len=64, tokenizer_path='bytes'))\n"
            "assert data.train.read(0, 2700).reshape(300, 9).mean(1).tolist() == list(range(300))\n"
            "maps = lambda: open('/proc/self/maps').read().count('x_train') if os.path.exists('/proc/self') else 0\n"
            "row = data.train.shards[7][2:4]\n"
            "del data\n"
            "assert maps() <= 1 and row.tolist() == [7, 7]")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
