"""What may be fetched of each data set, from where, how it is checked, and what must be got by hand.

Every checksum is the publisher's own or that of a well-kept library, and each entry says whose. Sizes are only for the
plan, for the room on the disk, and as a bound: what is right is decided by the checksum. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from incrlt.errors import UserError, did_you_mean

MB: Final = 1_000_000
GB: Final = 1_000_000_000
SLACK: Final = 2
"""Times a known number that is the most: sizes and numbers of files are known about."""


@dataclass(frozen=True)
class Source:
    """One file that is fetched: an archive, or a list that is wanted as it is.

    Args:
        name: Name of the file, here and in packs.
        url: Address.
        checksum: ``md5:`` or ``sha256:`` of the file, or ``blob:``, git's id of it (``git hash-object FILE``).
        size: Bytes, about; twice as many are refused.
        whence: Where address and checksum are from.
        folder: Folder below the data root into which it goes; empty: the root itself.
        top: Of an archive, the one folder in it; empty for a list.
        unpacked: Of an archive, bytes of all its files, about; twice as many are refused.
        files: Of an archive, files in it, about; twice as many are refused.
    """

    name: str
    url: str
    checksum: str
    size: int
    whence: str
    folder: str = ""
    top: str = ""
    unpacked: int = 0
    files: int = 0


@dataclass(frozen=True)
class Recipe:
    """How a data set is got.

    Args:
        sources: What is fetched.
        terms: What its publishers allow, in words.
        by_hand: What cannot be fetched, and where it goes; ``{root}`` is the data root. Empty: all is fetched.
    """

    sources: tuple[Source, ...]
    terms: str
    by_hand: str = ""


_TORCHVISION: Final = "torchvision.datasets"
_KANG: Final = (
    "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/"
    "f162adef63fdf592d0b8a0f6e52bc481fc08785f/data"
)
_LIU: Final = (
    "https://raw.githubusercontent.com/xialeiliu/Long-Tailed-CIL/7db63177de101071b5354f689ec71e0dbe0416f2"
)


def _list(base: str, path: str, checksum: str, size: int, folder: str) -> Source:
    """Return a list file at a fixed commit of the repository that published it."""
    whence = f"the repository at that commit ({'/'.join(base.split('/')[3:5])})"
    return Source(path.rsplit("/", 1)[-1], f"{base}/{path}", checksum, size, whence, folder)


_IMAGENET: Final = (
    "the pictures of ILSVRC 2012, from image-net.org (it wants an account and an agreement): "
    "{root}/imagenet/train/WNID/*.JPEG and {root}/imagenet/val/WNID/*.JPEG"
)
_IMAGENET_TERMS: Final = "lists: their repository's licence; pictures: research that earns no money"

RECIPES: Final[dict[str, Recipe]] = {
    "cifar10": Recipe(
        (
            Source(
                "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "md5:c58f30108f718f92721af3b95e74349a", 171 * MB, f"{_TORCHVISION}.CIFAR10",
                top="cifar-10-batches-py", unpacked=187 * MB, files=8,
            ),
        ),
        "cite Krizhevsky 2009",
    ),
    "cifar100": Recipe(
        (
            Source(
                "cifar-100-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "md5:eb9058c3a382ffc7106e4002c42a8d85", 169 * MB, f"{_TORCHVISION}.CIFAR100",
                top="cifar-100-python", unpacked=187 * MB, files=4,
            ),
        ),
        "cite Krizhevsky 2009",
    ),
    "food101-lt": Recipe(
        (
            Source(
                "food-101.tar.gz", "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "md5:85eeb15f3717b99a5da872d97d918f87", 5 * GB, f"{_TORCHVISION}.Food101",
                top="food-101", unpacked=5_100 * MB, files=101_010,
            ),
        ),
        "research; the photographs are those of their takers",
    ),
    "tiny-imagenet": Recipe(
        (
            Source(
                "tiny-imagenet-200.zip", "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "md5:90528d7ca1a48142e341f4ef8d21d0de", 248 * MB, "avalanche.benchmarks.datasets.TinyImagenet",
                top="tiny-imagenet-200", unpacked=260 * MB, files=120_206,
            ),
        ),
        "research that earns no money, as ImageNet",
    ),
    "inaturalist2018": Recipe(
        (
            Source(
                "train_val2018.tar.gz",
                "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/train_val2018.tar.gz",
                "md5:b1c6952ce38f31868cc50ea72d066cc3", 120 * GB, f"{_TORCHVISION}.INaturalist",
                folder="inaturalist2018", top="train_val2018", unpacked=121 * GB, files=461_939,
            ),
            _list(
                _KANG, "iNaturalist18/iNaturalist18_train.txt", "blob:4accdb7584d2f0a5106c40a33ed6afa392189bcc",
                30 * MB, "inaturalist2018",
            ),
            _list(
                _KANG, "iNaturalist18/iNaturalist18_val.txt",
                "sha256:efaeff65f80641b60864470e6f255aa69453406ef5717eec8c6681748f3a61f3", 1_677_390, "inaturalist2018",
            ),
        ),
        "research and teaching that earn no money; the pictures must not be handed on (github.com/visipedia/inat_comp)",
    ),
    "imagenet-lt": Recipe(
        (
            _list(
                _KANG, "ImageNet_LT/ImageNet_LT_train.txt", "blob:a063f095fcd475db4cf8b0658c4b73955535bbf9",
                5 * MB, "imagenet",
            ),
            _list(
                _KANG, "ImageNet_LT/ImageNet_LT_test.txt",
                "sha256:d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5", 2_344_500, "imagenet",
            ),
        ),
        _IMAGENET_TERMS,
        _IMAGENET,
    ),
    "imagenet-subset-lt": Recipe(
        (
            _list(
                _LIU, "subset_train.txt", "blob:62e4499422a41187e2102ae5bef6332bc6d642cd", 9 * MB, "imagenet"
            ),
        ),
        _IMAGENET_TERMS,
        _IMAGENET,
    ),
    "places-lt": Recipe(
        (
            _list(
                _KANG, "Places_LT/Places_LT_train.txt",
                "sha256:726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7", 2_092_674, "places365",
            ),
            _list(
                _KANG, "Places_LT/Places_LT_test.txt",
                "sha256:44eee8441c8098c59195465abede425721bc35525d75209f9433b161a6eb37bc", 1_705_400, "places365",
            ),
        ),
        "lists: their repository's licence; pictures: research that earns no money",
        "the pictures of Places365-Standard, from places2.csail.mit.edu (its terms want to be read; the small "
        "easy-format archive will do): {root}/places365/train/CLASS/*.jpg and {root}/places365/val/CLASS/*.jpg",
    ),
}  # fmt: skip
"""How each data set is got, by its name."""


def recipe(dataset: str) -> Recipe:
    """Return how a data set is got.

    Raises:
        UserError: It is not among them.
    """
    if dataset not in RECIPES:
        hint = did_you_mean(dataset, RECIPES)
        raise UserError(
            f"{dataset!r} is no data set that can be prepared; allowed: {', '.join(RECIPES)}.{hint} "
            "digits comes with incrlt, and pictures of your own need no preparation."
        )
    return RECIPES[dataset]
