"""What a run forgot, said in two or three sentences; every number leads to the chart or the row it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from incrlt.metrics import StreamRecord, class_accuracy
from incrlt.metrics.confusion import old_new_confusion
from incrlt.metrics.tasks import Row, lost_by_group, most_forgotten, old_accuracy, task_rows
from incrlt.report.reading import Run
from incrlt.written import cut, written

HEAD, MEANS = "cnn", "nme"
APART = 1.0
"""Points from which the head and the nearest mean are said to differ; ours, about the spread between two seeds."""
NAMED = 3
"""Classes that a sentence names at most."""
LONGEST = 40
"""Letters of a name in a sentence."""


@dataclass(frozen=True)
class Piece:
    """A piece of a sentence."""

    text: str
    to: str = ""
    """The place on the page that shows it, or "" for words."""


Sentence = list[Piece]


def verdict(run: Run) -> list[Sentence]:
    """Return the sentences on the run's own read-out; none for a run without counts."""
    if not run.records:
        return []
    readout, record = next(iter(run.records.items()))
    if record.num_experiences < 2:
        return [[Piece("One experience: there is nothing yet that could have been forgotten.")]]
    return [
        list(_worst(record, readout)),
        *filter(None, [list(_groups(record)), list(_head_or_features(run.records))]),
    ]


def _worst(record: StreamRecord, readout: str) -> Iterator[Piece]:
    row = most_forgotten(task_rows(record))
    if row is None:
        yield Piece("No experience ended below its best: ")
        yield Piece("nothing was forgotten", f"chart-lost-{readout}")
        yield Piece(".")
        return
    task, matrix = f"task-{row['experience']}", f"chart-lost-{readout}"
    yield Piece(f"Experience {row['experience']}", task)
    yield Piece(f" ({_names(record, row['classes'])}) was forgotten most: from ")
    yield Piece(f"{written(row['best'], 1)} %", task)
    yield Piece(f" after experience {row['best_at']} to ")
    yield Piece(f"{written(row['last'], 1)} %", task)
    yield from _when(row["steps"], matrix)
    yield from _whither(record, row, task)


def _when(steps: Sequence[tuple[int, float]], matrix: str) -> Iterator[Piece]:
    yield Piece(", mostly while " + ("experience " if len(steps) == 1 else "experiences "))
    for place, (t, points) in enumerate(steps):
        yield Piece("" if not place else " and " if place == len(steps) - 1 else ", ")
        yield Piece(f"{t} (−{written(points, 1)})", matrix)
    yield Piece((" was" if len(steps) == 1 else " were") + " learned.")


def _whither(record: StreamRecord, row: Row, task: str) -> Iterator[Piece]:
    experience, points = row["to_experiences"][0]
    inside = [index for index, _ in row["to_classes"] if record.experience_of_class[index] == experience]
    other = "each other" if experience == row["experience"] else f"classes of experience {experience}"
    yield Piece(f" More of its images are now taken for {other} (")
    yield Piece(f"+{written(points, 1)} points", task)
    yield Piece(f"), above all {_names(record, inside[:NAMED])}.")


def _names(record: StreamRecord, classes: Sequence[int]) -> str:
    shown = [cut(record.name_of(index), LONGEST) for index in classes[:NAMED]]
    more = ", …" if len(classes) > NAMED else ""
    return ", ".join(shown) + more


def _groups(record: StreamRecord) -> Iterator[Piece]:
    """Few against many, in points and relative to what had been learned."""
    lost = lost_by_group(class_accuracy(record), record.images_of_class)
    known = [name for name in ("few", "many") if lost[name]["relative"] is not None]
    for place, name in enumerate(known):
        yield Piece(f"{', ' if place else ''}{name if place else name.capitalize()} classes ")
        yield from _group(lost[name])
    if len(known) == 2:
        yield Piece(_more(lost["few"], lost["many"]))
    if known:
        yield Piece(".")


def _group(lost: Row) -> Iterator[Piece]:
    points, place = lost["forgetting"], "lost-by-group"
    yield Piece("lost " if points >= 0 else "gained ")
    yield Piece(written(abs(points), 1), place)
    yield Piece(" of" if points >= 0 else " points on")
    yield Piece(f" the {written(lost['best'], 1)} points they had at best (")
    yield Piece(f"{written(abs(lost['relative']), 0)} %", place)
    yield Piece(")")


def _more(few: Row, many: Row) -> str:
    """Say who lost more, by what is shown: one digit in points, none in percent."""
    points = round(few["forgetting"], 1) - round(many["forgetting"], 1)
    share = round(few["relative"]) - round(many["relative"])
    words = {1: "the few", -1: "the many", 0: ""}
    by_points, by_share = words[(points > 0) - (points < 0)], words[(share > 0) - (share < 0)]
    if by_points == by_share:
        return (
            f": {by_points} lost more, in points and of what they had learned" if by_points else ": as much"
        )
    first = f"{by_points} lost more points" if by_points else "both lost as many points"
    second = (
        f"{by_share} more of what they had learned" if by_share else "both as much of what they had learned"
    )
    return f": {first}, {second}"


def _head_or_features(records: Mapping[str, StreamRecord]) -> Iterator[Piece]:
    """Bias of the head or lost features: the nearest mean answers from the same features without the head."""
    record = records.get(HEAD)
    head = None if record is None else old_accuracy(record)
    if record is None or head is None:
        return
    to_new = old_new_confusion(record)["old_to_new"][-1]
    means = old_accuracy(records[MEANS]) if MEANS in records else None
    yield Piece("The head reaches ")
    yield Piece(f"{written(head, 1)} %", "lost-by-group")
    yield Piece(" on the old classes and takes ")
    yield Piece(f"{written(to_new, 1)} %", f"chart-old-{HEAD}")
    yield Piece(" of their images for the newest ones")
    if means is None:
        yield Piece(
            "; without a nearest mean beside it, a biased head and lost features cannot be told apart."
        )
        return
    yield Piece("; the nearest mean, on the same features, reaches ")
    yield Piece(f"{written(means, 1)} %", "lost-by-group")
    yield Piece(_bias(round(means, 1) - round(head, 1)))


def _bias(gap: float) -> str:
    if gap >= APART:
        return ", more: part of the loss is a bias of the head, which a better one would bring back."
    if gap > -APART:
        return ", about the same: the loss is one of features, not of the head."
    return ", less: nothing points to a bias of the head."
