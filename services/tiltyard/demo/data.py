"""What the demo replays: labelled domain names, and how a name becomes the models' input.

The encoding lives here and nowhere else: the training script imports it, so that what is served is what was trained.
Only numpy is needed.

A name is turned into 50 numbers as in the tutorial the demo follows. The part before the first dot is taken (the
label: what an algorithm or a person chose; the rest is a registry's or a host's), each of its characters becomes a
number (``-`` 1, digits 2 to 11, letters 12 to 37), and zeros fill up from the left. Of longer labels the last 50
characters count.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import ConfigError, InvalidArgumentError

ALPHABET: Final = "-0123456789abcdefghijklmnopqrstuvwxyz"
"""The characters a label may have; a character's number is its place here, counted from 1. 0 is padding."""

NAME_LENGTH: Final = 50
"""Numbers in one encoded name: the inner dimension of the models' input."""

INPUT: Final = "text_input"
"""Name of the models' only input, float [rows, NAME_LENGTH]."""

MAIN: Final = "main"
"""The output that says how likely a name is to be made by an algorithm. The others say it per malware family."""

DEFAULT_FOLDER: Final = Path("examples") / "dga"
"""Where a checkout keeps the demo's models and names, from its root."""

_CODES: Final = {character: number for number, character in enumerate(ALPHABET, start=1)}
_COLUMNS: Final = ["session_id", "name", "label", "family"]


def encode_names(names: Iterable[str]) -> NDArray[np.float32]:
    """Encode domain names, with or without a suffix, for the models' input.

    Returns:
        float32 [number of names, NAME_LENGTH].

    Raises:
        InvalidArgumentError: a name is empty, or has a character outside ``ALPHABET`` (capitals are lowered first).
    """
    rows = []
    for name in names:
        label = name.lower().partition(".")[0]
        if not label:
            raise InvalidArgumentError(f"the domain name {name!r} has nothing before its first dot; give a name")
        try:
            codes = [_CODES[character] for character in label[-NAME_LENGTH:]]
        except KeyError as error:
            raise InvalidArgumentError(
                f"the domain name {name!r} has the character {error.args[0]!r}; use letters, digits and hyphens"
            ) from None
        rows.append([0] * (NAME_LENGTH - len(codes)) + codes)
    return np.array(rows, dtype=np.float32).reshape(len(rows), NAME_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledName:
    """One row of the held-out names.

    Attributes:
        session_id: whose request it is; a session's requests all go to the same arm.
        name: the domain name, with its suffix.
        generated: True when malware's algorithm made it: the truth the models are measured against.
        family: the malware family, or ``benign``.
    """

    session_id: str
    name: str
    generated: bool
    family: str

    def correct(self, main: float) -> bool:
        """Whether a model that answers ``main`` (a probability, 0 to 1) judges this name rightly."""
        return (main > 0.5) == self.generated


def load_names(path: Path) -> list[LabelledName]:
    """Read labelled names from a CSV file with the columns session_id, name, label (1: generated), family.

    Raises:
        ConfigError: the file cannot be read, has other columns, or a row is wrong; names the line.
    """
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", path=str(path)) from error
    reader = csv.reader(text.splitlines())
    if next(reader, None) != _COLUMNS:
        raise ConfigError(f"the first line must be {','.join(_COLUMNS)}", path=str(path), line=1)
    names = []
    for row in reader:
        if len(row) != len(_COLUMNS) or not row[0] or not row[1] or row[2] not in ("0", "1"):
            raise ConfigError(
                "a row needs a session id, a name, a label 0 or 1 and a family", path=str(path), line=reader.line_num
            )
        names.append(LabelledName(session_id=row[0], name=row[1], generated=row[2] == "1", family=row[3]))
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFiles:
    """Where the demo's parts lie: two SavedModel folders and the CSV file of held-out names."""

    champion: Path
    challenger: Path
    names: Path


def find_demo(folder: Path | None = None, *, start: Path | None = None) -> DemoFiles:
    """Find the demo's models and names.

    Args:
        folder: the folder that holds ``models/`` and ``heldout.csv``. Default: ``examples/dga`` in ``start`` or in
            the nearest folder above it that has one, so that any folder of a checkout will do.
        start: where to look from; the current folder by default.

    Raises:
        ConfigError: they are not there; says what is missing and what to do.
    """
    here = (start or Path.cwd()).resolve()
    if folder is None:
        folders = [parent / DEFAULT_FOLDER for parent in (here, *here.parents)]
        folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise ConfigError(
            f"no {DEFAULT_FOLDER} in {here} or above it; run this in a checkout of Tiltyard, or give --models DIR"
        )
    files = DemoFiles(
        champion=folder / "models" / "champion",
        challenger=folder / "models" / "challenger",
        names=folder / "heldout.csv",
    )
    for needed in (files.champion / "saved_model.pb", files.challenger / "saved_model.pb", files.names):
        if not needed.is_file():
            raise ConfigError(f"the demo needs {needed}, which is not there; `git checkout` it, or give --models DIR")
    return files
