"""On a CUDA device, operations on pixels give what they give on the CPU for the same random numbers."""

from __future__ import annotations

import pytest
import torch

from incrlt.data.draw import Draw
from incrlt.data.pictures import ColourJitter, Cutout, RandomBlur, RandomGrey, RandomRotation
from incrlt.data.policy import CIFAR10, AutoAugment, Choice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Replayed(Draw):
    """The numbers of a generator on the CPU, moved to the device."""

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand((*shape, self.batch), generator=self.generator).to(self.device)


@pytest.mark.parametrize(
    "op",
    [RandomRotation(15, 9), Cutout(8), RandomGrey(0.5), RandomBlur(9), ColourJitter(0.4, 0.4, 0.4, 0.1, 0.8)],
    ids=lambda op: type(op).__name__,
)
def test_pictures_have_the_values_of_the_cpu(op: RandomRotation) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    out = [
        op.paint(
            images.to(device), Replayed(64, torch.device(device), torch.Generator().manual_seed(0))
        ).cpu()
        for device in ("cpu", "cuda")
    ]
    # A float32 angle in front of a tie may fall to the other neighbour.
    off = (out[0].float() - out[1].float()).abs() > 2e-2
    assert off.float().mean() < (1e-3 if isinstance(op, RandomRotation) else 1e-9)


def test_autoaugment_has_the_pixels_of_the_cpu() -> None:
    count = 40 * len(CIFAR10)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    drawn = torch.arange(count) % len(CIFAR10), torch.rand(2, count), torch.rand(2, count) < 0.5
    out = [
        AutoAugment(128).apply(images.to(device), Choice(*(tensor.to(device) for tensor in drawn))).cpu()
        for device in ("cpu", "cuda")
    ]
    # Another order of additions moves a mean or a product across a whole level now and then, by one.
    distance = (out[0].int() - out[1].int()).abs()
    assert distance.max() <= 1 and (distance > 0).float().mean() < 1e-3
