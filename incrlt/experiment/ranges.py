"""The ranges of hyper-parameters, held where an object is made in Python: the rules and sentences of YAML.

An annotation that ``incrlt.experiment.annotations`` understands says what a value may be. For YAML it is read from the
source; here it is read from the class. Arguments of other types (model,
optimizer, plugins) are passed over.
Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from incrlt.experiment import explain, methods
from incrlt.experiment.annotations import live
from incrlt.files import Plain


class Values(BaseModel):
    """Base of the models that values are held to: no silent conversion, only finite numbers."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def check_fields(part: object) -> None:
    """Refuse a dataclass whose fields lie outside of what their annotations admit; call it in ``__post_init__``.

    Args:
        part: An expert method, a stage or a router.

    Raises:
        UserError: Class, field, what was given, what is allowed.
    """
    cls: Any = type(part)
    _check(cls, _rules_of_fields(cls), vars(part))


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that first refuses keyword-only arguments outside of what their annotations admit.

    Args:
        init: ``__init__`` of a strategy.
    """
    given = {
        name: parameter.annotation
        for name, parameter in inspect.signature(init).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }

    @functools.cache  # made when first asked for: importing a strategy builds no models
    def rules() -> type[Values]:
        return _model(init.__qualname__, given, methods.is_parameter)

    @functools.wraps(init)
    def checking(self: object, *args: object, **settings: object) -> None:
        _check(type(self), rules(), settings)
        init(self, *args, **settings)

    return checking


@functools.lru_cache(maxsize=256)
def _rules_of_fields(cls: Any) -> type[Values]:
    return _model(cls.__qualname__, {field.name: field.type for field in dataclasses.fields(cls)}, _is_field)


def _is_field(key: str) -> bool:
    return key != "name" and key[0] != "_"


def _model(name: str, given: Mapping[str, object], is_parameter: Callable[[str], bool]) -> type[Values]:
    """Return the model of all hyper-parameters among the annotations; none of them has to be given."""
    known = {key: (live(annotation), None) for key, annotation in given.items()}
    kept = {key: rule for key, rule in known.items() if rule[0] is not None and is_parameter(key)}
    fields: Plain = kept
    return create_model(name, __base__=Values, **fields)


def _check(cls: type, rules: type[Values], values: Mapping[str, object]) -> None:
    given = {name: _plain(values[name]) for name in rules.model_fields if name in values}
    try:
        rules.model_validate(given)
    except ValidationError as error:
        raise explain.user_error(cls.__name__, explain.sentences(error, rules, given)) from None


def _plain(value: object) -> object:
    """Return numbers of NumPy and paths as Python's own; only the check sees them so."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)
