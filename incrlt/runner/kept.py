"""What a run keeps so that it can go on without the data it was trained on: pictures, classes, preparation.

``kept.json`` says which classes there are, how many pictures of each were ever trained on, and how a picture is
prepared. ``kept/exemplars.zip`` holds the exemplars and ``kept/tests.zip`` the test pictures, as PNG files of the
pixels that were trained on: nothing is lost, and any program opens them. Each picture has its content's hash beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from incrlt.benchmarks.datasets import ImageData
from incrlt.benchmarks.protocols import ResolvedProtocol
from incrlt.data.avalanche import stored_parts
from incrlt.data.stored import NotExactError, without_transform
from incrlt.errors import UserError
from incrlt.files import ordinary, parsed_json, read_json, write_atomic
from incrlt.roles import Dataset, Memory

KEPT_FILE: Final = "kept.json"
EXEMPLARS_FILE: Final = "kept/exemplars.zip"
TESTS_FILE: Final = "kept/tests.zip"
FILES: Final = (KEPT_FILE, EXEMPLARS_FILE, TESTS_FILE)
INDEX: Final = "index.json"
FORMAT: Final = 1
MOST_BYTES: Final = 1 << 30
"""Bytes of decoded test pictures that are kept; a larger test set stays where it is, and ``--golden`` stands in."""
EARLIEST: Final = (1980, 1, 1, 0, 0, 0)
"""Time that every file in an archive carries, so that the same pictures give the same bytes."""
DAMAGED: Final = (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error)


class Keeps(Protocol):
    """A strategy as it is looked at here; one that keeps all images has ``past_data()`` too."""

    memory: Memory | None


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures as they were trained on.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: Arrival position of the class of each, int64 ``[N]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def none(shape: Sequence[int]) -> Pictures:
        """Return no pictures, of a shape ``[C, H, W]``."""
        empty = torch.empty((0, *shape), dtype=torch.uint8)
        return Pictures(empty, torch.empty(0, dtype=torch.int64))

    def joined(self, other: Pictures) -> Pictures:
        """Return these pictures and then the others."""
        images, labels = torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        return Pictures(images, labels)

    def only(self, rows: Tensor) -> Pictures:
        """Return the pictures at these rows, or where a mask is true."""
        return Pictures(self.images[rows], self.labels[rows])

    def hashes(self) -> list[str]:
        """Return the hash of each picture's content, 32 hex characters."""
        return [picture_hash(image) for image in self.images]


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes what the network takes.

    Args:
        height: Pixels.
        width: Pixels.
        channels: 1 is grey, 3 is colour.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    def describe(self) -> dict[str, object]:
        """Return the whole preparation as plain data, in the order of its steps, for programs that have no incrlt."""
        return {
            "rotation": "as the EXIF tag says",
            "colour": "RGB" if self.channels == 3 else "L",
            "transparent": "on white",
            "crop": "the largest central rectangle of the target's shape",
            "resampling": "bilinear",
            **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()},
            "formula": "(pixel / 255 - mean) / std",
        }


@dataclass(frozen=True)
class Facts:
    """The content of ``kept.json``.

    Args:
        class_names: In arrival order; a class's place is its label id.
        seen: Pictures of each class that were ever trained on.
        preparation: Of pictures.
        stream: Digest of everything that was learned so far, 64 hex characters.
        notes: Sentences on what is not here.
        own: What else a caller wrote, plain data.
    """

    class_names: tuple[str, ...]
    seen: tuple[int, ...]
    preparation: Preparation
    stream: str
    notes: tuple[str, ...] = ()
    own: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return the file's text."""
        pairs = zip(self.class_names, self.seen, strict=True)
        content = {
            "format": FORMAT,
            "classes": [{"name": name, "pictures_seen": seen} for name, seen in pairs],
            "preparation": self.preparation.describe(),
            "stream": self.stream,
            "notes": list(self.notes),
            "own": dict(self.own),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def read_facts(folder: Path) -> Facts:
    """Read ``kept.json``.

    Raises:
        UserError: It is not there, as in runs of older versions and unfinished ones, or damaged.
    """
    path = folder / KEPT_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} does not hold what a run needs to go on without its data ({KEPT_FILE} is not there). Give the "
            "folder of a finished run; one of an older version is run again with --restart."
        )
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
        given = content["preparation"]
        height, width, channels = (int(given[name]) for name in ("height", "width", "channels"))
        mean, std = (tuple(map(float, given[name])) for name in ("mean", "std"))
        return Facts(
            class_names=tuple(str(entry["name"]) for entry in content["classes"]),
            seen=tuple(int(entry["pictures_seen"]) for entry in content["classes"]),
            preparation=Preparation(height, width, channels, mean, std),
            stream=str(content["stream"]),
            notes=tuple(map(str, content["notes"])),
            own=dict(content["own"]),
        )
    except DAMAGED as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}); take the folder from a copy.") from error


def write(folder: Path, facts: Facts, exemplars: Pictures, tests: Pictures) -> Facts:
    """Write the three files, each whole or not at all; ``kept.json`` comes last, and says that the others are there.

    Returns:
        The facts, with a note where there were too many test pictures to keep.
    """
    if tests.images.numel() > MOST_BYTES:
        note = f"{len(tests):,} test pictures are too many to keep; give some with --golden when the run is updated"
        facts = Facts(
            facts.class_names, facts.seen, facts.preparation, facts.stream, (*facts.notes, note), facts.own
        )
        tests = Pictures.none(tests.images.shape[1:])
    try:
        (folder / EXEMPLARS_FILE).parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder / 'kept'}: {error.strerror}. Free some space and try again."
        ) from error
    for name, pictures in ((EXEMPLARS_FILE, exemplars), (TESTS_FILE, tests)):
        write_atomic(folder / name, packed(pictures, facts.class_names))
    write_atomic(folder / KEPT_FILE, facts.as_json())
    return facts


def of_data(data: ImageData, resolved: ResolvedProtocol) -> Callable[[Path, Keeps], None]:
    """Return what writes the files of a run on a dataset, given its folder and its strategy at the end.

    Args:
        data: An :class:`~incrlt.benchmarks.datasets.ImageData`; only its test pictures are held.
        resolved: The protocol on it.
    """
    order = torch.as_tensor(resolved.protocol.class_order)
    channels, height, width = data.train_images.shape[1:]
    facts = Facts(
        class_names=tuple(data.class_names[label] for label in order.tolist()),
        seen=tuple(resolved.counts.tolist()),
        preparation=Preparation(height, width, channels, tuple(data.mean), tuple(data.std)),
        stream=resolved.digest,
    )
    images = cast(Tensor, data.test_images)  # a store of pictures is picked from as a tensor is
    tests = Pictures(images, order.argsort()[data.test_labels])

    def keep(folder: Path, strategy: Keeps) -> None:
        write(folder, facts, exemplars_of(strategy, (channels, height, width)), tests)

    return keep


def packed(pictures: Pictures, class_names: Sequence[str]) -> bytes:
    """Return an archive of pictures: PNG files, and an index that names class and content of each."""
    buffer, index = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, (image, label) in enumerate(zip(pictures.images, pictures.labels.tolist(), strict=True)):
            suffix, content = encoded(image)
            name = f"{label:05d}/{number:07d}{suffix}"
            archive.writestr(zipfile.ZipInfo(name, EARLIEST), content)
            index.append({"file": name, "class": class_names[label], "content": picture_hash(image)})
        text = json.dumps({"format": FORMAT, "pictures": index}, indent=0)
        archive.writestr(zipfile.ZipInfo(INDEX, EARLIEST), text)
    return buffer.getvalue()


def read_pictures(path: Path, facts: Facts) -> Pictures:
    """Read an archive of pictures; each is held to its hash.

    Raises:
        UserError: The archive is missing or damaged, or of classes that the run does not know.
    """
    label_of = {name: label for label, name in enumerate(facts.class_names)}
    try:
        with ordinary(path) as file, zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it holds more than it has bytes")
            entries = parsed_json(archive.read(INDEX).decode())["pictures"]
            images = torch.empty((len(entries), *facts.preparation.shape), dtype=torch.uint8)
            for place, entry in enumerate(entries):
                images[place] = decoded(entry["file"], archive.read(entry["file"]), facts.preparation.shape)
                if picture_hash(images[place]) != entry["content"]:
                    raise ValueError(f"{entry['file']} is not what was written")
            labels = torch.tensor([label_of[entry["class"]] for entry in entries], dtype=torch.int64)
    except (*DAMAGED, RuntimeError) as error:
        raise UserError(
            f"{path} is missing or damaged ({str(error)[:200]}); take the folder from a copy."
        ) from error
    return Pictures(images, labels)


def encoded(image: Tensor) -> tuple[str, bytes]:
    """Return suffix and bytes of one picture ``[C, H, W]``: PNG where that is grey or colour, else NumPy's format."""
    buffer, pixels = io.BytesIO(), image.numpy()
    if len(pixels) not in (1, 3):
        np.save(buffer, pixels)
        return ".npy", buffer.getvalue()
    shown = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    Image.fromarray(shown).save(buffer, "PNG", compress_level=1)
    return ".png", buffer.getvalue()


def decoded(name: str, content: bytes, shape: Sequence[int]) -> Tensor:
    """Return the picture ``[C, H, W]`` that :func:`encoded` wrote.

    Raises:
        ValueError: It has another size, which is known before there are pixels, or is damaged.
    """
    if name.endswith(".npy"):
        values = io.BytesIO(content)
        np.lib.format.read_magic(values)
        told, _, kind = np.lib.format.read_array_header_1_0(values)
        if told != tuple(shape) or kind != np.uint8:
            raise ValueError(f"{name} is not of the size of its run")
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))  # PNG's first chunk
    if (height, width) != tuple(shape[1:]):
        raise ValueError(f"{name} is not of the size of its run")
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        pixels = np.array(picture)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def picture_hash(image: Tensor) -> str:
    """Return the hash of a picture's pixels and shape, 32 hex characters."""
    shape = ",".join(map(str, image.shape)).encode()
    return hashlib.sha256(shape + b"\0" + image.contiguous().numpy().tobytes()).hexdigest()[:32]


def exemplars_of(strategy: Keeps, shape: Sequence[int]) -> Pictures:
    """Return the pictures that a strategy goes on with: its exemplars, best first, or everything where it keeps all.

    Args:
        strategy: After an experience; label ids are arrival positions.
        shape: Channels, height, width.

    Raises:
        UserError: Its data are no stored 8-bit pictures.
    """
    memory = strategy.memory
    datasets = strategy.past_data() if hasattr(strategy, "past_data") else []
    if memory is not None and len(memory):
        datasets = [memory.dataset()]
    parts = [raw_pictures(dataset) for dataset in datasets]
    if not parts:
        return Pictures.none(shape)
    images = torch.cat([images for images, _ in parts])
    return Pictures(images, torch.cat([labels for _, labels in parts]))


def raw_pictures(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return the pictures of an Avalanche data set before any transform, uint8 ``[N, C, H, W]``, and its labels.

    Raises:
        UserError: They are no stored 8-bit pictures.
    """
    found: dict[int, Tensor] = {}
    for stored, rows, places, _ in stored_parts(dataset):
        try:
            source = without_transform(stored)[0]
        except NotExactError as error:
            raise UserError(f"a run can only keep pictures that are stored: {error}") from error
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            found[place] = source[row][0]
    images = _stacked([found[place] for place in range(len(dataset))])
    return images, torch.tensor([int(label) for label in dataset.targets], dtype=torch.int64)


def _stacked(images: Iterable[object]) -> Tensor:
    tensors = [image if isinstance(image, Tensor) else torch.empty(0) for image in images]
    if any(image.dtype != torch.uint8 for image in tensors):
        raise UserError("a run can only keep 8-bit pictures; give its data as uint8.")
    return torch.stack([image.cpu() for image in tensors])
