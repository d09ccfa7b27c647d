"""AutoAugment against torchvision: the same pixels for the same draws, and the same law of the outcomes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torchvision.transforms import AutoAugment as Reference
from torchvision.transforms import AutoAugmentPolicy

from incrlt.data import policy
from incrlt.data.augment import CentreCrop, RandomFlip, RandomResizedCrop, build
from incrlt.data.draw import Draw
from incrlt.data.pictures import Cutout
from incrlt.data.policy import CIFAR10, IMAGENET, AutoAugment, Choice, ImageNetAutoAugment
from incrlt.errors import UserError

CPU = torch.device("cpu")


POLICIES = {
    AutoAugment: (AutoAugmentPolicy.CIFAR10, CIFAR10),
    ImageNetAutoAugment: (AutoAugmentPolicy.IMAGENET, IMAGENET),
}


class Given(Reference):
    """torchvision's AutoAugment with the draws given."""

    def __init__(self, fill: int | None = None, of: type[AutoAugment] = AutoAugment) -> None:
        super().__init__(POLICIES[of][0], fill=fill)
        self.draws: tuple[int, torch.Tensor, torch.Tensor] = (0, torch.zeros(2), torch.zeros(2))

    def get_params(self, transform_num: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        assert transform_num == 25
        return self.draws

    def outcome(
        self, image: torch.Tensor, number: int, chance: torch.Tensor, sign: torch.Tensor
    ) -> torch.Tensor:
        self.draws = (number, chance, sign)
        return self(image)


def pictures(channels: int, height: int, width: int) -> list[torch.Tensor]:
    """Noise, a dim smooth picture, two levels, a flat one and black."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    smooth = torch.stack([60 + (3 * y + (k + 1) * x) // 2 for k in range(channels)]).byte()
    two = (noise > 200).byte() * 90 + 13
    return [noise, smooth, two, torch.full_like(noise, 77), torch.zeros_like(noise)]


COMBINATIONS = list(itertools.product(range(25), [(1, 0), (0, 1), (1, 1)], [(0, 0), (0, 1), (1, 0), (1, 1)]))
"""Sub-policy, which of its operations are applied, signs."""


def all_choices(repeat: int, table: policy.SubPolicies = CIFAR10) -> Choice:
    """Each combination for each of ``repeat`` images, image after image within a combination."""
    combinations = [entry for entry in COMBINATIONS for _ in range(repeat)]
    applied = torch.tensor([entry[1] for entry in combinations])
    probability = torch.tensor([[p for _, p, _ in table[entry[0]]] for entry in combinations])
    # An operation is applied at exactly its probability and not just above, as in torchvision.
    chance = torch.where(applied > 0, probability, probability.nextafter(torch.tensor(2.0)))
    signs = torch.tensor([entry[2] for entry in combinations]) > 0
    return Choice(torch.tensor([entry[0] for entry in combinations]), chance.T, signs.T)


@pytest.mark.parametrize(
    ("of", "channels", "height", "width", "fill"),
    [
        (AutoAugment, 3, 32, 32, None),
        (AutoAugment, 3, 32, 32, 128),
        (AutoAugment, 1, 28, 28, 128),
        (AutoAugment, 3, 8, 8, None),
        (AutoAugment, 3, 17, 24, 9),
        (ImageNetAutoAugment, 3, 32, 32, None),
        (ImageNetAutoAugment, 3, 56, 41, 128),
    ],
)
def test_every_sub_policy_gives_torchvisions_pixels(
    of: type[AutoAugment], channels: int, height: int, width: int, fill: int | None
) -> None:
    images = pictures(channels, height, width)
    choice = all_choices(len(images), of.table)
    batch = torch.stack(images * len(COMBINATIONS))
    before = batch.clone()
    ours = of(fill or 0).apply(batch, choice)
    assert torch.equal(batch, before)  # the argument is left alone
    reference = Given(fill, of)
    changed = 0
    for k, image in enumerate(ours):
        expected = reference.outcome(
            batch[k], int(choice.policy[k]), choice.chance[:, k], choice.positive[:, k]
        )
        assert torch.equal(image, expected), (of.table[choice.policy[k]], choice.chance[:, k])
        changed += not torch.equal(image, batch[k])
    assert changed > len(ours) / 2


def dense(
    images: torch.Tensor, chosen: torch.Tensor, change: object, *parameters: torch.Tensor
) -> torch.Tensor:
    """What other devices than the CPU do: compute all, keep the chosen."""
    return torch.where(chosen[:, None, None, None], change(images, *parameters), images)  # type: ignore[operator]


def test_computing_all_images_gives_the_same_bits_as_the_chosen_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(3, 32, 32)
    choice, batch = all_choices(len(images)), torch.stack(images * len(COMBINATIONS))
    expected = AutoAugment(128).apply(batch, choice)
    monkeypatch.setattr(policy, "on_chosen", dense)
    assert torch.equal(AutoAugment(128).apply(batch, choice), expected)


def test_outcomes_follow_torchvisions_law() -> None:
    image = pictures(3, 12, 12)[1]
    law: dict[bytes, float] = {}
    reference = Given()
    for number, sub_policy in enumerate(reference.policies):
        for applied in itertools.product((0, 1), repeat=2):
            weight = 1 / 25 / 4
            for yes, (_, p, _) in zip(applied, sub_policy, strict=True):
                weight *= p if yes else 1 - p
            chance = torch.tensor([0.0 if yes else 1.0 for yes in applied])
            for signs in itertools.product((0, 1), repeat=2):
                pixels = reference.outcome(image, number, chance, torch.tensor(signs)).numpy().tobytes()
                law[pixels] = law.get(pixels, 0.0) + weight
    count = 40_000
    draw = Draw(count, CPU, torch.Generator().manual_seed(0))
    seen = AutoAugment().paint(image.expand(count, -1, -1, -1), draw)
    found = Counter(picture.tobytes() for picture in seen.numpy())
    assert set(found) <= {pixels for pixels, p in law.items() if p > 0}
    assert len(law) > 60 and abs(sum(law.values()) - 1) < 1e-9
    for pixels, p in law.items():
        assert abs(found[pixels] - count * p) <= 5 * (count * p * (1 - p)) ** 0.5 + 3


class Spy(AutoAugment):
    seen: list[Choice]

    def apply(self, images: torch.Tensor, choice: Choice) -> torch.Tensor:
        Spy.seen.append(choice)
        return images


def test_sub_policies_chances_and_signs_are_drawn_independently() -> None:
    Spy.seen = []
    count = 50_000
    Spy().paint(torch.zeros(count, 1, 1, 1), Draw(count, CPU, torch.Generator().manual_seed(1)))
    (choice,) = Spy.seen
    counts = choice.policy.bincount(minlength=25)
    assert len(counts) == 25 and (counts - count / 25).abs().max() < 5 * (count / 25) ** 0.5
    assert choice.chance.min() >= 0 and choice.chance.max() < 1
    numbers = torch.cat([choice.policy[None] / 24, choice.chance, choice.positive.float()])
    assert (numbers.mean(1) - 0.5).abs().max() < 5 * 0.5 / count**0.5
    correlation = numbers.corrcoef() - torch.eye(5)
    assert correlation.abs().max() < 5 / count**0.5


def test_the_policies_are_torchvisions_and_tell_themselves_apart() -> None:
    """A protocol's hash holds the repr."""
    names = {
        "AutoContrast": "stretch",
        "Color": "colour",
        "TranslateX": "translate_x",
        "TranslateY": "translate_y",
    }
    names |= {"Equalize": "equalise", "Solarize": "solarise", "Posterize": "posterise"}
    names |= {"ShearX": "shear_x", "ShearY": "shear_y"}
    for of, (_, table) in POLICIES.items():
        told = [
            tuple((names.get(name, name.lower()), p, magnitude or 0) for name, p, magnitude in sub_policy)
            for sub_policy in Given(of=of).policies
        ]
        assert told == list(table)
    assert repr(AutoAugment(128)) == "AutoAugment(fill=128)"
    assert repr(ImageNetAutoAugment(128)) == "ImageNetAutoAugment(fill=128)"
    assert AutoAugment(128) != ImageNetAutoAugment(128)


def test_shikes_large_augmentation_is_named() -> None:
    named = build("imagenet-autoaugment-cutout", (3, 256, 256), (0.5,) * 3, (0.5,) * 3, train=True)
    assert named.ops == (
        RandomResizedCrop(224, 224), RandomFlip(), ImageNetAutoAugment(128), Cutout(16),
    )  # fmt: skip
    assert build("imagenet-autoaugment-cutout", (3, 64, 64), (0.5,) * 3, (0.5,) * 3, train=False).ops == (
        CentreCrop(56, 56),
    )


def test_float_images_are_rounded_to_levels_first() -> None:
    image = pictures(3, 16, 16)[0]
    choice = all_choices(1)
    batch = image.expand(len(COMBINATIONS), -1, -1, -1)
    shaken = batch.float() + 0.4 * torch.where(torch.rand(batch.shape) < 0.5, -1.0, 1.0)
    assert torch.equal(AutoAugment().apply(shaken, choice), AutoAugment().apply(batch, choice))


def test_two_channels_have_no_colour() -> None:
    with pytest.raises(UserError, match="1 or 3 channels"):
        AutoAugment().apply(torch.zeros(len(COMBINATIONS), 2, 8, 8, dtype=torch.uint8), all_choices(1))
