"""``incrlt export``: a model as ONNX with all that is needed to use it elsewhere, held to the network's own answers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

import incrlt
from incrlt.benchmarks.longtail import GROUPS, groups
from incrlt.errors import UserError
from incrlt.files import Plain, write_atomic
from incrlt.lifecycle import eightbit, learned, versions
from incrlt.lifecycle.answers import Answerer
from incrlt.lifecycle.example import EXAMPLE
from incrlt.lifecycle.graphs import AllExperts, FirstExpert, LaterExpert
from incrlt.lifecycle.learned import Learned

OPSET: Final = 20
"""Version of ONNX's operators: the newest that onnxruntime has read since 2024."""
TOLERANCE: Final = 1e-4
"""Largest difference of a probability between the network and its graphs, in float32."""
CHECKED: Final = 512
"""Test pictures that the graphs are held to, at most."""
UNLIKE_EXAMPLE: Final = (1, 7)
"""Batch sizes of the check: none is the example's, since a fixed batch would go unnoticed there."""
ALL: Final = "all_experts.onnx"
NEEDED: Final = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: Where.
        files: Names in it.
        difference: Largest difference of a probability from the network's.
        checked: Pictures that were compared.
        int8: What the 8-bit graph is worth; None where none was asked for.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float
    checked: int
    int8: eightbit.EightBit | None = None


def export(run: Path, folder: Path, version: int | None = None, int8: bool = False) -> Exported:
    """Write a version of a run as ONNX and hold the graphs to the network.

    Args:
        run: Run folder.
        folder: Where to write; made if it is missing.
        version: Of the run; None: the one that answers.
        int8: Write the graph of all experts with 8-bit convolutions too, and measure it.

    Raises:
        UserError: No finished run, a package is missing, or the graphs do not answer as the network does.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {', '.join(missing)}: pip install 'incrlt[export]'.")
    number = versions.current(run) if version is None else version
    versions.find(run, number)
    model = learned.read(versions.path_of(run, number))
    answerer = Answerer(model, torch.device("cpu"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; choose another with -o."
        ) from error
    experts = _graphs(folder, answerer)
    _write_json(folder / "labels.json", list(model.class_names))
    _write_json(folder / "preparation.json", _preparation(model, answerer, experts))
    write_atomic(folder / "example.py", EXAMPLE)
    difference, checked = check(folder, answerer, experts)
    small = eightbit.write(folder / ALL, model.exemplars, model.tests) if int8 else None
    text = card(model, answerer, number, difference, checked)
    if small is not None:
        text += f"\n## Eight bits\n\n`{eightbit.FILE}`, convolutions only. {small.sentence}.\n"
    write_atomic(folder / "README.md", text)
    graphs = (ALL, *experts, *([eightbit.FILE] if int8 else []))
    files = (*graphs, "labels.json", "preparation.json", "example.py", "README.md")
    return Exported(folder, files, difference, checked, small)


def _write_json(path: Path, content: object) -> None:
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _preparation(model: Learned, answerer: Answerer, experts: Sequence[str]) -> Plain:
    router = answerer.network.router
    routed = router is not None and answerer.by_head
    return {
        **model.facts.preparation.describe(),
        "normalisation": "inside the graphs: give uint8 pixels [B, C, H, W]",
        "all": ALL,
        "experts": list(experts),
        "threshold": float(router.threshold) if routed else None,
        "opset": OPSET,
    }


# ------------------------------------------------------------------------------------------------- graphs


def _graphs(folder: Path, answerer: Answerer) -> list[str]:
    """Write the graphs; return the names of those of single experts, none where one graph says it all."""
    network = answerer.network.cpu().float().eval()
    network.kept_features = None  # a graph computes them
    example = torch.zeros(3, *answerer.learned.facts.preparation.shape, dtype=torch.uint8)
    readout = None if answerer.by_head else answerer.main_scores
    outputs = ["probabilities", "logits", "experts_used"]
    _write(folder / ALL, AllExperts(network, readout), (example,), ["pixels"], outputs, answerer)
    if network.num_experts == 1 or not answerer.by_head:
        return []
    first = FirstExpert(network)
    with torch.no_grad():
        logits, _, _, *maps = first(example)
    names = [f"map_{place}" for place in range(len(maps))]
    _write(
        folder / "expert_0.onnx",
        first,
        (example,),
        ["pixels"],
        ["logits", "answer", "score", *names],
        answerer,
    )
    for k in range(1, network.num_experts):
        before = logits[:, None].expand(-1, k, -1).contiguous()
        inputs = (before, *maps)
        _write(
            folder / f"expert_{k}.onnx", LaterExpert(network, k), inputs, ["before", *names],
            ["logits", "answer", "score"], answerer,
        )  # fmt: skip
    return [f"expert_{k}.onnx" for k in range(network.num_experts)]


def _write(
    path: Path,
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    names: list[str],
    outputs: list[str],
    answerer: Answerer,
) -> None:
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    sizes: Any = [{0: batch} for _ in inputs]
    if isinstance(graph, LaterExpert):
        sizes = (sizes[0], tuple(sizes[1:]))  # the maps are one argument
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(), inputs, dynamo=True, input_names=names, output_names=outputs, opset_version=OPSET,
            dynamic_shapes=tuple(sizes), external_data=False, verbose=False,
        )  # fmt: skip
        assert program is not None
        content = program.model_proto
    facts = {"labels": json.dumps(list(answerer.learned.class_names)), "incrlt": incrlt.__version__}
    for key, value in facts.items():
        entry = content.metadata_props.add()
        entry.key, entry.value = key, value
    write_atomic(path, content.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own affairs away from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


# -------------------------------------------------------------------------------------------------- check


def check(folder: Path, answerer: Answerer, experts: Sequence[str]) -> tuple[float, int]:
    """Compare the graphs with the network on kept test pictures, in batches of other sizes than the example's.

    Returns:
        Largest difference of a probability, and the pictures compared.

    Raises:
        UserError: More than :data:`TOLERANCE`, another answer, or other experts.
    """
    pictures = answerer.learned.tests.images[:CHECKED]
    if not len(pictures):
        pictures = answerer.learned.exemplars.images[:CHECKED]
    if not len(pictures):
        return 0.0, 0
    expected = answerer(pictures)
    own = expected.probabilities.numpy()
    namespace: Plain = {"__file__": str(folder / "example.py"), "__name__": "example"}
    exec(compile(EXAMPLE, "example.py", "exec"), namespace)  # the very program that the user gets
    found = [_in_batches(pictures, namespace["answer"])]
    if experts:
        everything = namespace["session"](ALL)
        found.append(_in_batches(pictures, lambda x: everything.run(None, {"pixels": x})[::2]))
    difference = max(float(np.abs(probabilities - own).max()) for probabilities, _ in found)
    for probabilities, used in found:
        same = (probabilities.argmax(1) == own.argmax(1)) | _tied(own)
        if difference > TOLERANCE or not same.all() or not (used == expected.experts_used.numpy()).all():
            raise UserError(
                f"the graphs do not answer as the network does: probabilities differ by {difference:.2g} "
                f"({TOLERANCE:g} is allowed), {int((~same).sum())} of {len(own)} answers and "
                f"{int((used != expected.experts_used.numpy()).sum())} choices of experts are others. Please report it."
            )
    return difference, len(pictures)


def _tied(probabilities: np.ndarray) -> np.ndarray:
    """Tell where the two best classes are so close that rounding decides ``[N]``."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities), dtype=bool)
    two = np.sort(probabilities, 1)[:, -2:]
    return two[:, 1] - two[:, 0] < TOLERANCE


def _in_batches(pictures: Tensor, answer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Answer pictures in batches of several sizes, and the rest at once."""
    cuts = np.cumsum(UNLIKE_EXAMPLE)
    parts = [part for part in np.split(pictures.numpy(), cuts[cuts < len(pictures)]) if len(part)]
    found = [answer(np.ascontiguousarray(part)) for part in parts]
    return np.concatenate([p for p, _ in found]), np.concatenate([used for _, used in found])


# --------------------------------------------------------------------------------------------------- card


def card(model: Learned, answerer: Answerer, number: int, difference: float, checked: int) -> str:
    """Return the model card as Markdown: what it is, what it saw, what it reaches by group, what it is not for."""
    group_of = groups(model.facts.seen)
    lines = [
        f"# Model card, version {number} of a run",
        "",
        f"A classifier of {len(model.class_names)} classes, trained by incrlt {incrlt.__version__} "
        f"({model.experiment.method}, {model.experiment.model.name}, {answerer.network.num_experts} experts) in "
        f"{model.experiences} experiences. Digest of all it has learned: `{model.facts.stream[:12]}`.",
        "",
        "## Data by group",
        "",
        "| group | classes | pictures seen | test pictures |",
        "|---|---|---|---|",
    ]
    tested = np.bincount(model.tests.labels.numpy(), minlength=len(group_of))
    for group in GROUPS:
        own = [place for place, name in enumerate(group_of) if name == group]
        seen = sum(model.facts.seen[place] for place in own)
        lines.append(f"| {group} | {len(own)} | {seen} | {int(tested[own].sum()) if own else 0} |")
    lines += ["", "many: more than 100 pictures of a class; few: fewer than 20; medium: between.", ""]
    lines += _accuracies(model, answerer, group_of)
    lines += _use(model, answerer, difference, checked)
    return "\n".join(lines) + "\n"


def _accuracies(model: Learned, answerer: Answerer, group_of: Sequence[str]) -> list[str]:
    """Return accuracy by group: the mean over classes, of the answers that this export gives."""
    if not len(model.tests):
        return ["## Accuracy", "", "There were no test pictures.", ""]
    right = (answerer(model.tests.images).classes == model.tests.labels).numpy()
    labels = model.tests.labels.numpy()
    by_class = {place: 100 * right[labels == place].mean() for place in np.unique(labels).tolist()}
    lines = ["## Accuracy", "", "| | mean over classes, % |", "|---|---|"]
    for name in ("all", *GROUPS):
        own = [value for place, value in by_class.items() if name == "all" or group_of[place] == name]
        lines.append(f"| {name} | {f'{np.mean(own):.1f}' if own else 'no test pictures'} |")
    untested = [name for place, name in enumerate(model.class_names) if place not in by_class]
    note = f"Not tested: {', '.join(untested)}. " if untested else ""
    return [*lines, "", f"{note}Test pictures were never trained on; every class counts the same.", ""]


def _use(model: Learned, answerer: Answerer, difference: float, checked: int) -> list[str]:
    shape = model.facts.preparation
    lines = [
        "## Use",
        "",
        "`python example.py a.jpg b.png` needs onnxruntime, NumPy, and Pillow to open pictures. Graphs take "
        f"uint8 pixels `[B, {shape.channels}, {shape.height}, {shape.width}]`, prepared as `preparation.json` says; "
        f"normalisation is inside. ONNX opset {OPSET}. Held to the network on {checked} pictures in batches of other "
        f"sizes: probabilities differ by {difference:.1e} at most, answers and experts used are the same.",
        "",
        "## Limits",
        "",
        "It knows its classes and nothing else: a picture of anything else gets one of them, sometimes with confidence."
        " Rare classes were learned from few pictures and are right less often, as the table says. Confidence is the "
        "network's own and was not calibrated on other pictures.",
    ]
    if not answerer.by_head:
        lines += ["", "Answers are the nearest mean of exemplars; their confidence only ranks classes."]
    return lines
