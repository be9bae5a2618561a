"""Whatever a test exports has to be valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .valid_objects import assert_valid


@pytest.fixture
def poolctl(poolctl: Any) -> Any:
    """`poolctl(*args)`: what the command did and printed. The objects that it exports are valid."""

    def run(*args: str) -> Any:
        done = poolctl(*args)
        if "kubernetes" in args and done.code == 0:
            for text in exported_texts(args, done):
                for each in yaml.safe_load_all(text):
                    assert_valid(each)
        return done

    return run


def exported_texts(args: tuple[str, ...], done: Any) -> list[str]:
    if "--directory" in args:
        directory = Path(args[args.index("--directory") + 1])
        texts = [path.read_text() for path in directory.glob("*.yaml") if path.is_file()]
        return [text for text in texts if text.startswith("# Made by `poolctl export kubernetes`")]
    return [item["text"] for item in done.json["items"]] if "json" in args else [done.out]
