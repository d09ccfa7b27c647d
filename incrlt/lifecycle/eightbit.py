"""A graph with its convolutions in 8-bit integers, and what that costs: accuracy of both on the kept test pictures.

Ranges of activations are measured on exemplars, never on test pictures. Heads and router stay in float32: they are
small, and cosines near a threshold would flip.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from incrlt.errors import UserError
from incrlt.files import Plain, write_atomic
from incrlt.runner.kept import Pictures

FILE: Final = "all_experts_int8.onnx"
CALIBRATED: Final = 256
"""Exemplars that ranges are measured on, at most, spread over the classes."""
AT_A_TIME: Final = 64
"""Pictures answered at a time."""


@dataclass(frozen=True)
class EightBit:
    """What the 8-bit graph is worth.

    Args:
        accuracy: Of the 8-bit graph, percent, mean over classes; None without test pictures.
        accuracy_float: Of the float32 graph, likewise.
        same: Share of test pictures with the same answer, percent; None without.
        tested: Test pictures.
        size: Bytes of the file.
        size_float: Bytes of the float32 file.
    """

    accuracy: float | None
    accuracy_float: float | None
    same: float | None
    tested: int
    size: int
    size_float: int

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        sizes = f"int8: {self.size / 1e6:.2f} MB, float32 {self.size_float / 1e6:.2f} MB"
        if self.accuracy is None or self.same is None:
            return f"{sizes}; there are no test pictures to measure it on"
        return (
            f"{sizes}; accuracy over classes {self.accuracy:.1f} % (float32 {self.accuracy_float:.1f} %), the same "
            f"answer to {self.same:.1f} % of {self.tested} test pictures"
        )


class _Exemplars:
    """Gives onnxruntime the pictures to measure ranges on."""

    def __init__(self, pictures: Pictures) -> None:
        rows = np.unique(np.linspace(0, len(pictures) - 1, min(CALIBRATED, len(pictures))).astype(int))
        self._left: Iterator[Plain] = (
            {"pixels": pictures.images[row : row + 1].numpy()} for row in rows.tolist()
        )

    def get_next(self) -> Plain | None:
        """Return the next picture; None after the last."""
        return next(self._left, None)


def write(graph: Path, exemplars: Pictures, tests: Pictures) -> EightBit:
    """Write the 8-bit graph beside a float32 one and measure both.

    Args:
        graph: The float32 graph, which takes ``pixels`` and gives probabilities first.
        exemplars: To measure ranges on.
        tests: To measure accuracy on.

    Raises:
        UserError: There are no exemplars.
    """
    if not len(exemplars):
        raise UserError(
            "int8 needs pictures to measure the ranges of activations on, and this run keeps no exemplars; leave out "
            "--int8, or train with memory: {per_class: 20}."
        )
    content = _quantised(graph, exemplars)
    write_atomic(graph.with_name(FILE), content)
    whole, small = (_answers(path, tests) for path in (graph, graph.with_name(FILE)))
    labels = tests.labels.numpy()
    return EightBit(
        _by_class(small, labels),
        _by_class(whole, labels),
        100 * float((small == whole).mean()) if len(tests) else None,
        len(tests),
        len(content),
        graph.stat().st_size,
    )


def _quantised(graph: Path, exemplars: Pictures) -> bytes:
    from onnxruntime import quantization  # type: ignore[import-not-found, import-untyped, unused-ignore]

    root, before = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # its remarks are on its own affairs
    try:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place, FILE)
            quantization.quantize_static(
                str(graph),
                str(out),
                _Exemplars(exemplars),
                op_types_to_quantize=["Conv"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
            )
            return out.read_bytes()
    finally:
        root.setLevel(before)


def _answers(graph: Path, tests: Pictures) -> npt.NDArray[np.int64]:
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    parts = [
        session.run(None, {"pixels": part.numpy()})[0].argmax(1)
        for part in tests.images.split(AT_A_TIME)
        if len(part)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _by_class(answers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float | None:
    """Return the mean over classes of the share of right answers, percent."""
    right = [float((answers[labels == label] == label).mean()) for label in np.unique(labels)]
    return 100 * sum(right) / len(right) if right else None
