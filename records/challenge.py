"""The challenge's rules as numbers: tracks, caps, required fields, known validation splits, and its two published founding runs."""
import math

from common.challenge import BUDGET_BYTES

TRACKS = {"10min": "track_10min_16mb", "non-record": "track_non_record_16mb"}
CAP_BYTES = BUDGET_BYTES  # code + model must stay below
CAP_SECONDS = {"track_10min_16mb": 600.0}  # training; the other track states its own limit
RECORD_MARGIN_NATS = 0.005  # per token, by which a new record must beat the best score
RECORD_ALPHA = 0.01

# FineWeb validation: 50,000 documents, whatever the tokenizer, are this many bytes of UTF-8. The token counts are those of the published
# tokenizers, cut to whole windows of 1024 or 2048 tokens.
FINEWEB_VAL_BYTES = 151_080_891
FINEWEB_VAL_TOKENS = {62_021_632: "sp1024", 45_508_608: "sp4096", 40_540_160: "sp8192"}
SP1024_NATS_PER_BPB = FINEWEB_VAL_BYTES * math.log(2) / 62_021_632  # nats per token that one bit per byte is
SPLIT_TOLERANCE = 5e-4  # relative

# submission.json. text: longest; numbers: (low, high), inclusive. The first spelling is the one that is written.
TEXT_FIELDS = {"author": 200, "github_id": 100, "name": 200, "blurb": 4000, "date": 40, "track": 100}
NUMBER_FIELDS = {
    "val_loss": (0.0, 100.0), "val_bpb": (0.0, 100.0), "pre_quant_val_loss": (0.0, 100.0), "pre_quant_val_bpb": (0.0, 100.0),
    "step_stop": (0, 10**9), "wallclock_seconds": (0.0, 1e9), "bytes_total": (0, 10**12), "bytes_model_int8_zlib": (0, 10**12),
    "bytes_code": (0, 10**12),
}
SPELLINGS = {
    "author": ("author", "authors", "submitter"),
    "github_id": ("github_id", "github", "github_username", "github_user", "author_github"),
    "name": ("name", "run_name", "title", "submission_name"),
    "blurb": ("blurb", "technique_summary", "summary", "description", "approach"),
    "date": ("date", "submission_date", "timestamp"),
    "track": ("track", "category"),
    "val_loss": ("val_loss", "mean_val_loss", "val_loss_mean", "final_val_loss", "val_loss_nats"),
    "val_bpb": ("val_bpb", "mean_val_bpb", "val_bpb_mean", "final_val_bpb", "bpb", "val_bpb_exact", "score"),
    "pre_quant_val_loss": ("pre_quant_val_loss", "prequant_val_loss"),
    "pre_quant_val_bpb": ("pre_quant_val_bpb", "prequant_val_bpb"),
    "step_stop": ("step_stop", "steps", "num_steps", "steps_completed"),
    "wallclock_seconds": ("wallclock_seconds", "train_time_seconds", "training_time_seconds", "wallclock"),
    "bytes_total": ("bytes_total", "total_bytes", "artifact_bytes", "artifact_size_bytes", "submission_bytes", "total_submission_size"),
    "bytes_model_int8_zlib": ("bytes_model_int8_zlib", "bytes_model_compressed", "bytes_model", "model_bytes", "compressed_model_bytes"),
    "bytes_code": ("bytes_code", "code_bytes", "code_size_bytes"),
}

# What the challenge itself published, as entries of ours that hold figures and no log or code. The digest of submission.json is pinned, so
# that no other folder can claim to be one.
FOUNDING = {
    "track_10min_16mb/2026-03-18_naive_baseline": "14e9e340eafa85295a90fff04b2644e444a85de4fe6c8ab5af415d1b57b4317b",
    "track_non_record_16mb/2026-03-18_4_hour_baseline": "fa9bdbcc6ddafe8b9d52de99e827bf505c3b3fe828b59100b088e3ba307b4989",
}
