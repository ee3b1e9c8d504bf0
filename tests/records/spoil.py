"""Ways to spoil a record folder, for tables of tests: each returns, or is, a function of the folder's path."""
import base64
import json
import lzma
import re
import shutil
import statistics

from records.folder import open_folder

TRAINING_LINE = re.compile(
    r"^(?:step:)?(?P<at>\d+/\d+) train_loss: ?(?P<loss>\S+) (?P<time>train_time.*)$", re.MULTILINE
)


def replace_first(name, old, new):
    """Writes a text in place of the first match of a pattern in a file; there must be one."""
    def spoil(folder):
        text = (folder / name).read_text()
        assert re.search(old, text), (name, old)
        (folder / name).write_text(re.sub(old, lambda _: new, text, count=1))
    return spoil


def write(name, data):
    def spoil(folder):
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return spoil


def field(**changes):
    """Sets fields of submission.json; None takes one away."""
    def spoil(folder):
        path = folder / "submission.json"
        fields = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return spoil


def bpb(text):
    """Writes the claimed score as this text."""
    return replace_first("submission.json", r'"val_bpb": [0-9.]+', f'"val_bpb": {text}')


def remove(name):
    return lambda folder: (folder / name).unlink()


def rename_folder(folder):
    return folder.rename(folder.with_name("may_1_made"))


def wrapped(source):
    packed = base64.b85encode(lzma.compress(source, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])).decode()
    how = 'format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2}]'
    return f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{packed}"),{how}))'


def files(data):
    """Writes files, name -> text or bytes, and the folders that they need."""
    def spoil(folder):
        for name, content in data.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write(name, content)(folder)
    return spoil


def write_json(text):
    return write("submission.json", text)


def write_code(text, **others):
    """Writes train_gpt.py, and other Python files."""
    return files({"train_gpt.py": text} | {f"{name}.py": content for name, content in others.items()})


def link_out(folder):
    (folder / "secret").symlink_to("/etc/passwd")


def append_to_model(folder):
    write("model.int8.zlib", (folder / "model.int8.zlib").read_bytes() + b"x")(folder)


def edit(name, *changes):
    """Replaces (pattern, new text or function of the match) in each file that a glob finds. Each pattern must be
    found in each file."""
    def spoil(folder):
        paths = sorted(folder.glob(name))
        assert paths, name
        for path in paths:
            text = path.read_text()
            for pattern, new in changes:
                text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
                assert count, (path.name, pattern)
            path.write_text(text)
    return spoil


def log(*changes):
    return edit("train.log", *changes)


def logs(*changes):
    return edit("train*.log", *changes)


def other_log(*changes):
    """Changes a log beside the main log."""
    return lambda folder: edit(sorted(folder.glob("train_seed*.log"))[-1].name, *changes)(folder)


def both(*steps):
    def spoil(folder):
        for step in steps:
            step(folder)
    return spoil


def times(factor):
    """What `edit` puts in place of a number: the number times a factor, with as many decimals."""
    return lambda found: f"{factor * float(found[0]):.{len(found[0].partition('.')[2])}f}"


def seed_field(name, value):
    """Changes a figure of the last seed in submission.json's seed_results."""
    def spoil(folder):
        path = folder / "submission.json"
        fields = json.loads(path.read_text())
        fields["seed_results"][str(fields["seeds"][-1])][name] = value
        path.write_text(json.dumps(fields))
    return spoil


def append(name, text):
    def spoil(folder):
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(text)
    return spoil


def copy(source, name):
    def spoil(folder):
        shutil.copyfile(folder / source, folder / name)
    return spoil


def transplant(part, share=1.0):
    """Writes the losses or the times of the main log into another seed's, in this share of the lines of training."""
    def spoil(folder):
        path = sorted(folder.glob("train_seed*.log"))[-1]
        main = (folder / "train.log").read_text()
        theirs = {found["at"]: found[part] for found in TRAINING_LINE.finditer(main)}
        text = path.read_text()
        for found in list(TRAINING_LINE.finditer(text))[:int(share * len(theirs))]:
            text = text.replace(found[0], found[0].replace(found[part], theirs[found["at"]]))
        path.write_text(text)
    return spoil


def as_seed(number, name):
    """Writes the main log again under another name, with another seed."""
    def spoil(folder):
        text = (folder / "train.log").read_text()
        changed, count = re.subn(r'(?<="seed": )\d+|(?<=^seed:)\d+|(?<=^  seed: )\d+', str(number), text, flags=re.M)
        assert count
        (folder / name).write_text(changed)
    return spoil


def scores(factor, lines=r".*"):
    """Scales losses and scores in these lines of every log, and restates them in submission.json."""
    def scale(found):
        return re.sub(r"(?<=(?:_loss|l_bpb):)\d+\.\d+|(?<=(?:_loss|l_bpb): )\d+\.\d+", times(factor), found[0])
    return both(logs((rf"^{lines}$", scale)), restate)


def restate(folder):
    """Writes what the logs say into submission.json."""
    read = open_folder(folder)
    path = folder / "submission.json"
    fields = json.loads(path.read_text())
    by_seed = {log.seed: log for log in read.logs}
    main, order = read.logs[0], fields["seeds"]
    fields["val_loss"], fields["val_bpb"] = main.score()
    if main.val:
        fields["pre_quant_val_loss"], fields["pre_quant_val_bpb"] = main.val[-1][1:3]
    bpbs = [by_seed[seed].score()[1] for seed in order]
    if "seed_scores" in fields:
        fields["seed_scores"] = bpbs
    for seed in fields.get("seed_results", {}):
        loss, bpb = by_seed[int(seed)].score()
        fields["seed_results"][seed] |= {"val_loss": loss, "val_bpb": bpb}
    for name, value in (("val_bpb_mean", statistics.mean(bpbs)), ("val_bpb_std", statistics.stdev(bpbs))):
        if name in fields:
            fields[name] = round(value, 8)
    path.write_text(json.dumps(fields))
    readme = folder / "README.md"
    readme.write_text(re.sub(r"(?<=val_bpb )(\**)\d\.\d{4}", rf"\g<1>{fields['val_bpb']:.4f}", readme.read_text()))
