"""Kinds of tampering with an honest record folder, and the check of `python -m records verify` that catches each.

`python -m tests.records.tampering` prints the table; test_tampering.py makes the folders, spoils copies and looks.

folder: which honest folder is spoiled.
  run        real runs of this project's trainer with three seeds, all steps made, packed; with their model file
  capped     as it packs runs in the record track that the time limit stopped (made_records.py)
  challenge  a folder in the manner of the challenge's first records (made_challenge.py)
  late       one in the manner of its last records
level: `default` for plain verify; `tree` where an earlier folder beside it is needed; `smoke` with --smoke; `data` with
--data; `no`: not caught, with the reason in place of the finding's words.
status: FAIL, or WARN where an honest folder could look so.
"""
import base64
import json
import random
import re
import struct
import zlib
from typing import NamedTuple

from common.artifact import decode_model, encode_model
from common.params import initial_weights
from records.folder import open_folder
from tests.records.spoil import (
    append,
    as_seed,
    both,
    copy,
    edit,
    field,
    log,
    logs,
    other_log,
    scores,
    seed_field,
    times,
    transplant,
    write,
)

NOISE = random.Random(9).randbytes(9000)
BASE64 = base64.b64encode(NOISE).decode()
LINES = "\n".join(re.findall(".{76}", BASE64))
SVG = '<svg xmlns="http://www.w3.org/2000/svg">%s</svg>\n'
NUMBER = r"\d+(?:\.\d+)?"
FALLING = iter(range(10**6))  # so that each loss is below the one before


def png(pixels):
    """A PNG file of one grey pixel, whatever is in its data."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


class Kind(NamedTuple):
    what: str
    folder: str
    check: str
    words: str  # in the finding; of level `no` the reason why nothing is found
    spoil: object  # function of the path of a copy of the folder
    status: str = "FAIL"
    level: str = "default"


def other_model(folder):
    """Writes a model of the same sizes with other weights."""
    path = folder / "model.int8.zlib"
    settings, _ = decode_model(path.read_bytes())
    path.write_bytes(encode_model(settings, initial_weights(settings))[0])


def model_of_another_seed(folder):
    """Ships the model of a run that is not the one whose score is claimed. Its file lies beside the record."""
    (folder / "model.int8.zlib").write_bytes((folder.parents[1] / "other_seed.model").read_bytes())


def of_another_record(name):
    """Function that takes a file of the earlier record beside the folder; `log`: of the same seed as the main log."""
    def spoil(folder):
        other = sorted(path for path in folder.parent.iterdir() if path != folder)[0]
        if name != "log":
            (folder / name).write_bytes((other / name).read_bytes())
            return
        seed = open_folder(folder).logs[0].seed
        theirs = next(log.name for log in open_folder(other).logs if log.seed == seed)
        (folder / "train.log").write_bytes((other / theirs).read_bytes())
    return spoil


def prints_its_score(folder):
    """The script prints what submission.json claims, and does nothing else."""
    score = json.loads((folder / "submission.json").read_text())["val_bpb"]
    (folder / "train_gpt.py").write_text(f'print("final_int8_zlib_roundtrip_exact val_loss:2.0 val_bpb:{score:.8f}")\n')


def falling(found):
    return f"{found[1]}{3 - next(FALLING) / 1e4:.4f}"


OF_OUR_LOGS = [
    Kind("a training line is left out", "run", "logs", "no step line at step 30", log((r"^step:30/60 train.*\n", ""))),
    Kind("a validation is left out", "run", "logs", "no val line at step 20", log((r"^step:20/60 val.*\n", ""))),
    Kind("a training line where none is due", "run", "logs", "a step line at step 33", log((r"^step:35/", "step:33/"))),
    Kind("more steps are planned than set", "run", "logs", "iterations 90", logs((r"(?<=^step:\d\d/)60", "90"))),
    Kind("another ITERATIONS in the settings", "run", "logs", "iterations 60",
         logs(('"iterations": 60', '"iterations": 90'))),
    Kind("another batch in the settings", "run", "logs", "tokens 256",
         logs(('"train_batch_tokens": 256', '"train_batch_tokens": 512'))),
    Kind("another speed", "run", "logs", "tokens/s", log((rf"(?<=tok/s:){NUMBER}$", times(3)))),
    Kind("other times, with their averages", "run", "logs", "tokens/s",
         logs((rf"(?<=train_time:){NUMBER}", times(0.5)), (rf"(?<=step_avg:){NUMBER}", times(0.5)))),
    Kind("one average step time", "run", "clock", "ms per step",
         log((rf"^(step:45/60 train.*step_avg:){NUMBER}", r"\g<1>9999.00"))),
    Kind("a time that goes back", "run", "logs", "out of order",
         log((r"^(step:45/60 train.*train_time:)\d+", r"\g<1>1"))),
    Kind("another parameter count", "run", "logs", "parameters", log((rf"(?<=^model_params:){NUMBER}", times(2))),
         "WARN"),
    Kind("a better validation on the way", "run", "logs", "tokens and bytes",
         log((rf"^(step:40/60 val_loss:\S+ val_bpb:){NUMBER}", r"\g<1>1.0000"))),
    Kind("the rounded final score alone", "run", "logs", "rounded",
         log((r"^(final_int8_zlib_roundtrip val_loss:)\S+", r"\g<1>1.0000"))),
    Kind("a final score far below the last validation", "run", "logs", "after rounding", scores(0.8, "final.*")),
    Kind("a total that is not the sum", "run", "logs", "= model + code",
         log((rf"(?<=^Total submission size int8\+zlib: ){NUMBER}", times(0.5)))),
    Kind("bytes left that do not follow", "run", "logs", "bytes left", log((r"(?<= left:)\d+", "15000000"))),
    Kind("a smaller code", "run", "code bytes", "bytes", logs((r"(?<=^Code size: )\d+", "4000"))),
    Kind("capped, though all steps were made", "run", "logs", "status capped",
         log(("^status=finished", "status=capped"))),
    Kind("a stop before the last step", "run", "logs", "stopping early",
         log(("^(peak memory)", r"stopping_early: wallclock_cap train_time:9ms step:60/60\n\1"))),
    Kind("a part of validation", "run", "logs", "tokens scored",
         logs((r"^(scored: tokens:)\d+( bytes:)\d+", r"\g<1>700\g<2>700"))),
    Kind("another evaluation than set", "run", "logs", "stride 32",
         log((r"(?<=^settings: \{)", '"eval_stride": 16, '))),
    Kind("no word on the evaluation", "run", "logs", "no line of evaluation", log((r"^evaluation: .*\n", ""))),
    Kind("no word on the model", "run", "logs", "no line of model", log((r"^Serialized model .*\n", ""))),
    Kind("weights that were trained before", "run", "logs", "before any update",
         log((r"^(step:0/60 val_loss:)\S+ val_bpb:\S+", r"\g<1>2.0000 val_bpb:2.8854"),
             (r"^(step:1/60 train_loss:)\S+", r"\g<1>2.0000")), "WARN"),
    Kind("a throughput that does not follow", "run", "logs", "of its other figures",
         log((rf"(?<=^throughput: ){NUMBER}", times(2)))),
    Kind("a checkpoint after the end", "run", "logs", "a checkpoint of step 99",
         log((r"^status=", "checkpoint: step:99 bytes:1 write_time:0.01s\nstatus="))),
    Kind("a resumption that hides lines", "run", "logs", "no line of run",
         log((r"^step:30/60 train.*\n", "resume: step:30 train_time:99ms folder:runs/r\n"))),
    Kind("a time limit far off", "capped", "logs", "stopped early after",
         logs(('"max_wallclock_seconds": 600.0', '"max_wallclock_seconds": 900.0'))),
    Kind("training beyond the limit", "capped", "clock", "over",
         both(logs((r"(?<=train_time:)599\d+", "640000"), (r"(?<=train_time:640000ms step_avg:)\S+(?=ms)", "106.70")),
              field(wallclock_seconds=640.0))),
    Kind("a stop at another time than the last validation", "capped", "logs", "of its last validation",
         log((r"^(stopping_early: wallclock_cap train_time:)\d+", r"\g<1>580000"))),
    Kind("an evaluation of more than ten minutes", "capped", "clock", "evaluation took",
         log((r"(?<=^evaluation: time:)\S+(?=s )", "700.0"))),
    Kind("validation after the stop", "capped", "logs", "of its last validation",
         log((r"^(stopping_early.*\n)", r"\1step:5999/20000 val_loss:2.0000 val_bpb:1.1843 train_time:599900ms "
                                        "step_avg:100.00ms\n"))),
    Kind("one process in the record track", "capped", "clock", "1 processes",
         logs((r"world_size:8", "world_size:1")), "WARN"),
]
OF_SEEDS = [
    Kind("a run again under another seed", "run", "logs", "of the losses of", as_seed(9, "train_seed9.log")),
    Kind("a log again under another name", "run", "logs", "a copy of",
         lambda folder: copy(sorted(folder.glob("train_seed*.log"))[-1].name, "train_seed9.log")(folder)),
    Kind("most losses of another seed", "run", "logs", "of the losses of", transplant("loss", 0.9)),
    Kind("the times of another seed", "challenge", "logs", "the times of", transplant("time")),
    Kind("another learning rate for one seed", "run", "logs", "MATRIX_LR",
         other_log((r'(?<=^settings: \{)', '"matrix_lr": 0.01, '))),
    Kind("more processes for one seed", "run", "logs", "2 processes",
         other_log(("world_size:1", "world_size:2")), "WARN"),
    Kind("other data for one seed", "run", "logs", "manifest of the data",
         other_log((r"(?<=manifest_sha256:)[0-9a-f]{64}", "ab" * 32))),
    Kind("other code for one seed", "run", "logs", "of train_gpt.py",
         other_log((r"(?<=^code: bytes:)(\d+ sha256:)[0-9a-f]{64}", r"\g<1>" + "ab" * 32))),
    Kind("a seed that is declared, without a log", "run", "logs", "has no log", field(seeds=[1, 2, 3, 4])),
    Kind("a seed twice", "run", "logs", "has no log", other_log((r'(?<="seed": )\d+', "2"))),
    Kind("code that was changed after the run", "capped", "logs", "of train_gpt.py",
         edit("train_gpt.py", (r"0\.1 \* gradient", "0.2 * gradient"))),
    Kind("a comment after a wrapper", "run", "code bytes", "bytes shipped", append("train_gpt.py", "# other\n")),
    Kind("a run again under another seed", "challenge", "logs", "of the losses of", as_seed(9, "train_seed9.log")),
    Kind("two thirds of another seed's losses", "challenge", "logs", "of the losses of", transplant("loss", 0.75)),
    Kind("another hyperparameter for one seed", "late", "logs", "matrix_lr",
         other_log((r"(?<=^  matrix_lr: )\S+", "0.03")), "WARN"),
    Kind("a larger batch for one seed", "challenge", "logs", "tokens per step",
         other_log((r"(?<=^train_batch_tokens:)\d+", "786432"))),
]
OF_MODELS = [
    Kind("a model that no log names", "run", "artifact", "SHA-256", other_model),
    Kind("another digest in the log", "run", "artifact", "SHA-256",
         log((r"(?<= sha256:)[0-9a-f]{64}\)", "ab" * 32 + ")"))),
    Kind("another digest in submission.json", "run", "artifact", "model_sha256", field(model_sha256="ab" * 32)),
    Kind("the model of another seed than the score", "run", "artifact", "whose model is here", model_of_another_seed,
         "WARN"),
    Kind("a second model file", "run", "artifact", "SHA-256",
         both(copy("model.int8.zlib", "more.int8.zlib"), other_model)),
    Kind("two model files of another format", "challenge", "artifact", "2 model files",
         both(write("final_model.int6.ptz", NOISE), write("more.int6.ptz", NOISE[1:])), "WARN"),
    Kind("encoded data in the README", "run", "code bytes", "like encoded data", append("README.md", BASE64)),
    Kind("short words of encoded data in the README", "run", "code bytes", "like encoded data",
         append("README.md", re.sub("(.{7})", r"\1 ", BASE64))),
    Kind("encoded data in a log", "challenge", "code bytes", "like encoded data", append("train.log", LINES)),
    Kind("encoded data in submission.json", "run", "code bytes", "like encoded data", field(notes=BASE64)),
    Kind("encoded data in requirements.txt", "run", "code bytes", "like encoded data",
         append("requirements.txt", "# " + LINES.replace("\n", "\n# "))),
    Kind("hexadecimal data in the README", "challenge", "code bytes", "hexadecimal", append("README.md", NOISE.hex())),
    Kind("a table of weights in the README", "challenge", "code bytes", "numbers in a row",
         append("README.md", ", ".join(str(byte) for byte in NOISE))),
    Kind("invisible characters in the README", "run", "code bytes", "invisible",
         append("README.md", "".join("\u200b\u200c"[byte & 1] for byte in NOISE[:500]))),
    Kind("data after the end of a picture", "run", "code bytes", "after the end",
         write("curve.png", png(b"\0\0") + NOISE)),
    Kind("encoded data in a drawing", "run", "code bytes", "like encoded data",
         write("curve.svg", SVG % f"<!--{BASE64}-->")),
    Kind("encoded data behind a picture in a drawing", "run", "code bytes", "like encoded data",
         write("curve.svg", SVG % base64.b64encode(png(b"\0\0") + NOISE).decode())),
    Kind("data that is called a picture", "run", "code bytes", "PNG", write("curve.png", NOISE)),
    Kind("code in the README that the script executes", "challenge", "code bytes", "reaches README.md",
         both(append("README.md", "~~~\nx = 1\n~~~\n"),
              edit("train_gpt.py", (r"\A", "exec(open('README.md').read().split('~~~')[1])\n")))),
    Kind("code that is installed from elsewhere", "run", "code bytes", "git+https",
         append("requirements.txt", "fast @ git+https://example.org/fast\n"), "WARN"),
    Kind("a helper module that the script imports", "challenge", "code bytes", "reaches helper.py",
         both(write("helper.py", b"x = 1\n"), edit("train_gpt.py", ("^import glob", "import helper\nimport glob")))),
]
OF_CODE = [
    Kind("a script that prints the claimed score", "capped", "compile", "prints the constant", prints_its_score),
    Kind("a script that reads no data", "capped", "compile", "reads data",
         edit("train_gpt.py", (r"np.fromfile\(path, \"<u2\"\)\[512:\]", "np.arange(9000)"))),
    Kind("a script that makes no step", "challenge", "compile", "takes a training step",
         edit("train_gpt.py", (r"^ +np.add.at.*\n", ""), (r"^ +(?:weights|chances\[.*\]) -= .*\n", ""))),
    Kind("a score that does not depend on the data", "capped", "smoke run", "with the data",
         edit("train_gpt.py", (r"nats\(logits, val\).mean\(\)", "np.float64(4.5)")), level="smoke"),
    Kind("a score that does not depend on the seed", "capped", "smoke run", "with the seed",
         edit("train_gpt.py", (r"int\(os.environ.get\(\"SEED\", 1\)\)", "1"),
              ("^loss = ", 'print("seed:" + os.environ.get("SEED", "1"))\nloss = ')), level="smoke"),
]
OF_STATEMENTS = [
    Kind("a better val_bpb than in the logs", "run", "score", "claimed", field(val_bpb=1.23456789)),
    Kind("a better val_loss than in the logs", "challenge", "score", "claimed", field(val_loss=1.23456789)),
    Kind("a better score before quantization", "run", "score", "pre_quant_val_bpb", field(pre_quant_val_bpb=1.2345)),
    Kind("the best seed as the score", "challenge", "score", "is the best of",
         field(val_bpb=1.2094, val_loss=2.04201796), "WARN"),
    Kind("other steps than in the logs", "run", "clock", "step_stop", field(step_stop=59)),
    Kind("less time than in the logs", "challenge", "clock", "wallclock_seconds", field(wallclock_seconds=500.0)),
    Kind("fewer bytes than in the logs", "challenge", "artifact", "bytes_total", field(bytes_total=15_000_000)),
    Kind("a better val_bpb of one seed", "run", "score", "of seed", seed_field("val_bpb", 1.23456789)),
    Kind("other steps of one seed", "run", "score", "step_stop", seed_field("step_stop", 59)),
    Kind("fewer bytes of one seed", "run", "score", "bytes_total", seed_field("bytes_total", 1234)),
    Kind("a better score of one seed, in a list", "challenge", "score", "of seed 3",
         field(seed_scores=[1.2101, 1.2094, 1.1098])),
    Kind("a shorter evaluation of one seed", "challenge", "score", "eval_time_seconds",
         field(eval_time_seconds=[1, 1, 99])),
    Kind("another mean", "run", "score", "val_bpb_mean", field(val_bpb_mean=1.23456789)),
    Kind("a smaller standard deviation", "challenge", "score", "val_bpb_std", field(val_bpb_std=0.00000123)),
    Kind("a better score in the README", "run", "score", "in the README",
         edit("README.md", (r"(?<=val_bpb \*\*)\d\.\d{4}", "1.0123")), "WARN"),
    Kind("a score on other data as one on FineWeb", "run", "score", "another split",
         field(dataset="fineweb10B_sp1024")),
    Kind("other data than in the logs", "run", "score", "wikitext claimed", field(dataset="wikitext"), "WARN"),
    Kind("other hardware than in the log", "run", "clock", "H100", field(hardware="8xH100 SXM")),
    Kind("other GPUs than in the log", "challenge", "clock", "A100", field(hardware="8xA100 40GB")),
    Kind("fewer GPUs than in the log", "late", "clock", "1 x H100", field(hardware="1xH100")),
    Kind("a date in the future", "run", "schema", "not after today", field(date="2099-01-01")),
]
OF_OTHER_LOGS = [
    Kind("lines that are left out", "challenge", "logs", "no line of training between",
         log((r"^step:[45]\d00/20000 train.*\n", "")), "WARN"),
    Kind("one line of another length of run", "challenge", "logs", "steps in the whole log",
         log((r"^step:4000/20000 train", "step:4000/50000 train")), "WARN"),
    Kind("another ITERATIONS than the lines", "late", "logs", "steps in the whole log",
         log((r"(?<=^  iterations: )20000", "30000")), "WARN"),
    Kind("a better val_bpb on the way", "challenge", "logs", "a ratio of",
         log((rf"^(step:4000/20000 val_loss:\S+ val_bpb:){NUMBER}", r"\g<1>1.1000"))),
    Kind("a better final val_bpb alone", "challenge", "score", "151,080,891",
         both(logs((r"(?<=^final_int8_zlib_roundtrip).*val_bpb:\S+", lambda found: re.sub(r"(?<=bpb:)\S+", times(0.98),
                                                                                         found[0]))),
              field(val_bpb=1.185898, seed_scores=[1.185898, 1.185212, 1.185604]))),
    Kind("the rounded final score alone", "challenge", "logs", "of its exact line",
         log((r"^(final_int8_zlib_roundtrip val_loss:)\S+", r"\g<1>1.9000"))),
    Kind("a total that is not the sum", "challenge", "logs", "= model + code",
         logs((rf"(?<=^Total submission size int8\+zlib: ){NUMBER}", "15000000")), "WARN"),
    Kind("training after the stop", "challenge", "logs", "none after it stopped",
         log((r"^(stopping_early.*\n)",
              r"\1step:12000/20000 train_loss:1.9000 train_time:599900ms step_avg:49.99ms\n"))),
    Kind("a stop at another time than the last validation", "challenge", "logs", "of its last validation",
         logs((r"(?<=^stopping_early: wallclock_cap train_time:)\d+", "580000"))),
    Kind("no word on why it stopped", "challenge", "logs", "ends at step", logs((r"^stopping_early.*\n", "")), "WARN"),
    Kind("a stop long before the limit", "challenge", "logs", "stopped early after",
         logs((r"max_wallclock_seconds:600.000", "max_wallclock_seconds:1200.000")), "WARN"),
    Kind("a time that goes back", "challenge", "logs", "out of order",
         log((r"^(step:4000/20000 train.*train_time:)\d+", r"\g<1>1"))),
    Kind("an average step time", "challenge", "clock", "ms per step",
         log((r"^(step:4000/20000 train.*step_avg:)\S+", r"\g<1>20.00ms"))),
    Kind("weights that were trained before", "challenge", "logs", "before any update",
         log((r"^(step:0/20000 val_loss:).*( train_time)", r"\g<1>3.0000 val_bpb:1.7767\2")), "WARN"),
    Kind("one loss on every line", "challenge", "logs", "lines", log((r"(?<=train_loss:)\S+", "2.0500"))),
    Kind("losses without noise", "challenge", "logs", "falls on each",
         log((r"()(?<=train_loss:)\S+", falling)), "WARN"),
    Kind("training losses far below validation's", "challenge", "logs", "training losses of",
         log((r"(?<=train_loss:)1\.\d+|(?<=train_loss:)2\.[01]\d+", times(0.5))), "WARN"),
    Kind("validation far below the training losses", "challenge", "logs", "a validation loss of",
         scores(0.7, r"(?:step:\d+/\d+ val_loss|final).*"), "WARN"),
    Kind("a final score far below the last validation", "challenge", "logs", "below the last validation",
         scores(0.8, "final.*"), "WARN"),
    Kind("more speed than the hardware has", "challenge", "logs", "operations per second",
         logs((r"(?<=^train_batch_tokens:)\d+", "52428800")), "WARN"),
    Kind("another speed", "late", "logs", "tokens/s", log((rf"(?<=tok/s: ){NUMBER}", times(4))), "WARN"),
    Kind("validation shards for training", "late", "logs", "shards of training",
         logs((r"(?<=fineweb10B_sp1024/)fineweb_train_\*", "fineweb_val_*"))),
    Kind("calibration after the time was over", "late", "clock", "after it stopped",
         logs((r"(?<=Hessians in )\S+", "47.3s")), "WARN"),
    Kind("an evaluation of more than ten minutes", "late", "clock", "evaluation took",
         log((r"(?<= eval_time:)82837ms", "612837ms"))),
    Kind("a part of the validation tokens", "challenge", "score", "151,080,891",
         logs((r"(?<=tokens:)62021632", "6201344"))),
    Kind("no line of the final score", "challenge", "score", "no final score", logs((r"^final_.*\n", ""))),
]
OF_OTHER_FOLDERS = [
    Kind("the log of another record", "challenge", "logs", "of 2026-05-01_before", of_another_record("log"),
         level="tree"),
    Kind("the run of another record under another seed", "challenge", "logs", "of its losses are those of",
         both(of_another_record("log"), as_seed(7, "train.log")), level="tree"),
    Kind("the run of another author, with its times", "challenge", "logs", "and so are its times",
         both(of_another_record("log"), append("train.log", "\n"), field(github_id="d-thief")), level="tree"),
    Kind("the run of another author, with other times", "challenge", "logs", "a repeated run",
         both(of_another_record("log"), field(github_id="d-thief"),
              log((rf"(?<=train_time:){NUMBER}(?=ms)", times(0.99)), (rf"(?<=step_avg:){NUMBER}(?=ms)", times(0.99)))),
         "WARN", "tree"),
    Kind("the model of another author", "capped", "artifact", "by another author",
         both(of_another_record("model.int8.zlib"), field(github_id="d-thief"), append("train_gpt.py", "# mine\n")),
         level="tree"),
    Kind("the code of another author", "challenge", "code bytes", "by another author", field(github_id="d-thief"),
         "WARN", "tree"),
]
WITH_DATA = [
    Kind("better scores in everything that is written", "run", "re-evaluation", "off by", scores(0.9), level="data"),
]
NOT_CAUGHT = [
    Kind("better scores in everything that is written, without a model", "challenge", "", "nothing in the folder can "
         "be scored again: only a repeated run shows it", scores(0.99), "", "no"),
    Kind("shorter times in everything that is written", "challenge", "", "the clock is the runner's own: only a "
         "repeated run shows it", both(logs((rf"(?<=train_time:){NUMBER}(?=ms)", times(0.98)),
                                            (rf"(?<=step_avg:){NUMBER}(?=ms)", times(0.98))),
                                       field(wallclock_seconds=587.892)), "", "no"),
    Kind("the best of more seeds than are declared", "challenge", "", "runs that are not shown leave no trace", lambda
         folder: None, "", "no"),
]
KINDS = [*OF_OUR_LOGS, *OF_SEEDS, *OF_MODELS, *OF_CODE, *OF_STATEMENTS, *OF_OTHER_LOGS, *OF_OTHER_FOLDERS,
         *WITH_DATA, *NOT_CAUGHT]


def table():
    """The kinds as text, a row each."""
    rows = [("kind", "folder", "level", "check", "status", "finding"),
            *((k.what, k.folder, k.level, k.check or "-", k.status or "-", k.words) for k in KINDS)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[5]]) for row in rows)


if __name__ == "__main__":
    print(table())
    print(f"{len(KINDS)} kinds, of which {len(NOT_CAUGHT)} are not caught")
