"""`python3 -m launcher`: makes the environment; `scripts/bootstrap` calls it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.console import Console
from launcher.environment import ensure_installed, environment_of
from launcher.guard import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the environment and installs the package with the extras asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/bootstrap",
        description="Make the Python environment (.venv, or where DLLAMA_GPU_VENV says) and build the package into it.",
    )
    parser.add_argument(
        "--extras",
        default="",
        metavar="NAME[,NAME]",
        help="optional dependencies of pyproject.toml to install too: test, dev, bench",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="install missing system packages without asking")
    options = parser.parse_args(arguments)
    extras = [extra for extra in options.extras.split(",") if extra]
    environment = environment_of(Path(__file__).resolve().parent.parent)
    ensure_installed(environment, extras, Console(), assume_yes=options.yes)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
