"""What launchers, containers and log collectors put before each line that a script prints: `srun -l` the rank, `kubectl
logs --timestamps` the time, others hosts and levels. It is known by a line that every run prints: what stands before
that, and before most other lines in the same shape, is the prefix."""
import itertools
import re

PEEK = 5000  # lines; a script may print its source first
LONGEST = 200  # characters
_ANCHOR = re.compile(r"(?:step:)?\d{1,9}/\d{1,9} (?:train|val)_loss:|run:\S{1,100} backend:|Hyperparameters:$|"
                     r"train_loader:dataset:|model_params:|train_batch_tokens:\d")
_PARTS = re.compile(r"(?P<number>\d+[.,]\d+\w*)|(?P<word>\w+)|(?P<space> +(?=[^ ]))|.", re.DOTALL)
# a fraction of a second may be missing; possessive, so that no line takes long
_SHAPES = {"number": r"\w++(?:[.,]\w++)?+", "word": r"\w++", "space": " *+"}


def prefix_of(lines):
    """The compiled shape of what stands before most of some lines; None where nothing does. lines: the first of a log,
    as text without colours."""
    may_hold = (line for line in lines if ":" in line)  # most lines are source code
    found = next(filter(None, (_ANCHOR.search(line, 0, 2 * LONGEST) for line in may_hold)), None)
    prefix = found.string[:found.start()] if found else ""
    if not prefix.strip() or len(prefix) > LONGEST:
        return None
    shape = re.compile(" *+" + "".join(_SHAPES.get(part.lastgroup) or re.escape(part[0])
                                      for part in _PARTS.finditer(prefix.lstrip(" "))))
    given = [line for line in lines if line.strip()]
    return shape if 2 * sum(bool(shape.match(line)) for line in given) > len(given) else None


def peeked(lines):
    """(list of the first lines, iterator over all)."""
    first = list(itertools.islice(lines, PEEK))
    return first, itertools.chain(first, lines)
