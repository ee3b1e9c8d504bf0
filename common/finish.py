"""The end of a run: the model file, the score read back from it, and the account of the bytes. Backend-free."""
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
from common.loop import Agreed, agree, together
from common.quantize import unstorable
from common.ranks import PATIENCE
from common.settings import UserError


def finish(trainer, settings, data, code_bytes, folder, log, watch):
    """Writes the model file, reads it back, scores what was read, accounts for the bytes. Summary text. Raises Agreed."""
    weights = {name: np.asarray(w, np.float32) for name, w in (trainer.average() if settings.ema_decay else trainer.weights()).items()}
    if name := unstorable(settings, weights):
        raise Agreed(f"{name} is not finite or too large to be stored (8e6 at 127 levels): lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR", "nonfinite")
    total = 0
    watch.mark([watch.steps, 2], "writing the model", PATIENCE)
    budget = BUDGET_BYTES - 1 - code_bytes
    made = together(trainer, lambda: encode_within(settings, weights, budget, log) if folder else None)
    if folder:
        model, payload = made
        path = write_file(folder.path / "model.int8.zlib", model)
        log("model", bytes=len(model), payload=len(payload), zlib9=len(zlib.compress(payload, 9)), sha256=hashlib.sha256(model).hexdigest())
        total = code_bytes + len(model)
        log("code_size", bytes=code_bytes)
        log("total", bytes=total, cap=BUDGET_BYTES, left=BUDGET_BYTES - 1 - total)
        written = path.read_bytes()
        if written != model:
            raise UserError(f"{path} does not read back as it was written: there is no score; check the disk")
        _, weights = decode_model(written)
    trainer.load_weights({name: trainer.all_sum(weights[name] if folder else np.zeros_like(weights[name])) for name in sorted(weights)})
    clock = time.perf_counter()
    val_loss, val_bpb, tokens, num_bytes = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens,
                                                    watch.each([watch.steps, 3], "the final evaluation", PATIENCE), final=True)
    seconds, (seq_len, stride) = time.perf_counter() - clock, eval_lengths(settings)
    if settings.ttt_lr and not math.isfinite(val_loss):
        raise Agreed(f"test-time training ends in a loss of {val_loss}: lower TTT_LR={settings.ttt_lr}", "nonfinite")
    ttt = f"lr {settings.ttt_lr}, chunk {settings.ttt_chunk}" if settings.ttt_lr else "off"
    log("scored", tokens=tokens, bytes=num_bytes, partial=data.partial)
    log("final", val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * seconds, partial=data.partial)
    log("final_exact", val_loss=val_loss, val_bpb=val_bpb, partial=data.partial)
    log("evaluation", seconds=seconds, limit=EVAL_SECONDS, seq_len=seq_len, stride=stride, ttt=ttt)
    over = agree(trainer, failed=total >= BUDGET_BYTES)[1]
    if not folder:
        if over:
            raise Agreed("over the cap", "over_budget")
        return ""
    if over:
        other = "continue with QUANT_LEVELS=auto, or use" if settings.qat_start == 1 else "use lower QUANT_LEVELS,"
        raise Agreed(f"code {code_bytes:,} + model {len(model):,} = {total:,} bytes, {total - BUDGET_BYTES + 1:,} too many: it must be "
                     f"less than {BUDGET_BYTES:,}. The model is kept in {path}; {other} fewer layers or a smaller width", "over_budget")
    how = f"  scored    windows of {seq_len:,} tokens, every {stride:,}; test-time training: {ttt}; {seconds:.1f} s of {EVAL_SECONDS:.0f}\n"
    return (how * (ttt != "off" or {seq_len, stride} != {settings.train_seq_len}) +
            f"  final     val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}  read back from the written file{data.partial}\n"
            f"  size      {total:,} bytes = model {len(model):,} + code {code_bytes:,}; {BUDGET_BYTES - 1 - total:,} left under the cap")
