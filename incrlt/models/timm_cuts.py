"""Where networks of timm are cut into what experts share and what each owns, family by family.

A network with stages is an entry, its stages, and an exit that pools them (:class:`Pyramid`); experts may part between
any two stages. Where they do is the method's doing, as in its official code for 224 pixels:

=================  =====================  =====================  ===================================
``shared``         ResNet, ConvNeXt       EfficientNet           ViT of 12 blocks
=================  =====================  =====================  ===================================
``stem``           after stage 2 of 4     after stage 3 of 7     after block 8 (two thirds)
``two_stages``     after stage 3 of 4     after stage 5 of 7     after block 10 (five sixths)
``nothing``        whole networks         whole networks         whole networks
``all``            heads alone            heads alone            heads alone
=================  =====================  =====================  ===================================

RIDE's ResNets share two stages and have 192 and 384 planes after them; SHIKE shares three (the name ``two_stages`` is
of the CIFAR form). The last activation of a stage is taken out of timm's block and applied after it, so that the map
before it can be told and the very last one left out; the same numbers, and no weight is renamed before it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.models.maps import Maps

Timm = Any
"""A network of timm; which parts it has is its family's business."""
SOURCES = (4, 8, 16)
"""By how much the maps that SHIKE's experts fuse are smaller than the picture."""


class Stage(nn.Module):
    """A stage, and the activation that its last block ends with.

    Args:
        body: Everything before it.
        act: The activation; ``nn.Identity()`` where there is none.
    """

    def __init__(self, body: nn.Module, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, c, H, W]`` to ``[B, d, h, w]``."""
        out: Tensor = self.act(self.body(x))
        return out

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same, and return the map before the activation, which may work in place."""
        before: Tensor = self.body(x)
        return self.act(before.clone()), before


@dataclass(frozen=True)
class Pyramid:
    """A network with stages, in parts that belong to nobody yet.

    Attributes:
        entry: Pictures to the first map.
        stages: Maps to maps.
        exit: The last map ``[B, d, h, w]`` to features ``[B, num_features]``.
        num_features: Width of the features.
        cuts: After how many stages experts part, for ``stem`` and ``two_stages``.
        sources: Stages whose maps are smaller by :data:`SOURCES`.
        channels: Channels of the maps of all stages.
    """

    entry: nn.Module
    stages: tuple[Stage, ...]
    exit: nn.Module
    num_features: int
    cuts: tuple[int, int]
    sources: tuple[int, int, int]
    channels: tuple[int, ...]


def resnet(model: Timm, last_activation: bool) -> Pyramid:
    """Cut a ResNet: the ReLU after the last addition of each stage is the stage's."""
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    stages = tuple(
        Stage(layer, _taken(layer[-1], "act3" if hasattr(layer[-1], "act3") else "act2")) for layer in layers
    )
    channels = tuple(info["num_chs"] for info in model.feature_info[1:])
    entry = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    _last(stages, last_activation)
    return Pyramid(entry, stages, model.global_pool, model.num_features, (2, 3), (0, 1, 2), channels)


def convnext(model: Timm, last_activation: bool) -> Pyramid:
    """Cut a ConvNeXt: no activation ends its stages, a norm follows the pooling."""
    stages = tuple(Stage(stage) for stage in model.stages)
    channels = tuple(info["num_chs"] for info in model.feature_info)
    end = nn.Sequential(model.norm_pre, model.head)
    return Pyramid(model.stem, stages, end, model.num_features, (2, 3), (0, 1, 2), channels)


def efficientnet(model: Timm, last_activation: bool) -> Pyramid:
    """Cut an EfficientNet: seven stages without an activation at their ends, and the last convolution with one."""
    last = Stage(nn.Sequential(model.conv_head, model.bn2), _taken(model.bn2, "act"))
    stages = (*(Stage(block) for block in model.blocks), last)
    channels = (*(_out_channels(block) for block in model.blocks), model.num_features)
    entry = nn.Sequential(model.conv_stem, model.bn1)
    _last(stages, last_activation)
    return Pyramid(entry, stages, model.global_pool, model.num_features, (3, 5), (1, 2, 4), channels)


PYRAMIDS: dict[str, Callable[[Timm, bool], Pyramid]] = {
    "resnet": resnet,
    "convnext": convnext,
    "efficientnet": efficientnet,
}
"""Families with stages."""

CLASSES = {
    "resnet": ("timm.models.resnet", "ResNet"),
    "convnext": ("timm.models.convnext", "ConvNeXt"),
    "efficientnet": ("timm.models.efficientnet", "EfficientNet"),
    "vit": ("timm.models.vision_transformer", "VisionTransformer"),
}
"""The class in timm that a family's members are made of: a name that fits and another class cannot be cut so."""


def _taken(block: object, name: str) -> nn.Module:
    """Take an activation out of a block and return it."""
    act: nn.Module = getattr(block, name)
    setattr(block, name, nn.Identity())
    return act


def _last(stages: Sequence[Stage], keep: bool) -> None:
    if not keep:
        stages[-1].act = nn.Identity()


def _out_channels(block: nn.Module) -> int:
    return int([part for part in block.modules() if isinstance(part, nn.BatchNorm2d)][-1].num_features)


class PyramidStem(nn.Module):
    """Entry and first stages.

    Args:
        entry: Pictures to the first map.
        stages: The stages that experts share.
        kept: Stages whose maps branches take; the last one alone is given as a map and not as a tuple.
    """

    def __init__(self, entry: nn.Module, stages: Sequence[Stage], kept: Sequence[int]) -> None:
        super().__init__()
        self.entry = entry
        self.stages = nn.ModuleList(stages)
        self.kept = tuple(kept)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map pictures ``[B, 3, H, W]`` to a map, or to a tuple of maps where experts fuse them."""
        x, found = self.entry(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return self._given(x, found)

    def with_maps(self, x: Tensor) -> tuple[Tensor | tuple[Tensor, ...], Maps]:
        """Do the same, and tell the map of each stage before its activation."""
        x, found, maps = self.entry(x), [], []
        for stage in self.stages:
            x, before = stage.with_map(x)  # type: ignore[operator]
            found.append(x)
            maps.append(before)
        return self._given(x, found), tuple(maps)

    def _given(self, last: Tensor, found: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return tuple(found[index] for index in self.kept) if self.kept else last


class PyramidBranch(nn.Module):
    """Later stages and exit of one expert; where wanted, its last map is multiplied by a shallower shared one.

    Args:
        stages: Its own stages.
        exit: The last map to features.
        num_features: Their width.
        source: Which of the shared maps it fuses; None fuses none.
        shallow: Brings that map to the shape of the last one.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        exit: nn.Module,
        num_features: int,
        source: int | None = None,
        shallow: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.exit = exit
        self.num_features = num_features
        self.source = source
        self.shallow = shallow

    def forward(self, shared: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Map what is shared to features ``[B, D]``."""
        x = shared[-1] if isinstance(shared, tuple) else shared
        for stage in self.stages:
            x = stage(x)
        return self._features(x, shared)

    def with_maps(self, shared: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, Maps]:
        """Do the same, and tell the map of each stage before its activation."""
        x = shared[-1] if isinstance(shared, tuple) else shared
        maps = []
        for stage in self.stages:
            x, before = stage.with_map(x)  # type: ignore[operator]
            maps.append(before)
        return self._features(x, shared), tuple(maps)

    def _features(self, deep: Tensor, shared: Tensor | tuple[Tensor, ...]) -> Tensor:
        if self.shallow is not None and self.source is not None:
            deep = deep * self.shallow(shared[self.source])
        features: Tensor = self.exit(deep)
        return features


class TransformerStem(nn.Module):
    """Patches, positions and the first blocks of a ViT.

    Args:
        model: The whole network; what belongs to branches is taken out of it.
        blocks: How many blocks are shared.
    """

    def __init__(self, model: Timm, blocks: int) -> None:
        super().__init__()
        model.blocks = model.blocks[:blocks]
        for name in ("norm", "fc_norm", "head_drop", "head"):
            setattr(model, name, nn.Identity())
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[B, 3, H, W]`` to tokens ``[B, N, D]``."""
        side = int(self.model.patch_embed.patch_size[0])
        if x.shape[-1] % side or x.shape[-2] % side:
            raise UserError(
                f"pictures of {x.shape[-2]} x {x.shape[-1]} pixels cannot be cut into patches of {side}; give sides "
                f"that are multiples of {side} (benchmark.image_size)."
            )
        model = self.model
        tokens: Tensor = model.blocks(
            model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        )
        return tokens


class TransformerBranch(nn.Module):
    """The last blocks of a ViT, its norm, and the token that stands for the picture.

    Args:
        model: The whole network; what belongs to the stem is taken out of it.
        blocks: How many blocks the stem has.
    """

    def __init__(self, model: Timm, blocks: int) -> None:
        super().__init__()
        model.blocks = model.blocks[blocks:]
        model.patch_embed = model.pos_drop = model.patch_drop = model.norm_pre = model.head = nn.Identity()
        model.cls_token = model.reg_token = model.pos_embed = None
        self.model = model
        self.num_features = int(model.num_features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[B, N, D]`` to features ``[B, D]``."""
        model = self.model
        features: Tensor = model.head_drop(model.fc_norm(model.pool(model.norm(model.blocks(tokens)))))
        return features


class PassOn(nn.Module):
    """The branch of an expert that owns a head alone.

    Args:
        num_features: Width of what is passed on.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return the features ``[B, D]`` as they are."""
        return features

    def with_maps(self, features: Tensor) -> tuple[Tensor, Maps]:
        """Return them, and no maps: all stages are shared."""
        return features, ()


def transformer_cut(model: Timm, shared: str) -> int:
    """Return how many blocks of a ViT are shared: two thirds, or five sixths of them."""
    depth = len(model.blocks)
    return round(depth * (2 / 3 if shared == "stem" else 5 / 6))
