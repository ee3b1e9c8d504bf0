"""`python -m records leaderboard`: records/README.md and records/index.html, made anew from the record folders alone.

The order, the verdicts and every byte of the output depend on the folders only. Words of submissions are escaped: they
are shown, and never markup.
"""
import math
import re
import statistics
from pathlib import Path

from common.challenge import BUDGET_BYTES
from common.command import path_argument
from common.settings import UserError
from records.budget import completed, group_bytes, model_budget
from records.checks import is_founding
from records.comparable import FINEWEB, score_group
from records.evaluation import MODEL_FILE
from records.folder import Refused, data_of
from records.page import plain, write_page
from records.rules import PASS, RULESETS, TRACKS, UNVERIFIED
from records.show import clean
from records.tree import Tree, is_record_folder
from records.verdict import status_of, verdict
from records.verify import verify_folder

TITLES = {
    "track_10min_16mb": "10 minutes on 8xH100, 16 MB",
    "track_non_record_16mb": "Non-record, 16 MB: any compute, ideas, negative results",
}
PUBLISHED = "published by the challenge, not reproduced here"
# these bound the page: 100 records stay below 1 MB
CURVE_POINTS = 60  # of one curve
CURVE_SEEDS = 3  # of one record
BLURB = 600  # characters
MOST_REASONS = 6


def read_entries(records, ruleset="strict"):
    """list of dicts, one per record folder, ranked: FineWeb first, best score first. rank is None where a check fails,
    or the score is not verified."""
    entries, tree = [], Tree()
    for track in TRACKS.values():
        for path in sorted((records / track).iterdir()) if (records / track).is_dir() else []:
            if is_record_folder(path):
                entries.append(describe(tree.folder(path), ruleset, tree))
    entries.sort(key=lambda e: (e["data"] != FINEWEB, e["data"], not e["rank"], e["val_bpb"], e["date"], e["folder"]))
    counts = {}
    for entry in entries:
        place = entry["track"], entry["data"]
        if entry["rank"]:
            entry["rank"] = counts[place] = counts.get(place, 0) + 1
    return entries


def describe(folder, ruleset, tree):
    """What the tables and the page show of one Folder of a Tree."""
    fields, main = folder.fields, folder.logs[0] if folder.logs else None
    entry = {
        "folder": clean(folder.name),
        "track": folder.track,
        "name": plain(fields.get("name", folder.name)),
        "author": plain(fields.get("author")),
        "github": plain(fields.get("github_id")),
        "blurb": plain(fields.get("blurb"))[:BLURB],
        "date": plain(fields.get("date", folder.name))[:10],
        "dataset": plain(data_of(folder))[:80],
        "data": score_group(folder, folder.logs),
        "hardware": plain(main.device if main and main.device else folder.raw.get("hardware"))[:120],
        "curves": [curves_of(log) for log in folder.seed_logs()[:CURVE_SEEDS]],
        "budget": budget_of(folder),
    }
    return entry | figures(folder) | scores(folder) | judged(folder, ruleset, tree)


def figures(folder):
    """Numbers of submission.json, else those of the main log; None where neither has them."""
    fields, log = folder.fields, folder.logs[0] if folder.logs else None
    before = log and log.pre_quant and log.pre_quant[1]
    seconds = log and log.train_ms and log.train_ms / 1e3
    total, model, code = completed(*folder.stated_bytes())
    return {
        "val_loss": number(fields.get("val_loss")),
        "before": number(fields.get("pre_quant_val_bpb", before)),
        "seconds": number(fields.get("wallclock_seconds", seconds)),
        "steps": fields.get("step_stop", log and log.last_step),
        "total": total,
        "model": model,
        "code": code,
    }


def scores(folder):
    """The score that is shown and ranked is the one in the logs that submission.json means: that of a seed, or their
    mean."""
    seeds = [bpb for _, bpb in folder.seed_scores() if math.isfinite(bpb)]
    mean = round(statistics.mean(seeds), 8) if seeds else None
    claim = float(folder.fields.get("val_bpb", 100.0))
    return {
        "val_bpb": min([*seeds, mean], key=lambda v: abs(v - claim)) if seeds else claim,
        "seeds": len(seeds),
        "mean": mean,
        "sd": round(statistics.stdev(seeds), 8) if len(seeds) > 1 else None,
    }


def judged(folder, ruleset, tree):
    """What verification says. rank is true or None here."""
    if is_founding(folder):
        return {"founding": True, "rank": True, "verdict": PUBLISHED, "checks": [], "why": []}
    result = verify_folder(folder.path, ruleset, tree=tree)
    word, names = verdict(result)
    why = []
    for name in names:
        status = status_of(result[name])
        found = [f for f in result[name] if f.status == status != PASS]
        why += [f"{name}: {clean(f.where)} {clean(f.observed)} (expected: {clean(f.expected)})" for f in found]
    ranked = word != "fails" and status_of(result["score"]) != UNVERIFIED
    return {
        "founding": False,
        "rank": ranked or None,
        "verdict": word,
        "checks": names,
        "why": why[:MOST_REASONS],
    }


def number(value):
    return None if value is None or not math.isfinite(value) else float(value)


def curves_of(log):
    """Loss and validation of one log, thinned."""
    train = [(step, loss) for step, loss, ms in log.train if math.isfinite(loss) and math.isfinite(ms)]
    val = [(step, bpb) for step, loss, bpb, _ in log.val if math.isfinite(loss) and math.isfinite(bpb)]
    return {
        "seed": log.seed,
        "train": [[step, round(loss, 4)] for step, loss in thinned(train)],
        "val": [[step, round(bpb, 4)] for step, bpb in thinned(val)],
    }


def thinned(rows, most=CURVE_POINTS):
    """At most `most` rows, evenly chosen, the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def budget_of(folder):
    """dict group -> bytes of the shipped model, or None."""
    try:
        return group_bytes(model_budget(folder.read(MODEL_FILE, BUDGET_BYTES)))
    except (Refused, UserError, ValueError):
        return None


def markdown(text):
    """Text of a stranger as plain words in a Markdown table cell."""
    text = re.sub(r"[&<>|\[\]`*_\\~@!#$]", lambda m: f"&#{ord(m[0])};", plain(text))
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def leaderboard_table(entries):
    """Markdown, one row per entry."""
    columns = "rank", "run", "score", "author", "summary", "date", "bytes: total = model + code", "data", "verification"
    rows = [columns, ["---"] * len(columns), *map(leaderboard_row, entries)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def leaderboard_row(e):
    """list of the cells of an entry."""
    name = markdown(e["name"])
    if re.fullmatch(r"[\w.+-]+", e["folder"], re.ASCII):
        name = f"[{name}]({e['track']}/{e['folder']}/README.md)"
    score = f"**{e['val_bpb']:.4f}**" if e["val_bpb"] < 100 else "**?**"
    if e["sd"] is not None:
        score += f"<br>{e['seeds']}&nbsp;seeds, {e['mean']:.4f}&nbsp;&plusmn;&nbsp;{e['sd']:.4f}"
    verification = f"{e['verdict']}: {', '.join(e['checks'])}" if e["checks"] else e["verdict"]
    return [
        str(e["rank"] or "&ndash;"),
        name,
        score,
        markdown(e["author"]),
        markdown(e["blurb"]),
        markdown(e["date"]),
        bytes_cell(e["total"], e["model"], e["code"]),
        markdown(e["dataset"] or e["data"]),
        markdown(verification),
    ]


def bytes_cell(total, model, code):
    """`total = model + code`, with the sign that is true where all three are known and do not add up. Its line breaks
    before the sign alone."""
    shown = ["?" if size is None else f"{size:,}" for size in (total, model, code)]
    sign = "&ne;" if None not in (total, model, code) and total != model + code else "="
    return f"{shown[0]} {sign}&nbsp;{shown[1]}&nbsp;+&nbsp;{shown[2]}"


def records_readme(entries):
    """The text of records/README.md."""
    parts = ["""# Records

Generated by `python -m records leaderboard` from the record folders; do not edit. `index.html`, in any browser, shows
the same with curves. [GUIDE.md](GUIDE.md) describes the life of a submission, from the idea to the pull request.

The score is val_bpb: bits per byte of raw validation text after the int8+zlib round trip; lower is better. An entry
that fails a check has no rank, nor has one whose score is not verified. The runs *published by the challenge* are the
ones to beat: the challenge's figures, without log or code, not reproduced here.
"""]
    for track, title in TITLES.items():
        parts += [f"## {title}", ""]
        here = [e for e in entries if e["track"] == track]
        for data in dict.fromkeys(e["data"] for e in here):
            if data != FINEWEB:
                parts += [f"### {markdown(data)}: not comparable with scores on FineWeb", ""]
            parts += [leaderboard_table([e for e in here if e["data"] == data]), ""]
        if not here:
            parts += ["No records yet.", ""]
    return "\n".join(parts)


def page_data(entries):
    """What leaderboard.js draws."""
    return {"entries": entries, "titles": TITLES, "fineweb": FINEWEB, "cap": BUDGET_BYTES}


def run(options):
    records = options.records
    if not records.is_dir():
        raise UserError(f"{records} is not a folder: run this from the repository's root, or give --records")
    entries = read_entries(records, options.ruleset)
    (records / "README.md").write_text(records_readme(entries), encoding="utf-8")
    page = records / "index.html"
    size = write_page(page, "Parity Golf records", "leaderboard.js", page_data(entries))
    print(f"{records / 'README.md'} and {page} ({size:,} bytes): {len(entries)} records")
    return 0


def add_command(subparsers):
    parser = subparsers.add_parser("leaderboard", help="write records/README.md and records/index.html")
    words = "the folder that holds the tracks (default: records)"
    parser.add_argument("--records", type=path_argument, default=Path("records"), metavar="DIR", help=words)
    words = "the written rules, or what the challenge accepted (default: strict)"
    parser.add_argument("--ruleset", choices=RULESETS, default="strict", help=words)
    parser.set_defaults(run=run)
