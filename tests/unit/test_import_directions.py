from __future__ import annotations

from pathlib import Path

import pytest
from importlinter import cli

REPOSITORY = Path(__file__).resolve().parents[2]


def test_imports_point_downwards_as_the_architecture_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    status = cli.lint_imports(no_cache=True)
    assert status == 0, capsys.readouterr().out
