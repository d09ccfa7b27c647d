"""A test part for those who have none: of each class about a fifth, the same pictures each time, groups in one part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from incrlt.benchmarks.listing import Entry, Listing

TEST_SHARE: Final = 0.2
"""Pictures of a class that are split off for testing where the user has no test part."""
SMALLEST_SPLIT: Final = 3
"""A class with fewer pictures keeps them all for training, and goes without a test."""


def with_tests(listing: Listing, seed: int = 0, share: float = TEST_SHARE) -> tuple[Listing, str]:
    """Split a test part off where the user has none: of each class about a fifth, whole groups.

    A class of fewer than three pictures, or of one group, keeps all for training.

    Args:
        listing: Of labelled pictures.
        seed: Of the choice.
        share: Pictures of a class for testing.

    Returns:
        The listing with a part for every entry, and a sentence on what was done; empty where nothing was.
    """
    if any(entry.part == "test" for entry in listing.entries):
        given = tuple(replace(entry, part=entry.part or "train") for entry in listing.entries)
        return replace(listing, entries=given), ""
    chosen: set[str] = set()
    by_class: dict[str, list[Entry]] = {}
    for entry in listing.entries:
        by_class.setdefault(entry.label, []).append(entry)
    for label, own in by_class.items():
        chosen |= _test_of(label, own, seed, share)
    parts = ("train", "test")
    entries = tuple(replace(e, part=parts[e.name in chosen]) for e in listing.entries)
    untested = [label for label, own in by_class.items() if not any(e.name in chosen for e in own)]
    sentence = f"{len(chosen):,} of {len(entries):,} pictures were split off for testing (seed {seed})"
    if untested:
        more = f" and {len(untested) - 5} more" if len(untested) > 5 else ""
        sentence += f"; too few to test: {', '.join(untested[:5])}{more}"
    return replace(listing, entries=entries), sentence


def _test_of(label: str, own: Sequence[Entry], seed: int, share: float) -> set[str]:
    """Return the names of the pictures of a class that are for testing."""
    if len(own) < SMALLEST_SPLIT:
        return set()
    wanted = max(1, round(share * len(own)))
    groups: dict[str, list[str]] = {}
    for entry in own:
        groups.setdefault(entry.group or f"\0{entry.name}", []).append(entry.name)
    # the order of a class hangs on its own names alone: what another batch or class brings does not move it
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}\0{label}\0{group}".encode()).digest())
    chosen: set[str] = set()
    for group in order:
        if len(chosen) + len(groups[group]) <= max(wanted, len(own) // 2) and len(chosen) < wanted:
            chosen |= set(groups[group])
    return chosen
