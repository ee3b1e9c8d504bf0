"""What a record must be: tracks, time limits, the margin to beat, the fields of submission.json, the two rule sets. And
what a check reports: a Finding with a status. The challenge's own numbers are in common/challenge.py."""
import dataclasses
import math

from common.challenge import TRAIN_SECONDS
from common.published import VAL_BYTES, VAL_TOKENS

SCRIPT = "train_gpt.py"  # of a record
SECOND = 1e3  # in milliseconds, in which logs count

PASS, WARN, FAIL, UNVERIFIED, NOT_RUN = "PASS", "WARN", "FAIL", "NOT VERIFIED", "not asked"
NOTE = "note"  # stands beside another finding and decides nothing

TRACKS = {"10min": "track_10min_16mb", "non-record": "track_non_record_16mb"}
TRAIN_LIMITS = {"track_10min_16mb": TRAIN_SECONDS}  # seconds; a record of the other track states its own limit
RECORD_MARGIN_NATS = 0.005  # per token, by which a new record must beat the best score
RECORD_ALPHA = 0.01
SP1024_NATS_PER_BPB = VAL_BYTES * math.log(2) / VAL_TOKENS["sp1024"]  # nats per token in one bit per byte


def listed(names, most=3):
    """`a, b, c and 2 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@dataclasses.dataclass
class Finding:
    """What a check saw. where: the file, and the line where it has one; meaning: a sentence on what that means or how
    to mend it, "" for the usual one of the check."""
    status: str
    observed: str
    expected: str = ""
    where: str = ""
    meaning: str = ""


@dataclasses.dataclass(frozen=True)
class Rules:
    """An edition of the rules.

    since: the date from which it holds; lenient: status of what the challenge accepted against its own rules; digits:
    decimals that the score must have; margin_nats: per token, by which a record must beat the best score.
    literal_size: whether the bytes of the files decide, or those that submission.json and the logs state.
    other_splits: (tokens, bytes) of validation splits that are accepted beside FineWeb's 50,000 documents, with a
    warning."""
    name: str
    since: str
    lenient: str
    digits: int
    margin_nats: float
    literal_size: bool
    other_splits: tuple = ()


EARLY_SPLIT = (63_779_840, 155_769_700)  # of the challenge's first runs, before its data were exported anew
RULESETS = {rules.name: rules for rules in (
    # name, since, lenient, digits, margin_nats, literal_size, other_splits
    Rules("strict", "2026-03-18", FAIL, 4, RECORD_MARGIN_NATS, True),  # the rules as they are written
    Rules("upstream-2026-04", "2026-04-01", WARN, 2, 0.0, False, (EARLY_SPLIT,)),  # what was accepted in practice
)}

# The fields of submission.json. Of text the most characters, of numbers (low, high), both included.
TEXT_FIELDS = {"author": 200, "github_id": 100, "name": 200, "blurb": 4000, "date": 40, "track": 100}
NUMBER_FIELDS = {
    "val_loss": (0.0, 100.0),
    "val_bpb": (0.0, 100.0),
    "pre_quant_val_loss": (0.0, 100.0),
    "pre_quant_val_bpb": (0.0, 100.0),
    "step_stop": (0, 10**9),
    "wallclock_seconds": (0.0, 1e9),
    "bytes_total": (0, 10**12),
    "bytes_model_int8_zlib": (0, 10**12),
    "bytes_code": (0, 10**12),
}
SPELLINGS = {  # ours first, then those of other submissions
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
    "bytes_total": ("bytes_total", "total_bytes", "artifact_bytes", "artifact_size_bytes", "submission_bytes",
                    "total_submission_size"),
    "bytes_model_int8_zlib": ("bytes_model_int8_zlib", "bytes_model_compressed", "bytes_model", "model_bytes",
                              "compressed_model_bytes"),
    "bytes_code": ("bytes_code", "code_bytes", "code_size_bytes"),
}

# The challenge's own two runs, as entries that have figures but neither log nor code. The SHA-256 of submission.json is
# fixed here, so that no other folder can claim to be one of them.
FOUNDING = {
    "track_10min_16mb/2026-03-18_naive_baseline": "14e9e340eafa85295a90fff04b2644e444a85de4fe6c8ab5af415d1b57b4317b",
    "track_non_record_16mb/2026-03-18_4_hour_baseline":
        "fa9bdbcc6ddafe8b9d52de99e827bf505c3b3fe828b59100b088e3ba307b4989",
}
