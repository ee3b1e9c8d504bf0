"""Are the two backends one model?

    python -m parity                                        climb the ladder here, torch against MLX, on the CPU
    python -m parity --loop-layers 1-2 --train-seq-len 128  with any setting of a trainer
    python -m parity --torch DIR/train_gpt.py --mlx DIR/train_gpt_mlx.py    with the trainers of any two scripts
    python -m parity export --backend mlx FILE              write what one backend shows on this machine
    python -m parity compare FILE --backend torch           climb the ladder against such a file, elsewhere
    python -m parity curves                                 train both side by side and draw the losses

Exit code 0: every rung holds; 1: one does not; 2: it could not be tried. `python -m parity climb --help` lists the
ladder's flags.
"""
import sys

from common.command import installed, run_command
from common.settings import BOOLS

with installed("records", __name__):
    from parity import climb, curves, portable


def with_values(arguments):
    """`--compile` alone means --compile=1."""
    following = [*arguments[1:], ""]
    return [
        "--compile=1" if argument == "--compile" and after.lower() not in BOOLS else argument
        for argument, after in zip(arguments, following)
    ]


def main(arguments=None):
    """Exit code."""
    arguments = with_values(list(sys.argv[1:] if arguments is None else arguments))
    return run_command("parity", __doc__, (climb, portable, curves), arguments, default="climb", extra="records")


if __name__ == "__main__":
    sys.exit(main())
