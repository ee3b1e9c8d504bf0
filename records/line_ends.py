"""Line ends that git, an editor or a transfer changed after a run: the sizes and digests that the run logged are those
of the other line ends."""
import hashlib
import tempfile
from pathlib import Path

from records.rules import FAIL, FOUNDING, SCRIPT, Finding, listed

NUL_WITHIN = 8000  # bytes; git takes a file for text that has none in so many
HOW = {
    "CRLF": "Run `git config core.autocrlf false`, delete this folder, then `git checkout -- {}` beside it; without "
            "git, run dos2unix on the files. The other checks judge them with LF, which fits what the run logged.",
    "LF": "Commit the files that ran, with `* -text` in a .gitattributes. The other checks judge them with CRLF, which "
          "fits what the run logged.",
}


def to_lf(data):
    return data.replace(b"\r\n", b"\n")


def to_crlf(data):
    return data.replace(b"\n", b"\r\n")


def has_only(ends, data):
    """Whether bytes are text, all of whose line ends are CRLF, or LF without any CR before it."""
    pairs, lines = data.count(b"\r\n"), data.count(b"\n")
    return lines > 0 and pairs == (lines if ends == "CRLF" else 0) and b"\0" not in data[:NUL_WITHIN]


def changed_line_ends(files, name, logs, bytes_code):
    """"CRLF" or "LF", what the line ends are now, where others give the size or digest that a log or submission.json
    has of the code (of a founding run: of submission.json); else "".

    files: dict name -> bytes, those of submission.json and all .py files; name: track/folder."""
    digests = {log.code_sha256 for log in logs} | {FOUNDING.get(name)}
    sizes = {log.code_bytes for log in logs} | {bytes_code}
    given = [files[name] for name in ("submission.json", SCRIPT) if name in files]

    def fits(convert):
        code = [len(convert(data)) for name, data in files.items() if name.endswith(".py")]
        own = len(convert(files[SCRIPT])) if SCRIPT in files else None
        return (not digests.isdisjoint(hashlib.sha256(convert(data)).hexdigest() for data in given)
                or (own is not None and not sizes.isdisjoint({own, sum(code)})))
    for now, convert in (("CRLF", to_lf), ("LF", to_crlf)):
        if any(has_only(now, data) for data in given) and not fits(bytes) and fits(convert):
            return now
    return ""


def restore(path, names, now):
    """(path of a copy of a folder, list of the names whose line ends were made right in it)."""
    copy, restored = Path(tempfile.mkdtemp(prefix="record_line_ends_")), []
    for name in names:
        data, target = Path(path, name).read_bytes(), copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if has_only(now, data) and (now == "CRLF" or name.endswith(".py")):
            restored.append(name)
            data = to_lf(data) if now == "CRLF" else to_crlf(data)
        target.write_bytes(data)
    return copy, restored


def finding(folder, restored, now):
    """What `verify` says instead of a finding for each size and digest."""
    observed = f"the line ends of {listed(restored)} were changed to {now}"
    return Finding(FAIL, observed, "the bytes of the run", ".", HOW[now].format(folder.name))
