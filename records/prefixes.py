"""What launchers, containers and log collectors put before each line that a script prints."""
import re

PEEK = 200  # lines that are not empty, from whose majority the prefix is known
DEEPEST = 3  # prefixes on one line: a collector may add its own to that of a launcher

_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_ISO = rf"\d{{4}}-\d\d-\d\d[T ]{_TIME}(?:Z| ?[+-]\d\d:?\d\d| UTC)?"
_SYSLOG = rf"[A-Z][a-z]{{2}} [ \d]\d {_TIME}"
_LEVEL = r"(?:DEBUG|INFO|WARNING|ERROR)"
PREFIXES = (  # who writes it, its form
    ("srun -l", r" {0,6}\d{1,6}: ?"),
    ("kubectl --timestamps, docker -t, ts -i, GitHub", rf"{_ISO}(?: |$)"),
    ("[time] of a logger or of dmesg", rf"\[(?:{_ISO}|{_TIME}| {{0,6}}\d{{1,9}}\.\d{{3,6}})\] ?"),
    ("journalctl, syslog", rf"{_SYSLOG} [\w.-]{{1,80}} [\w./@-]{{1,80}}(?:\[\d{{1,9}}\])?: ?"),
    ("ts", rf"{_SYSLOG} ?"),
    ("kubectl --prefix, stern", r"\[(?:pod/)?[\w.-]{1,200}/[\w.-]{1,200}\] ?"),
    ("docker compose", r"[\w.-]{1,100} {0,20}\| ?"),
    ("mpirun --tag-output", r"\[\d{1,6},\d{1,6}\](?:<std(?:out|err)>)?: ?"),
    ("mpirun -l, pdsh", r"(?:\[\d{1,6}\]|[A-Za-z][\w-]{0,60}\d) ?: ?"),
    ("Ray", r"\(\w{1,80}(?: pid=\d{1,9})?(?:, ip=[\w.:]{1,60})?\) ?"),
    ("logging, Hydra, loguru", r"(?:- |\| )?(?:\[[\w.]{1,80}\])?(?:[\w.]{1,80} - )?"
     rf"\[?{_LEVEL}\]? {{0,5}}(?:\| \S{{1,100}} - |:[\w.]{{1,80}}: ?|: ?|(?: -)? )"),
    ("torchrun --tee, PyTorch's ranks", r"\[?(?:rank|default)\s?\d{1,4}\]?:\s?"),
)
_FORMS = tuple(re.compile(form) for _, form in PREFIXES)


def prefixes_of(lines):
    """list of the compiled forms that stand before most of some lines, the outermost first; empty where there is none.
    lines: the first of a log, as text without colours."""
    lines = [line for line in lines if line.strip()]
    found = []
    while len(found) < DEEPEST:
        form = next((form for form in _FORMS if 2 * sum(bool(form.match(line)) for line in lines) > len(lines)), None)
        if not form:
            break
        found.append(form)
        lines = [form.sub("", line, count=1) if form.match(line) else line for line in lines]
    return found


def without(prefixes, line):
    """A line without those of its prefixes that it has."""
    for form in prefixes:
        if found := form.match(line):
            line = line[found.end():]
    return line
