"""FineWeb as the challenge exports it: token shards and tokenizer from a data set repository of the Hugging Face Hub.

The folder serves as DATA_PATH alone. Its manifest.json tells what the files hold and no more:
equal data, equal bytes. A later run checks every file against the repository and fetches the rest; more shards stay.
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

from common.data.folder import alone, write_manifest
from common.data.tokenizers import tokenizer_entry, try_model
from common.settings import UserError
from common.shards import check_ids, open_shard
from common.tokenizer import count_bytes, load_tokenizer

# Of validation: tokens in whole windows of 1024, and bytes, which are those of the same 50,000 texts within 0.05 %.
PUBLISHED = {"sp1024": (62_021_632, 151_080_891), "sp4096": (45_508_608, 151_080_891), "sp8192": (40_540_160, 151_080_891)}


class Repository:
    """A data set repository at one commit: `files`, {path: RepoFile} below the prefix, and how to fetch them."""

    def __init__(self, name: str, prefix: str, revision: str):
        try:
            from huggingface_hub import hf_api, utils
        except ImportError as error:
            raise UserError(f"huggingface_hub is needed: `pip install '.[data]'` ({error})") from error
        utils.disable_progress_bars()  # those of several files overwrite each other
        self.name, self.api = name, hf_api.HfApi()
        with self._explained(f"{name}, revision {revision}, folder {prefix}"):
            # Asked for first because it fails at once without a connection; listing tries again for half a minute.
            self.commit = self.api.dataset_info(name, revision=revision, timeout=30).sha
            tree = self.api.list_repo_tree(name, prefix, recursive=True, revision=self.commit, repo_type="dataset")
            self.files = {file.path: file for file in tree if isinstance(file, hf_api.RepoFile)}

    @contextlib.contextmanager
    def _explained(self, what: str):
        try:
            yield
        except Exception as error:  # also those of its HTTP client, which was requests, then httpx, then httpx2
            raise UserError(f"{what}: not to be had from {self.api.endpoint}; check the names and the connection, then "
                            f"run this again ({type(error).__name__}: {' '.join(str(error).split())})") from error

    def fetch(self, path: str, folder: Path | None = None, vocab_size: int = 0) -> tuple[Path, dict]:
        """Download a file into the hub's cache, or to its path below a folder, and examine it there."""
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
        """Into a folder, behind what an earlier attempt left there, which hf_hub_download begins anew in each process."""
        from huggingface_hub.file_download import build_hf_headers, hf_hub_url, http_get
        headers = build_hf_headers(token=self.api.token)
        remote, local = self.files[path], folder / os.path.basename(path)
        url = hf_hub_url(self.name, path, repo_type="dataset", revision=self.commit, endpoint=self.api.endpoint)
        with open(folder / f"{remote.blob_id}.incomplete", "ab") as file:  # the same bytes, or not the same name
            if file.seek(0, os.SEEK_END) > remote.size:
                file.truncate(0)
            for pause in (1, 5, 0):
                try:
                    if file.seek(0, os.SEEK_END) == remote.size:  # the rest of a whole file cannot be asked for
                        break
                    http_get(url, file, resume_size=file.seek(0, os.SEEK_END), headers=headers, expected_size=remote.size)
                    break
                except Exception as error:
                    if not pause or 400 <= getattr(getattr(error, "response", None), "status_code", 500) < 500:
                        raise
                    time.sleep(pause)
        os.replace(file.name, local)
        return local


def examine(path: Path, remote, vocab_size: int) -> dict:
    """A file's entry in our manifest. UserError: it is not the remote file, or no shard with ids of that vocabulary."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    same = (sha256 == remote.lfs.sha256 if remote.lfs else  # small files are known by Git's hash
            remote.blob_id == hashlib.sha1(b"blob %d\0" % remote.size + path.read_bytes()).hexdigest())
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


def add_command(subparsers) -> None:
    parser = subparsers.add_parser("fineweb", help="the challenge's data: FineWeb shards from the Hugging Face Hub")
    parser.add_argument("--variant", default="sp1024", help="which export, by its tokenizer (default: %(default)s)")
    parser.add_argument("--train-shards", type=int, default=80, help="the first so many, 200 MB each (default: %(default)s)")
    parser.add_argument("--with-docs", action="store_true", help="also the raw documents, tens of GB, if it has any")
    parser.add_argument("--out", type=Path, help="folder to make or to complete (default: data/fineweb10B_VARIANT)")
    parser.add_argument("--repo", default="willdepueoai/parameter-golf", help="data set repository (default: %(default)s)")
    parser.add_argument("--prefix", default="datasets", help="folder in it (default: %(default)s)")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options) -> None:
    """Make the folder what the options say. UserError: it cannot be done, or the folder holds something else."""
    variant, name, prefix = options.variant, f"fineweb10B_{options.variant}", options.prefix.strip("/")
    out = options.out or Path("data", name)
    target = out / "manifest.json"
    if options.train_shards < 1:
        raise UserError(f"--train-shards {options.train_shards}: at least one is needed")
    if target.exists() and f'"name": "{name}"'.encode() not in target.read_bytes():
        raise UserError(f"{target} is not one of {name}; choose another --out, or remove that folder")
    repository = Repository(options.repo, prefix, options.revision)
    remote, published = repository.files, f"{prefix}/manifest.json".lstrip("/")
    manifest = repository.fetch(published)[0].read_bytes() if published in remote else b""
    shards, model = find_dataset(remote, manifest, variant)
    cached = repository.fetch(model)[0]
    try_model(cached)
    tokenizer = load_tokenizer(cached)
    if variant.removeprefix("sp") not in (variant, str(tokenizer.vocab_size)):
        raise UserError(f"--variant {variant}: its tokenizer {model} has {tokenizer.vocab_size} ids")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with alone(out):
            complete(options, out, repository, shards, model, cached, tokenizer)
    except KeyboardInterrupt:
        raise UserError("interrupted; what has come is kept: run this again to go on") from None
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()  # where nothing was begun


def complete(options, out: Path, repository, shards, model: str, cached: Path, tokenizer) -> None:
    """Fetch what is missing in the folder, then write its manifest. UserError: it cannot be done."""
    variant, name, remote = options.variant, f"fineweb10B_{options.variant}", repository.files
    target, staging = out / "manifest.json", out / ".partial"
    there = {path.name: path.stat().st_size for path in out.glob("*")}
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
    needed = sum(part.size for file, part in wanted.items() if there.get(file) != part.size)
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
        target.unlink(missing_ok=True)
        os.replace(local, out / file)
        return entry

    entries = in_parallel(obtain, wanted, staging)
    shutil.rmtree(staging, ignore_errors=True)
    table = {split: {"tokens": sum(entries[file]["tokens"] for file in splits[split]),
                     "shards": [entries[file] for file in splits[split]]} for split in splits}
    # Of validation alone: for 80 training shards the count would take a minute in every run, and nothing needs it.
    tokens = np.concatenate([open_shard(out / file) for file in splits["val"]])
    previous, cuts = np.append(np.uint16(tokenizer.bos_id), tokens[:-1]), range(1 << 22, len(tokens), 1 << 22)
    pairs = zip(np.split(previous, cuts), np.split(tokens, cuts), strict=True)
    size = sum(int(count_bytes(tokenizer, *pair).sum(dtype=np.int64)) for pair in pairs)
    table["val"] |= {"documents": int(np.count_nonzero(tokens == tokenizer.bos_id)), "bytes": size}
    write_manifest(out, {"name": name, "splits": table, "tokenizer": tokenizer_entry(out / "tokenizer.model", tokenizer)})
    print(f"{out}: vocabulary {tokenizer.vocab_size}, from {options.repo} at {repository.commit[:12]}",
          f"train: {len(splits['train'])} of {len(shards['train'])} shards, {table['train']['tokens']:,} tokens",
          f"val: {table['val']['documents']:,} documents, {len(tokens):,} tokens, {size:,} bytes", sep="\n")
    scored = (len(tokens) - 1) // 1024 * 1024
    known_scored, known_size = PUBLISHED.get(variant, (scored, size))
    if scored != known_scored or abs(size - known_size) > 0.0005 * known_size:
        print(f"warning: validation has {scored:,} tokens in windows of 1024 and {size:,} bytes, but as published "
              f"{known_scored:,} and {known_size:,}: scores on it cannot be compared", file=sys.stderr)
