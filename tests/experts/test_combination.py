"""What ``combine`` of every expert method keeps, found by listing the package."""

from __future__ import annotations

import pytest
import torch

from incrlt.experiment.methods import load_class, names
from incrlt.experts.base import ExpertMethod
from incrlt.losses import running_means
from incrlt.models import build

every_method = pytest.mark.parametrize("name", names("experts"))


def _logits(experts):
    return torch.randn(experts, 6, 4, generator=torch.Generator().manual_seed(0))


@every_method
def test_any_number_of_first_experts_gives_one_answer_image_by_image(name):
    method = load_class("experts", name)()
    logits = _logits(method.layout.num_experts)
    answers = running_means(logits, method.combine)
    for k in range(1, len(logits) + 1):
        whole = method.combine(logits[:k])
        assert whole.shape == (6, 4) and whole.isfinite().all()
        alone = torch.cat([method.combine(logits[:k, row : row + 1]) for row in range(6)])
        torch.testing.assert_close(alone, whole)  # no image's answer depends on those beside it
        torch.testing.assert_close(answers[k - 1], whole)
    torch.testing.assert_close(method.combine(logits.double()), method.combine(logits).double())


@every_method
def test_the_network_of_a_method_combines_as_the_method_says(name):
    method = load_class("experts", name)()
    network = build("resnet8", layout=method.layout, in_channels=1, width=4)
    logits = _logits(network.num_experts)
    assert torch.equal(network.combine(logits), method.combine(logits))
    own = type(method).combine is not ExpertMethod.combine
    assert (network.architecture["layout"]["combination"] is not None) == own
