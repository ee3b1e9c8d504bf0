"""The challenge's validation split as published, for those who check data and records."""

# FineWeb validation: the first 50,000 documents, which are this many bytes of UTF-8 whatever the tokenizer. The token
# counts are those of the published tokenizers, in whole windows of 1024 tokens.
VAL_DOCUMENTS = 50_000
VAL_BYTES = 151_080_891
VAL_TOKENS = {"sp1024": 62_021_632, "sp4096": 45_508_608, "sp8192": 40_540_160}
VAL_BYTES_TOLERANCE = 5e-4  # relative, of the bytes that a log or a data folder implies
