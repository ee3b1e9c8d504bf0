"""Ways to spoil a record folder, for tables of tests: each returns, or is, a function of the folder's path."""
import base64
import json
import lzma
import re
import shutil


def edit(name, old, new, count=1):
    """Replaces text in a file of the folder; the old text must be there."""
    def spoil(folder):
        text = (folder / name).read_text()
        assert re.search(old, text), (name, old)
        (folder / name).write_text(re.sub(old, lambda _: new, text, count=count))
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
    return edit("submission.json", r'"val_bpb": [0-9.]+', f'"val_bpb": {text}')


def remove(name):
    return lambda folder: (folder / name).unlink()


def rename_folder(folder):
    return folder.rename(folder.with_name("may_1_made"))


def copy_log(folder):
    shutil.copyfile(folder / "train_seed1.log", folder / "train_seed9.log")


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
