"""Records: pack, verify, compare and rank submissions.

    python -m records pack runs/<id>... --track non-record --name "..." --author "..." --github-id ...
    python -m records verify FOLDER... [--smoke] [--data DIR]
    python -m records verify --pr BASE..HEAD
    python -m records significance BASELINE... --candidate RUN...
    python -m records leaderboard
    python -m records report runs/<id>... [-o report.html]
    python -m records levels MODEL_OR_RUN... [--data-path DIR] [--plot FILE.png]
    python -m records sample RUN_OR_MODEL [--prompt TEXT]
    python -m records reproduce ENTRY
    python -m records ablation [--only TRIAL...]

`python -m records COMMAND --help` lists the options of a command.
"""
import sys

from common.command import installed, run_command

with installed("records", __name__):
    from records import ablation, leaderboard, levels, pack, report, reproduce, sample, significance, verify


def main(arguments=None):
    commands = [pack, verify, significance, leaderboard, report, levels, sample, reproduce, ablation]
    return run_command("records", __doc__, commands, arguments, extra="records")


if __name__ == "__main__":
    sys.exit(main())
