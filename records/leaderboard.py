"""`python -m records leaderboard`: records/README.md and records/index.html, made anew from the record folders alone.

The order, the verdicts and every byte of the output depend on the folders only. Words of submissions are escaped: they are shown, and
never markup.
"""
import math
import re
import statistics

from common.challenge import BUDGET_BYTES as CAP_BYTES
from common.settings import UserError
from records.budget import group_bytes, model_budget
from records.checks import is_founding
from records.folder import Refused, data_of, on_fineweb, open_folder
from records.page import write_page
from records.rules import PASS, TRACKS, UNVERIFIED
from records.verify import clean, status_of, verdict, verify_folder

TITLES = {"track_10min_16mb": "10 minutes on 8xH100, 16 MB", "track_non_record_16mb": "Non-record, 16 MB: any compute, ideas, negative results"}
FINEWEB = "FineWeb"
CURVE_POINTS, CURVE_SEEDS, BLURB = 60, 3, 600  # they bound the page: 100 records stay below 1 MB
PUBLISHED = "published by the challenge, not reproduced here"


def read_entries(records, ruleset="strict"):
    """list of dicts, one a record folder, ranked: FineWeb first, best score first. rank is None where a check fails, or the score is not verified."""
    entries = []
    for track in TRACKS.values():
        for path in sorted((records / track).iterdir()) if (records / track).is_dir() else []:
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                entries.append(describe(path, track, ruleset))
    entries.sort(key=lambda e: (e["data"] != FINEWEB, e["data"], not e["rank"], e["val_bpb"], e["date"], e["folder"]))
    counts = {}
    for entry in entries:
        place = entry["track"], entry["data"]
        if entry["rank"]:
            entry["rank"] = counts[place] = counts.get(place, 0) + 1
    return entries


def describe(path, track, ruleset):
    """What the tables and the page show of one folder."""
    result, folder = verify_folder(path, ruleset), open_folder(path)
    fields, founding = folder.fields, is_founding(folder)
    word, names = verdict(result)
    dataset = plain(data_of(folder))[:80]
    scores = [bpb for _, bpb in folder.seed_scores() if math.isfinite(bpb)]
    claim = float(fields.get("val_bpb", 100.0))  # shown and ranked is the score in the logs that is meant by it
    scored = [*scores, round(statistics.mean(scores), 8)] if scores else [claim]
    main = folder.logs[0] if folder.logs else None
    return {
        "folder": clean(path.name), "track": track, "name": plain(fields.get("name", path.name)), "author": plain(fields.get("author")),
        "github": plain(fields.get("github_id")), "blurb": plain(fields.get("blurb"))[:BLURB], "date": plain(fields.get("date", path.name))[:10],
        "val_bpb": min(scored, key=lambda v: abs(v - claim)), "val_loss": number(fields.get("val_loss")),
        "before": number(fields.get("pre_quant_val_bpb", main and main.pre_quant and main.pre_quant[1])),
        "total": fields.get("bytes_total", main and main.total_bytes), "model": fields.get("bytes_model_int8_zlib", main and main.model_bytes),
        "code": fields.get("bytes_code", main and main.code_bytes), "steps": fields.get("step_stop", main and main.last_step),
        "seconds": number(fields.get("wallclock_seconds", main and main.train_ms and main.train_ms / 1e3)),
        "data": FINEWEB if on_fineweb(folder) or (not dataset and track == TRACKS["10min"]) else dataset.lower() or "not stated",
        "dataset": dataset, "hardware": plain(main.device if main and main.device else folder.raw.get("hardware"))[:120],
        "seeds": len(scores), "mean": round(statistics.mean(scores), 8) if scores else None,
        "sd": round(statistics.stdev(scores), 8) if len(scores) > 1 else None, "founding": founding,
        "rank": founding or (word != "fails" and status_of(result["score"]) != UNVERIFIED) or None,
        "verdict": PUBLISHED if founding else word, "checks": [] if founding else names,
        "why": [] if founding else [f"{name}: {clean(f.where)} {clean(f.observed)} (expected: {clean(f.expected)})" for name in names
                                    for f in result[name] if f.status == status_of(result[name]) != PASS][:6],
        "curves": [curves_of(log, folder.score_label) for log in folder.seed_logs()[:CURVE_SEEDS]], "budget": budget_of(folder),
    }


def plain(value):
    """One line of printable text: no control characters, none that turn the direction of writing. Empty for what is no text."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split()) if isinstance(value, str) else ""


def number(value):
    return None if value is None or not math.isfinite(value) else float(value)


def curves_of(log, label):
    """Loss and validation of one log, thinned."""
    train, val = ([row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2] or 0)] for rows in (log.train, log.val))
    return {"seed": log.seed, "train": [[step, round(loss, 4)] for step, loss, _ in thinned(train)],
            "val": [[step, round(bpb, 4)] for step, _, bpb, _ in thinned(val)]}


def thinned(rows, most=CURVE_POINTS):
    """At most `most` rows, evenly chosen, the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def budget_of(folder):
    """dict group -> bytes of the shipped model, or None."""
    try:
        return group_bytes(model_budget(folder.read("model.int8.zlib", CAP_BYTES)))
    except (Refused, UserError, ValueError):
        return None


def markdown(text):
    """Text of a stranger as plain words in a Markdown table cell."""
    text = re.sub(r"[&<>|\[\]`*_\\~@!#$]", lambda m: f"&#{ord(m[0])};", plain(text))
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def leaderboard_table(entries):
    rows = ["| rank | run | score | author | summary | date | bytes: total = model + code | data | verification |", "|" + " --- |" * 9]
    for e in entries:
        def size(key, e=e):
            return "?" if e[key] is None else f"{e[key]:,}"
        spread = f"<br>{e['seeds']} seeds, {e['mean']:.4f} &plusmn; {e['sd']:.4f}" if e["sd"] is not None else ""
        why = f": {', '.join(e['checks'])}" if e["checks"] else ""
        plain = re.fullmatch(r"[\w.+-]+", e["folder"], re.ASCII)
        link = f"[{markdown(e['name'])}]({e['track']}/{e['folder']}/README.md)" if plain else markdown(e["name"])
        score = f"{e['val_bpb']:.4f}" if e["val_bpb"] < 100 else "?"
        rows.append(f"| {e['rank'] or '&ndash;'} | {link} | **{score}**{spread} | {markdown(e['author'])} | {markdown(e['blurb'])} | "
                    f"{markdown(e['date'])} | {size('total')} = {size('model')} + {size('code')} | {markdown(e['dataset'] or e['data'])} | "
                    f"{markdown(e['verdict'] + why)} |")
    return "\n".join(rows)


def records_readme(entries):
    """The text of records/README.md."""
    parts = ["""# Records

Made by `python -m records leaderboard` from the folders beside it; do not edit. `index.html`, in any browser, shows the same with
curves. [GUIDE.md](GUIDE.md) is the life of a submission, from the idea to the pull request.

The score is val_bpb: bits per byte of raw validation text, lower is better, after the int8+zlib round trip. What a check fails has no
rank, nor has a score that is not verified. Runs that were *published by the challenge* are what there is to beat: their figures, without
log or code, not reproduced here.
"""]
    for track, title in TITLES.items():
        parts += [f"## {title}", ""]
        here = [e for e in entries if e["track"] == track]
        for data in dict.fromkeys(e["data"] for e in here):
            if data != FINEWEB:
                parts += [f"### On {markdown(data)}, which is not FineWeb: not comparable with the scores above", ""]
            parts += [leaderboard_table([e for e in here if e["data"] == data]), ""]
        if not here:
            parts += ["No records yet.", ""]
    return "\n".join(parts)


def run(options):
    if not options.records.is_dir():
        raise UserError(f"{options.records} is no folder: run this from the repository's root, or give --records")
    entries = read_entries(options.records, options.ruleset)
    (options.records / "README.md").write_text(records_readme(entries), encoding="utf-8")
    page = options.records / "index.html"
    size = write_page(page, "Parity Golf records", "leaderboard.js", {"entries": entries, "titles": TITLES, "cap": CAP_BYTES})
    print(f"{options.records / 'README.md'} and {page} ({size:,} bytes): {len(entries)} records")
    return 0
