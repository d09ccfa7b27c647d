"""Images of a stored data set, each decoded once and then held as one tensor on the device.

Only data sets are held whose samples are known to be the same at each reading: tensors, and the packaged data
sets of torchvision and Avalanche, whose own transform is taken off first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from incrlt.data.augment import from_pil
from incrlt.data.stores import Images, PictureStore
from incrlt.data.tensors import ImageTensors
from incrlt.errors import UserError

Indices = npt.NDArray[np.int64]
MOST_BYTES: Final = 4 << 30
"""Bytes of decoded images that are held on a device."""


class NotExactError(Exception):
    """A loader cannot be replaced without changing its batches; the message says why."""


class TensorCache:
    """Decoded images per stored data set, so that each image is read once for all experiences.

    One limit holds for all data sets together: where another one needs room, those used least recently leave, and are
    decoded again when they are asked for. Images that a data set holds on the device anyway are not copied, and cost
    nothing here. Owned by a strategy; copies and pickles of it are empty.
    """

    def __init__(self, device: torch.device | str, max_bytes: int = MOST_BYTES) -> None:
        """Start empty.

        Args:
            device: Where images are kept.
            max_bytes: Bytes of decoded images to hold, of all data sets together.
        """
        self.device = torch.device(device)
        self.max_bytes = max_bytes
        self._stored: dict[int, tuple[object, Stored]] = {}  # by id, the least recently used first

    def __getstate__(self) -> dict[str, object]:
        """Leave the images out."""
        return {"device": self.device, "max_bytes": self.max_bytes, "_stored": {}}

    def __deepcopy__(self, memo: dict[int, object]) -> TensorCache:
        """Return an empty cache of the same kind."""
        return TensorCache(self.device, self.max_bytes)

    @property
    def held_bytes(self) -> int:
        """Bytes of the images held here and nowhere else."""
        return sum(stored.nbytes for _, stored in self._stored.values())

    def get(self, dataset: object, rows: Indices) -> Stored:
        """Return the decoded data set, complete at least at ``rows``.

        Raises:
            NotExactError: As :meth:`take`.
        """
        return self.take([(dataset, rows)])[0]

    def take(self, wanted: Sequence[tuple[object, Indices]]) -> list[Stored]:
        """Return several decoded data sets that one loader needs at the same time; one may come twice.

        Args:
            wanted: Per part the data set and the rows at which it must be complete.

        Raises:
            NotExactError: The samples cannot be kept, or are too large together.
        """
        needed = {id(dataset) for dataset, _ in wanted}
        found = []
        for dataset, rows in wanted:
            stored = self._use(dataset)
            stored.decode(rows, lambda size: self._make_room(size, needed))
            found.append(stored)
        return found

    def _use(self, dataset: object) -> Stored:
        """Return the store of a data set, as the one used last."""
        # The reference to the data set keeps its id from being given to another object.
        entry = self._stored.pop(id(dataset), None) or (dataset, open_stored(dataset, self.device))
        self._stored[id(dataset)] = entry
        return entry[1]

    def _make_room(self, size: int, needed: set[int]) -> None:
        """Let go what was used least recently until ``size`` bytes fit; what the same loader needs stays.

        Raises:
            NotExactError: They do not fit beside it.
        """
        kept = sum(stored.nbytes for key, (_, stored) in self._stored.items() if key in needed)
        if kept + size > self.max_bytes:
            raise NotExactError(
                f"the decoded images would take {(kept + size) / 2**30:.1f} GiB, and {self.max_bytes / 2**30:.1f} are "
                "allowed"
            )
        for key in [key for key in self._stored if key not in needed]:
            if self.held_bytes + size <= self.max_bytes:
                break
            del self._stored[key]


class Stored:
    """Images and labels of one stored data set, as far as they were read.

    Attributes:
        source: The data set, without its own transform.
        transform: That transform, or None.
        device: Where the images are.
        images: [N, ...], valid where ``known``; None before the first reading.
        labels: int64 [N], valid where ``known``.
        known: bool [N], which samples were read.
        own: Images that the data set holds as one tensor, or in a store that stands for one, or None.
        shared: These are on the device already, or read from a store batch by batch, so that they are not copied.
    """

    def __init__(
        self, source: Any, transform: object, device: torch.device, own: Images | None = None
    ) -> None:
        self.source = source
        self.transform = transform
        self.device = device
        self.own = own
        self.shared = own is not None and (
            isinstance(own, PictureStore) or own.device == torch.empty(0, device=device).device
        )
        self.images: Images | None = None
        self.labels: Indices = np.zeros(len(source), dtype=np.int64)
        self.known = np.zeros(len(source), dtype=bool)

    def gives_tensors(self) -> bool:
        """Whether the samples are tensors before any transform (else PIL images or arrays)."""
        if type(self.source) is ImageTensors or _is_tensor_dataset(self.source):
            return True
        return isinstance(self.source[0][0], Tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of the images, 0 as long as there are none but the data set's own."""
        return 0 if self.shared or not isinstance(self.images, Tensor) else self.images.nbytes

    def decode(self, rows: Indices, make_room: Callable[[int], None]) -> None:
        """Read the samples not read before.

        Args:
            rows: Samples needed.
            make_room: Called with the bytes of the whole data set before they are taken; may refuse.

        Raises:
            NotExactError: The samples cannot be kept as one tensor.
        """
        if self.own is not None and self.images is None:
            make_room(0 if self.shared else self.own.numel() * self.own.dtype.itemsize)
            self.images = self.own if isinstance(self.own, PictureStore) else self.own.to(self.device)
        missing = np.unique(rows[~self.known[rows]])
        if len(missing) == 0:
            return
        first, _ = _sample(self.source, int(missing[0]))
        if self.images is None:
            self.images = self._allocate(first, make_room)
        assert isinstance(self.images, Tensor), "a store is known at all rows"
        buffer = torch.empty((len(missing), *first.shape), dtype=first.dtype)
        for position, row in enumerate(missing.tolist()):
            image, self.labels[row] = _sample(self.source, row)
            if image.shape != self.images.shape[1:] or image.dtype != self.images.dtype:
                raise NotExactError("the images differ in size or type")
            buffer[position] = image
        self.images[torch.from_numpy(missing).to(self.device)] = buffer.to(self.device)
        self.known[missing] = True

    def _allocate(self, first: Tensor, make_room: Callable[[int], None]) -> Tensor:
        make_room(len(self.known) * first.numel() * first.element_size())
        return torch.empty((len(self.known), *first.shape), dtype=first.dtype, device=self.device)


def open_stored(dataset: Any, device: torch.device) -> Stored:
    """Return the store of a data set whose samples are known to be the same at each reading.

    Raises:
        NotExactError: Nobody knows, or its own transforms cannot be taken off.
    """
    source, transform = without_transform(dataset)
    if type(dataset) is ImageTensors:
        return _open_tensors(dataset, dataset.images, dataset.targets, device)
    if _is_tensor_dataset(dataset):
        if len(dataset.tensors) != 2:
            raise NotExactError(f"the TensorDataset has {len(dataset.tensors)} tensors, not image and label")
        return _open_tensors(dataset, dataset.tensors[0], dataset.tensors[1], device)
    return Stored(source, transform, device)


def without_transform(dataset: object) -> tuple[Any, object]:
    """Return a data set whose samples are the same at each reading, and its own transform, or None.

    Raises:
        NotExactError: As :func:`open_stored`.
    """
    if type(dataset) is ImageTensors or _is_tensor_dataset(dataset):
        return dataset, None
    module = type(dataset).__module__
    if module.startswith(("torchvision.datasets.", "avalanche.benchmarks.datasets.")):
        return _open_files(dataset)
    raise NotExactError(
        f"{type(dataset).__name__} may give another image at each reading; wrap its images in "
        "incrlt.data.tensors.ImageTensors to hold them on the device"
    )


def _is_tensor_dataset(dataset: object) -> bool:
    """Whether it is torch's TensorDataset or Avalanche's, which differs in giving labels as int."""
    kind = type(dataset)
    return kind is TensorDataset or (
        kind.__name__ == "_TensorClassificationDataset" and kind.__module__.startswith("avalanche.")
    )


def _open_tensors(dataset: object, images: Images, labels: Tensor, device: torch.device) -> Stored:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise NotExactError(f"the labels are {labels.dtype} {list(labels.shape)}, not one int64 per image")
    stored = Stored(dataset, None, device, images)
    stored.labels = labels.cpu().numpy()
    stored.known[:] = True
    return stored


def _open_files(dataset: Any) -> tuple[object, object]:
    """Take a packaged data set's own transform off, to be applied to batches instead."""
    if getattr(dataset, "target_transform", None) is not None:
        raise NotExactError(f"{type(dataset).__name__} has a target_transform")
    transform = getattr(dataset, "transform", None)
    joint = getattr(dataset, "transforms", None)
    if joint is not None and transform is None:
        raise NotExactError(f"{type(dataset).__name__} has transforms of image and label together")
    raw = copy.copy(dataset)
    if transform is not None:
        raw.transform = raw.transforms = None
    return raw, transform


def _sample(dataset: Any, row: int) -> tuple[Tensor, int]:
    """Read one sample as (tensor, int)."""
    sample = dataset[row]
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise NotExactError(f"the samples of {type(dataset).__name__} are not pairs of image and label")
    image, label = sample
    if not isinstance(label, int | np.integer):
        raise NotExactError(f"the labels of {type(dataset).__name__} are not integers")
    if isinstance(image, Tensor):
        return image, int(label)
    try:
        return from_pil(image), int(label)
    except UserError as error:
        raise NotExactError(str(error)) from error
