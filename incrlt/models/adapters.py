"""Small trained additions to the standing blocks of a large network, one set per expert: LoRA, by peft.

Hu et al., LoRA, ICLR 2022: beside a standing linear map W runs B A of rank r, with B zero at first, so that every
expert begins as the pretrained network is. peft renames the map that it wraps; a network says in its architecture that
it has adapters, and is wrapped again before its numbers are loaded, so that the names agree. Only families without
batch norms have them: the statistics of those would go on moving beside weights that stand.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Final

from torch import nn

from incrlt.errors import UserError
from incrlt.families import FAMILIES, family_named

TARGETS: Final[dict[str, list[str]]] = {"vit": ["qkv"]}
"""Family to the linear maps that adapters run beside."""


def add_adapters(name: str, branches: Sequence[nn.Module], rank: int) -> None:
    """Let branches stand still, and give each adapters of its own, which train.

    Args:
        name: ``timm:NAME`` of the network.
        branches: Changed in place.
        rank: Rank r; the additions are scaled by 1.

    Raises:
        UserError: The family has none, or peft is not installed.
    """
    family = family_named(name)
    if family not in TARGETS:
        known = ", ".join(FAMILIES[key].title for key in TARGETS)
        raise UserError(
            f"adapters are for networks of the family {known}, not for {name} (model.train: adapters)."
        )
    if importlib.util.find_spec("peft") is None:
        raise UserError("adapters need peft, which is not installed: pip install 'incrlt[adapters]'.")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=TARGETS[family], lora_dropout=0.0, bias="none"
    )
    for branch in branches:
        inject_adapter_in_model(config, branch)
