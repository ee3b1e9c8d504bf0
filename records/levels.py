"""`python -m records levels MODEL_OR_RUN...`: what a model file costs and loses with fewer levels. Its own weights are the source, so
the error is that of rounding them again."""
from common.artifact import pack_payload, read_model
from common.bpb import evaluate
from common.dataset import open_data
from common.params import count_params
from common.quantize import dequantize_weights, quantize_weights, relative_error
from common.settings import UserError
from common.zstream import zlib_size
from parity.trainers import load_trainer as trainer_class
from records.evaluation import LONGEST_ROW, MODEL_FILE, scoring_settings
from records.folder import Refused, read_bounded

LEVELS = (127, 63, 31, 15, 11, 7, 5, 3, 2)
MODEL_LIMIT = 1 << 28  # bytes of a file


def fewer(own, number):
    """dict group -> levels: `number`, but for groups that have as few already."""
    return {group: number if value == "fp16" else min(value, number) for group, value in own.items()}


def level_rows(settings, own, codes, weights, score):
    """Yields (levels as text, bytes of the file, bits per weight, relative error, score(weights)): with the file's own levels, then with
    fewer. codes: what the file stores."""
    variants = [own, *(levels for number in LEVELS if (levels := fewer(own, number)) != own)]
    for levels in variants:
        stored = codes if levels is own else quantize_weights(settings, weights, levels)
        rounded = weights if levels is own else dequantize_weights(settings, stored, levels)
        size = zlib_size(pack_payload(settings, stored, levels))
        values = [*dict.fromkeys(levels.values())]
        text = str(values[0]) if len(values) == 1 else ",".join(f"{group}={value}" for group, value in levels.items())
        yield text, size, 8 * size / count_params(settings), relative_error(settings, weights, rounded), score(rounded)


def scorer(settings, weights, data_path, backend, limit):
    """(function weights -> bits per byte on the first `limit` validation tokens, 0: all, of a folder; function to call at the end).
    Raises UserError."""
    if settings.train_seq_len > LONGEST_ROW:
        raise UserError(f"rows of {settings.train_seq_len:,} tokens: at most {LONGEST_ROW:,} are scored, for the sake of memory")
    kind = trainer_class(backend)
    own = scoring_settings(kind, settings, data_path, compile=False, val_tokens_limit=limit)
    data, trainer = open_data(own), kind(own, weights)

    def score(changed):
        trainer.load_weights(changed)
        return evaluate(trainer, own, data.val, data.tokenizer, data.val_tokens)[1]
    return score, trainer.close


def draw(path, found):
    """found: dict name -> rows of level_rows. A PNG of the score, or of the error where there is none, against bytes."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    scored = all(row[4] is not None for rows in found.values() for row in rows)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, rows in found.items():
        x, y = [row[1] / 1e6 for row in rows], [row[4] if scored else 100 * row[3] for row in rows]
        [line] = axes.plot(x, y, marker="o", markersize=4, linewidth=1.4, label=name.replace("$", r"\$"))
        for (text, *_), at in zip(rows, zip(x, y)):
            axes.annotate(text, at, xytext=(4, 4), textcoords="offset points", fontsize=7, color=line.get_color(), parse_math=False)
    axes.set(xlabel="million bytes of the model file", ylabel="bits per byte" if scored else "error, % of the weights' root mean square",
             title="Fewer levels: bytes against " + ("the score" if scored else "the rounding error"))
    axes.grid(color="#e2e3e0")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def run(options):
    if options.plot and (options.plot.suffix != ".png" or not options.plot.parent.is_dir()):
        raise UserError(f"{options.plot} cannot be written: name a .png in a folder that is there")
    found = {}
    for path in options.models:
        file = path / MODEL_FILE if path.is_dir() else path
        try:
            settings, own, codes, weights = read_model(read_bounded(file, MODEL_LIMIT))
        except (Refused, UserError) as error:
            raise UserError(f"{file}: {error}") from None
        score, close = lambda changed: None, lambda: None
        if options.data_path:
            score, close = scorer(settings, weights, options.data_path, options.backend, options.val_tokens_limit)
        print(f"{path}\n{'levels':>24} {'bytes':>11} {'bits a weight':>14} {'error':>8}" + "   val_bpb" * bool(options.data_path))
        found[str(path)] = []
        for text, size, bits, error, bpb in level_rows(settings, own, codes, weights, score):
            found[str(path)].append((text, size, bits, error, bpb))
            print(f"{text:>24} {size:>11,} {bits:>14.3f} {error:>8.3%}" + ("" if bpb is None else f" {bpb:>9.4f}"), flush=True)
        close()
    if options.plot:
        draw(options.plot, found)
        print(options.plot)
    return 0
