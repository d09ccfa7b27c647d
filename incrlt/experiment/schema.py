"""From an experiment file to a checked :class:`~incrlt.experiment.sections.Experiment`, or to all that is wrong.

``load("experiments/quickstart.yaml")`` reads a file, lays it over its base, applies overrides, and returns a frozen
experiment, or raises one :class:`~incrlt.errors.UserError` that lists everything that is wrong, before any data are
read and without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from incrlt.experiment import explain, yamlfile
from incrlt.experiment.clashes import clashes
from incrlt.experiment.sections import Experiment


def load(path: str | Path, overrides: Sequence[str] = (), *, with_data: bool = True) -> Experiment:
    """Read, merge and validate an experiment file.

    Args:
        path: The YAML file.
        overrides: ``section.key=value`` strings, applied in order over the file.
        with_data: Check that the classes can be split so, for which a folder is listed; a finished run can do without.

    Raises:
        UserError: Everything that is wrong, one clear sentence each.
    """
    path = Path(path)
    values = yamlfile.merge(yamlfile.read(path), yamlfile.overrides(overrides))
    where = f"{path} with its overrides" if overrides else str(path)
    experiment = parse(values, where, with_data=with_data)
    experiment._source = path
    experiment._overrides = tuple(overrides)
    return experiment


def parse(
    values: Mapping[str, object], where: str = "the experiment", *, with_data: bool = True
) -> Experiment:
    """Validate a mapping of sections.

    Args:
        values: Nested plain data, as an experiment file has it.
        where: What to call it in an error.
        with_data: As in :func:`load`.

    Raises:
        UserError: Everything that is wrong, one clear sentence each.
    """
    try:
        experiment = Experiment.model_validate(dict(values))
    except ValidationError as error:
        raise explain.user_error(where, explain.sentences(error, Experiment, values)) from error
    problems = clashes(experiment, with_data)
    if problems:
        raise explain.user_error(where, problems)
    return experiment
