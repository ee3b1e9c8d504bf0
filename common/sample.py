"""Text that a model writes, drawn on the host: the same for the same seed, on whatever the logits are computed."""
import codecs

import numpy as np


def write_text(logits, tokenizer, prompt, count, context, temperature=0.8, seed=1):
    """Yields the text of each of `count` tokens that a model writes after BOS and the ids of a prompt. logits: function
    of int32 tokens (1, T) that gives (1, T, V); context: tokens that it is shown at most. A temperature of 0 takes the
    most probable token. A new document begins after an empty line."""
    random = np.random.Generator(np.random.Philox(key=seed))
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a token may end within a character
    tokens = [tokenizer.bos_id, *prompt]
    for _ in range(count):
        seen = tokens[-context:]
        length = min(context, -(-len(seen) // 64) * 64)  # few lengths, since a GPU prepares for each
        row = np.zeros((1, length), np.int32)
        row[0, :len(seen)] = seen
        scores = np.asarray(logits(row), np.float64)[0, len(seen) - 1]
        tokens.append(int(scores.argmax()))
        if temperature:
            odds = np.exp((scores - scores.max()) / temperature).cumsum()
            tokens[-1] = int(np.searchsorted(odds, random.random() * odds[-1]))
        new = tokens[-1] == tokenizer.bos_id
        yield visible(decode(b"\n\n" if new else tokenizer.token_bytes[tokens[-1]]))
    yield visible(decode(b"", True))


def visible(text):
    """Text that cannot move the cursor of a terminal, but for the next line."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
