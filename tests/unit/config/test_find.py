"""Which files a command means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolctl.config.files.find import ConfigNotFound, candidate_files, find_config, has_section

SECTION = "[project]\nname = 'x'\n[[tool.poolctl.server]]\nname = 'a'\n"


def test_options_win_over_the_variable_over_the_directory(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").touch()
    env = {"POOLCTL_CONFIG": "/etc/pool.toml"}
    assert find_config(["a.toml", "/b.toml"], env, str(tmp_path)) == [str(tmp_path / "a.toml"), "/b.toml"]
    assert find_config([], env, str(tmp_path)) == ["/etc/pool.toml"]
    assert find_config([], {"POOLCTL_CONFIG": ""}, str(tmp_path)) == [str(tmp_path / "pool.toml")]


def test_the_directory_is_looked_through_in_order(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SECTION)
    for name in ("pyproject.toml", "pool.json", "pool.yml", "pool.yaml", "pool.toml"):
        if name != "pyproject.toml":
            (tmp_path / name).touch()
        assert find_config([], {}, str(tmp_path)) == [str(tmp_path / name)]
    assert candidate_files(str(tmp_path))[0] == str(tmp_path / "pool.toml")


def test_paths_are_absolute_and_links_stay_unresolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real.toml").touch()
    (tmp_path / "pool.toml").symlink_to("real.toml")
    monkeypatch.chdir(tmp_path)
    assert find_config(["./x/../pool.toml"]) == [os.path.join(os.getcwd(), "pool.toml")]
    assert find_config([], {}) == [os.path.join(os.getcwd(), "pool.toml")]


def test_a_named_file_need_not_be_there(tmp_path: Path) -> None:
    assert find_config(["gone.toml"], {}, str(tmp_path)) == [str(tmp_path / "gone.toml")]


@pytest.mark.parametrize("text", ["[tool.other]\n", "# [tool.poolctl]\n", "[tool.poolctlx]\n", ""])
def test_a_pyproject_without_the_section_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigNotFound) as caught:
        find_config([], {}, str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert "poolctl init" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["poolctl.toml"], "there is poolctl.toml: `poolctl -c poolctl.toml …`, or rename it to pool.toml"),
        (
            ["pools-of-today.yml", "Pool.YML"],
            "there is Pool.YML: `poolctl -c Pool.YML …`, or rename it to pool.yml",
        ),
    ],
)
def test_file_with_a_similar_name_is_named_where_none_is_found(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    for name in (*names, "pool.txt", "carpool.toml"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigNotFound) as caught:
        find_config(env={}, cwd=str(tmp_path))
    assert caught.value.hint == hint


def test_directory_that_is_gone_has_no_similar_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigNotFound, match="poolctl init"):
        find_config(env={}, cwd=str(tmp_path / "gone"))


@pytest.mark.parametrize("head", ["[tool.poolctl]", "[ tool . 'poolctl' ]", "[[tool.poolctl.server]]"])
def test_every_spelling_of_the_section_is_seen(tmp_path: Path, head: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[project]\n{head}\n")
    assert has_section(str(tmp_path / "pyproject.toml"))


def test_a_fifo_is_no_section_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pyproject.toml")
    assert not has_section(str(tmp_path / "pyproject.toml"))
    assert not has_section(str(tmp_path / "nowhere"))


def test_empty_name_is_reported() -> None:
    with pytest.raises(ConfigNotFound, match="empty"):
        find_config([""], {}, "/")
