"""Headless Chromium for the tests of pages, driven through two pipes (the DevTools protocol): real key presses, any
width, and scripts of ours that a page's own policy would refuse."""
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
from pathlib import Path

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}  # key -> its code on Windows
PATIENCE = 60  # seconds that an answer may take
LAYOUT = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")


def find_program():
    """Path of the browser; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One Chromium with one tab; a context manager. Raises RuntimeError for an exception in a page's script."""

    def __enter__(self):
        program = find_program()
        self.profile = tempfile.mkdtemp()
        ours, theirs = os.pipe(), os.pipe()
        # numbers of 10 and above, so that 3 and 4, where Chromium reads and writes, overwrite neither
        for_reading, for_writing = fcntl.fcntl(ours[0], fcntl.F_DUPFD, 10), fcntl.fcntl(theirs[1], fcntl.F_DUPFD, 10)
        actions = [
            (os.POSIX_SPAWN_DUP2, for_reading, 3),
            (os.POSIX_SPAWN_DUP2, for_writing, 4),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        arguments = [program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = os.posix_spawn(program, arguments, os.environ, file_actions=actions)
        for handle in (ours[0], theirs[1], for_reading, for_writing):
            os.close(handle)
        self.commands, self.answers = ours[1], theirs[0]
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")
        return self

    def __exit__(self, *_):
        os.close(self.commands)
        os.close(self.answers)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **parameters):
        """The result of one command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def _next(self):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            data = os.read(self.answers, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError("Chromium does not answer" if not ready else "Chromium has ended")
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page, width=1280, scheme="light", height=900, part=""):
        """Load the file `page` at a width in pixels and a colour scheme. part: what follows # in its address."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")  # or a change of the part alone would load nothing
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri() + part)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.settle()

    def run(self, script):
        """What an expression, or a promise of it, is worth."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def settle(self):
        """Wait until the page has drawn itself for its size."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys):
        for key in keys:
            about = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"Enter": "\r", " ": " "}.get(key)
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)
        self.settle()

    def faults(self):
        """list of sentences: what is cut off, overlaps, or leaves the page at this width. Empty for a good page."""
        self.settle()
        return self.run(LAYOUT)

    def requests(self):
        """Addresses that the page has asked for since it was opened, other than itself and data in it."""
        self.settle()
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("file:", "data:", "about:"))]

    def picture(self, file):
        """Write a PNG of the whole page, to look at."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        Path(file).write_bytes(base64.b64decode(data))
