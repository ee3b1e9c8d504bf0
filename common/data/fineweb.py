"""FineWeb as the challenge exports it: token shards and tokenizer from a dataset repository of the Hugging Face Hub.

The folder serves as DATA_PATH by itself. Its manifest.json says what the files hold and nothing else: equal data, equal
bytes. A later run checks every file against the repository and fetches the rest; shards that are there already stay.
"""
import contextlib
import hashlib
import json
import multiprocessing.pool
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import path_argument
from common.data.folder import WINDOW_TOKENS, alone, file_sha256, in_whole_windows, manifest_named, write_manifest
from common.data.tokenizers import tokenizer_entry, try_model
from common.dataset import CHALLENGE_NAME
from common.published import VAL_BYTES, VAL_BYTES_TOLERANCE, VAL_TOKENS
from common.settings import UserError
from common.shards import check_ids, open_shard
from common.tokenizer import count_bytes, load_tokenizer


class Repository:
    """A dataset repository at one commit: `files`, {path: RepoFile} below the prefix, and how to fetch them."""

    def __init__(self, name: str, prefix: str, revision: str):
        from huggingface_hub import hf_api, utils
        utils.disable_progress_bars()  # those of several files overwrite each other
        self.name, self.api = name, hf_api.HfApi()
        with self._explained(f"{name}, revision {revision}, folder {prefix}"):
            # Asked for first because it fails at once without a connection; the listing tries again for half a minute.
            self.commit = self.api.dataset_info(name, revision=revision, timeout=30).sha
            tree = self.api.list_repo_tree(name, prefix, recursive=True, revision=self.commit, repo_type="dataset")
            self.files = {file.path: file for file in tree if isinstance(file, hf_api.RepoFile)}

    @contextlib.contextmanager
    def _explained(self, what: str):
        try:
            yield
        except Exception as error:  # also those of its HTTP client, which was requests, then httpx, then httpx2
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{what}: not available from {self.api.endpoint}; check the names and the connection, then "
                            f"run this again ({reason})") from error

    def fetch(self, path: str, folder: Path | None = None, vocab_size: int = 0) -> tuple[Path, dict]:
        """Download a file into the hub's cache, or into a folder, and examine it there: (its path, its entry)."""
        for again in (False, True):
            with self._explained(path):
                local = self._download(path, folder) if folder else Path(self.api.hf_hub_download(
                    self.name, path, repo_type="dataset", revision=self.commit, force_download=again))
            try:
                return local, examine(local, self.files[path], vocab_size)
            except UserError as error:
                local.unlink()
                problem = error
        raise UserError(f"fetched twice: {problem}") from problem

    def _download(self, path: str, folder: Path) -> Path:
        """Into a folder, after what an earlier attempt left there; hf_hub_download starts again in each process."""
        from huggingface_hub.file_download import build_hf_headers, hf_hub_url, http_get
        headers = build_hf_headers(token=self.api.token)
        remote, local = self.files[path], folder / os.path.basename(path)
        url = hf_hub_url(self.name, path, repo_type="dataset", revision=self.commit, endpoint=self.api.endpoint)
        with open(folder / f"{remote.blob_id}.incomplete", "ab") as file:  # other bytes have another name
            if file.seek(0, os.SEEK_END) > remote.size:
                file.truncate(0)
            for pause in (1, 5, 0):
                try:
                    there = file.seek(0, os.SEEK_END)
                    if there < remote.size:  # else nothing is left that could be asked for
                        http_get(url, file, resume_size=there, headers=headers, expected_size=remote.size)
                    break
                except Exception as error:
                    if not pause or 400 <= getattr(getattr(error, "response", None), "status_code", 500) < 500:
                        raise
                    time.sleep(pause)
        os.replace(file.name, local)
        return local


def examine(path: Path, remote, vocab_size: int) -> dict:
    """The entry of a file in our manifest. UserError: it is not the remote file, or not a shard with ids of that
    vocabulary."""
    sha256 = file_sha256(path)
    if remote.lfs:
        same = sha256 == remote.lfs.sha256
    else:  # small files are known by Git's hash
        same = remote.blob_id == hashlib.sha1(b"blob %d\0" % remote.size + path.read_bytes()).hexdigest()
    if not same:
        raise UserError(f"{path}: {path.stat().st_size} bytes, not the {remote.size} that the repository lists")
    tokens = open_shard(path) if path.suffix == ".bin" else []
    check_ids(tokens, vocab_size, path)
    return {"file": path.name, "tokens": len(tokens), "sha256": sha256}


def find_dataset(paths, manifest: bytes, variant: str) -> tuple[dict[str, list[str]], str]:
    """({"train", "val"}: sorted shards, tokenizer) of a variant among a repository's paths. UserError: not there."""
    paths, name = sorted(paths), f"fineweb10B_{variant}"
    shards = {split: [path for path in paths if re.search(rf"(^|/){re.escape(name)}/[^/]+_{split}_\d+\.bin$", path)]
              for split in ("train", "val")}
    if not all(shards.values()):
        known = sorted({found[1] for path in paths if (found := re.search(r"fineweb10B_([^/]+)/[^/]+\.bin$", path))})
        raise UserError(f"--variant {variant}: no shards in a folder {name}; there are: {', '.join(known) or 'none'}")

    def parts(key):
        """(name, every text in it) of each part of a list or an object in the published manifest, if it is such."""
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            found = json.loads(manifest).get(key)
            for name, part in found.items() if isinstance(found, dict) else enumerate(found):
                yield part.get("name", name), [str(name), *re.findall(r'"([^"\\]*)"', json.dumps(part))]

    # What names the folder also names the tokenizer: as a .model file, or as a part that has one.
    texts = next((texts for _, texts in parts("datasets") if name in map(os.path.basename, texts)), [])
    texts = texts + [text for tokenizer, more in parts("tokenizers") if tokenizer in texts for text in more]
    texts += [f"fineweb_{size}_bpe.model" for size in re.findall(r"\d+", variant)]
    wanted = [os.path.basename(text) for text in texts if text.endswith(".model")]
    models = {os.path.basename(path): path for path in paths if path.endswith(".model")}
    if found := [models[model] for model in wanted if model in models]:
        return shards, found[0]
    raise UserError(f"--variant {variant}: no tokenizer; looked for {', '.join(wanted) or 'one in manifest.json'}; "
                    f"there are: {', '.join(models) or 'none'}")


def in_parallel(function, files: dict, folder: Path) -> dict:
    """{name: function(name)}, four at a time, with a bar of bytes, those of unfinished files below the folder too."""
    results, total = {}, sum(file.size for file in files.values())
    # Its threads are daemons: an error or Ctrl-C does not wait for the downloads under way.
    with multiprocessing.pool.ThreadPool(4) as pool, tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        jobs = pool.imap_unordered(lambda name: (name, function(name)), files)
        while len(results) < len(files):
            with contextlib.suppress(multiprocessing.TimeoutError):
                results.update([jobs.next(timeout=0.5)])
            with contextlib.suppress(OSError):  # a file that was finished just now
                parts = sum(part.stat().st_size for part in folder.rglob("*.incomplete"))
                bar.update(sum(files[name].size for name in results) + parts - bar.n)
    return results


# ----------------------------------------------------------------------------------------------------------------------
# Command

def add_command(subparsers) -> None:
    parser = subparsers.add_parser("fineweb", help="the challenge's data: FineWeb shards from the Hugging Face Hub")
    parser.add_argument("--variant", default="sp1024", help="which export, by its tokenizer (default: %(default)s)")
    parser.add_argument("--train-shards", type=int, default=80,
                        help="how many, the first ones, 200 MB each (default: %(default)s)")
    parser.add_argument("--with-docs", action="store_true", help="also the raw documents, tens of GB, if it has any")
    parser.add_argument("--out", type=path_argument,
                        help="folder to make or to complete (default: data/fineweb10B_VARIANT)")
    parser.add_argument("--repo", default="willdepueoai/parameter-golf",
                        help="dataset repository (default: %(default)s)")
    parser.add_argument("--prefix", default="datasets", help="folder in it (default: %(default)s)")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options) -> None:
    """Make the folder what the options say. UserError: it cannot be done, or the folder holds something else."""
    variant, name, prefix = options.variant, f"{CHALLENGE_NAME}{options.variant}", options.prefix.strip("/")
    out = options.out or Path("data", name)
    if options.train_shards < 1:
        raise UserError(f"--train-shards {options.train_shards}: at least one is needed")
    if (out / "manifest.json").exists():
        manifest_named(out, name)
    repository = Repository(options.repo, prefix, options.revision)
    published = f"{prefix}/manifest.json".lstrip("/")
    manifest = repository.fetch(published)[0].read_bytes() if published in repository.files else b""
    shards, model = find_dataset(repository.files, manifest, variant)
    cached = repository.fetch(model)[0]
    try_model(cached, published=True)
    tokenizer = load_tokenizer(cached, published=True)
    if variant.removeprefix("sp") not in (variant, str(tokenizer.vocab_size)):
        raise UserError(f"--variant {variant}: its tokenizer {model} has {tokenizer.vocab_size} ids")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with alone(out):
            splits, wanted = choose_files(options, out, repository, shards, model)
            entries = fetch_missing(out, repository, wanted, cached, tokenizer)
            table = {split: {"tokens": sum(entries[file]["tokens"] for file in files),
                             "shards": [entries[file] for file in files]} for split, files in splits.items()}
            # Not of training: for 80 shards the count would take a minute in every run, and nothing needs it.
            table["val"] |= count_validation([out / file for file in splits["val"]], tokenizer)
            entry = tokenizer_entry(out / "tokenizer.model", tokenizer)
            write_manifest(out, {"name": name, "splits": table, "tokenizer": entry})
    except KeyboardInterrupt:
        raise UserError("interrupted; what has come is kept: run this again to continue") from None
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()  # where nothing was begun
    train, val = table["train"], table["val"]
    print(f"{out}: vocabulary {tokenizer.vocab_size}, from {options.repo} at {repository.commit[:12]}",
          f"train: {len(train['shards'])} of {len(shards['train'])} shards, {train['tokens']:,} tokens",
          f"val: {val['documents']:,} documents, {val['tokens']:,} tokens, {val['bytes']:,} bytes", sep="\n")
    warn_if_not_published(variant, val["tokens"], val["bytes"])


def choose_files(options, out: Path, repository, shards: dict, model: str) -> tuple[dict, dict]:
    """(files of each split, all files), as {name in the folder: RepoFile}. UserError: shards of another data set are in
    the folder."""
    name, remote = f"{CHALLENGE_NAME}{options.variant}", repository.files
    there = {path.name for path in out.glob("[!.]*")}
    splits = {split: {os.path.basename(path): remote[path] for path in shards[split]} for split in shards}
    if stray := {file for file in there if re.search(r"_(train|val)_.*\.bin$", file)}.difference(*splits.values()):
        raise UserError(f"{out / min(stray)} is not of {name}; choose another --out, or remove it")
    splits["train"] = {file: part for i, (file, part) in enumerate(splits["train"].items())
                       if i < options.train_shards or file in there}
    wanted = {"tokenizer.model": remote[model], **splits["val"], **splits["train"]}
    if options.with_docs:
        docs = {os.path.basename(path): remote[path] for path in remote if re.search(r"docs[^/]*\.jsonl[^/]*$", path)}
        print(f"raw documents: {', '.join(docs) or f'no *docs*.jsonl* is in {options.repo}'}")
        wanted |= docs
    return splits, wanted


def fetch_missing(out: Path, repository, wanted: dict, cached: Path, tokenizer) -> dict:
    """{name: its entry} of the wanted files, each of which is then whole in the folder. UserError: too little space."""
    staging = out / ".partial"
    sizes = {path.name: path.stat().st_size for path in out.glob("*")}
    needed = sum(part.size for file, part in wanted.items() if sizes.get(file) != part.size)
    parts = {part: part.stat().st_size for part in staging.glob("*.incomplete")}
    others = parts.keys() - {staging / f"{file.blob_id}.incomplete" for file in wanted.values()}  # of another export
    needed -= sum(parts[part] for part in parts.keys() - others)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out} needs {needed:,} bytes more, {free:,} are free: fewer --train-shards, or another --out")
    staging.mkdir(exist_ok=True)
    for part in others:
        part.unlink()

    def obtain(file):
        with contextlib.suppress(OSError, UserError):
            return examine(out / file, wanted[file], tokenizer.vocab_size)
        if file == "tokenizer.model":
            local, entry = Path(shutil.copy(cached, staging)), examine(cached, wanted[file], 0)
        else:
            local, entry = repository.fetch(wanted[file].path, staging, tokenizer.vocab_size)
        (out / "manifest.json").unlink(missing_ok=True)  # not before the folder changes
        os.replace(local, out / file)
        return entry

    entries = in_parallel(obtain, wanted, staging)
    shutil.rmtree(staging, ignore_errors=True)
    return entries


def count_validation(paths, tokenizer) -> dict:
    """The number of documents and bytes in the shards of validation."""
    tokens = np.concatenate([open_shard(path) for path in paths])
    previous, cuts = np.append(np.uint16(tokenizer.bos_id), tokens[:-1]), range(1 << 22, len(tokens), 1 << 22)
    pairs = zip(np.split(previous, cuts), np.split(tokens, cuts), strict=True)
    size = sum(int(count_bytes(tokenizer, *pair).sum(dtype=np.int64)) for pair in pairs)
    return {"documents": int(np.count_nonzero(tokens == tokenizer.bos_id)), "bytes": size}


def warn_if_not_published(variant: str, tokens: int, size: int) -> None:
    """Compare validation with the challenge's numbers, where it has some for the variant."""
    scored = in_whole_windows(tokens)
    published = VAL_TOKENS.get(variant)
    if published and (scored != published or abs(size - VAL_BYTES) > VAL_BYTES_TOLERANCE * VAL_BYTES):
        print(f"warning: validation has {scored:,} tokens in windows of {WINDOW_TOKENS} and {size:,} bytes, but as "
              f"published {published:,} and {VAL_BYTES:,}: scores on it cannot be compared", file=sys.stderr)
