"""What an expert method asks of the network, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Final, Literal, get_args

from incrlt.errors import UserError, did_you_mean
from incrlt.files import Plain

Shared = Literal["stem", "two_stages", "nothing", "all"]
Shortcut = Literal["projection", "padding"]
SHARED: Final[tuple[str, ...]] = get_args(Shared)
"""What experts may share."""
SHORTCUTS: Final[tuple[str, ...]] = get_args(Shortcut)


@dataclass(frozen=True)
class ContrastLayout:
    """Momentum encoder and queue of NCL's contrastive term; see :mod:`incrlt.models.contrast`."""

    dim: int = 64
    """Length of the vectors that are compared; NCL: 64 on CIFAR, 1,024 on Places."""
    queue_size: int = 1024
    """Keys that are remembered as negatives; NCL: 1,024 on CIFAR, 65,536 on Places."""
    momentum: float = 0.999
    """Part of the momentum encoder that a step keeps."""
    published: bool = False
    """As the official code: key networks start on their own, key projections never move."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.queue_size < 1:
            raise UserError("a momentum encoder needs dim and queue_size of at least 1.")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"momentum of the momentum encoder is {self.momentum}; it must lie in [0, 1].")


@dataclass(frozen=True)
class Combination:
    """Names the method whose ``combine`` makes one answer of K; a saved network finds it again by that name."""

    method: str
    """Class, as ``my_pkg.my_mod:MyClass``."""
    settings: Plain = field(default_factory=dict, hash=False)
    """Its hyper-parameters."""


@dataclass(frozen=True)
class Layout:
    """How K experts share a backbone, which heads they have, and how they answer as one.

    Raises:
        UserError: Parts that cannot be had together.
    """

    num_experts: int = 1
    """Number K of branches and heads."""
    shared: Shared = "stem"
    """``stem`` is the first convolution and stage, ``two_stages`` the second one too (SHIKE); with ``nothing`` each
    expert is a whole network (NCL), with ``all`` it is a head alone. Large networks are cut one stage later, see
    :mod:`incrlt.models.timm_cuts`."""
    width_factor: float = 1.0
    """Channels of the experts' own stages, relative to the plain network; RIDE: 0.75."""
    shortcut: Shortcut = "projection"
    """Shortcut of a shrinking block (He et al. 2016): ``projection`` is a 1x1 convolution with batch norm (option B;
    LUCIR, SHIKE), ``padding`` every second pixel and channels of zeros (option A; RIDE, NCL). It is a wish of networks
    for small images: large ones have projections in all official code."""
    fusion: bool = False
    """SHIKE's depth-wise knowledge fusion: the map of each expert is multiplied by one of a shared, shallower stage."""
    scale: float = 1.0
    """First value of the scale of cosine heads; LUCIR 1, RIDE and SHIKE 30."""
    learn_scale: bool = True
    """Train the scale of cosine heads."""
    unit_rows: bool = False
    """New rows of cosine heads start with length 1 (RIDE, SHIKE)."""
    second_heads: bool = False
    """A second head per expert, trained by a rebalancing stage (SHIKE)."""
    contrast: ContrastLayout | None = None
    """Momentum encoder of NCL's contrastive term."""
    combination: Combination | None = None
    """How one answer is made of the experts' logits; None is the mean. An expert method with a ``combine`` of its own
    fills this in by itself."""

    def __new__(cls, *args: object, **wishes: object) -> Layout:
        """Refuse a wish of another name, as a word of YAML is refused: expert methods write layouts.

        Raises:
            UserError: The nearest name.
        """
        for wish in wishes:
            if wish not in cls.__dataclass_fields__:
                known = list(cls.__dataclass_fields__)
                raise UserError(
                    f"a layout has no {wish!r}; it has: {', '.join(known)}.{did_you_mean(wish, known)}"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for wish, allowed in (("shared", SHARED), ("shortcut", SHORTCUTS)):
            given = getattr(self, wish)
            if given not in allowed:
                raise UserError(
                    f"{wish} of a layout is {given!r}; allowed: {', '.join(allowed)}.{did_you_mean(given, allowed)}"
                )
        if self.num_experts < 1:
            raise UserError(f"a network needs at least one expert, not {self.num_experts}.")
        if self.fusion and self.shared != "two_stages":
            raise UserError("fusion multiplies maps of two shared stages; set shared to 'two_stages'.")
        if self.contrast is not None and self.shared != "nothing":
            raise UserError("the momentum encoder copies whole networks; set shared to 'nothing'.")
        if self.width_factor <= 0:
            raise UserError(f"width_factor is {self.width_factor}; it must be positive.")
        if self.shortcut == "padding" and self.shared != "nothing" and self.width_factor < 0.5:
            raise UserError("a padding shortcut cannot lose channels: width_factor must be at least 0.5.")

    def plain(self) -> Plain:
        """Return everything as plain data; :func:`layout_of` reads it."""
        return asdict(self)


def layout_of(plain: Plain) -> Layout:
    """Return the layout that :meth:`Layout.plain` wrote; fields that it does not name have their defaults."""
    values = dict(plain)
    for name, part in (("contrast", ContrastLayout), ("combination", Combination)):
        if values.get(name) is not None:
            values[name] = part(**values[name])
    return Layout(**values)
