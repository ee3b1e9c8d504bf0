"""A hub on this machine, with as much of the Hugging Face Hub as a download of FineWeb needs."""
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "someone/golf"
CUT = 11 << 20  # bytes before a broken connection: more than the 10 MiB that the library writes at a time


def digest(data):
    return hashlib.sha256(data).hexdigest()


def git_digest(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """What the library asks the Hugging Face Hub for: commit, listing in pages, files; large ones elsewhere."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Answer)
        self.daemon_threads = True
        self.files, self.sizes = dict(files), {}  # sizes: what the listing says where it is not the truth
        self.faults = {}  # path: what happens to one download of it after another
        self.downloads = []  # (last part of the path, Range)
        self.stalled, self.resumed = threading.Event(), threading.Event()

    @property
    def commit(self):
        listing = sorted((path, digest(data)) for path, data in self.files.items())
        return hashlib.sha1(repr(listing).encode()).hexdigest()

    def names(self):
        """Shards that were downloaded."""
        return sorted(name for name, _ in self.downloads if name.endswith(".bin"))


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code):
        self.send(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, url = self.server, urlsplit(self.path)
        address, query, files = unquote(url.path), parse_qs(url.query), self.server.files
        if found := re.fullmatch(r"/cdn/(.*)", address):
            return self.download(found[1])
        kind, _, rest = address.removeprefix("/api").removeprefix("/datasets/").removeprefix(REPO + "/").partition("/")
        if REPO not in address:
            return self.missing("RepoNotFound")
        revision, _, path = rest.partition("/")
        if revision not in ("main", hub.commit):
            return self.missing("RevisionNotFound")
        if kind == "revision":
            return self.send(200, json.dumps({"id": REPO, "sha": hub.commit}).encode(), Content_Type="application/json")
        if kind == "tree":
            below = sorted(name for name in files if name.startswith(path + "/"))
            if not below:
                return self.missing("EntryNotFound")
            start = int(query.get("cursor", ["0"])[0])
            link = f'<http://127.0.0.1:{hub.server_port}{url.path}?recursive=True&cursor={start + 5}>; rel="next"'
            page = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0},
                    *map(self.listed, below[start : start + 5])]
            return self.send(200, json.dumps(page).encode(), **({"Link": link} if start + 5 < len(below) else {}))
        assert kind == "resolve"
        if path not in files:
            return self.missing("EntryNotFound")
        listed = self.listed(path)
        if "lfs" not in listed:
            if self.command == "GET":
                hub.downloads.append((path.rpartition("/")[2], ""))
            return self.send(200, files[path], ETag=f'"{listed["oid"]}"', X_Repo_Commit=hub.commit)
        # Another host than the hub's, as the real one has it.
        self.send(302, Location=f"http://localhost:{hub.server_port}/cdn/{path}", X_Repo_Commit=hub.commit,
                  X_Linked_Size=listed["size"], X_Linked_ETag=f'"{listed["lfs"]["oid"]}"')

    def listed(self, path):
        data = self.server.files[path]
        size = self.server.sizes.get(path, len(data))
        entry = {"type": "file", "path": path, "size": size, "oid": git_digest(data)}
        if not path.endswith((".json", ".md")):
            entry["lfs"] = {"oid": digest(data), "size": size, "pointerSize": 134}
        return entry

    def download(self, path):
        hub, data, wanted = self.server, self.server.files[path], self.headers.get("Range", "")
        hub.downloads.append((path.rpartition("/")[2], wanted))
        fault = hub.faults[path].pop(0) if hub.faults.get(path) else ""
        if fault == "busy":
            return self.send(503, b"busy")
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if wanted:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            return self.send(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        if not fault or fault == "corrupt":
            return self.send(200, data)
        self.send(200, data[:CUT], Content_Length=len(data))
        self.close_connection = True
        if fault == "stall":
            hub.stalled.set()
            hub.resumed.wait(60)
