"""Validation errors as sentences for people: which field, what was given, what is allowed, what to do."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from incrlt.errors import UserError, cut, did_you_mean
from incrlt.experiment import methods
from incrlt.experiment.fields import LARGEST, LARGEST_COUNT, LARGEST_SIZE

MOST: Final = 20
"""Problems listed at most; more only hide the first."""
LONGEST: Final = 60
"""Characters of a value that are shown."""
LONGEST_SENTENCE: Final = 1_500
"""Characters of a problem that are shown; what is longer has a user's text in it."""
TRUTH: Final = {"yes": "true", "on": "true", "no": "false", "off": "false", "true": "true", "false": "false"}
"""What old YAML and other languages write for a truth value."""
WORDS: Final[dict[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
HINTS: Final[dict[str, str]] = {
    "device": "auto, cpu, cuda or cuda:N",
    "output.name": "a name of letters, digits and _.- (at most 100), or null",
    "benchmark.order": "shuffled, ordered, reverse, or a list of all class ids",
    "benchmark.protocol": "a name such as lfh-shuffled-10 (at most 100 characters, no spaces), or null",
    "seeds.all": "a whole number from 0 to 4294967295",
}
"""Where the type alone would not say it well."""


def user_error(where: str, problems: Sequence[str]) -> UserError:
    """Return one error that lists all problems.

    Args:
        where: The file, or what else is wrong.
        problems: One sentence each, at least one.
    """
    where = cut(where, LONGEST_SENTENCE)
    if len(problems) == 1:
        return UserError(f"{where}: {cut(problems[0], LONGEST_SENTENCE)}")
    listed = [f"  - {cut(problem, LONGEST_SENTENCE)}" for problem in problems[:MOST]]
    if len(problems) > MOST:
        listed.append(f"  - and {len(problems) - MOST} more")
    return UserError("\n".join([f"{where} has {len(problems)} problems:", *listed]))


def sentences(error: ValidationError, model: type[BaseModel], values: Mapping[str, object]) -> list[str]:
    """Return one sentence per field that is wrong.

    Args:
        error: What pydantic raised; it may have several entries for one field (one per member of a union).
        model: The model that was validated.
        values: The input.
    """
    found: dict[str, str] = {}
    for line in error.errors(include_url=False, include_context=True):
        path, field, owner = _locate(model, line["loc"], values)
        key = ".".join(path)
        if key not in found:  # looking for what was meant takes its time: what is not shown does without
            found[key] = (
                _sentence(line, path, field, owner, values) if len(found) < MOST else f"{show(key)} is wrong."
            )
    return list(found.values())


def show(value: object) -> str:
    """Return a value as YAML would name it, short and on one line.

    Example:
        >>> show(True), show(None), show("lr"), show([1, 2])
        ('true', 'null', "'lr'", 'a list of 2')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (dict, list, tuple)):
        return f"{'a mapping' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST else repr(value[:LONGEST]) + "..."
    return repr(value)[:LONGEST]


def allowed(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Say in words what a type admits.

    Example:
        >>> allowed(Literal["cosine", "linear"] | None)
        'one of cosine, linear, or null'
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        if title := next((rule.title for rule in extra if isinstance(rule, FieldInfo) and rule.title), None):
            return str(title)
        return allowed(inner, [*extra, *metadata])
    if origin in (Union, types.UnionType):
        parts = [allowed(part, metadata) for part in get_args(annotation)]
        return ", or ".join(parts)
    if origin is Literal:
        values = [value if isinstance(value, str) else show(value) for value in get_args(annotation)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if origin in (tuple, list):
        return _items(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, methods.Entry):
        return "a mapping with a name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping of {', '.join(annotation.model_fields)}"
    return WORDS.get(annotation, "another value") + _bounds(metadata)


def _items(kinds: tuple[object, ...]) -> str:
    """Say what a list holds: any number of one kind, or so many of these kinds."""
    if len(kinds) == 1 or kinds[1:] == (...,):
        return f"a list of items that are each {allowed(kinds[0])}"
    words = [allowed(kind) for kind in kinds]
    return f"a list of {len(words)} items: {'; '.join(words)}"


def _bounds(metadata: Sequence[object]) -> str:
    """Say the range that constraints leave, however deep they are packed."""
    flat = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
    lower = [f">= {rule.ge}" for rule in flat if isinstance(rule, annotated_types.Ge)]
    lower += [f"> {rule.gt}" for rule in flat if isinstance(rule, annotated_types.Gt)]
    upper = [f"<= {rule.le}" for rule in flat if isinstance(rule, annotated_types.Le)]
    upper += [f"< {rule.lt}" for rule in flat if isinstance(rule, annotated_types.Lt)]
    text = " and ".join(lower + upper)
    if any(isinstance(rule, annotated_types.MinLen) for rule in flat):
        text += "that is not empty"
    return f" {text}" if text else ""


def _locate(
    model: type[BaseModel], location: Sequence[int | str], values: object
) -> tuple[list[str], FieldInfo | None, type[BaseModel]]:
    """Follow an error's location through the models; what follows a plain field is pydantic's business.

    Returns:
        The path, the field (None for an unknown key), and the model that has it.
    """
    path: list[str] = []
    field: FieldInfo | None = None
    for step in location:
        path.append(str(step))
        field = model.model_fields.get(str(step))
        values = values.get(step) if isinstance(values, Mapping) else None
        if field is None or len(path) == len(location):
            break
        inner = _model_of(str(step), field, values)
        if inner is None:
            break
        model, field = inner, None
    return path, field, model


def _model_of(key: str, field: FieldInfo, value: Any) -> type[BaseModel] | None:
    """Return the model of a section's content; an entry's is decided by its name."""
    for part in (field.annotation, *get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, methods.Entry):
            name = value.get("name", "single") if isinstance(value, Mapping) else value.name
            return methods.schema(key, name)  # type: ignore[arg-type]
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _sentence(
    line: Any, path: list[str], field: FieldInfo | None, owner: type[BaseModel], values: Mapping[str, Any]
) -> str:
    dotted = ".".join(path)
    if line["type"] == "value_error":
        reason = line["ctx"]["error"]
        return str(reason) if isinstance(reason, UserError) else f"{dotted} {reason}"
    if line["type"] == "invalid_key":
        return f"keys must be names; got {show(line['input'])}{_below(path)}. Remove it, or put it in quotes."
    if field is None:
        return _unknown_key(path, owner)
    given = _given(path, values)
    description = HINTS.get(dotted) or allowed(field.annotation, field.metadata)
    if line["type"] == "too_long":
        most = line["ctx"]["max_length"]
        return f"{dotted} must be {description} (at most {most}); got {show(given)}."
    for bound in (LARGEST, LARGEST_COUNT, LARGEST_SIZE):
        if not (isinstance(given, (int, float)) and given > bound):
            description = re.sub(rf" and <= {bound}\b", "", description)  # nobody else needs to read of it
    if line["type"] == "missing" and len(line["loc"]) == len(path):  # else a list is too short
        return f"{dotted} is missing; give {description}."
    item = next((step for step in line["loc"][len(path) :] if isinstance(step, int)), None)
    which = f" (item {item + 1} is {show(line['input'])})" if item is not None else ""
    return f"{dotted} must be {description}; got {show(given)}{which}.{_hint(dotted, given, field)}"


def _unknown_key(path: list[str], owner: type[BaseModel]) -> str:
    key, known = path[-1], list(owner.model_fields)
    shown = show(key)
    place = f"section '{path[-2]}'" if len(path) > 1 else "an experiment"
    if issubclass(owner, methods.Entry):
        place = f"{path[-2]} {owner.__name__}"
    return f"{shown} is not a key of {place}; allowed: {', '.join(known)}.{did_you_mean(key, known)}"


def _below(path: list[str]) -> str:
    return f" in section '{path[-2]}'" if len(path) > 1 else ""


def _given(path: list[str], values: object) -> object:
    for step in path:
        values = values.get(step) if isinstance(values, Mapping) else None
    return values


def _hint(path: str, given: object, field: FieldInfo) -> str:
    """Return what to do, where there is something cleverer to say than what is allowed."""
    if path == "benchmark.imbalance_ratio" and isinstance(given, (int, float)) and 0 < given < 1:
        return f" It is the largest class over the smallest. Did you mean {1 / given:.6g}?"
    takes = _parts(field.annotation)
    if isinstance(given, str):
        words = [value for part in takes for value in get_args(part) if isinstance(value, str)]
        return did_you_mean(given, words) if words else _unquote(given, bool in takes)
    if str in takes and isinstance(given, (bool, int, float)):
        return " Put it in quotes."
    return ""


def _parts(annotation: object) -> tuple[Any, ...]:
    """Return the members of a union, or what is no union alone; constraints put aside."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(get_args(one)[0] if get_origin(one) is Annotated else one for one in members)


def _unquote(given: str, truth: bool) -> str:
    """Say what a text would be that stands where a number or a truth value should."""
    if truth and given.lower() in TRUTH:
        return f" Write {TRUTH[given.lower()]}."
    try:
        float(given)
    except ValueError:
        return ""
    return " Remove the quotes."
