"""What a loader leaves behind or runs into: worker processes, and a last batch of one image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from incrlt.errors import UserError


def close_loader(loader: object) -> None:
    """Stop the workers that a kept loader keeps alive between epochs (``persistent_workers=True``).

    The loader stays usable and starts new ones when it is iterated again. A loader with running workers cannot be
    pickled, and its workers live until it is collected: call this when an experience is over.

    Args:
        loader: torch's DataLoader, anything that holds some in lists or attributes of its own (as Avalanche's do), or
            anything else, which is left alone.
    """
    for one in _torch_loaders(loader, depth=2):
        iterator, one._iterator = one._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()


def _torch_loaders(loader: object, depth: int) -> Iterable[Any]:
    if hasattr(loader, "_iterator") and hasattr(loader, "persistent_workers"):
        yield loader
    elif depth and isinstance(loader, list | tuple):
        for part in loader:
            yield from _torch_loaders(part, depth - 1)
    elif depth and type(loader).__module__.startswith("avalanche."):
        for part in vars(loader).values():
            yield from _torch_loaders(part, depth - 1)


def last_batch(samples: int, batch_size: int, drop_last: bool = False) -> int:
    """Return how many images the last batch of an epoch has, 0 where there is none.

    The loaders of LUCIR, Long-Tailed-CIL, RIDE and SHIKE keep a last batch that is not full, down to one image
    (torch's default), and so do ours: nothing is merged or dropped. NCL's alone drops it.
    """
    rest = samples % batch_size
    if rest and drop_last:
        return batch_size if samples > batch_size else 0
    return rest or min(samples, batch_size)


def lone_image(samples: int, batch_size: int, drop_last: bool = False) -> bool:
    """Say whether an epoch has a training batch of one image."""
    return last_batch(samples, batch_size, drop_last) == 1


def no_lone_image(samples: int, batch_size: int, what: str = "the training stream") -> UserError:
    """Return the error of a batch of one image that batch normalisation cannot train on.

    A map of 1 x 1 pixels gives one value per channel, of which there is no variance; on larger maps one image is fine.

    Args:
        samples: Images of an epoch.
        batch_size: Images per batch.
        what: What is trained on.
    """
    why = "the network normalises maps of 1 x 1 pixels over the batch, which one image does not allow"
    if batch_size == 1:
        return UserError(
            f"{what} has batches of 1, and {why}. Set a batch size (training.batch_size, train_mb_size) of 2 or more."
        )
    if samples == 1:
        advice = "Give the experience more images, or a network without batch normalisation on 1 x 1 maps"
    else:
        sizes = (*range(batch_size - 1, 1, -1), *range(batch_size + 1, samples + 1))
        better = next(size for size in sizes if not lone_image(samples, size))
        advice = f"Set the batch size (training.batch_size, train_mb_size) to {better}, for example"
    images = "image" if samples == 1 else "images"
    return UserError(
        f"{what} has {samples} {images}, in batches of {batch_size} the last one holds a single image, and {why}. "
        f"{advice}."
    )


@contextlib.contextmanager
def lone_image_told(images: int, before: int, batch_size: int, what: str) -> Iterator[None]:
    """Make one sentence of what batch normalisation raises over a single image; other errors pass.

    Args:
        images: Of the batch.
        before: Images of the batches before it in the epoch.
        batch_size: Of whole batches.
        what: What is trained on.

    Raises:
        UserError: In place of PyTorch's error.
    """
    try:
        yield
    except ValueError as error:
        if images == 1 and "more than 1 value per channel" in str(error):
            raise no_lone_image(before + 1, batch_size, what) from error
        raise
