"""A small, strict part of YAML with a line number on every value.

Configuration that decides where live traffic goes should mean what it looks like, so what lets a file mean something
else is refused: anchors, aliases, merge keys, tags, a key given twice, several documents. Values keep their text and
whether it was quoted; whoever reads the file says which type it wants.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tiltyard.errors import ConfigError

__all__ = ["MAX_FILE_BYTES", "Mapping", "Node", "Scalar", "Sequence", "parse_plain_yaml", "read_text"]

MAX_FILE_BYTES = 16 * 1024 * 1024
"""Largest file that is read: room for 10,000 pipelines, and a bound on what a wrong path can cost."""

_MAX_DEPTH = 20
# The parser made in C where it is there: ten times as fast.
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_resolver: Any = yaml.SafeLoader("")
_UNPRINTABLE = re.compile("[^\\t\\n\\r\\x20-\\x7e\\x85\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as written.

    Attributes:
        line: 1-based.
        text: the text, without quotes.
        quoted: whether it was in quotes (or a block of text), so that it can only be text.
    """

    line: int
    text: str
    quoted: bool

    @property
    def kind(self) -> str:
        """What YAML makes of it, in words: ``text``, ``a number``, ``true or false``, ``empty``, ``a date`` ..."""
        if self.quoted:
            return "text"
        tag: str = _resolver.resolve(yaml.ScalarNode, self.text, (True, False))
        return _KINDS.get(tag.rpartition(":")[2], "no plain text")


_KINDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "null": "empty",
    "timestamp": "a date",
    "merge": "a merge key",
}


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: tuple[Node, ...]
    kind: str = "a list"


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping.

    Attributes:
        line: 1-based.
        entries: by key; each with the line of its key.
    """

    line: int
    entries: dict[str, tuple[int, Node]]
    kind: str = "a mapping"


Node = Scalar | Sequence | Mapping


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: there is none, it is no plain file, it is too large, or it is not UTF-8.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold us up
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("this is no plain file", path=str(path))
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot be read: {reason}", path=str(path)) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB", path=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("this is not UTF-8 text", path=str(path), line=line) from error


def parse_plain_yaml(text: str, path: str) -> Node:
    """Parse one document.

    Args:
        text: the file's text.
        path: its name, for messages.

    Raises:
        ConfigError: it is no YAML, or uses what this module refuses; with line and reason.
    """
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(f"the character {bad[0]!r}, which YAML does not allow", path=path, line=line)
    try:
        return _Builder(yaml.parse(text, Loader=_Loader), path).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"no valid YAML: {reason}", path=path, line=mark.line + 1 if mark else 1) from error
    except (yaml.YAMLError, ValueError) as error:  # the parser in Python lets some of chr() and int() through
        raise ConfigError(f"no valid YAML: {error}", path=path, line=1) from error


class _Builder:
    def __init__(self, events: Iterator[yaml.Event], path: str) -> None:
        self._events = events
        self._path = path

    def document(self) -> Node:
        self._next()  # StreamStart
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise ConfigError("the file is empty", path=self._path, line=1)
        if isinstance(event, yaml.DocumentStartEvent) and event.tags:
            raise self._refuse(event, "%TAG directives are not allowed here")
        root = self._node(self._next(), 0)
        self._next()  # DocumentEnd
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._refuse(event, "a second document; one file holds one")
        return root

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _refuse(self, event: yaml.Event, reason: str) -> ConfigError:
        return ConfigError(reason, path=self._path, line=_line(event))

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            raise self._refuse(event, f"the alias *{event.anchor}: write the value out; aliases are not allowed here")
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            raise self._refuse(event, f"the anchor &{event.anchor}: anchors and aliases are not allowed here")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            raise self._refuse(event, f"the tag {event.tag}: tags are not allowed here")
        if depth > _MAX_DEPTH:
            raise self._refuse(event, f"more than {_MAX_DEPTH} levels deep")
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            if bad := _UNPRINTABLE.search(event.value):  # by an escape such as "\\0"
                raise self._refuse(event, f"the character {bad[0]!r}, which is not allowed here")
            return Scalar(line, event.value, bool(event.style))
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(line, tuple(self._items(depth)))
        return Mapping(line, self._entries(depth))

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> dict[str, tuple[int, Node]]:
        entries: dict[str, tuple[int, Node]] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise self._refuse(event, f"{key.kind} as a key; a key is a word")
            if key.kind == "a merge key":
                raise self._refuse(event, "the merge key <<: merging is not allowed here; write the values out")
            if key.text in entries:
                raise self._refuse(event, f"{key.text!r} again; line {entries[key.text][0]} gives it already")
            entries[key.text] = (key.line, self._node(self._next(), depth + 1))
        return entries


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark else 1
