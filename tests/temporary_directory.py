"""A directory for an object that no `with` encloses."""

from __future__ import annotations

import shutil
import tempfile
import weakref


def temporary_directory(owner: object) -> str:
    """The path of a new directory, which is removed with its owner."""
    directory = tempfile.mkdtemp()
    weakref.finalize(owner, shutil.rmtree, directory, ignore_errors=True)
    return directory
