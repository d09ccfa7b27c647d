"""A list of promises, each a sentence that can be checked, and what is said when one is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, Generic, Protocol, TypeVar


class Case(Protocol):
    """What a promise is checked on."""

    @property
    def subject(self) -> str:
        """What it is called in messages."""
        ...


C = TypeVar("C", bound=Case)


class BrokenPromiseError(AssertionError):
    """A class breaks promises of its kind; the text says which, what was found, and what to do."""


@dataclass(frozen=True)
class Promise(Generic[C]):
    """One promise of a kind of class."""

    sentence: str
    """What is promised."""
    advice: str
    """What to do where it is broken."""
    holds: Callable[[C], None]
    """Does nothing where it is kept; any exception else."""

    @property
    def name(self) -> str:
        """Short name, for test ids."""
        return self.holds.__name__.strip("_").replace("_", "-")

    def __call__(self, case: C) -> None:
        """Check the promise.

        Raises:
            BrokenPromiseError: It is broken.
        """
        try:
            self.holds(case)
        except Exception as error:
            found = str(error) if type(error) is AssertionError else f"{type(error).__name__}: {error}"
            raise BrokenPromiseError(
                f"{case.subject} breaks a promise\n  promised: {self.sentence}\n  found:    {found or 'otherwise'}\n"
                f"  to do:    {self.advice}"
            ) from error


def expect(kept: bool, found: str) -> None:
    """Say what was found where a promise is not kept.

    Raises:
        AssertionError: ``found``; :class:`Promise` puts the promise and the advice around it.
    """
    if not kept:
        raise AssertionError(found)


def expect_frozen(part: Any) -> None:
    """Expect that nothing can be set on an object.

    Raises:
        AssertionError: An attribute could be set.
    """
    try:
        part.anything = 1
    except (FrozenInstanceError, AttributeError):
        return
    raise AssertionError("an attribute could be set")


def promise(advice: str) -> Callable[[Callable[[C], None]], Promise[C]]:
    """Make a promise of a function that asserts it; the first line of its docstring is the sentence.

    Args:
        advice: What to do where it is broken.
    """

    def made(holds: Callable[[C], None]) -> Promise[C]:
        return Promise((holds.__doc__ or "").partition("\n")[0], advice, holds)

    return made


def check_all(promises: Sequence[Promise[C]], case: C) -> None:
    """Check every promise; where the first one is broken the others are not tried.

    Args:
        promises: The first one is what the others build on.
        case: What they are checked on.

    Raises:
        BrokenPromiseError: All that is broken, one paragraph each; the first one's traceback is attached.
    """
    broken: list[BrokenPromiseError] = []
    for number, one in enumerate(promises):
        try:
            one(case)
        except BrokenPromiseError as error:
            broken.append(error)
            if number == 0:
                break
    if broken:
        told = "\n".join(str(error) for error in broken)
        count = f"{len(broken)} of {len(promises)} promises broken"
        raise BrokenPromiseError(f"{count}\n{told}") from broken[0].__cause__
