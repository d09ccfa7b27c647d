"""Turn torchvision transforms into an :class:`Augmentation` that does the same to whole batches.

torchvision is recognised by module and class name, so that this module needs torch alone. A subclass of a
torchvision transform may do anything and is therefore not recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from incrlt.data.augment import Augmentation, Op, Pad, RandomCrop, RandomFlip, RandomResizedCrop
from incrlt.data.pictures import RandomRotation
from incrlt.data.policy import AutoAugment, ImageNetAutoAugment


class UntranslatableError(Exception):
    """A transform has no exact batched counterpart; the message says which and why."""


def from_torchvision(transform: object) -> Augmentation | None:
    """Translate a torchvision transform (v1 or v2), or a sequence of them.

    Known: Compose, Pad, RandomCrop, RandomResizedCrop, RandomHorizontalFlip, the conversions to a float
    tensor in [0, 1], and Normalize. Padding must be constant and the resize bilinear. On tensors also
    RandomRotation and AutoAugment (v1, policies CIFAR10 and IMAGENET), both of mode nearest; PIL rounds otherwise.

    Returns:
        The same augmentation for batches, or None if any part has no exact counterpart.
    """
    try:
        return translate([transform])
    except UntranslatableError:
        return None


def translate(transforms: Iterable[object]) -> Augmentation:
    """Translate transforms that are applied one after the other.

    Args:
        transforms: torchvision transforms, or a single :class:`Augmentation`; None is skipped.

    Raises:
        UntranslatableError: Some part has no exact counterpart.
    """
    flat = list(_flatten(transforms))
    if len(flat) == 1 and isinstance(flat[0], Augmentation):
        return flat[0]
    state = _State()
    for transform in flat:
        name = _name(transform)
        if name not in _RULES:
            raise UntranslatableError(f"{name or type(transform).__name__} has no batched counterpart")
        _RULES[name](state, transform)
    return state.augmentation()


def _name(transform: object) -> str | None:
    """Return the class name of a torchvision transform, None for anything else."""
    kind = type(transform)
    known = kind.__module__.startswith("torchvision.transforms.")
    return kind.__name__ if known else None


def _flatten(transforms: Iterable[Any]) -> Iterator[object]:
    for transform in transforms:
        if transform is None or type(transform) is torch.nn.Identity or _name(transform) == "Identity":
            continue
        if _name(transform) == "Compose":
            yield from _flatten(transform.transforms)
        elif type(transform) in (list, tuple):
            yield from _flatten(transform)
        else:
            yield transform


class _State:
    """What the transforms read so far amount to."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.fills: set[int] = set()
        self.is_tensor = False  # a PIL image was turned into a tensor
        self.is_float = False
        self.norm: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.plain_resize_of: bool | None = None  # is_tensor at a resize without antialias

    def add_pad(self, padding: object, fill: object, mode: str) -> None:
        """Append a constant border."""
        if mode != "constant":
            raise UntranslatableError(f"padding mode '{mode}' has no batched counterpart")
        self.fills.add(self.grey(fill))
        if len(self.fills) > 1:
            raise UntranslatableError("two paddings with different fill values")
        self.ops.append(Pad(*_sides(padding)))

    def grey(self, fill: object) -> int:
        """Return a fill value as a grey level 0..255."""
        if self.norm is not None:
            raise UntranslatableError("padding after Normalize shows another value than black")
        if not isinstance(fill, int | float | Sequence | None):
            raise UntranslatableError(f"padding with fill={fill} is not one grey level")
        values = {float(v) for v in fill} if isinstance(fill, Sequence) else {float(fill or 0)}
        level = values.pop() * (255 if self.is_float else 1) if values else 0.0
        if values or level != round(level) or not 0 <= level <= 255:
            raise UntranslatableError(f"padding with fill={fill} is not one grey level")
        return round(level)

    def augmentation(self) -> Augmentation:
        """Return the whole.

        Raises:
            UntranslatableError: The result would not be a float tensor, or antialias depends on the input.
        """
        if not self.is_float:
            raise UntranslatableError("the transforms do not end in a float tensor in [0, 1]")
        if self.plain_resize_of is False and self.is_tensor:
            raise UntranslatableError("antialias=False is ignored for PIL images but not for tensors")
        mean, std = self.norm or ((0.0,), (1.0,))
        return Augmentation(tuple(self.ops), mean, std, next(iter(self.fills), 0))


def _sides(padding: Any) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom from torchvision's 1, 2 or 4 numbers."""
    numbers = [padding] if isinstance(padding, int) else list(padding)
    if len(numbers) == 4:
        return numbers[0], numbers[1], numbers[2], numbers[3]
    across, down = numbers[0], numbers[-1]
    return across, down, across, down


def _pair(size: Any) -> tuple[int, int]:
    numbers = [size] if isinstance(size, int) else list(size)
    return int(numbers[0]), int(numbers[-1])


def _floats(pair: Any) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def _pad(state: _State, transform: Any) -> None:
    state.add_pad(transform.padding, transform.fill, transform.padding_mode)


def _crop(state: _State, transform: Any) -> None:
    if transform.pad_if_needed:
        raise UntranslatableError("RandomCrop(pad_if_needed=True) depends on the size of each image")
    if transform.padding is not None:
        _pad(state, transform)
    state.ops.append(RandomCrop(*_pair(transform.size)))


def _resized_crop(state: _State, transform: Any) -> None:
    if _mode(transform) != "bilinear":
        raise UntranslatableError(f"RandomResizedCrop with {transform.interpolation} is not bilinear")
    antialias = bool(transform.antialias)
    if not antialias:
        state.plain_resize_of = state.is_tensor
    scale, ratio = _floats(transform.scale), _floats(transform.ratio)
    state.ops.append(RandomResizedCrop(*_pair(transform.size), scale, ratio, antialias))


def _flip(state: _State, transform: Any) -> None:
    state.ops.append(RandomFlip(float(transform.p)))


def _rotation(state: _State, transform: Any) -> None:
    low, high = _floats(transform.degrees)
    if not state.is_tensor or _mode(transform) != "nearest":
        raise UntranslatableError("RandomRotation is exact only for tensors and mode nearest")
    if low != -high or transform.expand or transform.center is not None:
        raise UntranslatableError("RandomRotation must be about the centre, by the same angle either way")
    state.ops.append(RandomRotation(high, state.grey(transform.fill)))


def _autoaugment(state: _State, transform: Any) -> None:
    if type(transform).__module__ != "torchvision.transforms.autoaugment":
        raise UntranslatableError("AutoAugment of transforms.v2 rounds otherwise; only v1's is known")
    known = {"cifar10": AutoAugment, "imagenet": ImageNetAutoAugment}
    policy = getattr(transform.policy, "value", None)
    if policy not in known or _mode(transform) != "nearest":
        raise UntranslatableError(
            "AutoAugment is known with the policies CIFAR10 and IMAGENET and mode nearest only"
        )
    if not state.is_tensor or state.is_float:
        raise UntranslatableError("AutoAugment is exact only for uint8 tensors")
    if any(isinstance(op, RandomResizedCrop) for op in state.ops):
        raise UntranslatableError("AutoAugment would widen the rounding of a resize before it")
    state.ops.append(known[policy](state.grey(transform.fill)))


def _mode(transform: Any) -> object:
    return getattr(transform.interpolation, "value", transform.interpolation)


def _to_tensor(state: _State, transform: object) -> None:
    state.is_tensor = True


def _to_float_tensor(state: _State, transform: object) -> None:
    state.is_tensor = True
    state.is_float = True


def _to_dtype(state: _State, transform: Any) -> None:
    if transform.dtype != torch.float32 or not getattr(transform, "scale", True):
        raise UntranslatableError(f"{type(transform).__name__} to anything but float32 in [0, 1]")
    state.is_float = True


def _normalise(state: _State, transform: Any) -> None:
    if state.norm is not None or not state.is_float:
        raise UntranslatableError("Normalize must come once, after the conversion to a float tensor")
    mean, std = (tuple(float(v) for v in values) for values in (transform.mean, transform.std))
    if len(mean) != len(std):
        raise UntranslatableError("Normalize has a mean and a std of different lengths")
    state.norm = mean, std


def _nothing(state: _State, transform: object) -> None:
    return None


_RULES: dict[str | None, Callable[[_State, object], None]] = {
    "Pad": _pad,
    "RandomCrop": _crop,
    "RandomResizedCrop": _resized_crop,
    "RandomHorizontalFlip": _flip,
    "RandomRotation": _rotation,
    "AutoAugment": _autoaugment,
    "ToTensor": _to_float_tensor,
    "PILToTensor": _to_tensor,
    "ToImage": _to_tensor,
    "ToPureTensor": _nothing,
    "ToDtype": _to_dtype,
    "ConvertImageDtype": _to_dtype,
    "Normalize": _normalise,
}
