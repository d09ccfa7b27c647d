"""One run's metrics as plain data: every value in percent, beside the name of its convention."""

from __future__ import annotations

import numpy as np

from incrlt.files import Plain
from incrlt.metrics.accuracy import (
    CONVENTION_NAMES,
    accuracy_matrix,
    average_incremental_accuracy,
    class_accuracy,
    seen_accuracy,
)
from incrlt.metrics.confusion import old_new_confusion
from incrlt.metrics.forgetting import backward_transfer, class_forgetting, forgetting
from incrlt.metrics.groups import (
    GROUPS,
    accuracy_by_group,
    class_groups,
    forgetting_by_group,
    forgetting_by_group_and_age,
)
from incrlt.metrics.numbers import known, mean_known, nested
from incrlt.metrics.record import StreamRecord

_OVER = {
    "over_tasks": "every experience counts the same (FACIL, Long-Tailed-CIL, DGR)",
    "over_classes": "every class counts the same",
    "over_seen_images": "every test image of the seen classes counts the same (PyCIL, PILOT)",
}

CONVENTIONS: dict[str, str] = {
    **{
        f"average_incremental_accuracy/{name}": f"mean over experiences, accuracy on all seen classes; {text}"
        for name, text in _OVER.items()
    },
    **{f"last_accuracy/{name}": f"after the last experience; {text}" for name, text in _OVER.items()},
    **{
        f"last_accuracy/{group}_over_classes": f"after the last experience, mean over the {group} classes"
        for group in GROUPS
    },
    "forgetting/chaudhry_over_tasks": "best earlier accuracy minus the last, mean over earlier experiences",
    "forgetting/chaudhry_over_classes": "best earlier accuracy minus the last, mean over old classes",
    **{
        f"forgetting/{group}_over_classes": f"best earlier accuracy minus the last, over old {group} classes"
        for group in GROUPS
    },
    "backward_transfer/over_tasks": "last accuracy minus that on arrival, mean over earlier experiences",
    "confusion/old_to_new_over_images": "old classes' test images taken for a class of the last experience",
    "confusion/new_to_old_over_images": "test images of the last experience's classes taken for an old one",
}
"""What each number means. Values are percent (accuracies, confusions) or percentage points (differences)."""


def summarise(record: StreamRecord) -> Plain:
    """Return every metric of one read-out as plain data.

    Args:
        record: The counts of at least one experience.

    Returns:
        ``numbers`` (name with convention -> value, see :data:`CONVENTIONS`), ``per_experience`` (name -> T
        values), ``accuracy_matrix`` ([T][T]), ``forgetting_by_group_and_age`` (``last`` and ``all_steps``),
        and the sizes. Values are floats or None, never NaN.
    """
    steps = per_experience(record)
    return {
        "unit": "percent",
        "num_experiences": record.num_experiences,
        "num_classes": record.num_seen,
        "numbers": _numbers(record, steps),
        "per_experience": steps,
        "accuracy_matrix": nested(accuracy_matrix(record)),
        "forgetting_by_group_and_age": {
            "last": forgetting_by_group_and_age(record),
            "all_steps": forgetting_by_group_and_age(record, all_steps=True),
        },
    }


def per_experience(record: StreamRecord) -> dict[str, list[float | None]]:
    """Return everything that has one value per experience, T values each, None where undefined."""
    steps: dict[str, list[float | None]] = {}
    for convention in CONVENTION_NAMES:
        steps[f"accuracy/{convention}"] = seen_accuracy(record, convention)
    for group, values in accuracy_by_group(record).items():
        steps[f"accuracy/{group}_over_classes"] = values
    steps["forgetting/chaudhry_over_tasks"] = forgetting(record)
    steps["forgetting/chaudhry_over_classes"] = [mean_known(row) for row in class_forgetting(record)]
    for group, values in forgetting_by_group(record).items():
        steps[f"forgetting/{group}_over_classes"] = values
    steps["backward_transfer/over_tasks"] = backward_transfer(record)
    for flow, values in old_new_confusion(record).items():
        steps[f"confusion/{flow}_over_images"] = values
    return steps


def _numbers(record: StreamRecord, steps: dict[str, list[float | None]]) -> dict[str, float | None]:
    """Return one value per entry of CONVENTIONS: the stream's average, or the last value of a series."""
    numbers: dict[str, float | None] = {}
    for name in CONVENTIONS:
        kind, convention = name.split("/")
        if kind == "average_incremental_accuracy":
            numbers[name] = average_incremental_accuracy(record, convention)  # type: ignore[arg-type]
        else:
            numbers[name] = steps[name.replace("last_accuracy", "accuracy")][-1]
    return numbers


def experience_rows(record: StreamRecord) -> list[Plain]:
    """Return one row per experience: its number, the classes seen, and every per-experience value."""
    steps = per_experience(record)
    return [
        {
            "experience": t,
            "classes_seen": record.seen_after(t),
            **{name: values[t] for name, values in steps.items()},
        }
        for t in range(record.num_experiences)
    ]


def class_rows(record: StreamRecord) -> list[Plain]:
    """Return one row per seen class: arrival, images, group, age, accuracies and forgetting in percent.

    ``accuracy_on_arrival``, ``accuracy_best`` and ``accuracy_last`` are None for a class without test images,
    ``forgetting`` also for the classes of the last experience.
    """
    accuracy, forgotten = class_accuracy(record), class_forgetting(record)
    groups = class_groups(record.images_of_class)
    last = record.num_experiences - 1
    rows = []
    for index, experience in enumerate(record.experience_of_class[: record.num_seen].tolist()):
        tested = accuracy[experience:, index]
        rows.append(
            {
                "class": index,
                "name": record.name_of(index),
                "experience": experience,
                "images": int(record.images_of_class[index]),
                "group": str(groups[index]),
                "age": last - experience,
                "accuracy_on_arrival": known(tested[0]),
                "accuracy_best": known(np.fmax.reduce(tested)),
                "accuracy_last": known(tested[-1]),
                "forgetting": known(forgotten[-1, index]),
            }
        )
    return rows
