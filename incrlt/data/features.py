"""What a standing part of a network gives of a picture, computed once and kept on disk.

A picture is known by the hash of what the network is shown, so that its pixels and their preparation count and its
name does not; the part by the hash of its weights; precision and size of pictures by their names. Each process appends
to a file of its own and reads those of all: nothing has to be locked, and a record that a killed process left
unfinished is passed over. What is read is what was first written, so that a run that goes on gets the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.files import read_json, write_atomic

KEY: Final = 32
"""Bytes of a picture's hash."""
CHECK: Final = 4
"""Bytes of a record's checksum."""
SHAPES_FILE: Final = "shapes.json"
SUFFIX: Final = ".features"


class FeatureCache:
    """Features of pictures in a folder, for parts of networks that do not change.

    Args:
        folder: Made where it is missing; it may be deleted whenever no run uses it.

    Attributes:
        computed: Pictures that were run, since the cache was made.
        found: Pictures whose features were there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed = self.found = 0
        self._stores: dict[tuple[int, int, str], _Store] = {}
        self._held: WeakKeyDictionary[nn.Module, list[Mapping[str, Tensor | None]]] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, object]) -> FeatureCache:
        """Copies of a network share it: what stands still is the same in them."""
        return self

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path]]:
        """Pickle the folder alone."""
        return FeatureCache, (self.folder,)

    def __call__(self, part: nn.Module, images: Tensor) -> object:
        """Return what the part gives of pictures ``[B, c, H, W]``: a tensor or a tuple of them, as it gives it.

        Args:
            part: In evaluation mode, without parameters that train.
            images: Prepared pictures.

        Raises:
            UserError: The part is one that trains.
        """
        tensors = self._tensors(part)
        if part.training or any(tensor.requires_grad for tensor in tensors):
            raise UserError("features are kept of parts that stand still; this one trains (model.train).")
        store = self._store(part, sum(tensor._version for tensor in tensors), images)
        rows = images.detach().cpu().contiguous()
        keys = [hashlib.sha256(memoryview(row.numpy()).cast("B")).digest() for row in rows]
        new = {key: index for index, key in enumerate(keys) if key not in store}
        if new:
            with torch.no_grad():
                store.add(list(new), part(images[list(new.values())]))
        self.computed += len(new)
        self.found += len(keys) - len(new)
        return store.read(keys, images.device)

    def _tensors(self, part: nn.Module) -> list[Tensor]:
        """Return all parameters and buffers; the tree of modules is walked once, which takes longer than the rest."""
        if part not in self._held:
            inner: list[Mapping[str, Tensor | None]] = []
            for module in part.modules():
                inner += [module._parameters, module._buffers]
            self._held[part] = [held for held in inner if held]
        return [tensor for held in self._held[part] for tensor in held.values() if tensor is not None]

    def _store(self, part: nn.Module, changes: int, images: Tensor) -> _Store:
        device = images.device.type
        running = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype
        size = "x".join(map(str, images.shape[1:]))  # pictures of another size give maps of another size
        precision = f"{str(running).removeprefix('torch.')}-{size}"
        known = id(part), changes, precision
        if known not in self._stores:
            digest = _digest(part)
            same = next(
                (s for s in self._stores.values() if (s.digest, s.precision) == (digest, precision)), None
            )
            self._stores[known] = same or _Store(
                self.folder / f"{digest[:32]}-{precision}", digest, precision
            )
        return self._stores[known]


def _digest(part: nn.Module) -> str:
    """Return the hash over how a part is built and its numbers."""
    total = hashlib.sha256(repr(part).encode())
    for name, value in part.state_dict().items():
        total.update(f"{name}\0{value.dtype}\0{list(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class _Store:
    """Records of one part: the hash of a picture, a checksum, and the numbers of its features."""

    def __init__(self, folder: Path, digest: str, precision: str) -> None:
        self.folder, self.digest, self.precision = folder, digest, precision
        folder.mkdir(parents=True, exist_ok=True)
        self._own = folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._where: dict[bytes, tuple[Path, int]] = {}
        self._shapes: list[tuple[list[int], str]] = []
        self._is_tuple = False
        self._learn()

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def _learn(self) -> None:
        """Read which pictures are there."""
        try:
            told = read_json(self.folder / SHAPES_FILE)
            self._is_tuple, self._shapes = told["tuple"], [(list(s), str(d)) for s, d in told["shapes"]]
        except (OSError, ValueError, LookupError, TypeError):
            return
        for file in sorted(self.folder.glob(f"*{SUFFIX}")):
            content = np.fromfile(file, dtype=np.uint8)
            count = len(content) // self._record
            records = content[: count * self._record].reshape(count, self._record)
            for index, record in enumerate(records):
                if _checksum(record[KEY + CHECK :].tobytes()) == record[KEY : KEY + CHECK].tobytes():
                    self._where.setdefault(record[:KEY].tobytes(), (file, index))

    @property
    def _sizes(self) -> list[int]:
        return [int(np.prod(shape)) * getattr(torch, dtype).itemsize for shape, dtype in self._shapes]

    @property
    def _record(self) -> int:
        return KEY + CHECK + sum(self._sizes)

    def add(self, keys: list[bytes], given: Any) -> None:
        """Append the features of pictures.

        Args:
            keys: One per picture.
            given: What the part gave, first axis the pictures.
        """
        tensors = list(given) if isinstance(given, tuple) else [given]
        if not self._shapes:
            self._is_tuple = isinstance(given, tuple)
            self._shapes = [(list(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for t in tensors]
            write_atomic(
                self.folder / SHAPES_FILE, json.dumps({"tuple": self._is_tuple, "shapes": self._shapes})
            )
        flat = [t.detach().cpu().contiguous().reshape(len(keys), -1).view(torch.uint8) for t in tensors]
        rows = torch.cat(flat, dim=1).numpy()
        first = self._own.stat().st_size // self._record if self._own.exists() else 0
        with self._own.open("ab") as file:
            for key, row in zip(keys, rows, strict=True):
                content = row.tobytes()
                file.write(key + _checksum(content) + content)
        for index, key in enumerate(keys):
            self._where[key] = (self._own, first + index)

    def read(self, keys: list[bytes], device: torch.device) -> object:
        """Return the features of pictures that are there, in this order."""
        sizes, record = self._sizes, self._record
        rows = np.empty((len(keys), sum(sizes)), dtype=np.uint8)
        places = sorted((*self._where[key], position) for position, key in enumerate(keys))
        opened: dict[Path, Any] = {}
        try:
            for path, index, position in places:
                file = opened.get(path) or opened.setdefault(path, path.open("rb"))
                file.seek(index * record + KEY + CHECK)
                file.readinto(memoryview(rows[position]))
        finally:
            for file in opened.values():
                file.close()
        parts = torch.from_numpy(rows).split(sizes, dim=1)
        found = tuple(
            part.contiguous().view(getattr(torch, dtype)).reshape(len(keys), *shape).to(device)
            for part, (shape, dtype) in zip(parts, self._shapes, strict=True)
        )
        return found if self._is_tuple else found[0]


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECK, "little")
