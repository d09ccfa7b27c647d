"""What is known of each dataset without reading it; imports neither torch nor torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from incrlt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of one dataset.

    Args:
        name: Name in ``load`` and in YAML.
        num_classes: Number of classes C.
        max_images: Training images of every class before a long tail is cut.
        test_images: Test images in total.
        image_shape: (channels, height, width).
        mean: Per-channel mean of the training images, in units of [0, 1].
        std: Per-channel standard deviation, as the literature normalises (see ``_DATASETS``).
        augmentation: Default name of the training augmentation (:mod:`incrlt.data.augment`).
        source: Where the images are from.
    """

    name: str
    num_classes: int
    max_images: int
    test_images: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    source: str


DIGITS_TRAIN_PER_CLASS = 130
"""Images of each digit that go to the training set; the remaining 44 to 53 are the test set."""

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""Class names of CIFAR-10, by class id."""

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def _large(
    name: str,
    classes: int,
    images: int,
    tests: int,
    source: str,
    side: int = 256,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> DatasetInfo:
    """Return the facts of a data set that is read from files, as squares of ``side`` pixels."""
    return DatasetInfo(name, classes, images, tests, (3, side, side), mean, std, "imagenet", source)


# CIFAR standard deviations: the literature's 0.20 is the mean over images of the per-image deviation, not
# the deviation over all pixels (0.26). LUCIR and Long-Tailed-CIL use these values, so we do.
_DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            name="digits",
            num_classes=10,
            max_images=DIGITS_TRAIN_PER_CLASS,
            test_images=497,
            image_shape=(1, 8, 8),
            mean=(0.3053,),
            std=(0.3758,),
            augmentation="shift",
            source="optical recognition of handwritten digits (UCI), embedded in scikit-learn",
        ),
        DatasetInfo(
            name="cifar10",
            num_classes=10,
            max_images=5000,
            test_images=10000,
            image_shape=(3, 32, 32),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            augmentation="crop-flip",
            source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        ),
        DatasetInfo(
            name="cifar100",
            num_classes=100,
            max_images=500,
            test_images=10000,
            image_shape=(3, 32, 32),
            mean=(0.5071, 0.4866, 0.4409),
            std=(0.2009, 0.1984, 0.2023),
            augmentation="crop-flip",
            source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        ),
        _large("imagenet-lt", 1000, 1280, 50_000, "Liu et al., Open Long-Tailed Recognition, CVPR 2019"),
        _large(
            "inaturalist2018", 8142, 1000, 24_426, "Van Horn et al., The iNaturalist Challenge, CVPR 2018",
            mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192),
        ),
        _large("places-lt", 365, 4980, 36_500, "Liu et al., Open Long-Tailed Recognition, CVPR 2019"),
        _large("imagenet-subset-lt", 100, 1300, 5000, "Liu et al., Long-Tailed CIL, ECCV 2022"),
        _large("food101-lt", 101, 750, 25_250, "Bossard et al., Food-101, ECCV 2014"),
        _large(
            "tiny-imagenet", 200, 500, 10_000, "Le and Yang, Tiny ImageNet, CS 231N, 2015", 64,
            (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821),
        ),
    )
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Return the names of all datasets."""
    return tuple(_DATASETS)


def info(name: str) -> DatasetInfo:
    """Return the facts of a dataset.

    Raises:
        UserError: No dataset has this name.
    """
    if name not in _DATASETS:
        raise UserError(
            f"the dataset {name!r} is unknown; choose one of {', '.join(_DATASETS)}."
            f"{did_you_mean(name, _DATASETS)}"
        )
    return _DATASETS[name]


def class_names(name: str) -> tuple[str, ...]:
    """Return the name of each class id of a dataset; empty where only its files tell."""
    return {"digits": tuple(map(str, range(10))), "cifar10": CIFAR10_CLASSES}.get(name, ())
