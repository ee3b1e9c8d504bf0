"""One self-contained page from a data object, a script and the shared style: it works offline, and nothing in the data
can run.

The data is JSON in which no `<` is left, the scripts put it on the page only as text, and the page's own policy allows
no other script, no connection and no file from elsewhere.
"""
import base64
import hashlib
import html
import json
from pathlib import Path

HERE = Path(__file__).parent


def page_text(title, script, data):
    """The HTML of a page. script: file name of its script beside this module."""
    code = (HERE / "charts.js").read_text(encoding="utf-8") + (HERE / script).read_text(encoding="utf-8")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    embedded = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        embedded = embedded.replace(char, f"\\u{ord(char):04x}")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    without = "This page draws its tables with JavaScript; README.md beside it has them as text."
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main id="page"><noscript>{without}</noscript></main>
<script type="application/json" id="data">{embedded}</script>
<script>{code}</script>
</body>
</html>
"""


def write_page(path, title, script, data):
    """Write a page. Returns its size in bytes."""
    text = page_text(title, script, data)
    path.write_text(text, encoding="utf-8")
    return len(text.encode())


def plain(value):
    """One line of printable text: no control characters, none that turn the direction of writing. Empty for what is
    not text."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split()) if isinstance(value, str) else ""
