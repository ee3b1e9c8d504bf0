"""Every option of a run that is off by default, one row each. The ladder's rung "options", the tests of options and
`python -m records ablation` take their settings from here."""
import dataclasses

# name: settings, each a value or, where it depends on the size, a function of the Settings. Where several options are
# combined, a later row wins.
OPTIONS = {
    "loops": {"loop_layers": lambda s: f"{s.num_layers // 3}-{s.num_layers // 2}"},
    "leaky relu^2": {"mlp_slope": 0.5},
    "partial rotary": {"rope_dims": lambda s: max(2, s.model_dim // s.num_heads // 8 * 2)},
    "norm scale": {"norm_scale": True},
    "XSA": {"xsa_layers": lambda s: -(-s.num_layers // 2)},
    "parallel residual": {"parallel_layers": lambda s: -(-s.num_layers // 3)},
    "smear gate": {"smear_gate": True, "bos_id": 1},
    "bigrams": {"bigram_rows": 251, "bigram_dim": 32, "bos_id": 1},
    "weight decay": {"weight_decay": 0.1, "embed_weight_decay": 0.1},
    "floor of the learning rate": {"lr_floor": 0.1},
    "chunked loss": {"loss_chunk": lambda s: s.micro_batch_tokens * 5 // 32},  # the last chunk is shorter
    "average": {"ema_decay": 0.95},
    "rounding in training": {"qat_start": 0.5},
    "fp16 embedding": {"quant_levels": "embed=fp16"},
    "fewer levels": {"quant_levels": "matrix=31,embed=fp16"},
    "GPTQ": {"gptq_tokens": lambda s: 4 * s.train_seq_len},
    "long windows": {"eval_seq_len": lambda s: 2 * s.train_seq_len, "eval_stride": lambda s: s.train_seq_len},
    "sliding windows": {"eval_stride": lambda s: max(1, s.train_seq_len // 4)},
    "adapters": {"ttt_lr": 0.05, "ttt_rank": 4, "ttt_chunk": lambda s: f"{s.train_batch_tokens // 4}d"},
    "test-time training by document": {"ttt_lr": 0.05, "ttt_chunk": lambda s: f"{s.train_batch_tokens // 4}d"},
    "test-time training": {"ttt_lr": 0.05, "ttt_chunk": lambda s: str(s.train_batch_tokens)},
}


def option_settings(s, names=None):
    """dict of the settings of the named options (default: all of them) for a model and batch of the size of `s`."""
    found = {}
    for name in OPTIONS if names is None else names:
        found |= {key: value(s) if callable(value) else value for key, value in OPTIONS[name].items()}
    return found


def with_options(s, names=None):
    return dataclasses.replace(s, **option_settings(s, names))
