"""The challenge's numbers: the size cap, the time limits, and its published validation split."""

BUDGET_BYTES = 16_000_000  # code + model file must stay below
TRAIN_SECONDS = 600.0  # limit of the training time, on 8xH100
EVAL_SECONDS = 600.0  # limit of the final evaluation, on 8xH100

# FineWeb validation: the first 50,000 documents, which are this many bytes of UTF-8 whatever the tokenizer. The token
# counts are those of the published tokenizers, in whole windows of 1024 tokens.
VAL_DOCUMENTS = 50_000
VAL_BYTES = 151_080_891
VAL_TOKENS = {"sp1024": 62_021_632, "sp4096": 45_508_608, "sp8192": 40_540_160}
VAL_BYTES_TOLERANCE = 5e-4  # relative, of the bytes that a log or a data folder implies
