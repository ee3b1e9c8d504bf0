"""Records: pack, verify, compare and rank submissions.

    python -m records pack runs/<id>... --track non-record --name "..." --author ... --github-id ...
    python -m records verify FOLDER...                       twelve checks; --smoke, --data DIR, --json, --ruleset
    python -m records significance BASELINE... --candidate RUN...
    python -m records leaderboard                            records/README.md and records/index.html from the folders
    python -m records report runs/<id>... [-o report.html]   curves and bytes of your own runs, side by side
    python -m records levels MODEL_OR_RUN... [--data-path DIR] [--plot FILE.png]     bytes and score of a model with fewer levels
    python -m records reproduce ENTRY                        the command, data and machine that would make a record again
    python -m records ablation                               what each option does, measured here
"""
import argparse
import sys
from pathlib import Path

from common.settings import UserError
from records.rules import RULESETS, TRACKS


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True, dest="command", metavar="COMMAND")

    pack = commands.add_parser("pack", help="a record folder from finished runs")
    pack.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs/<id> of one configuration, one a seed")
    pack.add_argument("--track", required=True, choices=TRACKS)
    for flag, words in (("--name", "title of the record"), ("--author", "your name"), ("--github-id", "your GitHub user name")):
        pack.add_argument(flag, required=True, help=words)
    pack.add_argument("--blurb", help="one or two sentences for the table (default: the name)")
    pack.add_argument("--date", help="YYYY-MM-DD (default: today)")
    pack.add_argument("--records", type=Path, default=Path("records"), help="where the tracks are (default: records)")

    verify = commands.add_parser("verify", help="check record folders")
    verify.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    verify.add_argument("--ruleset", choices=RULESETS, default="strict", help="the written rules, or what the challenge accepted (default: strict)")
    verify.add_argument("--smoke", action="store_true", help="run two steps from a copy, in a sandbox")
    verify.add_argument("--data", type=Path, metavar="DIR", help="score the model again on these shards")
    verify.add_argument("--backend", choices=("torch", "mlx"), help="on which --data is scored (default: that of the log)")
    verify.add_argument("--baseline", nargs="+", metavar="RUN", help="what a record must beat (default: the best earlier one beside it)")
    verify.add_argument("--json", action="store_true", help="sorted JSON instead of the table")

    significance = commands.add_parser("significance", help="is one better than the other by the margin?")
    significance.add_argument("baseline", nargs="+", metavar="BASELINE", help="record folders, runs, logs, or numbers")
    significance.add_argument("--candidate", nargs="+", required=True, metavar="RUN", help="the same")
    significance.add_argument("--unit", choices=("nats", "bpb"), default="nats", help="of numbers: nats per token or bits per byte (default: nats)")
    significance.add_argument("--json", action="store_true")

    leaderboard = commands.add_parser("leaderboard", help="write the tables and the page")
    leaderboard.add_argument("--records", type=Path, default=Path("records"))
    leaderboard.add_argument("--ruleset", choices=RULESETS, default="strict")

    report = commands.add_parser("report", help="curves and bytes of runs, as a page and a picture")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page; the PNG lies beside it (default: report.html)")

    levels = commands.add_parser("levels", help="bytes, rounding error and score of a model with fewer levels",
                                 description="Quantizes the weights of model files again, with fewer levels. What is rounded are the weights in "
                                             "the file, which were rounded once: those before that would lose a little less.")
    levels.add_argument("models", nargs="+", type=Path, metavar="MODEL_OR_RUN", help="model.int8.zlib, or the folder of a run or record with it")
    levels.add_argument("--data-path", type=Path, metavar="DIR", help="score each on the validation shards of this folder")
    levels.add_argument("--val-tokens-limit", type=int, default=0, metavar="N", help="on the first N tokens of them (default: all)")
    levels.add_argument("--backend", choices=("torch", "mlx"), default="torch", help="on which it is scored (default: torch)")
    levels.add_argument("--plot", type=Path, metavar="FILE.png", help="val_bpb, or the error, against bytes; one line a model")

    reproduce = commands.add_parser("reproduce", help="how to make a record again")
    reproduce.add_argument("entry", help="folder, or its name")
    reproduce.add_argument("--records", type=Path, default=Path("records"))

    ablation = commands.add_parser("ablation", help="what each option does to score and bytes, measured here")
    ablation.add_argument("--only", nargs="+", metavar="TRIAL", help="these, and what they are compared with (default: all)")
    ablation.add_argument("--backend", choices=("torch", "mlx"), default="torch", help="(default: torch)")
    ablation.add_argument("--data", type=Path, default=Path("data/pydoc_sp1024"), metavar="DIR", help="(default: the embedded corpus)")
    ablation.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    ablation.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")

    options = parser.parse_args(arguments)
    try:
        module = __import__(f"records.{options.command}", fromlist=["run"])
        return module.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"error: {error}: `pip install '.[records]'` provides what this command needs", file=sys.stderr)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
