"""Types for hyper-parameters: a number and the range it may take, in one word.

A strategy annotates the keyword-only arguments of its constructor with these, an expert method or a stage
the fields of its dataclass. ``incrlt.experiment.methods`` reads the annotations from the source file, so the range is
written once, holds for YAML and stands in the JSON schema. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

LARGEST: Final = 1_000_000_000
"""No epoch, seed or size above this makes sense; larger ones are typing errors that would overflow later."""

Positive = Annotated[float, Field(gt=0, le=LARGEST)]
"""A finite number above zero: a learning rate, a temperature."""

NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
"""A finite number, zero allowed: the weight of a loss term, zero switches it off."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1, both included."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
"""A whole number of things, at least one: epochs, negatives."""

Index = Annotated[int, Field(ge=0, le=LARGEST)]
"""A whole number from zero: a class id, a number of epochs that may be none."""

ALIASES: Final[dict[str, Any]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Positive": Positive,
    "NonNegative": NonNegative,
    "Fraction": Fraction,
    "Count": Count,
    "Index": Index,
}
"""Every name ``incrlt.experiment.methods`` understands in an annotation, besides ``None``, ``|`` and ``Literal``."""
