"""The ranges of hyper-parameters, held where an object is made in Python: the rules and sentences of YAML.

An annotation made of the words of ``incrlt.experiment.fields`` says what a value may be. For YAML
``incrlt.experiment.methods`` reads it from the source; here it is read from the class. Arguments of other types (model,
optimizer, plugins) are passed over.
Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from incrlt.experiment import explain
from incrlt.experiment import methods as resolve
from incrlt.experiment.fields import ALIASES


class Values(BaseModel):
    """Base of the models that values are held to: no silent conversion, only finite numbers."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def check_fields(part: Any) -> None:
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
    annotations = {
        name: parameter.annotation
        for name, parameter in inspect.signature(init).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }

    @functools.cache  # made when first asked for: importing a strategy builds no models
    def rules() -> type[Values]:
        return _model(init.__qualname__, annotations)

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **settings: Any) -> None:
        _check(type(self), rules(), settings)
        init(self, *args, **settings)

    return checking


@functools.lru_cache(maxsize=256)
def _rules_of_fields(cls: Any) -> type[Values]:
    return _model(cls.__qualname__, {field.name: field.type for field in dataclasses.fields(cls)})


def _model(name: str, annotations: Mapping[str, Any]) -> type[Values]:
    """Return the model of all hyper-parameters among the annotations; none of them has to be given."""
    known = {key: (_type_of(annotation), None) for key, annotation in annotations.items()}
    kept = {key: rule for key, rule in known.items() if rule[0] is not None and resolve.is_parameter(key)}
    fields: dict[str, Any] = kept
    return create_model(name, __base__=Values, **fields)


def _type_of(annotation: Any) -> Any | None:
    """Return the type of a hyper-parameter, None for any other argument."""
    if isinstance(annotation, str):
        return resolve.spelled(annotation)
    union = get_origin(annotation) in (Union, types.UnionType)
    words = (*ALIASES.values(), type(None))
    parts = get_args(annotation) if union else (annotation,)
    return annotation if all(part in words or get_origin(part) is Literal for part in parts) else None


def _check(cls: type, rules: type[Values], values: Mapping[str, Any]) -> None:
    given = {name: _plain(values[name]) for name in rules.model_fields if name in values}
    try:
        rules.model_validate(given)
    except ValidationError as error:
        raise explain.user_error(cls.__name__, explain.sentences(error, rules, given)) from None


def _plain(value: Any) -> Any:
    """Return numbers of NumPy and paths as Python's own; only the check sees them so."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)
