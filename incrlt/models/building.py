"""From a name and a layout to a network that knows no class yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from incrlt.errors import UserError
from incrlt.families import PREFIX, family_of
from incrlt.models.adapters import add_adapters
from incrlt.models.backbone import Backbone, backbone_of, check_wishes, initialise_of
from incrlt.models.contrast import MomentumContrast
from incrlt.models.heads import HEADS, make_head
from incrlt.models.layout import Layout
from incrlt.models.named import combine_of
from incrlt.models.network import ExpertNetwork
from incrlt.models.pretrained import Pretrained


def build(
    name: str | type = "resnet32",
    *,
    layout: Layout | None = None,
    num_experts: int = 1,
    head: str = "cosine",
    in_channels: int = 3,
    width: int = 16,
    last_relu: bool | None = None,
    pretrained: str | None = None,
    adapters: int | None = None,
) -> ExpertNetwork:
    """Build a network that knows no class yet.

    Args:
        name: ``resnet8``, ``resnet14``, ``resnet20`` or ``resnet32``; ``timm:NAME`` for a network of timm, see
            ``incrlt/families.py``; a backbone of your own as ``my_pkg.my_mod:MyNet`` or as the class itself, see
            :class:`incrlt.models.backbone.Backbone`.
        layout: What an expert method asks for: what experts share, their width, which heads they have, and how they
            answer as one.
        num_experts: Short for ``layout=Layout(num_experts=...)``.
        head: ``cosine``, ``linear``, or ``proxies`` (ten cosine rows per class, PODNet).
        in_channels: Channels of the images.
        width: Channels of the first stage; features have four times as many (times the layout's width factor). Networks
            of timm have their own.
        last_relu: Keep the ReLU before pooling; by default only for linear heads (LUCIR needs signed features).
            RIDE, NCL and SHIKE keep it whatever the head, and so do pretrained weights, which were trained with it.
        pretrained: Weights that every part begins with, of networks of timm: a file, ``package:NAME`` or ``timm``, see
            :mod:`incrlt.models.pretrained`. The network then knows how pictures are normalised.
        adapters: Rank of the adapters that each branch gets, see :mod:`incrlt.models.adapters`; None gives none.

    Raises:
        UserError: An unknown name or head, a layout that the backbone cannot have, or both ``layout`` and
            ``num_experts``.

    Example:
        >>> net = build("resnet8", head="linear", in_channels=1)
        >>> _ = net.grow([0, 1, 2])
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    if layout is not None and num_experts != 1:
        raise UserError("num_experts is short for a layout; give one of the two.")
    layout = Layout(num_experts=num_experts) if layout is None else layout
    last_relu = head == "linear" or pretrained is not None if last_relu is None else last_relu
    weights = None if pretrained is None else weights_of(name, pretrained)
    name, backbone = backbone_of(
        name, in_channels=in_channels, width=width, last_relu=last_relu, weights=weights
    )
    if head not in HEADS:
        raise UserError(f"model head {head!r} is not known; allowed: {', '.join(HEADS)}.")
    combine = combine_of(layout.combination)
    stem, branches = _parts(name, backbone, layout)
    features: int = branches[0].num_features
    heads = [make_head(head, features, layout) for _ in branches]
    second_heads = [make_head(head, features, layout) for _ in branches] if layout.second_heads else None
    initialise = initialise_of(backbone)
    for part in (stem, *branches):
        part.apply(initialise)
    if adapters is not None:
        add_adapters(name, branches, adapters)
    contrast = None
    if layout.contrast is not None:  # last, because it copies the branches
        contrast = MomentumContrast(branches, features, layout.contrast, initialise)
    network = ExpertNetwork(stem, branches, heads, second_heads, contrast, combine)
    network.architecture = {
        "name": name,
        "layout": layout.plain(),
        "head": head,
        "in_channels": in_channels,
        "width": width,
        "last_relu": last_relu,
    }
    if adapters is not None:
        network.architecture["adapters"] = adapters
    if weights is not None:
        network.pretrained = weights.facts()
        known = weights.preparation
        network.normalisation = {"mean": list(known.mean), "std": list(known.std)}
    return network


def weights_of(name: str | type, pretrained: str) -> Pretrained:
    """Read pretrained weights for a network of timm.

    Raises:
        UserError: The network is none, or they cannot be had.
    """
    if not isinstance(name, str) or not name.startswith(PREFIX):
        raise UserError(
            f"pretrained weights are taken by networks of timm (timm:NAME), not by {name}; leave pretrained "
            "(model.pretrained) out."
        )
    family_of(name)
    return Pretrained(name, pretrained)


def _parts(name: str, backbone: Backbone, layout: Layout) -> tuple[nn.Module, Sequence[Any]]:
    if layout.shared not in backbone.shares:
        raise UserError(
            f"model {name} cannot share {layout.shared!r} between experts; it can share "
            f"{', '.join(map(repr, backbone.shares))}. Choose another model or another expert method."
        )
    check_wishes(name, backbone, layout)
    stem = backbone.stem(layout)
    branches = [backbone.branch(layout, expert) for expert in range(layout.num_experts)]
    widths = {getattr(branch, "num_features", None) for branch in branches}
    if len(widths) != 1 or None in widths:
        raise UserError(
            f"branches of model {name} must tell the width of their features as num_features, all the same; got "
            f"{sorted(map(str, widths))}."
        )
    return stem, branches
