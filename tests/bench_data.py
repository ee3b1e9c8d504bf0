"""Speed of the data tools: `python -m tests.bench_data [DOCS.jsonl]`; without a file, the embedded corpus several times.

export is timed as a whole (reading, encoding, checking each document's bytes, digests, writing), with an existing model; the challenge's
own way of calling SentencePiece is one encode() a document in one process, and nothing else is timed of it. Alternating, medians.
Seconds on the clock depend on what else runs on the machine; seconds of CPU, over all processes, do so less.
"""
import contextlib
import io
import json
import os
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

ROUNDS, COPIES = 3, 8  # of the embedded corpus: 20 MB


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
                clock, cpu = time.perf_counter(), sum(os.times()[:4])
                if way.startswith("one"):
                    for text in texts:
                        np.array([model.bos_id(), *model.encode(text)], np.uint16)
                else:
                    with contextlib.redirect_stdout(io.StringIO()):
                        assert command.main(["export", str(source), "--tokenizer", str(root / "a.model"), "--val-docs", "500", "--workers",
                                             way.split()[1], "--out", str(root / f"out{number}{way[8]}")]) == 0
                times.append((time.perf_counter() - clock, sum(os.times()[:4]) - cpu))
        base = statistics.median(wall for wall, _ in seconds["one encode() a document"])
        print(f"{size:,} bytes of text, {len(texts):,} documents, vocabulary 1024")
        for way, times in seconds.items():
            wall, cpu = (statistics.median(numbers) for numbers in zip(*times))
            print(f"{way:<26} {size / wall / 1e6:6.2f} MB/s  {base / wall:5.2f} x  {size / cpu / 1e6:6.2f} MB per second of CPU")
        stream = TokenStream([open_shard(path) for path in find_shards(root / "out01", "train")])
        settings, times = Settings(), []
        for step in range(200):
            clock = time.perf_counter()
            step_rows(stream, settings, step)
            times.append(time.perf_counter() - clock)
        print(f"batch of {settings.train_batch_tokens:,} tokens from mapped shards: median {1e3 * statistics.median(times):.3f} ms")


if __name__ == "__main__":
    main()
