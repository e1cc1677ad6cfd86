"""`dllama-gpu download`: gets a model by name from Hugging Face's hub or a mirror."""

from __future__ import annotations

import difflib
import os
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, Parser
from dllama_gpu.cli.display import Advance, note, progress
from dllama_gpu.cli.failures import SUCCESS
from dllama_gpu.errors import DllamaError

if TYPE_CHECKING:
    from dllama_gpu.hub.catalogue import HubModel
    from dllama_gpu.hub.client import HubClient
    from dllama_gpu.hub.repository import HubName

PROGRAM = "dllama-gpu download"
HUB_PREFIX = "hf:"
MODELS_VARIABLE = "DLLAMA_GPU_MODELS"
"""Environment variable: the folder for models that `--model hf:…` fetches."""
DESCRIPTION = """Get a model from Hugging Face's hub or a mirror of it.

NAME is one of the names that `launch.py --list` shows, hf:org/repo (safetensors, else the best GGUF file),
or hf:org/repo:file.gguf. An interrupted download goes on where it stopped. Files are verified by the
hashes that the server states before they get their name.

Standard output gets the path to give to --model and, where it is a file of its own, on a second line
that for --tokenizer. HF_ENDPOINT names a mirror, HF_TOKEN a token for models that ask for one; proxies
are taken from the environment."""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("name", metavar="NAME", help="what to get")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("models"),
        metavar="FOLDER",
        help="where models are kept, each in a folder of its own (default: %(default)s)",
    )
    parser.add_argument("--endpoint", metavar="URL", help="the hub or its mirror (default: HF_ENDPOINT, else the hub)")


def run(options: Options) -> int:
    """Downloads, and prints where the files are."""
    for path in get_model(options.name, options.into, options.endpoint):
        print(path)
    return SUCCESS


def get_model(name: str, into: Path, endpoint: str | None = None) -> list[Path]:
    """Fetches what is not here yet of the model `name`; paths of the model and, where it is apart, of its tokenizer.

    Raises DllamaError when there is no such model, or it cannot be had.
    """
    from dllama_gpu.hub.client import HubClient
    from dllama_gpu.hub.repository import PREFIX, parse_hub_name

    client = HubClient(endpoint, waiting=lambda reason: note("waiting", reason))
    if name.startswith(PREFIX):
        return [_from_repository(client, parse_hub_name(name), into)]
    return _known_model(client, find_hub_model(name), into)


def chosen_path(model: Path) -> Path:
    """What --model names on this machine: the path itself, or where the model of an `hf:` name was fetched to.

    Raises DllamaError when such a model cannot be had.
    """
    name = model.as_posix()
    if not name.startswith(HUB_PREFIX):
        return model
    import platformdirs

    folder = (
        os.environ.get(MODELS_VARIABLE) or Path(platformdirs.user_data_dir("dllama-gpu", appauthor=False)) / "models"
    )
    return get_model(name, Path(folder))[0]


def find_hub_model(name: str) -> HubModel:
    """The model of this name; upper and lower case, `-` and `_` are the same. Raises DllamaError for an unknown one."""
    from dllama_gpu.hub.catalogue import HUB_MODELS

    by_name = {_normalize(model.name): model for model in HUB_MODELS}
    wanted = _normalize(name)
    if wanted not in by_name:
        close = difflib.get_close_matches(wanted, by_name, n=1)
        guess = (
            f"did you mean {by_name[close[0]].name}?" if close else f"known are {', '.join(by_name)}, and hf:org/repo"
        )
        raise DllamaError(f"there is no model {name!r} to download ({guess})")
    return by_name[wanted]


def _normalize(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _known_model(client: HubClient, model: HubModel, into: Path) -> list[Path]:
    folder = _made(into / model.name)
    tokenizer, weights = folder / model.tokenizer_target, folder / model.target
    _get(client, [client.file_url(model.repository, model.tokenizer_file)], tokenizer)
    _get(client, [client.file_url(model.repository, part) for part in model.model_files], weights)
    return [weights, tokenizer]


def _from_repository(client: HubClient, name: HubName, into: Path) -> Path:
    from dllama_gpu.hub.download import check_space_for_all, is_verified
    from dllama_gpu.hub.repository import read_selection, select_files, write_selection

    folder = _made(into / name.folder)
    selection = read_selection(folder, name)
    if selection is None or not all(is_verified(folder / PurePosixPath(file)) for file in selection.files):
        selection = select_files(client, name)
        if selection.remark is not None:
            note("chosen", selection.remark)
        targets = {
            _made((folder / PurePosixPath(file)).parent) / PurePosixPath(file).name: client.file_url(
                selection.repository, file, selection.revision
            )
            for file in selection.files
        }
        check_space_for_all(client, targets)
        for target, url in targets.items():
            _get(client, [url], target)
        write_selection(folder, name, selection)
    return folder if selection.model is None else folder / PurePosixPath(selection.model)


def _get(client: HubClient, urls: list[str], target: Path) -> None:
    from dllama_gpu.hub.download import fetch

    with ExitStack() as stack:
        shown = ""
        display: Advance

        def report(title: str, done: int, total: int, *, rate: bool) -> None:
            nonlocal shown, display
            if title != shown:  # one bar at a time
                stack.close()
                shown, display = title, stack.enter_context(progress(title, "bytes", rate=rate))
            display(done, total)

        fetch(
            client,
            urls,
            target,
            lambda done, total: report(target.name, done, total, rate=True),
            lambda done, total: report(f"verifying {target.name}", done, total, rate=False),
        )


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DllamaError(
            f"the folder {folder} cannot be made ({error.strerror or error}); name another one"
        ) from error
    return folder
