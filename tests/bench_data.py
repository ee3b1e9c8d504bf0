"""Speed of the data tools: `python -m tests.bench_data [DOCS.jsonl]`; without a file, the embedded corpus several times.

export is timed as a whole (reading, encoding, checking each document's bytes, digests, writing), with an existing model; the challenge's
own way of calling SentencePiece is one encode() a document in one process, and nothing else is timed of it. Alternating, medians.
"""
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sentencepiece

from common.batches import TokenStream, step_rows
from common.data import __main__ as command
from common.data import pydoc
from common.data.tokenizers import train_tokenizer
from common.settings import Settings
from common.shards import find_shards, open_shard

ROUNDS, COPIES = 3, 20  # of the embedded corpus: 50 MB


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if len(sys.argv) > 1:
            source = Path(sys.argv[1])
        else:
            source = root / "docs.jsonl"
            real = ["\n\n".join(part) for part in pydoc.documents()]
            source.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(COPIES) for text in real))
        texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
        size = sum(len(text.encode()) for text in texts)
        (root / "a.model").write_bytes(train_tokenizer(texts[:5000], 1024))
        model = sentencepiece.SentencePieceProcessor(model_file=str(root / "a.model"))
        seconds = {"one encode() a document": [], "export, 1 process": [], "export, 2 processes": []}
        for number in range(ROUNDS):
            for way, times in seconds.items():
                clock = time.perf_counter()
                if way.startswith("one"):
                    for text in texts:
                        np.array([model.bos_id(), *model.encode(text)], np.uint16)
                else:
                    with contextlib.redirect_stdout(io.StringIO()):
                        assert command.main(["export", str(source), "--tokenizer", str(root / "a.model"), "--val-docs", "500", "--workers",
                                             way.split()[1], "--out", str(root / f"out{number}{way[8]}")]) == 0
                times.append(time.perf_counter() - clock)
        base = statistics.median(seconds["one encode() a document"])
        print(f"{size:,} bytes of text, {len(texts):,} documents, vocabulary 1024")
        for way, times in seconds.items():
            print(f"{way:<26} {size / statistics.median(times) / 1e6:6.2f} MB/s  {base / statistics.median(times):5.2f} x")
        stream = TokenStream([open_shard(path) for path in find_shards(root / "out01", "train")])
        settings, times = Settings(), []
        for step in range(200):
            clock = time.perf_counter()
            step_rows(stream, settings, step)
            times.append(time.perf_counter() - clock)
        print(f"batch of {settings.train_batch_tokens:,} tokens from mapped shards: median {1e3 * statistics.median(times):.3f} ms")


if __name__ == "__main__":
    main()
