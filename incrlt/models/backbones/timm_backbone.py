"""Networks of timm as stems and branches, ``timm:NAME``; which ones, :mod:`incrlt.families` says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from incrlt.errors import UserError, did_you_mean, shown
from incrlt.families import FAMILIES, NOT_IN_TIMM, PREFIX, family_of
from incrlt.files import Plain
from incrlt.models import timm_cuts as cuts
from incrlt.models.layout import Layout
from incrlt.models.parts import Chain, TellingChain, strided

USUAL_WIDTH = 16
"""What ``width`` is where nobody gave one; networks of timm have a width of their own."""

PLANES = (64, 128, 256, 512)
"""Channels of the four stages of a ResNet, before the expansion of its blocks."""


@dataclass(frozen=True)
class TimmBackbone:
    """The parts of a network of timm; a :class:`~incrlt.models.backbone.Backbone`.

    A layout's ``shortcut`` is a wish of the CIFAR form: at 224 pixels the official code of RIDE and NCL has
    projections, as timm has.

    Args:
        name: As ``timm:resnet50``.
        in_channels: Channels of the pictures.
        width: Must be the usual one: the name decides.
        last_relu: Keep the last activation, where the family has one.
        weights: Puts weights into a whole network before it is cut; None leaves those drawn at random.
    """

    shares: ClassVar[tuple[str, ...]] = ("stem", "two_stages", "nothing", "all")
    wishes: ClassVar[tuple[str, ...]] = ("width_factor", "shortcut", "fusion")

    name: str
    in_channels: int
    width: int
    last_relu: bool
    weights: Callable[[nn.Module], None] | None = None
    family: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", family_of(self.name))
        if self.width != USUAL_WIDTH:
            raise UserError(
                f"width is {self.width}, and the width of {self.name} is decided by its name; leave width "
                f"(model.width) out, or at {USUAL_WIDTH}."
            )

    def stem(self, layout: Layout) -> nn.Module:
        """Return what experts share."""
        self._check(layout)
        if layout.shared == "nothing":
            return nn.Identity()
        if layout.shared == "all":
            return self._whole()
        return self._stem(layout)

    def branch(self, layout: Layout, expert: int) -> nn.Module:
        """Return the own part of an expert, counted from 0."""
        if layout.shared == "all":
            return cuts.PassOn(int(self.whole().num_features))
        if layout.shared == "nothing":
            return self._whole()
        return self._branch(layout, expert)

    def whole(self, planes: tuple[int, ...] = PLANES) -> cuts.Timm:
        """Return a network of timm as it is, without its classifier.

        Args:
            planes: Channels of the stages of a ResNet.

        Raises:
            UserError: timm does not know the name, or makes another kind of network of it.
        """
        import timm

        bare = self.name.removeprefix(PREFIX)
        bare, settings = NOT_IN_TIMM.get(bare, (bare, {}))
        if not timm.is_model(bare):
            known = timm.list_models()
            raise UserError(f"timm {timm.__version__} knows no {shown(bare)}.{did_you_mean(bare, known)}")
        extra: Plain = {**settings}
        if planes != PLANES:
            extra["channels"] = planes
        if self.family == "vit":
            extra["dynamic_img_size"] = True  # the size of pictures is the benchmark's
        model = timm.create_model(bare, pretrained=False, num_classes=0, in_chans=self.in_channels, **extra)
        module, cls = cuts.CLASSES[self.family]
        if not isinstance(model, getattr(importlib.import_module(module), cls)):
            raise UserError(
                f"{self.name} is a {type(model).__name__} in timm, not a {cls}, and cannot be cut as one; take "
                "another member of the family."
            )
        if self.weights is not None:
            self.weights(model)
        return model

    def _check(self, layout: Layout) -> None:
        family = FAMILIES[self.family]
        if layout.width_factor != 1 and (not family.narrow or layout.shared in ("nothing", "all")):
            raise UserError(
                f"{self.name} cannot have branches of {layout.width_factor:g} times its width"
                f"{'' if family.narrow else f': the channels of a {family.title} are its own'}; set width_factor "
                "(experts.width_factor) to 1."
            )
        if layout.width_factor != 1 and self.weights is not None:
            raise UserError(
                f"pretrained weights do not fit into branches of {layout.width_factor:g} times the width of "
                f"{self.name}: their convolutions have other sizes. Set width_factor (experts.width_factor) to 1, or "
                "leave pretrained (model.pretrained) out."
            )
        if layout.fusion and not family.fuses:
            raise UserError(
                f"{self.name} has no maps of several sizes to fuse. Choose a model with stages, such as "
                "timm:resnet50, or switch fusion (experts.fusion) off."
            )

    def _pyramid(self, planes: tuple[int, ...] = PLANES, keep: bool = False) -> cuts.Pyramid:
        return cuts.PYRAMIDS[self.family](self.whole(planes), self.last_relu or keep)

    def _whole(self) -> nn.Module:
        if self.family == "vit":
            model = self.whole()
            first = cuts.transformer_cut(model, "stem")
            return Chain(cuts.TransformerStem(model, first), cuts.TransformerBranch(self.whole(), first))
        parts = self._pyramid()
        stem = cuts.PyramidStem(parts.entry, parts.stages, ())
        return TellingChain(stem, cuts.PyramidBranch((), parts.exit, parts.num_features))

    def _stem(self, layout: Layout) -> nn.Module:
        if self.family == "vit":
            model = self.whole()
            return cuts.TransformerStem(model, cuts.transformer_cut(model, layout.shared))
        parts = self._pyramid()
        cut = parts.cuts[layout.shared == "two_stages"]
        kept = (*parts.sources, cut - 1) if layout.fusion else ()
        return cuts.PyramidStem(parts.entry, parts.stages[:cut], kept)

    def _branch(self, layout: Layout, expert: int) -> nn.Module:
        if self.family == "vit":
            model = self.whole()
            return cuts.TransformerBranch(model, cuts.transformer_cut(model, layout.shared))
        parts = self._pyramid(_planes(layout), keep=layout.fusion)
        cut = parts.cuts[layout.shared == "two_stages"]
        own = parts.stages[cut:]
        if not layout.fusion:
            return cuts.PyramidBranch(own, parts.exit, parts.num_features)
        source = expert % len(parts.sources)
        channels = parts.channels[parts.sources[source]]
        steps = len(parts.sources) - source
        shallow = strided(channels, parts.channels[-1], steps, active=steps - 1)
        return cuts.PyramidBranch(own, parts.exit, parts.num_features, source, shallow)


def _planes(layout: Layout) -> tuple[int, ...]:
    """Return the channels of a ResNet whose stages after the cut are narrower."""
    cut = 2 if layout.shared == "stem" else 3
    factor = layout.width_factor
    return tuple(
        planes if index < cut else max(1, round(planes * factor)) for index, planes in enumerate(PLANES)
    )
