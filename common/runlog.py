"""Every line of a training log: templates for the writer and for the parser (readlog.py).

{name:d} is a whole number, {name:.4f} a number, {name:s} a word and {name:*} the rest of the line, which may be empty.
Lines of the challenge's own scripts keep their spelling, for its tools. `partial` is empty or says which part of the
validation split was scored.
"""
import string

from common.files import as_utf8

LOG_LINES = {
    "run": "run:{run_id:s} backend:{backend:s} device:{device:*}",
    "versions": "versions: {versions:*}",
    "command": "command: {command:*}",
    "settings": "settings: {settings:*}",
    "data": "data: train_tokens:{train_tokens:d} val_tokens:{val_tokens:d} manifest_sha256:{manifest:s} path:{path:*}",
    "tokenizer": "tokenizer: vocab_size:{vocab_size:d} sha256:{sha256:s} path:{path:*}",
    "code": "code: bytes:{bytes:d} sha256:{sha256:s}",
    "params": "model_params:{params:d} flops_per_token:{flops:d}",
    "batch": "train_batch_tokens:{tokens:d} train_seq_len:{seq_len:d} world_size:{world_size:d} "
             "micro_batch_rows:{micro_rows:d}",
    "warmup": "warmup_steps:{steps:d} startup_time:{seconds:.1f}s",
    "step": "step:{step:d}/{iterations:d} train_loss:{train_loss:.4f} train_time:{ms:.0f}ms step_avg:{avg:.2f}ms "
            "tok/s:{rate:.0f}",
    "val": "step:{step:d}/{iterations:d} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} train_time:{ms:.0f}ms "
           "step_avg:{avg:.2f}ms{partial:*}",
    "stop": "stopping_early: wallclock_cap train_time:{ms:.0f}ms step:{step:d}/{iterations:d}",
    "memory": "peak memory allocated: {mib:d} MiB",
    "throughput": "throughput: {rate:.0f} tok/s {flops:.2f} GFLOP/s {share:.1f}% of the measured matmul peak "
                  "({peak:.1f} GFLOP/s)",
    "calibration": "calibration: tokens:{tokens:d} time:{seconds:.1f}s",
    "quant": "quant: levels:{levels:s} model_bytes:{bytes:d} weights_error:{error:.6f}",
    "model": "Serialized model int8+zlib: {bytes:d} bytes (payload:{payload:d} stock_zlib9:{zlib9:d} "
             "sha256:{sha256:s})",
    "code_size": "Code size: {bytes:d} bytes",
    "total": "Total submission size int8+zlib: {bytes:d} bytes (cap:{cap:d} left:{left:d})",
    "final": "final_int8_zlib_roundtrip val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} eval_time:{ms:.0f}ms{partial:*}",
    "final_exact": "final_int8_zlib_roundtrip_exact val_loss:{val_loss:.8f} val_bpb:{val_bpb:.8f}{partial:*}",
    "evaluation": "evaluation: time:{seconds:.1f}s limit:{limit:.0f}s seq_len:{seq_len:d} stride:{stride:d} "
                  "ttt:{ttt:*}",
    "scored": "scored: tokens:{tokens:d} bytes:{bytes:d}{partial:*}",
    "resume": "resume: step:{step:d} train_time:{ms:.0f}ms folder:{path:*}",
    "checkpoint": "checkpoint: step:{step:d} bytes:{bytes:d} write_time:{seconds:.2f}s",
    "checkpoint_failed": "checkpoint_failed: step:{step:d} reason:{reason:*}",
    "checkpoint_damaged": "checkpoint_damaged: {reason:*}",
    "preflight": "preflight: disk_free:{free:d}MiB disk_need:{need:d}MiB memory:{memory:d}MiB "
                 "memory_need:{memory_need:d}MiB",
    "status": "status={status:s} reason={reason:*} hint={hint:*}",
}


def log_line(kind, **values):
    """The line of one kind, from just the fields of its template."""
    template = LOG_LINES[kind]
    assert {name for _, name, _, _ in string.Formatter().parse(template) if name} == values.keys(), f"{kind}: {values}"
    return as_utf8(" ".join(template.replace(":*}", "}").format(**values).splitlines()))
