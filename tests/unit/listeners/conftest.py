"""Settings for the tests of listeners."""

from __future__ import annotations

import pytest

from poolctl.listeners import listen_errors


@pytest.fixture(autouse=True)
def patient_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the search of all processes takes longer than a user should wait."""
    monkeypatch.setattr(listen_errors, "MOST_SECONDS", 60.0)
