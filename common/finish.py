"""The end of a run: the model file, its score and its bytes."""
import hashlib
import math
import time
import zlib

import numpy as np

from common.artifact import decode_model
from common.bpb import eval_lengths, evaluate
from common.challenge import BUDGET_BYTES, EVAL_SECONDS
from common.files import write_file
from common.fit import encode_within
from common.quantize import unstorable
from common.ranks import PATIENCE, Agreed, agree, together
from common.sample import write_text
from common.settings import UserError

MODEL_FILE = "model.int8.zlib"  # in the folder of a run or a record


def finish(run, code_bytes):
    """Write the model file, read it back, score what was read. Summary text. Raises Agreed."""
    s, trainer, watch = run.settings, run.trainer, run.watch
    found = trainer.weights(averaged=s.ema_decay > 0)
    weights = {name: np.asarray(w, np.float32) for name, w in found.items()}
    if name := unstorable(s, weights):
        raise Agreed(f"{name} is not finite or too large to be stored (8e6 at 127 levels): lower MATRIX_LR, "
                     "TIED_EMBED_LR and SCALAR_LR", "nonfinite")
    watch.mark([watch.steps, 2], "writing the model", PATIENCE)
    budget, total = BUDGET_BYTES - 1 - code_bytes, 0
    made = together(trainer, lambda: encode_within(s, weights, budget, run.log, run.products) if run.folder else None)
    if run.folder:
        total = code_bytes + len(made[0])
        weights = write_model(run, *made, code_bytes)
    # rank 0's arrays, on every rank
    weights = {name: weights[name] if run.folder else np.zeros_like(weights[name]) for name in sorted(weights)}
    trainer.load_state({name: trainer.all_sum(w) for name, w in weights.items()})
    summary = final_score(run)
    over = agree(trainer, 0.0, total >= BUDGET_BYTES)[1]
    if over and not run.folder:
        raise Agreed("over the cap", "over_budget")
    left, model = BUDGET_BYTES - 1 - total, total - code_bytes
    if over:
        remedy = "continue with QUANT_LEVELS=auto, or use" if s.qat_start == 1 else "use lower QUANT_LEVELS,"
        raise Agreed(f"code {code_bytes:,} + model {model:,} = {total:,} bytes, {-left:,} too many: it must be less "
                     f"than {BUDGET_BYTES:,}. The model is kept in {run.folder.path / MODEL_FILE}; {remedy} fewer "
                     "layers or a smaller width", "over_budget")
    return (f"{summary}  size      {total:,} bytes = model {model:,} + code {code_bytes:,}; {left:,} left under the "
            "cap")


def write_model(run, model, payload, code_bytes):
    """Write the model file; the float32 weights that it holds, as read back."""
    path = write_file(run.folder.path / MODEL_FILE, model)
    run.log("model", bytes=len(model), payload=len(payload), zlib9=len(zlib.compress(payload, 9)),
            sha256=hashlib.sha256(model).hexdigest())
    total = code_bytes + len(model)
    run.log("code_size", bytes=code_bytes)
    run.log("total", bytes=total, cap=BUDGET_BYTES, left=BUDGET_BYTES - 1 - total)
    written = path.read_bytes()
    if written != model:
        raise UserError(f"{path} does not read back as it was written: there is no score; check the disk")
    return decode_model(written)[1]


def final_score(run):
    """Evaluate the weights of the model file; the score as text. Raises Agreed."""
    s, data, watch = run.settings, run.data, run.watch
    marked = watch.each([watch.steps, 3], "the final evaluation", PATIENCE)
    clock = time.perf_counter()
    val_loss, val_bpb, tokens, num_bytes = evaluate(run.trainer, s, data.val, data.tokenizer, data.val_tokens, marked,
                                                    final=True)
    seconds, (seq_len, stride) = time.perf_counter() - clock, eval_lengths(s)
    if s.ttt_lr and not math.isfinite(val_loss):
        raise Agreed(f"test-time training ends in a loss of {val_loss}: lower TTT_LR={s.ttt_lr}", "nonfinite")
    ttt = f"lr {s.ttt_lr}, chunk {s.ttt_chunk}" if s.ttt_lr else "off"
    run.log("scored", tokens=tokens, bytes=num_bytes, partial=data.partial)
    run.log("final", val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * seconds, partial=data.partial)
    run.log("final_exact", val_loss=val_loss, val_bpb=val_bpb, partial=data.partial)
    run.log("evaluation", seconds=seconds, limit=EVAL_SECONDS, seq_len=seq_len, stride=stride, ttt=ttt)
    score = f"val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}  read back from the written file{data.partial}"
    how = f"windows of {seq_len:,} tokens, every {stride:,}; test-time training: {ttt}"
    plain = not s.ttt_lr and seq_len == stride == s.train_seq_len
    text = "" if plain else f"  scored    {how}; {seconds:.1f} s of {EVAL_SECONDS:.0f}\n"
    return f"{text}  final     {score}\n"


def sample_text(run):
    """Text that the scored model writes, as lines; empty without SAMPLE_TOKENS. `python -m records sample` writes
    the same where the run computed in float32."""
    s = run.settings
    if not s.sample_tokens:
        return ""
    text = "".join(write_text(run.trainer.logits, run.data.tokenizer, [], s.sample_tokens, s.train_seq_len))
    lines = (f"    | {line}\n" for line in text.rstrip().split("\n"))  # which no parser of logs takes for its own
    return f"  the model writes\n{''.join(lines)}"
