"""What a method's class tells about itself, and the questions that it answers without being imported.

Class attributes with plain values, each optional, inherited as Python does unless said otherwise:

``title``
    Name in tables, ``"LUCIR"``; or pairs of a text and a condition, joined by ``+``. Not inherited: a subclass is
    another method, and is called by its class name unless it has a title.
``offline_title``
    What published rows of one experience call it, where that differs.
``needs``
    What it cannot do without, to the condition under which: ``{"cosine": "margin_ranking or mimic_scores"}``. Needs of
    base classes hold too. See :data:`NEEDS`; ``needs_cosine`` and ``needs_memory`` are short for ``"True"``.
``later_stages``
    Triples of a name, a length in epochs (a number, or an expression) and the data it draws from, ``stream`` or
    ``exemplars``: what trains after the first stage of each experience. A class that writes its own ``stages`` writes
    its own ``later_stages``. A rebalancing or last stage that says nothing trains its ``epochs`` on the stream.
``first_epochs``
    Of a rebalancing stage that changes the length of the first stage: an expression.
``clashes``
    A condition to the sentence that refuses it; ``{name}`` in a sentence is that value. Clashes of bases hold too.
``usual``
    A hyper-parameter to the expression of its default, where that follows from others.
``traits``
    A name to a condition that others may ask for, as ``experts.second_heads``.
``keeps_images``
    It trains on all images of all experiences so far.

Conditions and lengths are expressions (``incrlt.experiment.expressions``) over the method's hyper-parameters; clashes
see the sections of the experiment too (``training.step``, ``experts.name``, ``memory``), lengths ``num_old``,
``num_new``, ``images`` and ``train_epochs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from incrlt.errors import UserError
from incrlt.experiment.expressions import NotPlainError, evaluate, grounds
from incrlt.experiment.source import ClassSource
from incrlt.files import Plain

NEEDS: Final[dict[str, str]] = {
    "cosine": "a cosine head",
    "memory": "exemplars",
    "tensors": "images as tensors on the device",
}
"""What a method may need, in words."""
SHORT: Final[dict[str, str]] = {"needs_cosine": "cosine", "needs_memory": "memory"}
"""Class attributes that say the same when they are true."""
DATA: Final = ("stream", "exemplars")
"""What a later stage draws from."""
STAGE_METHODS: Final = ("stages", "stage")
"""Methods that make later stages."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class LaterStage:
    """A stage after the first, as long as it is in one experience."""

    name: str
    epochs: int
    data: str


@dataclass(frozen=True)
class Declared:
    """What source files say about a method."""

    kind: str
    """``strategy``, ``experts``, ``rebalance`` or ``router``."""
    name: str
    """As written in YAML."""
    module: str
    """Importable module name."""
    class_name: str
    """Class in that module."""
    description: str
    """First line of the class docstring."""
    parameters: MappingProxyType[str, tuple[Any, Any]]
    """Hyper-parameter to (type, default), those of bases first; the default ``...`` has to be given."""
    help: MappingProxyType[str, str]
    """Hyper-parameter to its line of documentation, where there is one."""
    facts: MappingProxyType[str, Any]
    """Plain class attributes, such as ``needs_memory = True``, its own over those of its bases."""
    ancestors: tuple[ClassSource, ...]
    """The class and its bases, in the order in which Python looks attributes up, without the template."""
    faults: tuple[str, ...] = ()
    """Why it cannot be made from YAML, one clause each; empty where it can."""

    @property
    def place(self) -> str:
        """How sentences call it: ``strategy 'lucir'``."""
        return f"{self.kind} '{self.name}'"

    # ------------------------------------------------------------------ what it is called

    def title(self, settings: Settings) -> str:
        """Return what tables call it with these hyper-parameters; empty where the strategy's name says it all."""
        own = self.ancestors[0].facts.get("title")
        return self.class_name if own is None else self._joined(own, settings)

    def offline_title(self, settings: Settings) -> str | None:
        """Return what the rows of one experience call it; None where they do not, or settings are missing."""
        told = self.facts.get("offline_title")
        try:
            return None if told is None else self._joined(told, settings)
        except KeyError:
            return None

    def _joined(self, told: Any, settings: Settings) -> str:
        pairs = ((told, "True"),) if isinstance(told, str) else told
        return "+".join(str(text).format_map(settings) for text, when in pairs if self._holds(when, settings))

    def _holds(self, condition: str, settings: Settings) -> bool:
        return bool(self._value(condition, dict.fromkeys(self.parameters) | dict(settings)))

    # ------------------------------------------------------------------ what it needs

    def needs(self, settings: Settings) -> dict[str, Plain]:
        """Return what it needs with these hyper-parameters, each with the ones that make it so (none: always).

        Example:
            LUCIR with ``mimic_scores`` 2 and no margin ranking gives ``{"cosine": {"mimic_scores": 2}}``.
        """
        found: dict[str, Plain] = {}
        for need, condition in self._all("needs").items():
            if need not in NEEDS:
                raise self._wrong(f"needs {need!r}; known are {', '.join(NEEDS)}")
            if self._value(condition, settings):
                found[need] = grounds(condition, settings)
        for fact, need in SHORT.items():
            if self.facts.get(fact) is True:
                found[need] = {}
        return found

    def traits(self, settings: Settings) -> dict[str, bool]:
        """Return its traits, and whether each holds."""
        return {name: bool(self._value(text, settings)) for name, text in self._all("traits").items()}

    def count(self, name: str, settings: Settings) -> int | None:
        """Return a number it has as a hyper-parameter or as a class attribute, such as ``num_experts``."""
        found = settings.get(name, self.facts.get(name))
        return found if isinstance(found, int) else None

    def clashes(self, values: Settings) -> list[str]:
        """Return what does not go together, one sentence each.

        Args:
            values: Its hyper-parameters and the sections of the experiment.
        """
        told = self._all("clashes").items()
        return [sentence.format_map(values) for condition, sentence in told if self._value(condition, values)]

    def usual(self, given: Settings) -> Plain:
        """Return defaults that follow from other hyper-parameters, of those that are not given."""
        known = {key: default for key, (_, default) in self.parameters.items()} | dict(given)
        told = self._all("usual").items()
        found = {}
        for key, text in told:
            if key not in given:
                try:
                    found[key] = evaluate(text, known)
                except NotPlainError:  # what is given has the wrong type, and is refused for that
                    continue
        return found

    # ------------------------------------------------------------------ how long it trains

    @property
    def tells_its_stages(self) -> bool:
        """The lengths it tells are those of the stages it makes: no class between writes stages and no lengths."""
        for cls in self.ancestors:
            if "later_stages" in cls.facts:
                return True
            if any(cls.has_method(name) for name in STAGE_METHODS):
                return self._by_convention
        return True

    @property
    def _by_convention(self) -> bool:
        return self.kind in ("rebalance", "router") and "epochs" in self.parameters

    def later_stages(self, values: Settings) -> list[LaterStage]:
        """Return the stages after the first in an experience, those without epochs left out.

        Args:
            values: Hyper-parameters, and ``num_old`` and ``num_new`` classes of the experience.
        """
        told = self.facts.get("later_stages")
        if told is None:
            told = ((self.class_name, "epochs", "stream"),) if self._by_convention else ()
        stages = [self._stage(line, values) for line in told]
        return [stage for stage in stages if stage.epochs]

    def _stage(self, line: object, values: Settings) -> LaterStage:
        if not isinstance(line, tuple) or len(line) != 3 or line[2] not in DATA:
            raise self._wrong(
                f"later_stages holds {line!r}; each is (name, epochs, {' or '.join(map(repr, DATA))})"
            )
        name, length, data = line
        epochs = self._value(length, values) if isinstance(length, str) else length
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise self._wrong(
                f"stage {name!r} has {epochs!r} epochs; give a whole number, or an expression of one"
            )
        return LaterStage(str(name), epochs, data)

    def first_epochs(self, values: Settings) -> int:
        """Return the epochs of the first stage, which a rebalancing stage may change.

        Args:
            values: As for :meth:`later_stages`, and ``images`` of the experience and ``train_epochs``.
        """
        told = self.facts.get("first_epochs", "train_epochs")
        return int(self._value(told, values))

    def check(self, settings: Settings) -> None:
        """Refuse what cannot be worked out, before a plan or a table asks for it.

        Raises:
            UserError: The class, and what it declares.
        """
        values = {**settings, "num_old": 1, "num_new": 1, "images": 1, "train_epochs": 1}
        self.title(settings)
        self.later_stages(values)
        self.first_epochs(values)

    # ------------------------------------------------------------------ how it is read

    def _all(self, name: str) -> dict[str, str]:
        """Return a mapping of the class with those of its bases below it."""
        merged: dict[str, str] = {}
        for cls in reversed(self.ancestors):
            merged |= cls.facts.get(name) or {}
        return merged

    def _value(self, text: str, values: Settings) -> Any:
        try:
            return evaluate(str(text), values)
        except NotPlainError as error:
            raise self._wrong(f"{text!r} cannot be worked out ({error})") from error

    def _wrong(self, what: str) -> UserError:
        return UserError(
            f"{self.place}: its class {self.class_name} declares what is not understood: {what}. Mend the class, see "
            "incrlt.experiment.declared."
        )
