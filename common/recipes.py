"""Settings that belong together, by name: RECIPE=laptop. Any of them can be given another value."""

# what learns something in two minutes on two CPU cores, chosen by measurement: records/NOTES.md
LAPTOP_SIZE = {
    "num_layers": 4,
    "model_dim": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": 256,
    "train_batch_tokens": 2048,
    "max_wallclock_seconds": 120.0,
    "matrix_lr": 0.02,
    "muon_momentum_warmup_steps": 100,
    "train_log_every": 50,
    "val_loss_every": 500,
}

RECIPES = {
    # the challenge's baseline: the defaults
    "baseline": {},
    # `make train`
    "laptop": LAPTOP_SIZE | {
        "bigram_rows": 2048,
        "bigram_dim": 64,
        "lr_floor": 0.1,
        "mlp_slope": 0.5,
    },
    # 8xH100, in the manner of the records up to April 2026; never run there
    "modern": {
        "num_layers": 11,
        "mlp_mult": 4,
        "train_seq_len": 2048,
        "train_batch_tokens": 786432,
        "mlp_slope": 0.5,
        "rope_dims": 16,
        "norm_scale": True,
        "xsa_layers": 11,
        "parallel_layers": 4,
        "smear_gate": True,
        "qk_gain_init": 5.0,
        "matrix_lr": 0.022,
        "tied_embed_lr": 0.03,
        "scalar_lr": 0.02,
        "muon_momentum": 0.99,
        "muon_momentum_warmup_start": 0.92,
        "muon_momentum_warmup_steps": 1500,
        "weight_decay": 0.095,
        "embed_weight_decay": 0.085,
        "grad_clip_norm": 0.3,
        "warmdown_fraction": 0.7,
        "ema_decay": 0.9965,
        "quant_levels": "matrix=auto",
        "quant_clip": 12.85,
        "gptq_tokens": 131072,
        "eval_stride": 64,
    },
}
