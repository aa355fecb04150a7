"""Folders that are written into although they may come from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from ovd_gym.errors import DataError

__all__ = ["refuse_links"]


def refuse_links(*paths: Path) -> None:
    """Raise :class:`DataError` if one of ``paths``, or anything below it, is a link.

    What is written, replaced or deleted by such a name would be somewhere else.
    """
    for path in paths:
        below = (Path(here, name) for here, folders, files in os.walk(path) for name in (*folders, *files))
        for found in (path, *below):
            if found.is_symlink():
                raise DataError(
                    f"{found} is a link to {os.readlink(found)!r}: nothing is written where a folder leads out of "
                    "itself; put the files themselves there"
                )
