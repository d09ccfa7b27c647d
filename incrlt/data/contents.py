"""What a stored picture is by its content: a number that another process, or another machine, finds again.

Pictures are hashed as they are stored, before any transform. Data sets of which nobody knows what they do at a reading
are read twice from the same random state; a picture that then differs has no content that could be compared.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from incrlt.data.quiet import quiet_random
from incrlt.data.stored import Indices, NotExactError, without_transform

UNKNOWN = 0
"""Hash of what cannot be compared: a sample that is another one at each reading, or of an unknown type."""


def picture_hashes(dataset: object, rows: Indices) -> npt.NDArray[np.int64]:
    """Return a 64-bit hash of each picture (or table row), :data:`UNKNOWN` where there is none.

    Args:
        dataset: A stored data set, as :func:`incrlt.data.avalanche.stored_parts` finds it.
        rows: int64 [n], which samples.

    Returns:
        int64 [n]. Labels are no part of it.
    """
    source, steady = _as_stored(dataset)
    found = np.empty(len(rows), dtype=np.int64)
    with quiet_random():
        for place, row in enumerate(rows.tolist()):
            first = _hash(_read(source, row))
            found[place] = first if steady or first == _hash(_read(source, row)) else UNKNOWN
    return found


def labels_hash(labels: Tensor) -> int:
    """Return a 64-bit hash of the labels ``[N]`` of a data set, order included."""
    return _number(b"labels", labels.to(torch.int64).contiguous().numpy().tobytes())


def _as_stored(dataset: object) -> tuple[object, bool]:
    """Return the data set without its own transform, and whether its samples are the same at each reading."""
    try:
        return without_transform(dataset)[0], True
    except NotExactError:
        return dataset, False


def _read(source: Any, row: int) -> object:
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    sample = source[row]
    return sample[0] if isinstance(sample, tuple | list) and len(sample) else sample


def _hash(picture: Any) -> int:
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().contiguous()
        return _number(
            f"{picture.dtype}{list(picture.shape)}".encode(),
            picture.view(-1).view(torch.uint8).numpy().tobytes(),
        )
    if hasattr(picture, "mode") and hasattr(picture, "tobytes"):  # PIL
        return _number(f"{picture.mode}{picture.size}".encode(), picture.tobytes())
    if isinstance(picture, np.ndarray | np.generic) and picture.dtype != object:
        return _number(
            f"{picture.dtype}{list(picture.shape)}".encode(), np.ascontiguousarray(picture).tobytes()
        )
    return UNKNOWN


def _number(kind: bytes, content: bytes) -> int:
    digest = hashlib.blake2b(kind + b"\0" + content, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1  # 0 is taken
