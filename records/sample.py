"""`python -m records sample RUN_OR_MODEL`: text that a compressed model writes.

A model may come from anyone: its file is data, and no code beside it is run. A run's settings.json says which data and
tokenizer it used; what a record says chooses no file of the reader's.
"""
import dataclasses
import functools

import numpy as np

from common.artifact import decode_model
from common.command import path_argument
from common.dataset import read_manifest
from common.files import read_json
from common.finish import MODEL_FILE
from common.sample import visible, write_text
from common.settings import UserError, shown
from common.tokenizer import load_tokenizer, locate_tokenizer
from parity.reference import reference_logits
from parity.trainers import load_trainer
from records.budget import MODEL_LIMIT
from records.evaluation import LONGEST_ROW, scoring_settings
from records.folder import Refused, read_bounded

COLDEST, HOTTEST = 0.01, 100.0  # temperatures


def read_model_file(file):
    """(Settings, weights) of a model file, whose rows are at most LONGEST_ROW. Raises UserError."""
    try:
        settings, weights = decode_model(read_bounded(file, MODEL_LIMIT))
    except (Refused, UserError) as error:
        raise UserError(f"{file}: {error}; give a run's folder, a record's, or a {MODEL_FILE}") from None
    return dataclasses.replace(settings, train_seq_len=min(settings.train_seq_len, LONGEST_ROW)), weights


def find_tokenizer(options, folder):
    """The Tokenizer that the options name, or settings.json in the folder of a run. Raises UserError."""
    stored = {} if (folder / "submission.json").exists() else read_json(folder / "settings.json")
    named = options.tokenizer or (not options.data and stored.get("tokenizer_path"))
    data = options.data or stored.get("data_path")
    if not named and not data:
        raise UserError(f"{folder} does not say which tokenizer its model needs: give the folder of its data as "
                        "--data DIR, or --tokenizer FILE")
    if not named:
        entry = read_manifest(path_argument(str(data)))[0].get("tokenizer")
        if not entry:
            raise UserError(f"{data} has no manifest.json that names a tokenizer: give the folder of the model's data "
                            "as --data DIR, or --tokenizer FILE")
        named = locate_tokenizer(path_argument(str(data)), entry["file"])
    tokenizer, identity = load_tokenizer(named), stored.get("identity")
    if isinstance(identity, dict) and identity.get("tokenizer") != tokenizer.sha256:
        raise UserError(f"{named} is not the tokenizer of the run (SHA-256 {tokenizer.sha256[:12]}, in settings.json "
                        f"{identity.get('tokenizer')!s:.12}): give its own as --data DIR or --tokenizer FILE")
    return tokenizer


def encode_prompt(tokenizer, prompt):
    """list of ids. Raises UserError."""
    if prompt and not tokenizer.encode:
        raise UserError(f"--prompt {shown(prompt):.60}: a table tokenizer only decodes; leave --prompt out")
    try:
        return tokenizer.encode(prompt) if prompt else []
    except UnicodeEncodeError:
        raise UserError(f"--prompt {shown(prompt):.60} is not UTF-8: type it in a terminal that uses UTF-8") from None


def logits_function(backend, settings, weights):
    """(function of int32 tokens (1, T) that gives logits, function to call at the end). Raises UserError."""
    if backend == "numpy":
        wide = {name: w.astype(np.float64) for name, w in weights.items()}
        return functools.partial(reference_logits, settings, wide), lambda: None
    kind = load_trainer(backend)
    trainer = kind(scoring_settings(kind, settings, "", compile=False, compute_dtype="float32"), weights)
    return trainer.logits, trainer.close


def check_options(options):
    """Raises UserError."""
    if options.tokens < 1:
        raise UserError(f"--tokens {options.tokens} is not a number of tokens: give 1 or more")
    if options.temperature and not COLDEST <= options.temperature <= HOTTEST:  # a NaN is not
        raise UserError(f"--temperature {options.temperature} is not a temperature: give {COLDEST} to {HOTTEST:g}, or "
                        "0 for the most probable token")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed {options.seed} is not a seed: give 0 to {2**63 - 1}")


def run(options):
    check_options(options)
    folder, file = options.model.parent, options.model
    if options.model.is_dir():
        folder, file = options.model, options.model / MODEL_FILE
    settings, weights = read_model_file(file)
    tokenizer = find_tokenizer(options, folder)
    if tokenizer.vocab_size != settings.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {settings.vocab_size}: give that of "
                        "the model as --data DIR or --tokenizer FILE")
    prompt = encode_prompt(tokenizer, options.prompt)
    logits, close = logits_function(options.backend, settings, weights)
    print(visible(options.prompt), end="", flush=True)
    with np.errstate(all="ignore"):  # the weights of a stranger's model may be of any size
        for piece in write_text(logits, tokenizer, prompt, options.tokens, settings.train_seq_len, options.temperature,
                                options.seed):
            print(piece, end="", flush=True)
    print()
    close()


def add_command(subparsers):
    parser = subparsers.add_parser(
        "sample",
        help="show text that a model writes",
        description="Prints the prompt and text that the model writes after it, on the CPU in float64 by default. The "
        "same seed gives the same text; a backend computes in float32 on its device, faster for a large model, and its "
        "text differs where two tokens are as good as equally likely.",
    )
    words = f"{MODEL_FILE}, or the folder of a run or record that holds it"
    parser.add_argument("model", type=path_argument, metavar="RUN_OR_MODEL", help=words)
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with (default: nothing)")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="tokens to write (default: 200)")
    words = "0: always the most probable token; below 1: rather a probable one; 1: as the model says (default: 0.8)"
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help=words)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the draws (default: 1)")
    words = "what computes the logits (default: numpy)"
    parser.add_argument("--backend", choices=("numpy", "torch", "mlx"), default="numpy", help=words)
    words = "data folder whose tokenizer the model uses (default: what the run's settings.json names)"
    parser.add_argument("--data", type=path_argument, metavar="DIR", help=words)
    words = "its tokenizer: a SentencePiece .model file, table:FILE, or bytes"
    parser.add_argument("--tokenizer", metavar="FILE", help=words)
    parser.set_defaults(run=run)
