"""How classes are ordered and divided: the arithmetic behind a protocol, and what it says when it cannot be.

NumPy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from incrlt.errors import UserError, did_you_mean

LITERATURE_ORDER_SEED = 1993
"""``RandomState(1993)`` shuffles the classes of iCaRL, LUCIR, PyCIL and Long-Tailed-CIL."""

ORDERS = ("shuffled", "ordered", "reverse")

OrderSpec = str | Sequence[int]


def class_order(order: OrderSpec, num_classes: int, seed: int = LITERATURE_ORDER_SEED) -> tuple[int, ...]:
    """Return the class ids by arrival.

    Args:
        order: ``shuffled``, ``ordered`` (class id 0, the head, first), ``reverse``, or the ids themselves.
        num_classes: Number of classes C.
        seed: Seed of the shuffle; legacy ``RandomState``, as in LUCIR's and iCaRL's code.

    Raises:
        UserError: Unknown name, or a list that is not a permutation of 0..C-1.
    """
    if not isinstance(order, str):
        check_order(tuple(order), num_classes)
        return tuple(int(c) for c in order)
    check_member("order", order, ORDERS, "a list of all class ids")
    if order == "shuffled":
        check_seed("order_seed", seed)
        return tuple(np.random.RandomState(seed).permutation(num_classes).tolist())
    ids = range(num_classes)
    return tuple(ids if order == "ordered" else reversed(ids))


def equal_parts(name: str, num_classes: int, parts: int, from_half: bool) -> tuple[int, ...]:
    """Return the classes per experience of N equal experiences, after a base of half the classes or not.

    Args:
        name: Protocol id, for the message.
        num_classes: Number of classes C.
        parts: Number N of equal experiences.
        from_half: Whether half of the classes, rounded up, come first.

    Raises:
        UserError: The classes cannot be divided so.
    """
    base = num_classes - num_classes // 2 if from_half else 0
    rest = num_classes - base
    if parts < 1 or rest % parts:
        after = f" after the base of {base}" if base else ""
        raise UserError(
            f"{name} on {num_classes} classes is impossible: the {rest} classes{after} cannot be divided "
            f"into {parts} equal experiences; possible are {_listed(_divisors(rest))}."
        )
    return ((base,) if base else ()) + (rest // parts,) * parts


def ids_of(order: Sequence[int] | Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """Return an order of class names as class ids; one of ids as it is.

    Args:
        order: Ids, or names of all classes.
        names: Name of each class id; empty where they are not known before the data are read.

    Raises:
        UserError: A name is unknown, missing, or there twice.
    """
    given = [str(name) for name in order if isinstance(name, str)]
    if not given:
        return tuple(int(label) for label in order)
    if not names:
        raise UserError(
            "the names of these classes are only known with their data; give the order as class ids."
        )
    times = Counter(given)
    unknown = [name for name in times if name not in names]
    words = {
        "unknown": [f"{name}{did_you_mean(name, names)}" for name in unknown],
        "missing": [name for name in names if name not in times],
        "twice": [name for name, number in times.items() if number > 1],
    }
    found = [f"{word}: {_listed(classes[:5])}" for word, classes in words.items() if classes]
    if found or len(given) != len(order):
        told = "; ".join(found) or "it mixes names and ids"
        raise UserError(f"the class order must hold every class name once; {told}.")
    place = {name: label for label, name in enumerate(names)}
    return tuple(place[name] for name in given)


def base_and_increments(num_classes: int, base: int, increment: int | Sequence[int]) -> tuple[int, ...]:
    """Return the classes per experience of a base and increments, equal ones or a list; a base of 0 is left out.

    Raises:
        UserError: They do not add up to ``num_classes``.
    """
    if not 0 <= base <= num_classes:
        raise UserError(f"base_classes is {base}; with {num_classes} classes it must be 0 to {num_classes}.")
    rest = num_classes - base
    if not isinstance(increment, int):
        sizes = ((base,) if base else ()) + tuple(increment)
        if sum(sizes) != num_classes:
            raise UserError(
                f"the experiences have {_listed(sizes)} classes, {sum(sizes)} in all, and there are {num_classes}. "
                "Change increment (or experiences), so that they add up."
            )
        return sizes
    if rest == 0:
        return (base,)
    if increment < 1 or rest % increment:
        raise UserError(
            f"base_classes {base} and increment {increment} do not add up to {num_classes} classes: {rest} "
            f"remain after the base; increments that fit are {_listed(_divisors(rest))}."
        )
    return ((base,) if base else ()) + (increment,) * (rest // increment)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def check_member(what: str, given: str, allowed: Sequence[str], or_else: str = "") -> None:
    """Raise a UserError with a suggestion unless ``given`` is one of ``allowed``."""
    if given not in allowed:
        more = f", or {or_else}" if or_else else ""
        raise UserError(
            f"{what} is {given!r}; choose one of {', '.join(allowed)}{more}.{did_you_mean(given, allowed)}"
        )


def check_seed(what: str, seed: int) -> None:
    """Raise a UserError unless ``seed`` is one that NumPy's ``RandomState`` takes."""
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise UserError(f"{what} is {seed!r}; it must be a whole number from 0 to {2**32 - 1}.")


def check_order(order: Sequence[int], num_classes: int) -> None:
    """Raise a UserError unless ``order`` holds every class id 0..C-1 once."""
    known = range(num_classes)
    times = Counter(order)
    words = {
        "missing": [c for c in known if c not in times],
        "twice": [c for c, n in times.items() if n > 1],
        "unknown": [c for c in times if not _is_whole(c) or c not in known],
    }
    found = [f"{word}: {_listed(classes[:5])}" for word, classes in words.items() if classes]
    if found:
        raise UserError(
            f"the class order must hold every class id 0..{num_classes - 1} once; {'; '.join(found)}."
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_split(sizes: Sequence[int], num_classes: int) -> None:
    """Raise a UserError unless the sizes are positive and sum to C."""
    if not sizes or min(sizes) < 1 or sum(sizes) != num_classes:
        raise UserError(
            f"classes_per_experience is {list(sizes)}, {sum(sizes)} in all; every experience needs at least "
            f"one class and they must sum to {num_classes}."
        )
