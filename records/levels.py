"""`python -m records levels MODEL_OR_RUN...`: bytes and score of a model file with fewer levels.

The weights in the file are the source, so the error is that of rounding them again.
"""
import dataclasses

from common.artifact import pack_payload, read_model
from common.bpb import evaluate
from common.command import path_argument
from common.dataset import open_data
from common.files import as_utf8
from common.fit import levels_text
from common.params import count_params
from common.quantize import dequantize_weights, quantize_weights, relative_error
from common.settings import UserError
from common.zstream import zlib_size
from parity.trainers import load_trainer
from records.budget import MODEL_LIMIT
from records.evaluation import LONGEST_ROW, MODEL_FILE, scoring_settings
from records.folder import Refused, read_bounded

LEVELS = (127, 63, 31, 15, 11, 7, 5, 3, 2)


@dataclasses.dataclass
class Row:
    """One row of the table. levels: as text; bytes: of the model file; bits: per weight; error: relative; bpb: bits per
    byte, None where nothing is scored."""
    levels: str
    bytes: int
    bits: float
    error: float
    bpb: float | None


def fewer(own, number):
    """dict group -> levels: `number`, except for groups that have no more already."""
    return {group: number if value == "fp16" else min(value, number) for group, value in own.items()}


def shown_levels(levels):
    """One value where all groups have the same, else matrix=15,embed=fp16."""
    text = levels_text(levels)
    return text.rpartition("=")[2] if len(set(levels.values())) == 1 else text


def level_rows(settings, own, codes, weights, score):
    """Yields a Row with the file's own levels, then with fewer. codes: what the file stores; score: a function of the
    weights, which gives bits per byte or None."""
    fewer_levels = [fewer(own, number) for number in LEVELS]
    for levels in [own, *(levels for levels in fewer_levels if levels != own)]:
        if levels is own:
            stored, rounded = codes, weights
        else:
            stored = quantize_weights(settings, weights, levels)
            rounded = dequantize_weights(settings, stored, levels)
        size = zlib_size(pack_payload(settings, stored, levels))
        error = relative_error(settings, weights, rounded)
        yield Row(shown_levels(levels), size, 8 * size / count_params(settings), error, score(rounded))


def scorer(settings, weights, data_path, backend, limit):
    """(function weights -> bits per byte on the first `limit` validation tokens of a folder (0: all), function to call
    at the end). Raises UserError."""
    longest = settings.train_seq_len
    if longest > LONGEST_ROW:
        raise UserError(f"rows of {longest:,} tokens: at most {LONGEST_ROW:,} are scored, to bound the memory")
    kind = load_trainer(backend)
    own = scoring_settings(kind, settings, data_path, compile=False, val_tokens_limit=limit)
    data, trainer = open_data(own), kind(own, weights)

    def score(changed):
        trainer.load_state(changed)
        return evaluate(trainer, own, data.val, data.tokenizer, data.val_tokens)[1]
    return score, trainer.close


def draw(path, found):
    """A PNG of the score against bytes, or of the error where nothing is scored. found: dict name -> list of Row."""
    from matplotlib import pyplot
    scored = all(row.bpb is not None for rows in found.values() for row in rows)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, rows in found.items():
        x, y = [row.bytes / 1e6 for row in rows], [row.bpb if scored else 100 * row.error for row in rows]
        [line] = axes.plot(x, y, marker="o", markersize=4, linewidth=1.4, label=as_utf8(name).replace("$", r"\$"))
        look = {"fontsize": 7, "color": line.get_color(), "parse_math": False}
        for row, at in zip(rows, zip(x, y)):
            axes.annotate(row.levels, at, xytext=(4, 4), textcoords="offset points", **look)
    axes.set(
        xlabel="million bytes of the model file",
        ylabel="bits per byte" if scored else "error, % of the weights' root mean square",
        title=f"Fewer levels: bytes against {'the score' if scored else 'the rounding error'}",
    )
    axes.grid(color="#e2e3e0")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def print_levels(path, options):
    """Print the table of one model file; list of Row. Raises UserError."""
    file = path / MODEL_FILE if path.is_dir() else path
    try:
        settings, own, codes, weights = read_model(read_bounded(file, MODEL_LIMIT))
    except (Refused, UserError) as error:
        raise UserError(f"{file}: {error}") from None
    head = f"{'levels':>24} {'bytes':>11} {'bits/weight':>14} {'error':>8}"
    score, close = lambda changed: None, lambda: None
    if options.data_path:
        score, close = scorer(settings, weights, options.data_path, options.backend, options.val_tokens_limit)
        head += "   val_bpb"
    print(path, head, sep="\n")
    rows = []
    for row in level_rows(settings, own, codes, weights, score):
        rows.append(row)
        line = f"{row.levels:>24} {row.bytes:>11,} {row.bits:>14.3f} {row.error:>8.3%}"
        print(line if row.bpb is None else f"{line} {row.bpb:>9.4f}", flush=True)
    close()
    return rows


def run(options):
    plot = options.plot
    if plot and (plot.suffix != ".png" or not plot.parent.is_dir()):
        raise UserError(f"{plot} cannot be written: name a .png in an existing folder")
    found = {str(path): print_levels(path, options) for path in options.models}
    if plot:
        draw(plot, found)
        print(plot)
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser(
        "levels",
        help="show bytes, rounding error and score of a model with fewer levels",
        description="Quantizes the weights of model files again, with fewer levels. The weights in a file were rounded "
        "once already: quantizing the run's own weights would lose a little less.",
    )
    words = "model.int8.zlib, or the folder of a run or record that holds it"
    parser.add_argument("models", nargs="+", type=path_argument, metavar="MODEL_OR_RUN", help=words)
    words = "plot val_bpb, or the rounding error, against bytes; one line per model"
    parser.add_argument("--plot", type=path_argument, metavar="FILE.png", help=words)
    score = parser.add_argument_group("score")
    words = "score each model on the validation shards of this folder"
    score.add_argument("--data-path", type=path_argument, metavar="DIR", help=words)
    words = "score only the first N validation tokens (default: all)"
    score.add_argument("--val-tokens-limit", type=int, default=0, metavar="N", help=words)
    words = "backend that scores (default: torch)"
    score.add_argument("--backend", choices=("torch", "mlx"), default="torch", help=words)
    parser.set_defaults(run=run)
