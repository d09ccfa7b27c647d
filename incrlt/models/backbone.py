"""What a backbone must tell to be cut into a stem and branches, and how one is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from incrlt.errors import UserError, did_you_mean, shown
from incrlt.families import PREFIX
from incrlt.files import Plain
from incrlt.models.backbones.timm_backbone import TimmBackbone
from incrlt.models.layout import SHARED, Layout
from incrlt.models.named import class_named, name_of

FOLDER = Path(__file__).parent / "backbones"


class BranchModule(Protocol):
    """The own part of an expert: a module that maps what the stem gives to features ``[B, num_features]``.

    Where it also has ``with_maps(x)``, see :mod:`incrlt.models.maps`, methods that need maps can use it; so for stems.
    """

    num_features: int

    def __call__(self, shared: object, /) -> Tensor:
        """Map to features ``[B, D]``."""


class Backbone(Protocol):
    """A network in parts. Its class takes ``in_channels``, ``width`` and ``last_relu`` by name.

    ``width`` is the number of channels to start with. ``last_relu`` is False where features are to carry a sign
    (LUCIR). Each call of :meth:`stem` and :meth:`branch` makes new modules; weights are drawn from the global random
    state.

    Attributes:
        shares: Values of ``Layout.shared`` that it can be cut at: ``stem``, ``two_stages``, ``nothing``, ``all``.
        wishes: Which of ``width_factor``, ``shortcut`` and ``fusion`` it reads of a layout. A layout that wishes for
            another one is refused: a method would train without what makes it one. Left out: none of them.
    """

    @property
    def shares(self) -> tuple[str, ...]:
        """Where it can be cut."""

    def stem(self, layout: Layout) -> nn.Module:
        """Return what experts share: images ``[B, in_channels, H, W]`` to what branches take, a map or a tuple of them.

        ``nn.Identity()`` where ``layout.shared`` is ``nothing``.
        """

    def branch(self, layout: Layout, expert: int) -> nn.Module:
        """Return the own part of an expert, a :class:`BranchModule`; experts are counted from 0.

        Of the layout's ``width_factor``, ``shortcut`` and ``fusion`` it reads those that it names in ``wishes``, and
        raises a UserError where it cannot have a value of them.
        """


WISHES = ("width_factor", "shortcut", "fusion")
"""Parts of a layout that a backbone may leave unread, as long as they are the default."""


def check_wishes(name: str, backbone: Backbone, layout: Layout) -> None:
    """Refuse a layout with a wish that a backbone does not say it reads.

    Raises:
        UserError: Which one.
    """
    plain, read = Layout(), getattr(backbone, "wishes", ())
    for wish in WISHES:
        wanted = getattr(layout, wish)
        if wanted != getattr(plain, wish) and wish not in read:
            raise UserError(
                f"the experts ask for {wish} {wanted!r} of the backbone, and {name} does not say that it reads it. "
                f"Read layout.{wish} in stem and branch and name it in wishes (a network that has no shortcuts just "
                "names that one), or choose another model or expert method."
            )


def nothing(module: nn.Module) -> None:
    """Leave a module's weights as they are."""


def initialise_of(backbone: Backbone) -> Callable[[nn.Module], None]:
    """Return what draws the weights of a backbone's modules anew, for ``apply``.

    A backbone that has no method ``initialise`` keeps the weights that its modules were made with (or trained to).
    """
    found: Callable[[nn.Module], None] = getattr(backbone, "initialise", nothing)
    return found


def variants() -> dict[str, tuple[type, Plain]]:
    """Return the backbones of the package: name to class and settings."""
    found: dict[str, tuple[type, Plain]] = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        module = importlib.import_module(f"incrlt.models.backbones.{file.stem}")
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                found |= {name: (cls, settings) for name, settings in getattr(cls, "variants", {}).items()}
    return found


def backbone_of(
    name: str | type,
    *,
    in_channels: int,
    width: int,
    last_relu: bool,
    weights: Callable[[nn.Module], None] | None = None,
) -> tuple[str, Backbone]:
    """Make a backbone.

    Args:
        name: A variant in ``incrlt.models.backbones``, ``timm:NAME``, ``my_pkg.my_mod:MyNet``, or such a class itself.
        in_channels: Channels of the images.
        width: Channels to start with.
        last_relu: Keep the last ReLU.
        weights: Puts pretrained weights into a whole network, where it is one of timm.

    Returns:
        The name by which a saved network finds it again, and the backbone.

    Raises:
        UserError: Nothing of this name, or it is no backbone.
    """
    settings: Plain = {}
    if isinstance(name, str) and name.startswith(PREFIX):
        return name, TimmBackbone(name, in_channels, width, last_relu, weights)
    if isinstance(name, type):
        cls, name = name, name_of(name)
    elif ":" in str(name):
        cls = class_named(name, "model name")
    else:
        known = variants()
        if name not in known:
            raise UserError(
                f"model name {shown(name)} is not known; allowed: {', '.join(known)}, timm:NAME, or "
                f"my_pkg.my_mod:MyNet."
                f"{did_you_mean(name, known)}"
            )
        cls, settings = known[name]
    return name, _made(name, cls, dict(in_channels=in_channels, width=width, last_relu=last_relu, **settings))


def _made(name: str, cls: object, settings: Plain) -> Backbone:
    missing = [part for part in ("shares", "stem", "branch") if not hasattr(cls, part)]
    if missing:
        raise UserError(
            f"{name} is no backbone: it lacks {', '.join(missing)}; see incrlt.models.backbone.Backbone for what a "
            "backbone tells."
        )
    try:
        backbone: Backbone = cls(**settings)
    except TypeError as error:
        raise UserError(f"{name} cannot be made from {', '.join(settings)}: {error}.") from error
    check_told(name, "shares", backbone.shares, SHARED)
    check_told(name, "wishes", getattr(backbone, "wishes", ()), WISHES)
    return backbone


def check_told(name: str, fact: str, told: object, known: Sequence[str]) -> None:
    """Refuse a text where several are wanted, in which any part of a word would be found, and words nobody knows.

    Raises:
        UserError: What a backbone tells, and how it is written.
    """
    if isinstance(told, str) or not isinstance(told, Iterable):
        raise UserError(
            f"{name} tells {fact} {told!r}; write several, or one with a comma: {fact} = ({known[0]!r},)."
        )
    for word in told:
        if word not in known:
            raise UserError(
                f"{name} tells {word!r} among its {fact}; known are {', '.join(known)}.{did_you_mean(word, known)}"
            )
