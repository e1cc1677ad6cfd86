"""GGUF models in one file or split into several (`NAME-00001-of-00003.gguf`), as one table of tensors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.shown import shown_value

_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_MOST_PARTS = 1000


def part_paths(path: Path) -> list[Path]:
    """The files of a split model, by the name of any of them; the path alone where it is not called like one."""
    name = _PART_NAME.fullmatch(path.name)
    if name is None or not 1 <= int(name[3]) <= _MOST_PARTS:
        return [path]
    return [path.with_name(f"{name[1]}-{number:05}-of-{name[3]}.gguf") for number in range(1, int(name[3]) + 1)]


class GgufParts:
    """The memory-mapped files of one model; metadata are those of the first, where all of them stand.

    Raises DllamaError from the constructor when a file is missing, damaged, or belongs to another model.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the only file, or any of several."""
        self._files: list[MappedFile] = []
        try:
            first = self._open(path)
            count = first.metadata.get("split.count", 0)
            if not isinstance(count, int) or not 0 <= count <= _MOST_PARTS:
                raise DllamaError(f"{path}: split.count is {shown_value(count)}, which is no number of files")
            self.path = path
            self.header = first if count <= 1 else self._join(path, count)
        except DllamaError:
            self.close()
            raise

    def view(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, uint8 [n_bytes], without a copy."""
        return self._files[tensor.part].view(tensor.offset, tensor.n_bytes)

    def release(self, tensor: GgufTensor) -> None:
        """Tells the operating system that the tensor's pages are not needed for now."""
        self._files[tensor.part].release(tensor.offset, tensor.n_bytes)

    def close(self) -> None:
        """Unmaps the files."""
        for file in self._files:
            file.close()

    def _open(self, path: Path) -> GgufHeader:
        file = MappedFile(path)
        self._files.append(file)
        return read_gguf_header(file)

    def _join(self, path: Path, count: int) -> GgufHeader:
        """The table of all parts; those are found by their names."""
        name = _PART_NAME.fullmatch(path.name)
        if name is None or int(name[3]) != count:
            raise DllamaError(
                f"{path} is one of {count} parts of a split model, but is not called like one "
                f"(NAME-00001-of-{count:05}.gguf); give the parts their names back"
            )
        self.close()
        self._files.clear()
        paths = part_paths(path)
        for part in paths:
            if not part.is_file():
                raise DllamaError(f"{part} is missing, one of {count} parts of the model; the download is not complete")
        self.path = paths[0]
        headers = [self._open(part) for part in paths]
        tensors: dict[str, GgufTensor] = {}
        for number, (part, header) in enumerate(zip(paths, headers, strict=True)):
            found = header.metadata.get("split.no"), header.metadata.get("split.count")
            if found != (number, count):
                raise DllamaError(
                    f"{part} says that it is part {shown_value(found[0])} of {shown_value(found[1])}, counted from 0, "
                    f"but its name says part {number} of {count}; it belongs to another model, or is damaged"
                )
            for tensor in header.tensors.values():
                if tensor.name in tensors:
                    raise DllamaError(
                        f"{part}: the tensor {tensor.name} is in another part too; the parts do not belong together"
                    )
                tensors[tensor.name] = replace(tensor, part=number)
        total = headers[0].metadata.get("split.tensors.count")
        if total != len(tensors):
            raise DllamaError(
                f"{self.path}: the parts hold {len(tensors)} tensors, but {shown_value(total)} are announced; they do "
                "not belong together"
            )
        return GgufHeader(headers[0].metadata, tensors)
