"""Adapters by peft: one set per expert beside blocks that stand, under names that a checkpoint finds again."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from incrlt import families
from incrlt.errors import UserError
from incrlt.models import ExpertNetwork, Layout, adapters, build
from incrlt.models.layout import layout_of
from incrlt.models.standing import Standing

NAME = "timm:vit_tiny_patch16_224"
LAYOUT = Layout(num_experts=2, shared="two_stages")

with_peft = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("peft", "timm")),
    reason="pip install 'incrlt[adapters]'",
)


def network(rank: int | None) -> ExpertNetwork:
    torch.manual_seed(0)
    made = build(NAME, layout=LAYOUT, adapters=rank)
    made.grow([0, 1])
    made.stand(Standing.of("adapters" if rank else "branches", "train"))
    return made


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_families_say_who_takes_them() -> None:
    assert set(adapters.TARGETS) == {key for key, family in families.FAMILIES.items() if family.adapters}
    with pytest.raises(UserError, match="family Vision Transformer, not for timm:resnet10"):
        adapters.add_adapters("timm:resnet10", [], 8)


@pytest.mark.slow  # importing peft takes many seconds
@with_peft
def test_they_begin_at_nothing_train_alone_and_come_back(pictures: Tensor) -> None:
    own = network(4).eval()
    other = network(None).eval()
    names = {name.replace(".base_layer", ""): value for name, value in own.state_dict().items()}
    other.load_state_dict({name: names[name] for name in other.state_dict()})
    with torch.no_grad():
        assert torch.equal(own.extract(pictures), other.extract(pictures))  # B is zero
    trained = {name for name, p in own.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"branches", "heads"}
    assert all("lora_" in name for name in trained if name.startswith("branches"))
    # two blocks a branch: rank 4 from 192 channels to 576
    assert sum(own.get_parameter(n).numel() for n in trained if "lora_" in n) == 2 * 2 * 4 * (192 + 576)

    own.train()
    sgd = torch.optim.SGD([p for p in own.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # the first step moves B alone
        sgd.zero_grad()
        own_logits = own.forward_all(pictures).expert_logits
        loss = sum(nn.functional.cross_entropy(z, torch.tensor([k, 1 - k])) for k, z in enumerate(own_logits))
        loss.backward()  # type: ignore[union-attr]
        sgd.step()
    own.eval()
    with torch.no_grad():
        first, second = own.extract(pictures)
        assert not torch.equal(first, second)  # each expert has its own

        state = own.state()
        settings = dict(state["architecture"])
        again = build(layout=layout_of(settings.pop("layout")), **settings).eval()
        again.load_state(state)
        assert torch.equal(again(pictures), own(pictures))
