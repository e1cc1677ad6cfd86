from __future__ import annotations

import re

import pytest

from dllama_gpu.cli.download import find_hub_model
from dllama_gpu.errors import DllamaError
from launcher.catalogue import CATALOGUE, DEFAULT_MODEL, ModelEntry, find_model


def entry_called(name: str) -> ModelEntry:
    return ModelEntry(name=name, description="", files=(), model_file="model.gguf", prompt="")


@pytest.mark.parametrize("spelling", ["tiny_model_1b", "tiny-model-1b", "TINY-Model_1B", " tiny_model_1b "])
def test_case_and_dashes_do_not_matter(spelling: str) -> None:
    entry = entry_called("tiny_model_1b")
    assert find_model(spelling, (entry_called("other"), entry)) is entry


def test_an_unknown_name_is_answered_with_the_closest_and_all_names() -> None:
    catalogue = (entry_called("tiny_model_1b"), entry_called("large_model_8b"))
    with pytest.raises(DllamaError) as caught:
        find_model("tiny-modle-1b", catalogue)
    assert str(caught.value) == (
        "There is no model called 'tiny-modle-1b'. Did you mean tiny_model_1b? "
        "Known models: tiny_model_1b, large_model_8b; or give hf:org/repo, or the path of a file or folder."
    )


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(DllamaError, match=r"There is no model called 'zzz'\. Known models: tiny_model_1b;"):
        find_model("zzz", (entry_called("tiny_model_1b"),))


def test_the_default_model_is_known() -> None:
    assert find_model(DEFAULT_MODEL).name == DEFAULT_MODEL


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_entry_can_be_fetched_verified_and_run(entry: ModelEntry) -> None:
    assert entry.prompt
    assert entry.size > 0
    assert entry.shape
    if entry.download is not None:
        assert find_hub_model(entry.download).name == entry.name
        return
    assert entry.model_file in {file.name for file in entry.files}
    for file in entry.files:
        assert file.sources
        assert file.size > 0
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)


def test_no_two_entries_share_a_name() -> None:
    assert [find_model(entry.name.upper().replace("_", "-")) for entry in CATALOGUE] == list(CATALOGUE)
