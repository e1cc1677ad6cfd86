"""All instruction sets share one binary, so what one of them may run must not slip into functions that all run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OBJECTS = Path(sys.prefix) / "build" / "CMakeFiles" / "dllama_kernels.dir"
INSTRUCTION_SETS = re.compile(r"_(avx2|avxvnni|avx512|dotprod|i8mm)\.cpp\.o$")


def test_no_function_of_an_instruction_set_can_replace_a_common_one() -> None:
    """A weak symbol (an inline function or a template) is merged by the linker with its namesakes elsewhere."""
    if not shutil.which("nm"):
        pytest.skip("nm, which lists an object file's symbols, is not installed")
    if not OBJECTS.is_dir():
        pytest.skip(f"there are no object files in {OBJECTS}; this environment was not made by scripts/bootstrap")
    objects = sorted(path for path in OBJECTS.rglob("*.o") if INSTRUCTION_SETS.search(path.name))
    assert objects
    for path in objects:
        symbols = subprocess.run(["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        weak = [line for line in symbols.stdout.splitlines() if re.search(r"^\S+ [WVu] ", line)]
        assert weak == [], f"{path.name}: make these static, or put them into an unnamed namespace"
