"""Which networks of timm are known here, by their names, and why others are not. Torch is not needed to refuse one.

How each family is cut is :mod:`incrlt.models.timm_cuts`'s to know; a test holds that every family has a cut there.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Final

from incrlt.errors import UserError, shown
from incrlt.files import Plain

PREFIX: Final = "timm:"
"""What names of such networks begin with in ``model.name``."""


@dataclass(frozen=True)
class Family:
    """Networks of timm that are cut at the same places."""

    title: str
    """As messages call it."""
    pattern: str
    """What the names of its members match, before a dot and the tag of their weights."""
    narrow: bool = False
    """Its later stages can be made with other numbers of channels (RIDE)."""
    fuses: bool = False
    """It has maps of several sizes, which SHIKE fuses."""
    last_activation: bool = False
    """Features are what an activation gives, which may be left out; otherwise they carry a sign anyhow."""
    batch_norm: bool = False
    """It normalises by batches."""
    adapters: bool = False
    """Its blocks take adapters."""


FAMILIES: Final[dict[str, Family]] = {
    "resnet": Family(
        "ResNet and ResNeXt",
        r"(wide_)?resne(x)?t\d\w*",
        narrow=True,
        fuses=True,
        last_activation=True,
        batch_norm=True,
    ),
    "convnext": Family("ConvNeXt", r"convnext(v2)?_\w+", fuses=True),
    "efficientnet": Family(
        "EfficientNet", r"(tf_)?efficientnet_(lite|b)\d\w*", fuses=True, last_activation=True, batch_norm=True
    ),
    "vit": Family("Vision Transformer", r"vit_(tiny|small|base|large)_patch\d+_\d+\w*", adapters=True),
}
"""The families, by the name of their cut."""

NOT_IN_TIMM: Final[dict[str, tuple[str, Plain]]] = {"resnet10": ("resnet18", {"layers": (1, 1, 1, 1)})}
"""Members that timm has no name for: the name of a near one, and what makes it this one. They have no weights."""

_REASON: Final = (
    "nobody has said where experts may share it and where they part. A family is added in two places: its name and "
    "pattern in incrlt/families.py, its stem and branch in incrlt/models/timm_cuts.py, with a test that cut and whole "
    "give the same"
)


def family_named(name: str) -> str:
    """Return the family that a name is of, whether timm is installed or not; empty where it is of none.

    Example:
        >>> family_named("timm:resnext50_32x4d")
        'resnet'
    """
    bare = name.removeprefix(PREFIX).partition(".")[0]
    known = FAMILIES.items() if name.startswith(PREFIX) else ()
    return next((key for key, family in known if re.fullmatch(family.pattern, bare)), "")


def family_of(name: str) -> str:
    """Return the family of ``timm:NAME``, before timm is imported.

    Raises:
        UserError: No family has such names, or timm is not installed.
    """
    found = family_named(name)
    if not found:
        known = "; ".join(
            f"{family.title} ({example})" for family, example in zip(FAMILIES.values(), EXAMPLES, strict=True)
        )
        raise UserError(
            f"model name {shown(name)} is of no family that is known: {_REASON}. Known are: {known}."
        )
    if importlib.util.find_spec("timm") is None:
        raise UserError(
            f"model name {shown(name)} needs timm, which is not installed: pip install 'incrlt[timm]'."
        )
    return found


EXAMPLES: Final = (
    "timm:resnet50",
    "timm:convnext_tiny",
    "timm:tf_efficientnet_lite0",
    "timm:vit_small_patch16_224",
)
"""One name of each family."""
