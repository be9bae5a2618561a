"""An interpreter that cannot run workers is reported with the fix."""

from __future__ import annotations

import venv

from tests.environments import with_old_uvicorn
from tests.real_pool import RealPool


def test_environment_without_uvicorn_is_named_with_its_fix(pool: RealPool) -> None:
    pool.write_hello("web", extra='python = "bare"')
    venv.create(pool.directory / "bare", with_pip=False)
    done = pool.run("start", "-o", "json")
    assert done.code == 1
    (error,) = done.json["errors"]
    python = pool.directory / "bare" / "bin" / "python"
    assert error["message"] == f"{python} has no uvicorn"
    assert error["hint"] == f"install it there: {python} -m pip install --upgrade uvicorn"
    assert pool.items()["web"]["ready"] is False


def test_an_environment_with_an_old_uvicorn_is_refused_by_validate_start_and_doctor(pool: RealPool) -> None:
    python = with_old_uvicorn(pool.directory / "old")
    pool.write_hello("web", extra='python = "old"')
    reason = f"{python} has uvicorn 0.34.0, and workers need 0.53 or newer"
    fix = f"upgrade it there: {python} -m pip install --upgrade uvicorn"
    (problem,) = pool.run("validate", "-o", "json").json["errors"]
    assert (problem["message"], problem["hint"]) == (reason, fix)
    done = pool.run("start", "-o", "json")
    assert done.code == 1
    (error,) = done.json["errors"]
    assert (error["message"], error["hint"]) == (reason, fix)
    assert "has uvicorn 0.34.0" in pool.run("doctor").stdout
