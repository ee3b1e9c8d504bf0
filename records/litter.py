"""What operating systems, file servers, editors and tools leave in folders: never a log, code or a model."""
import re

from records.rules import listed

_LEFT = re.compile("|".join((
    r"\.DS_Store|\._.*|\.AppleDouble|\.localized|Icon\r|__MACOSX|\.Spotlight-V100|\.Trashes|\.fseventsd",  # macOS
    r"(eh)?thumbs(_vista)?\.db(:encryptable)?|desktop\.ini|\$recycle\.bin|.*:zone\.identifier|~\$.*",  # Windows
    r"\.directory|\.trash-\d+|\.nfs[0-9a-f]+|\.fuse_hidden.*|lost\+found|@eadir|#recycle|\.~lock\..*#",  # Linux, NAS
    r".*~|#.*#|\.#.*|\..*\.sw[a-p]|\.netrwhist|.*\.(bak|orig|rej|tmp|part|crdownload)",  # editors, merges, downloads
    r"\.idea|\.vscode|\.vs|\.history|.*\.(code|sublime)-workspace|\.ipynb_checkpoints|\.dropbox(\.attr)?",
    r"__pycache__|\.(pytest|ruff|mypy|hypothesis)(_cache)?|\.coverage|\.git|\.hg|\.svn|\.venv",  # tools
)), re.IGNORECASE | re.DOTALL)


def is_litter(name):
    """Whether a file or folder is litter, by the last part of its name."""
    return bool(_LEFT.fullmatch(name))


def litter_in(path):
    """The path up to its first part that is litter; "" where none is. path: its parts with / between them."""
    parts = path.split("/")
    return next(("/".join(parts[:count]) for count, part in enumerate(parts, 1) if is_litter(part)), "")


def in_words(names, shown=8):
    """`litter: .DS_Store, logs/._train.log and 3 more`, printable."""
    words = listed([name if name.isprintable() else ascii(name) for name in names], shown)
    return f"left by an operating system, an editor or a tool: {words}"
