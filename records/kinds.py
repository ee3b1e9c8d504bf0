"""What kind each file of a record folder is: one table, by name and first bytes."""
import re

HEAD = 4096  # bytes of a file that show its kind
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"%PDF-", b"<svg", b"<?xml")
MODEL_NAMES = re.compile(
    r"(.*/)?([^/]*(\.int8\.|\.int6\.|model\.(zlib|zst|br|bin)|final_model)[^/]*|[^/]*\.(ptz|pt|pth|pkl|safetensors))"
)


def _is_text(head):
    """UTF-8 without NUL; the last character of the head may be cut."""
    return b"\0" not in head and "\ufffd" not in head.decode(errors="replace")[:-1]


def _is_picture(head):
    return head.lstrip().startswith(PICTURE_STARTS)


def _is_tokenizer(head):
    """Text, or SentencePiece's protocol buffer, which begins with its pieces."""
    return _is_text(head) or head.startswith(b"\n")


def _is_anything(head):
    return True


KINDS = [  # kind, its names, what its first bytes must be; the first row that fits
    ("code", r".*\.(py|pyi|pyx|pyc|pyd|so|c|cc|cpp|cu|cuh|h|hpp|ptx|rs|jl)", _is_anything),
    ("tokenizer", r".*\.(model|vocab|tiktoken)|(.*/)?([^/]*(tokenizer|vocab)[^/]*\.(json|txt)|merges\.txt)",
     _is_tokenizer),
    ("model", MODEL_NAMES.pattern, _is_anything),
    ("model", r".*\.(npz|npy|ckpt|gguf|onnx|h5|model)", _is_anything),
    ("archive", r".*\.(zip|tar|gz|tgz|bz2|xz|7z|rar|zst|whl)", _is_anything),
    ("picture", r".*\.(png|jpe?g|gif|webp|svg|pdf)", _is_picture),
    ("text", r".*\.(md|rst|txt|log|out|err|json|jsonl|ya?ml|toml|cfg|ini|conf|env|csv|tsv|sh|bash|html?|css|js|tex|bib|"
             r"diff|patch|ipynb|lock|md5|sha\d+|sha\d+sums?|sum|asc|sig|gitignore)|(.*/)?[^/.]+", _is_text),
    ("other", r".*", _is_anything),
]
_TABLE = [(kind, re.compile(names, re.IGNORECASE | re.DOTALL), fits) for kind, names, fits in KINDS]


def kind_of(name, head):
    """code, tokenizer, model, archive, picture, text or other. name: within the folder; head: its first HEAD bytes.
    A file that is not what its name says is "other"; which texts are logs their lines show (records/runs.py)."""
    return next(kind for kind, names, fits in _TABLE if names.fullmatch(name) and fits(head))
