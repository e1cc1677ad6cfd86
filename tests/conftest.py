"""Fixtures around the default model, SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dllama_gpu.model.gguf_file import GgufFile
from tests.support.models import write_plain_q40_m

# A busy machine is no defect of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A GPU in this machine must not change what tests of other things see.
os.environ.setdefault("DLLAMA_GPU_DEVICE", "cpu")

# Tests leave the person's cache alone.
os.environ.setdefault("DLLAMA_GPU_CONVERTED_CACHE", "none")

_REPOSITORY = Path(__file__).parent.parent
_DEFAULT_MODEL = _REPOSITORY / "models" / "smollm2_135m_instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """What llama.cpp computes with the default model; its `about` says how it was made."""
    text = (_REPOSITORY / "tests" / "data" / "golden_smollm2.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model as it is downloaded: GGUF with Q4_1 matrices and a Q8_0 embedding."""
    path = Path(os.environ.get("DLLAMA_GPU_TEST_MODEL", _DEFAULT_MODEL))
    if not path.is_file():
        pytest.fail(
            f"the test model {path} is missing; run `python3 launch.py --download-only`, or set DLLAMA_GPU_TEST_MODEL "
            "to its path"
        )
    return path


@pytest.fixture(scope="session")
def smollm2_q40_m(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as `.m` with plain Q40 in every matrix, the embedding too: the golden file's "q4_0" weights."""
    path = tmp_path_factory.mktemp("models") / "smollm2_q40.m"
    source = GgufFile(smollm2_gguf)
    try:
        write_plain_q40_m(source, path)
    finally:
        source.close()
    return path
