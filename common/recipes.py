"""Settings that belong together, by name: RECIPE=laptop. Any of them can be given another value."""

RECIPES = {
    # the challenge's baseline: the defaults
    "baseline": {},
    # `make train` without a GPU: a model that learns something in two minutes on two CPU cores
    "laptop": {
        "num_layers": 4,
        "model_dim": 256,
        "num_heads": 4,
        "num_kv_heads": 2,
        "train_seq_len": 256,
        "train_batch_tokens": 4096,
        "max_wallclock_seconds": 120.0,
        "matrix_lr": 0.02,
        "muon_momentum_warmup_steps": 100,
        "train_log_every": 50,
        "val_loss_every": 200,
    },
}
