"""Types for hyper-parameters: a number and the range it may take, in one word.

A strategy annotates the keyword-only arguments of its constructor with these, an expert method or a stage
the fields of its dataclass. ``incrlt.experiment.methods`` reads the annotations from the source file, so the range is
written once, holds for YAML and stands in the JSON schema. Nothing here imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from incrlt.files import Plain

LARGEST: Final = 1_000_000_000
"""No weight or rate above this makes sense; larger ones are typing errors that would overflow later."""
LARGEST_COUNT: Final = 10_000_000
"""No number of epochs, steps, exemplars or negatives above this: a larger one is a typing error. None of them takes
memory in its proportion."""
LARGEST_SIZE: Final = 100_000
"""No batch, width or queue above this, since memory is asked for in its proportion."""
LONGEST_TUPLE: Final = 10_000
"""Items of a hyper-parameter that is a list."""
LONGEST_PATH, LONGEST_NAME = 4_000, 255
"""Bytes of a path, and of a name in it, that file systems take."""

Positive = Annotated[float, Field(gt=0, le=LARGEST)]
"""A finite number above zero: a learning rate, a temperature."""

NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
"""A finite number, zero allowed: the weight of a loss term, zero switches it off."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1, both included."""

Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
"""A whole number of things, at least one, at most :data:`LARGEST_COUNT`: epochs, negatives."""

Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
"""A whole number that memory is asked for: a width, a batch, a queue; at most :data:`LARGEST_SIZE`."""

Model = Literal["resnet8", "resnet14", "resnet20", "resnet32"]
"""The backbones of the package."""

ExpertCount = Annotated[int, Field(ge=1, le=64)]
"""Experts of a network, each with modules of its own: 1 to 64."""

Index = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""A whole number from zero: a class id, a number of epochs that may be none."""


def _path(value: str) -> str:
    """Refuse text that no file system takes as a path, and a home folder that nobody has."""
    if "\0" in value:
        raise ValueError("must be a path; it holds a NUL character. Remove it.")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("must be a path; it holds characters that file names cannot have here.") from None
    if len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/")):
        raise ValueError(
            f"must be a path of at most {LONGEST_PATH} bytes, each name at most {LONGEST_NAME}; it has {len(encoded)} "
            "bytes. Shorten it."
        )
    try:
        Path(value).expanduser()
    except RuntimeError:
        user = Path(value).parts[0]
        raise ValueError(
            f"begins with {user}, but there is no such user here. Write the folder out."
        ) from None
    return value


PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]
"""A path as text; ``~`` is the home folder."""

ALIASES: Final[Plain] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Positive": Positive,
    "NonNegative": NonNegative,
    "Fraction": Fraction,
    "Count": Count,
    "Size": Size,
    "ExpertCount": ExpertCount,
    "Index": Index,
    "PathText": PathText,
}
"""Words of an annotation, beside ``None``, ``|``, ``Literal``, ``tuple`` and ``Annotated[..., Field(ge=...)]``."""
