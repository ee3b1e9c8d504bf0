"""What `verify --pr` asks of git: commits, what changed between two, and copies of files as a commit has them.

Only plumbing is called, which runs no filter and no pager and never touches the work tree; hooks are switched off.
"""
import dataclasses
import os
import subprocess
from pathlib import Path, PurePosixPath

from common.settings import UserError

SYMLINK, SUBMODULE = "120000", "160000"  # modes of an entry


@dataclasses.dataclass
class Entry:
    """A file of a commit."""
    path: str  # from the root of the repository
    mode: str
    digest: str
    size: int


@dataclasses.dataclass
class Change:
    """A file that differs between two commits. kind: A added, D deleted, M or T changed; old, new: digests."""
    kind: str
    path: str
    old: str
    new: str


class Repository:
    """The git repository around a folder. Raises UserError where git or an object is missing."""

    def __init__(self, path):
        self.path = path
        self._ask("rev-parse", "--git-dir", otherwise=f"{path} is not in a git repository: give --repo DIR")

    def commit(self, name):
        """Digest of a commit."""
        words = f"{name} is not a commit of {self.path}: check the name, or fetch it"
        return self._ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", otherwise=words)

    def common_commit(self, base, head):
        """Digest of the commit that both build on, as a pull request is compared."""
        words = f"{base[:12]} and {head[:12]} have no commit in common"
        if self._ask("rev-parse", "--is-shallow-repository") == "true":
            words += " in this shallow clone: run `git fetch --unshallow`"
        return self._ask("merge-base", base, head, otherwise=words)

    def seconds(self, commit):
        """When a commit was made, in seconds since 1970."""
        return int(self._ask("rev-list", "--max-count=1", "--format=%ct", commit).split()[-1])

    def changes(self, base, head):
        """list of Change between two commits, by path; a rename is a deletion and an addition."""
        out = self._ask("diff-tree", "-r", "-z", "--no-renames", "--no-relative", base, head)
        fields = out.split("\0")[:-1]
        found = []
        for about, path in zip(fields[::2], fields[1::2]):
            _, _, old, new, kind = about.split(" ")
            found.append(Change(kind, path, old, new))
        return found

    def entries(self, commit, folder):
        """list of Entry of all files below a folder of a commit, by path."""
        found = []
        for line in self._ask("ls-tree", "-r", "-z", "-l", "--full-tree", commit, "--", folder).split("\0")[:-1]:
            about, path = line.split("\t", 1)
            mode, _, digest, size = about.split()
            found.append(Entry(path, mode, digest, 0 if size == "-" else int(size)))
        return found

    def copy(self, entries, target):
        """Write files below a folder, links last, so that none is followed. Submodules are left out."""
        for entry in entries:
            if not {"", ".", ".."}.isdisjoint(entry.path.split("/")):
                raise UserError(f"{entry.path!r} is not a path that can be copied")
        links = [entry for entry in entries if entry.mode == SYMLINK]
        files = [entry for entry in entries if entry.mode not in (SYMLINK, SUBMODULE)]
        command = self._command("cat-file", "--batch")
        with subprocess.Popen(command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:
            for entry in [*files, *links]:
                data = self._blob(git, entry)
                path = Path(target, PurePosixPath(entry.path))
                path.parent.mkdir(parents=True, exist_ok=True)
                if entry.mode == SYMLINK:
                    path.symlink_to(os.fsdecode(data))
                else:
                    path.write_bytes(data)

    def _blob(self, git, entry):
        """Bytes of a file, from a running `git cat-file --batch`."""
        git.stdin.write(f"{entry.digest}\n".encode())
        git.stdin.flush()
        about = git.stdout.readline().split()
        if about[1:2] != [b"blob"]:
            raise UserError(f"{entry.path} is not in this clone, which is a partial one: fetch it in full")
        return git.stdout.read(int(about[2]) + 1)[:-1]

    def _command(self, *arguments):
        return ["git", "--no-pager", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-C",
                str(self.path), *arguments]

    def _ask(self, *arguments, otherwise=""):
        """What git prints, as text. Raises UserError: the words of `otherwise`, else those of git."""
        try:
            done = subprocess.run(self._command(*arguments), env=_environment(), capture_output=True, check=False)
        except FileNotFoundError:
            raise UserError("git is not installed, which --pr needs") from None
        if done.returncode:
            said = os.fsdecode(done.stderr).strip().partition("\n")[0]
            raise UserError(otherwise or f"git {arguments[0]}: {said}")
        return os.fsdecode(done.stdout).rstrip("\n")


def _environment():
    """Ours, without variables that would turn git to another repository, and without what fetches or asks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_NO_LAZY_FETCH": "1", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_OPTIONAL_LOCKS": "0",
                   "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
