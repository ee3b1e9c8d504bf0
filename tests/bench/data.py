"""Speed of the data tools: `python -m tests.bench.data [DOCS.jsonl]`; without a file, copies of the embedded corpus.

export is timed as a whole (reading, encoding, checking each document's bytes, digests, writing), with an existing
model. The challenge calls encode() of SentencePiece once per document in one process, and only that is timed. The ways
alternate; medians are shown. Wall-clock seconds depend on what else runs on the machine; seconds of CPU, over all
processes, do so less.
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
            lines = [json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(COPIES) for text in real]
            source.write_text("".join(lines))
        texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
        size = sum(len(text.encode()) for text in texts)
        (root / "a.model").write_bytes(train_tokenizer(texts[:5000], 1024))
        model = sentencepiece.SentencePieceProcessor(model_file=str(root / "a.model"))
        seconds = {workers: [] for workers in (0, 1, 2)}  # 0: one encode() per document, and no export
        for number in range(ROUNDS):
            for workers, times in seconds.items():
                clock, cpu = time.perf_counter(), sum(os.times()[:4])
                if not workers:
                    for text in texts:
                        np.array([model.bos_id(), *model.encode(text)], np.uint16)
                else:
                    with contextlib.redirect_stdout(io.StringIO()):
                        arguments = ["export", source, "--tokenizer", root / "a.model", "--val-docs", 500,
                                     "--workers", workers, "--out", root / f"out{number}{workers}"]
                        assert command.main([*map(str, arguments)]) == 0
                times.append((time.perf_counter() - clock, sum(os.times()[:4]) - cpu))
        base = statistics.median(wall for wall, _ in seconds[0])
        print(f"{size:,} bytes of text, {len(texts):,} documents, vocabulary 1024")
        for workers, times in seconds.items():
            way = f"export --workers {workers}" if workers else "one encode() per document"
            wall, cpu = (statistics.median(numbers) for numbers in zip(*times))
            print(f"{way:<26} {size / wall / 1e6:6.2f} MB/s  {base / wall:5.2f} x  "
                  f"{size / cpu / 1e6:6.2f} MB per second of CPU")
        stream = TokenStream([open_shard(path) for path in find_shards(root / "out01", "train")])
        settings, times = Settings(), []
        for step in range(200):
            clock = time.perf_counter()
            step_rows(stream, settings, step)
            times.append(time.perf_counter() - clock)
        median = 1e3 * statistics.median(times)
        print(f"batch of {settings.train_batch_tokens:,} tokens from mapped shards: median {median:.3f} ms")


if __name__ == "__main__":
    main()
