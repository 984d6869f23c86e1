"""Which pictures show the same thing, where that is known: from folders or from a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from ames_jax.runtime.errors import UserError

FOLDER = "folder"


@dataclass(frozen=True)
class Labels:
    """Labels by picture; `by_name` None: a picture's label is the folder that it lies in."""

    by_name: Mapping[str, str] | None

    @classmethod
    def read(cls, source: str) -> Labels:
        """`source`: "folder", or a text file with a line a picture: its id (or file name) and its label, with a comma or
        tab between them. Raises UserError, naming file and line, for what is not that."""
        if source == FOLDER:
            return cls(None)
        path = Path(source)
        if not path.is_file():
            raise UserError(f"--labels={source}: no such file; give a list of `picture,label`, or the word {FOLDER}")
        labels = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            name, separator, label = line.rpartition("\t" if "\t" in line else ",")
            if not separator or not name.strip() or not label.strip():
                raise UserError(f"{path} line {number}: expected `picture,label`, found {line!r}")
            labels[name.strip()] = label.strip()
        return cls(labels)

    def of(self, name: str | Path) -> str | None:
        """The label of a picture by id or path; None where it has none."""
        if self.by_name is None:
            return PurePath(name).parent.name or None
        return self.by_name.get(str(name), self.by_name.get(PurePath(name).name))

    def right(self, query: str | Path, image: str) -> bool | None:
        """Whether an image shows what the query shows; None where one of them has no label."""
        asked, found = self.of(query), self.of(image)
        return None if asked is None or found is None else asked == found
