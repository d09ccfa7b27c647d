"""Looks into a file that ``torch.save`` wrote before torch makes a tensor of it.

``torch.load(weights_only=True)`` runs no code, but it believes sizes: a file of a kilobyte may ask for terabytes. Here
the file's directory and its pickle are read with every tensor replaced by its size, which takes no more time and
memory than the file's own length allows.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from incrlt.errors import short

ITEM_SIZE = {
    "FloatStorage": 4,
    "DoubleStorage": 8,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}
"""Bytes of one element in torch's storages by their names in a pickle."""
MAX_REPEATED = 10_000_000
"""Elements that a tensor may have by repeating fewer, as ``expand`` does."""
MAX_AXES = 64
"""Axes that torch allows a tensor."""


class NotTensorsError(ValueError):
    """The file is not what ``torch.save`` writes of tensors and plain data, or its sizes contradict one another."""


def check(content: bytes) -> None:
    """Raise unless a file holds tensors and plain data alone, each tensor inside its bytes.

    Args:
        content: The whole file.

    Raises:
        NotTensorsError: With what is wrong, for a sentence after "it".
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check_directory(members, len(content))
            names = [member.filename for member in members if member.filename.endswith("/data.pkl")]
            if len(names) != 1:
                raise NotTensorsError("has no table of contents")
            text = archive.read(names[0])
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, NotTensorsError):
            raise
        raise NotTensorsError("is no archive of tensors") from error
    folder = names[0].removesuffix("data.pkl") + "data/"
    sizes = {
        member.filename.removeprefix(folder): member.file_size
        for member in members
        if member.filename.startswith(folder)
    }
    _check_pickle(text, sizes)


def check_directory(path: Path) -> None:
    """Raise where the parts of a file that torch reads stand for more bytes than it has.

    Files of old versions of torch are no archives and have no parts: they are read from end to end.

    Raises:
        NotTensorsError: With what is wrong, for a sentence after "it".
        OSError: It cannot be read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_directory(archive.infolist(), path.stat().st_size)


def _check_directory(members: list[zipfile.ZipInfo], size: int) -> None:
    """Torch stores without compression, so that the parts cannot be larger than the whole."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise NotTensorsError("has compressed parts")
    if sum(member.file_size for member in members) > size:
        raise NotTensorsError("has parts that are larger than the whole")
    if len({member.filename for member in members}) < len(members):
        raise NotTensorsError("has two parts of one name")


def _check_pickle(text: bytes, sizes: dict[str, int]) -> None:
    try:
        for code, argument, _ in pickletools.genops(text):  # a memo's number is as many bytes of memory
            if code.name in ("BINPUT", "LONG_BINPUT", "PUT") and int(argument or 0) > len(text):
                raise NotTensorsError("has a table of contents that asks for too much memory")
        _Sizes(io.BytesIO(text), sizes).load()
    except NotTensorsError:
        raise
    except (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise NotTensorsError(f"is not tensors and plain data alone ({short(error, 100)})") from error
    except (ArithmeticError, ImportError, MemoryError, RecursionError) as error:
        raise NotTensorsError(f"has a damaged table of contents ({short(error, 100)})") from error


class _Sizes(pickle.Unpickler):
    """Reads the table of contents; what torch would build becomes a size, and nothing else is called."""

    def __init__(self, text: BinaryIO, sizes: dict[str, int]) -> None:
        super().__init__(text)
        self.sizes = sizes
        self.known: dict[tuple[str, str], Callable[..., object] | int] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _passed,
            ("torch", "Size"): _passed,
            ("torch", "device"): _passed,
            ("_codecs", "encode"): _passed,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of torch's."""
        if module in ("torch", "torch.storage") and name in ITEM_SIZE:
            return ITEM_SIZE[name]
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it names {module}.{name}"[:100])
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> int:
        """Return the elements of a storage, whose bytes are a part of the archive."""
        kind, item, key, _, number = pid
        if kind != "storage" or type(number) is not int or type(item) is not int:
            raise pickle.UnpicklingError("it holds a part of an unknown kind")
        if not 0 <= number * item <= self.sizes[key]:
            raise NotTensorsError("has a tensor with more elements than bytes")
        return number


def _passed(*arguments: object) -> object:
    return arguments


def _tensor(
    storage: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> tuple[int, ...]:
    """Check that the last element lies inside the storage; with steps of 0 one element could be any number."""
    numbers = (storage, offset, *shape, *stride)
    whole = all(type(number) is int and number >= 0 for number in numbers)
    if not whole or len(shape) != len(stride) or len(shape) > MAX_AXES:
        raise NotTensorsError("has a tensor with a shape that is none")
    elements = 1
    for length in shape:
        elements *= length
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if elements and (last >= storage or elements > max(storage, MAX_REPEATED)):
        raise NotTensorsError("has a tensor that is larger than its bytes")
    return shape
