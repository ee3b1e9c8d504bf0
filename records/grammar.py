"""Source in the grammar of a newer Python than this one: read all the same, and the version that it needs is named.

What NEWER lists is rewritten, each construct in its own lines, in the grammar of Python 3.11, so that every check can
read it. What is not a program after that has a real syntax error. Standard library only.
"""
import ast
import bisect
import io
import re
import sys
import tokenize
from collections import namedtuple

FSTRING, GENERICS, TYPE = "an f-string that older versions refuse", "type parameters", "a `type` statement"
DEFAULT, TEMPLATE, EXCEPT = "a default of a type parameter", "a template string", "`except A, B` without parentheses"
NEWER = {FSTRING: (3, 12), GENERICS: (3, 12), TYPE: (3, 12), DEFAULT: (3, 13), TEMPLATE: (3, 14), EXCEPT: (3, 14)}
NEWEST = max(NEWER.values())  # a later version may have a grammar that is not known here
Use = namedtuple("Use", "version line what")

_TOKEN = re.compile(r"""
    (?P<space>[ \t\f]+|\\\r?\n)
  | (?P<comment>\#[^\n]*)
  | (?P<newline>\r?\n)
  | (?P<string>(?P<prefix>(?:[bftuBFTU][rR]?|[rR][bftBFT]?)?)(?P<mark>\"{3}|'{3}|"|'))
  | (?P<name>[^\W\d]\w*)
  | (?P<number>\.?\d[\w.]*)
  | (?P<op>.)
""", re.VERBOSE | re.DOTALL)
_HOLE = re.compile("\ue000hole (\\d+)\ue001")  # private characters


def read_tree(source):
    """(tree, list of Use that this Python lacks) of bytes or str. Raises SyntaxError or ValueError."""
    try:
        compile(source, "train_gpt.py", "exec", dont_inherit=True)
        return ast.parse(source), []
    except SyntaxError as error:
        plain = error
    try:
        text = as_text(source)
    except SyntaxError:
        raise plain from None
    older = _Older(text)
    uses = [use for use in older.uses if use.version > sys.version_info[:2]]
    if not uses:
        raise plain
    tree = older.tree()  # an error here is a real one, at its own line
    compile(tree, "train_gpt.py", "exec", dont_inherit=True)
    return tree, uses


def newest_use(source, python):
    """The Use of the newest grammar that a version, as (3, 11), lacks; None if it lacks nothing. The source has no
    syntax error."""
    newer = [use for use in _Older(as_text(source)).uses if use.version > python]
    if newer:
        return max(newer)
    try:
        ast.parse(source, feature_version=python)
    except SyntaxError as error:
        what, _, version = str(error.msg).partition(" only supported in Python ")
        if found := re.match(r"3\.(\d+)", version):
            return Use((3, int(found[1])), error.lineno, re.sub(" (is|are)$", "", what[:1].lower() + what[1:]))
    return None


def as_text(source):
    """Text of a source; bytes may name their coding. Raises SyntaxError."""
    if isinstance(source, str):
        return source
    coding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    try:
        return source.decode(coding)
    except UnicodeDecodeError as error:
        raise SyntaxError(f"is not {coding} at byte {error.start}") from None


class _Older:
    """A text and what it uses of NEWER. Raises SyntaxError where a string does not end."""

    def __init__(self, text):
        self.text, self.uses = text, []
        self.ends = [found.start() for found in re.finditer("\n", text)]
        self.holes = []  # of each f-string: list of (place, expression)
        self.tokens = list(self._tokens())
        self._statements()

    def tree(self, mode="exec"):
        """The tree of the text in older grammar. Raises SyntaxError."""
        text = "".join(word for _, word, _ in self.tokens)
        return ast.fix_missing_locations(_FillHoles(self).visit(ast.parse(text, mode=mode)))

    def line(self, place):
        return bisect.bisect_left(self.ends, place) + 1

    def _use(self, what, place):
        self.uses.append(Use(NEWER[what], self.line(place), what))

    # strings ----------------------------------------------------------------------------------------------------------

    def _tokens(self):
        """Yields (kind, text, place). An f-string comes as a string with a hole of as many lines."""
        at = 0
        while at < len(self.text):
            found = _TOKEN.match(self.text, at)
            kind, end, word = found.lastgroup, found.end(), found[0]
            if kind == "string":
                end = self._string(found)
                word = self.text[at:end]
            if kind == "string" and set(found["prefix"].lower()) & set("ft"):
                fields = []
                self._fstring(found, fields)
                self._note(found, fields)
                word = f'"""\ue000hole {len(self.holes)}\ue001' + "\n" * word.count("\n") + '"""'
                self.holes.append(fields)
            yield kind, word, at
            at = end

    def _string(self, found):
        """Where a string ends."""
        if set(found["prefix"].lower()) & set("ft"):
            return self._fstring(found, [])
        mark = found["mark"]
        inside = rf"(?:\\.|(?!{mark})[^\\])*" if len(mark) == 3 else rf"(?:\\.|[^\\\n{mark}])*"
        end = re.compile(inside + mark, re.DOTALL).match(self.text, found.end())
        if not end:
            self._fail("unterminated string literal", found.start())
        return end.end()

    def _fstring(self, found, fields):
        """Where an f-string ends; adds (place, text) of its expressions to `fields`."""
        mark, raw = found["mark"], "r" in found["prefix"].lower()
        name = "" if raw else r"|\\N\{[^}\n]*\}"
        special = re.compile(rf"{mark}|{{{{|}}}}|{{|\n{name}|\\(?![{{}}]).", re.DOTALL)
        at = found.end()
        while next_one := special.search(self.text, at):
            at = next_one.end()
            if next_one[0] == mark:
                return at
            if next_one[0] == "{":
                at = self._field(at, mark, fields)
            elif next_one[0] == "\n" and len(mark) == 1:
                break
        self._fail("unterminated f-string literal", found.start())

    def _field(self, start, mark, fields):
        """Where the field ends whose expression begins at `start`."""
        at, depth = start, 0
        while found := _TOKEN.match(self.text, at):
            word = found[0]
            if not depth and word in ("}", ":", "!") and self.text[at:at + 2] != "!=":
                break
            depth += (word in "([{") - (word in ")]}") if found["op"] else 0
            at = self._string(found) if found["mark"] else found.end()
        fields.append((start, self.text[start:at]))
        if conversion := re.compile(r"!\s*\w+\s*").match(self.text, at):
            at = conversion.end()
        if self.text[at:at + 1] == ":":
            at = self._format(at + 1, mark, fields)
        if self.text[at:at + 1] != "}":
            self._fail("f-string: expecting '}'", start)
        return at + 1

    def _format(self, at, mark, fields):
        """Where the format of a field ends, which may hold fields."""
        while at < len(self.text) and self.text[at] != "}" and not self.text.startswith(mark, at):
            at = self._field(at + 1, mark, fields) if self.text[at] == "{" else at + 1
        return at

    def _note(self, found, fields):
        mark = found["mark"]
        if "t" in found["prefix"].lower():
            self._use(TEMPLATE, found.start())
        for place, part in fields:
            if "\\" in part or mark in part or (len(mark) == 1 and "\n" in part) or self._has_comment(place, part):
                self._use(FSTRING, place)

    def _has_comment(self, at, part):
        end = at + len(part)
        while "#" in part and at < end:
            found = _TOKEN.match(self.text, at)
            if found["comment"]:
                return True
            at = self._string(found) if found["mark"] else found.end()
        return False

    def _fail(self, text, place):
        raise SyntaxError(text, ("train_gpt.py", self.line(place), 1, ""))

    # statements -------------------------------------------------------------------------------------------------------

    def _statements(self):
        """Rewrite those that start with `type`, `def`, `class` and `except`."""
        places = [i for i, (kind, _, _) in enumerate(self.tokens) if kind not in ("space", "comment")]
        depth, starts = 0, True
        for number, i in enumerate(places):
            kind, word, _ = self.tokens[i]
            if starts and kind == "name":
                self._statement(places[number:number + 3])
            if kind == "op":
                depth += (word in "([{") - (word in ")]}")
            starts = depth <= 0 and (kind == "newline" or word in (";", ":", "async"))

    def _statement(self, places):
        first, at = self.tokens[places[0]][1], self.tokens[places[0]][2]
        kinds, words = zip(*[self.tokens[i][:2] for i in places], ("", ""), ("", ""))
        if first == "except":
            self._except(places[0])
        elif kinds[1] != "name":
            return
        elif first in ("def", "class") and words[2] == "[":
            self._use(GENERICS, at)
            self._without_brackets(places[2])
        elif first == "type" and words[2] in ("[", "="):
            self._use(TYPE, at)
            self._blank(places[0], places[1])
            if words[2] == "[":
                self._without_brackets(places[2])

    def _blank(self, first, last):
        """Take tokens out; their lines stay."""
        for i in range(first, last):
            _, word, place = self.tokens[i]
            self.tokens[i] = "space", "\\\n" * word.count("\n"), place

    def _without_brackets(self, first):
        depth = 0
        for i in range(first, len(self.tokens)):
            kind, word, place = self.tokens[i]
            if kind == "op":
                depth += (word in "([{") - (word in ")]}")
                if word == "=" and depth == 1:
                    self._use(DEFAULT, place)
            if not depth:
                self._blank(first, i + 1)
                return

    def _except(self, first):
        """`except A, B:` becomes `except (A, B):`."""
        depth, comma = 0, None
        for i in range(first + 1, len(self.tokens)):
            kind, word, place = self.tokens[i]
            if not depth and (kind == "newline" or word in ("as", ":")):
                if word == ":" and comma:
                    self._use(EXCEPT, comma)
                    self.tokens[i] = kind, "):", place
                    star = next((k for k in range(first + 1, i) if self.tokens[k][1] == "*"), first)
                    self.tokens[star] = "op", self.tokens[star][1] + " (", self.tokens[star][2]
                return
            if kind == "op":
                depth += (word in "([{") - (word in ")]}")
                comma = place if not depth and word == "," else comma


class _FillHoles(ast.NodeTransformer):
    """Puts the expressions of f-strings into the places of the strings that stand for them."""

    def __init__(self, older):
        self.older = older

    def visit_Constant(self, node):
        numbers = map(int, _HOLE.findall(node.value)) if isinstance(node.value, str) else []
        numbers = [number for number in numbers if number < len(self.older.holes)]
        if not numbers:
            return node
        values = []
        for place, text in (field for number in numbers for field in self.older.holes[number]):
            expression = re.sub(r"(?<![=!<>])=\s*$", "", text)  # {x=}
            tree = _Older(f"({expression}\n)").tree("eval")
            values.append(ast.FormattedValue(ast.increment_lineno(tree, self.older.line(place) - 1).body, -1, None))
        return ast.copy_location(ast.JoinedStr(values), node)
