"""JSON files out of a stranger's folder, with typed access to their fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_value

Number = TypeVar("Number", int, float)


def read_json(path: Path, largest: int) -> Any:
    """What a JSON file of at most `largest` bytes holds. Raises DllamaError when it cannot be read or is no JSON."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise DllamaError(f"{path} has {size} bytes, more than such a file can have ({largest})")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DllamaError(f"{path} does not exist; check that the folder is complete") from None
    except OSError as error:
        raise DllamaError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DllamaError(f"{path} is no JSON file ({error}); repeat the download") from error


class JsonFields:
    """Typed access to the fields of a JSON object. Fields that are null count as absent."""

    def __init__(self, path: Path, fields: Mapping[str, Any], prefix: str = "") -> None:
        """`prefix` stands before the fields' names in messages."""
        self.path = path
        self.fields = fields
        self._prefix = prefix

    @classmethod
    def read(cls, path: Path, largest: int = 16 << 20) -> JsonFields:
        """The object in a file. Raises DllamaError when the file cannot be read or holds something else."""
        fields = read_json(path, largest)
        if not isinstance(fields, dict):
            raise DllamaError(f"{path} holds {type(fields).__name__} instead of a JSON object; repeat the download")
        return cls(path, fields)

    def get(self, name: str, default: Any = None) -> Any:
        """A field as it is, or `default`."""
        value = self.fields.get(name)
        return default if value is None else value

    def text(self, name: str, default: str | None = None) -> str:
        """A string field. Raises DllamaError when it is missing without a default, or no string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A field that is true or false. Raises DllamaError when it is something else."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def number(self, name: str, kind: type[Number], default: Number | None = None) -> Number:
        """A number. Raises DllamaError when it is missing without a default, or of another kind."""
        value = self.get(name, default)
        whole = isinstance(value, float) and kind is int and value.is_integer()  # 1e6 is written so
        if isinstance(value, bool) or (not isinstance(value, (int, kind)) and not whole):
            raise self._wrong(name, value, "a whole number" if kind is int else "a number")
        return kind(value)

    def nested(self, name: str) -> JsonFields:
        """An object inside this one; empty when it is absent. Raises DllamaError when the field is something else."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return JsonFields(self.path, value, f"{self._prefix}{name}.")

    def _wrong(self, name: str, value: Any, wanted: str) -> DllamaError:
        found = "missing" if value is None else shown_value(value)
        return DllamaError(f"{self.path}: {self._prefix}{name} is {found}, but {wanted} is wanted")
