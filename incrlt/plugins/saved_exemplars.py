"""How a saved exemplar memory finds its pictures again, and what it says when they are others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks.identity import class_names, contents, differ, labels_of
from incrlt.data.contents import UNKNOWN, labels_hash
from incrlt.errors import UserError
from incrlt.roles import Dataset, Experience, State

CHANGED = "are other pictures than those that were chosen"
RESUME = "Resume with the benchmark the run was started with."


def place_in_stream(experience: Any) -> int:
    """Return the number that a stream gave an experience, -1 without one: where to look first, not what it is."""
    try:
        return int(experience.logging().current_experience)
    except AssertionError:  # Avalanche's word for an experience of no stream
        return -1


def describe(sources: Mapping[int, Dataset], hints: Mapping[int, int]) -> Tensor:
    """Return what data sets are found again by.

    Args:
        sources: Data set by number.
        hints: Place in its stream by number.

    Returns:
        int64 ``[S, 4]``: number, place in the stream, images, hash of the labels.
    """
    rows = [
        [number, hints[number], len(dataset), labels_hash(labels_of(dataset))]
        for number, dataset in sources.items()
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def find(
    state: State, places: Mapping[int, Tensor], train_stream: Sequence[Experience]
) -> dict[int, Experience]:
    """Return the experience of each data set that a saved memory saw, by number.

    Args:
        state: From :meth:`incrlt.plugins.memory.ExemplarMemory.state_dict`.
        places: Number and index ``[n, 2]`` of the exemplars of each label.
        train_stream: Experiences to look in.

    Raises:
        UserError: One is missing, or its labels, names or pictures are others.
    """
    found: dict[int, Experience] = {}
    for number, hint, *marks in _sources(state):
        wanted = _wanted(number, state, places)
        complaints: list[str] = []
        for experience in _in_order(train_stream, hint, searched=bool(marks)):
            if any(experience.dataset is taken.dataset for taken in found.values()):
                continue
            complaint = _complaint(experience, hint, marks, wanted)
            if complaint is None:
                found[number] = experience
                break
            complaints.append(complaint)
        else:
            raise UserError(_missing(hint, train_stream, complaints))
        differ(
            state.get("names", {}), class_names(found[number]), "in the saved memory", "in this train stream"
        )
    return found


def _sources(state: State) -> list[list[int]]:
    """Return number, place in the stream and, where they were saved, size and hash of the labels."""
    if "sources" in state:
        return [list(row) for row in state["sources"].tolist()]
    return [[number, number] for number in state["experiences"].tolist()]  # older: the number is the place


def _wanted(number: int, state: State, places: Mapping[int, Tensor]) -> Tensor:
    """Return label, index and hash ``[n, 3]`` of the exemplars of one data set."""
    labels = torch.tensor(list(places), dtype=torch.int64).repeat_interleave(state["counts"])
    pictures = state.get("pictures", torch.full_like(labels, UNKNOWN))
    own = state["places"][:, 0] == number
    return torch.stack([labels, state["places"][:, 1], pictures], dim=1)[own]


def _in_order(train_stream: Sequence[Experience], hint: int, searched: bool) -> Iterator[Experience]:
    """Yield experiences, the likely one first; it alone where too little was saved to know another one."""
    if 0 <= hint < len(train_stream):
        yield train_stream[hint]
    if searched:
        yield from (train_stream[place] for place in range(len(train_stream)) if place != hint)


def _complaint(experience: Experience, hint: int, marks: Sequence[int], wanted: Tensor) -> str | None:
    """Return why an experience is not the one that exemplars were chosen from; None where it is."""
    targets = labels_of(experience.dataset)
    labels, indices, pictures = wanted.unbind(1)
    if marks and marks != [len(targets), labels_hash(targets)]:
        return (
            f"experience {hint} has {len(targets)} images here, or their labels in another order, and had {marks[0]} "
            f"when the memory was saved: this is another train stream. {RESUME}"
        )
    beyond = torch.cat([targets, torch.tensor([-1])])  # an index that is not there has no label
    lost = beyond[indices.clamp(max=len(targets))] != labels
    if lost.any():
        return (
            f"the exemplars of class {int(labels[lost][0])} are not where the saved memory says "
            f"(experience {hint}): this is another train stream. {RESUME}"
        )
    now = contents(experience.dataset, indices.numpy().astype(np.int64))
    changed = (now != pictures) & (now != UNKNOWN) & (pictures != UNKNOWN)
    if not changed.any():
        return None
    return (
        f"{int(changed.sum())} of {len(labels)} exemplars from {_name(hint)} {CHANGED} (the first is image "
        f"{int(indices[changed][0])}, of class {int(labels[changed][0])}): files were renamed, added or changed since. "
        "Resume with the same data, or start the run anew."
    )


def _name(hint: int) -> str:
    return "an experience of no stream" if hint < 0 else f"experience {hint}"


def _missing(hint: int, train_stream: Sequence[Experience], complaints: Sequence[str]) -> str:
    """Say that an experience is not there: what the likeliest one lacks."""
    for complaint in complaints:
        if CHANGED in complaint:  # all labels are right
            return complaint
    if complaints and 0 <= hint < len(train_stream):
        return complaints[0]
    return (
        f"the exemplar memory saw {_name(hint)}, but the train stream has only {len(train_stream)}, none of which is "
        f"it. {RESUME[:-1]}; of several streams, give all experiences one after the other."
    )
