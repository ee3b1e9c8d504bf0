"""Kinds of text values of settings: each is the text, with what it says as attributes. A bad text raises ValueError."""
import re


class LayerRange(str):
    """Blocks first to last, both included, as in 3-5. Empty: none."""

    def __init__(self, text):
        self.first, self.last = 0, -1
        if text:
            ends = re.fullmatch(r"(0|[1-9]\d{0,3})-(0|[1-9]\d{0,3})", text, re.ASCII)
            if not ends:
                raise ValueError(" is not a range of blocks: write the first and the last, as in 3-5 (or 3-3)")
            self.first, self.last = int(ends[1]), int(ends[2])
            if self.first > self.last:
                raise ValueError(f" is reversed: write the first block and then the last, {ends[2]}-{ends[1]}")


class ChunkLength(str):
    """Tokens, as in 32768; per_document: chunks end with their document, as in 2048d."""

    def __init__(self, text):
        if not re.fullmatch(r"[1-9]\d{0,8}d?", text, re.ASCII):
            raise ValueError(" is neither tokens (32768) nor tokens within a document (2048d)")
        self.tokens, self.per_document = int(text.removesuffix("d")), text.endswith("d")


class Interval(str):
    """Steps, as in 500, or seconds, as in 60s."""

    def __init__(self, text):
        if not re.fullmatch(r"\d{1,9}|\d{1,9}(\.\d{1,9})?s", text, re.ASCII):
            raise ValueError(" is neither steps (500) nor seconds (60s)")
        self.number, self.in_seconds = float(text.removesuffix("s")), text.endswith("s")


class Levels(str):
    """31, or matrix=int6,embed=fp16. by_group: dict group -> 2 to 127, "auto" or "fp16"; "": every other group."""

    GROUPS = "matrix", "embed", "head"
    NAMED = {"auto": "auto", "fp16": "fp16"} | {f"int{bits}": 2 ** (bits - 1) - 1 for bits in range(3, 9)}

    def __init__(self, text):
        self.by_group = {}
        for part in text.split(","):
            group, equals, value = (word.strip() for word in part.rpartition("="))
            number = int(value) if re.fullmatch("[0-9]{1,3}", value) else 0
            if value not in self.NAMED and not 2 <= number <= 127:
                raise ValueError(f": {value or 'nothing'} is not a whole number from 2 to 127, int3 to int8, fp16 or "
                                 "auto")
            if equals and group not in self.GROUPS:
                raise ValueError(f": {group or 'nothing'} is not one of {', '.join(self.GROUPS)}")
            if group in self.by_group or "" in self.by_group or (self.by_group and not equals):
                raise ValueError(": give one value for all, or one per group, as in matrix=15,embed=fp16")
            self.by_group[group] = self.NAMED.get(value, number)


class Tools(str):
    """Names of tools that show curves, as in tensorboard,wandb. Empty: none."""

    NAMES = "tensorboard", "wandb", "trackio"

    def __init__(self, text):
        self.names = [word.strip() for word in text.split(",")] if text else []
        for name in self.names:
            if name not in self.NAMES:
                raise ValueError(f": {name or 'nothing'} is not one of {', '.join(self.NAMES)}")
