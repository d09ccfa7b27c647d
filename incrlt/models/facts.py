"""What tensors alone do not say, as part of a module's ``state_dict``.

A head with 5 classes and one with 12 have weights of one shape, and so have networks with and without a last ReLU: a
state that only holds tensors loads without a word and answers something else. Modules with :class:`Facts` write plain
data beside their tensors (torch's ``get_extra_state``), and read them before their tensors are loaded, so that they can
grow to them or refuse them. The data are JSON in a uint8 tensor: whoever copies, moves or compares the tensors of a
state goes on working.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.files import Plain
from incrlt.roles import State

FORMAT = 1
"""Raised whenever facts can no longer be read by the code of before."""

SUFFIX = "_extra_state"
"""How torch names them in a state."""


class Facts(nn.Module):
    """A module whose state says more than tensors; base of network, heads, router and momentum encoder."""

    def facts(self) -> Plain:
        """Return what the state must say, as data that JSON holds."""
        raise NotImplementedError

    def take_facts(self, facts: Plain, state: State, prefix: str) -> None:
        """Become what the facts say, before the tensors are loaded; called with nothing changed yet.

        Args:
            facts: As :meth:`facts` has written them.
            state: The whole state that is loaded.
            prefix: What the names of this module's tensors start with in it.

        Raises:
            UserError: This module cannot become that.
        """
        raise NotImplementedError

    def take_older(self, state: State, prefix: str) -> None:
        """Check a state without facts, from before they were written; by default it is taken as it is.

        Raises:
            UserError: Its tensors alone would load and mean nothing.
        """

    def get_extra_state(self) -> Tensor:
        """Return the facts (torch's name for it)."""
        text = json.dumps({"format": FORMAT, **self.facts()}, default=str)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Do nothing: facts are taken before tensors, not after."""

    def _load_from_state_dict(
        self,
        state_dict: State,
        prefix: str,
        local_metadata: State,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + SUFFIX
        if key in state_dict:
            self.take_facts(read(state_dict[key], type(self).__name__), state_dict, prefix)
        elif any(name.startswith(prefix) for name in state_dict):
            self.take_older(state_dict, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in missing_keys:  # an older state, and it was taken
            missing_keys.remove(key)


def read(told: Any, owner: str) -> Plain:
    """Return the facts that :meth:`Facts.get_extra_state` wrote.

    Args:
        told: Its result.
        owner: Class of the module, for messages.

    Raises:
        UserError: Damaged, or written by code newer than this.
    """
    try:
        facts = json.loads(bytes(told.cpu().tolist()).decode())
        written = facts.pop("format")
    except (AttributeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"the state of this {owner} is damaged: what it says of itself cannot be read ({error})."
        ) from error
    if written != FORMAT:
        raise UserError(
            f"the state of this {owner} was written by a newer incrlt (format {written}, this one reads {FORMAT}); "
            "update incrlt."
        )
    found: Plain = facts
    return found


def tensors_alone(state: State) -> State:
    """Return a state without facts, as checkpoints keep it: they say the same in words of their own."""
    return {name: value for name, value in state.items() if not name.endswith(SUFFIX)}


def facts_alone(state: State) -> Plain:
    """Return the facts of a state."""
    return {name: value for name, value in state.items() if name.endswith(SUFFIX)}
