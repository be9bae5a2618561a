"""An interpreter that cannot run workers says so, and names the mend."""

from __future__ import annotations

import venv

from tests.real_pool import RealPool


def test_an_environment_without_uvicorn_is_named_with_its_mend(pool: RealPool) -> None:
    pool.write_hello("web", extra='python = "bare"')
    venv.create(pool.directory / "bare", with_pip=False)
    done = pool.run("start", "-o", "json")
    assert done.code == 1
    (error,) = done.json["errors"]
    python = pool.directory / "bare" / "bin" / "python"
    assert error["message"] == f"{python} has no uvicorn"
    assert error["hint"] == f"install it there: {python} -m pip install --upgrade uvicorn"
    assert pool.items()["web"]["ready"] is False
