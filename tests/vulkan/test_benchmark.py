"""The command line of the GPU benchmark, which measures nothing before it is sound."""

from __future__ import annotations

import sys

import pytest

from dllama_gpu.errors import DllamaError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer-library", "/nowhere", "--peer-python", sys.executable], "--peer-library /nowhere is no folder"),
        (["--peer-library", "."], "--peer-library needs --peer-python"),
        (["--peer-python", "/nowhere/python"], "llama.cpp cannot be measured: /nowhere/python cannot be run"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be 1 or more, not 0"),
        (["--quick", "--decode-tokens", "-1"], "--decode-tokens must be 1 or more, not -1"),
    ],
)
def test_options_that_cannot_work_are_refused(device_index: int, arguments: list[str], message: str) -> None:
    from benchmarks.vulkan import main

    with pytest.raises(DllamaError, match=message):
        main(["--device", str(device_index), *arguments])
