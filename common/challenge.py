"""The challenge's limits: size and time."""

BUDGET_BYTES = 16_000_000  # code + model file must stay below
TRAIN_SECONDS = 600.0  # limit of the training time, on 8xH100
EVAL_SECONDS = 600.0  # limit of the final evaluation, on 8xH100
