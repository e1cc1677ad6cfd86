from __future__ import annotations

import io

import pytest

from launcher.console import Console


@pytest.fixture
def screen() -> io.StringIO:
    """What the console wrote."""
    return io.StringIO()


@pytest.fixture
def console(screen: io.StringIO) -> Console:
    return Console(screen)
