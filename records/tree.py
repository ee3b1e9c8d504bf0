"""The record folders that lie beside one another, each read once per command."""
import datetime
import math
import statistics
from pathlib import Path

from records.checks import is_record_name
from records.folder import open_folder
from records.litter import is_litter
from records.rules import TRACKS
from records.significance import is_score


class Tree:
    """Folders by path. `results` is a cache for whoever judges them."""

    def __init__(self):
        self.results = {}
        self._folders = {}
        self._listed = {}

    def folder(self, path):
        """Folder of a path."""
        path = Path(path).resolve()
        if path not in self._folders:
            self._folders[path] = open_folder(path)
        return self._folders[path]

    def beside(self, track):
        """list of the Folders in one track folder whose names are those of records, by name."""
        if track not in self._listed:
            paths = sorted(track.iterdir()) if track.is_dir() else []
            records = [path for path in paths if is_record_name(path.name) and is_record_folder(path)]
            self._listed[track] = [self.folder(path) for path in records]
        return self._listed[track]

    def others(self, folder):
        """list of the other record Folders of the tree, those of the same track first."""
        own = folder.path.parent
        tracks = [own, *(own.parent / name for name in TRACKS.values() if name != own.name)]
        return [other for track in tracks for other in self.beside(track) if other.path != folder.path]

    def earlier(self, folder):
        """list of the Folders of the same track that are dated before this one and have a score, the best first."""
        found = [other for other in self.beside(folder.path.parent) if is_before(other, folder)]
        scored = [(score, other.name, other) for other in found if (score := score_of_folder(other)) is not None]
        return [other for _, _, other in sorted(scored, key=lambda row: row[:2])]


def is_record_folder(path):
    """Whether a path is a folder that is shown to the world: neither hidden nor a link nor litter."""
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".") and not is_litter(path.name)


def is_before(other, folder):
    """Whether a record is dated before another: by the date in the folder's name; of one day, by the times in both
    submission.json, where they have one."""
    ours, theirs = folder.name[:10], other.name[:10]
    if ours != theirs:
        return theirs < ours
    times = time_of(other), time_of(folder)
    return None not in times and times[0] < times[1]


def time_of(folder):
    """The moment in submission.json's date, UTC where it names no zone; None where it has no time of day."""
    text = folder.fields.get("date", "")
    if len(text) <= 10:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def score_of_folder(folder):
    """Mean val_bpb of its runs; the claim where no log has a score; None where there is neither."""
    logged = [bpb for loss, bpb in folder.seed_scores() if is_score((loss, bpb))]
    if logged:
        return statistics.mean(logged)
    claim = folder.fields.get("val_bpb")
    return None if claim is None or not math.isfinite(claim) else float(claim)
