"""Repairs that Avalanche 0.6 needs with today's torch, in one place; import before avalanche.

Importing this module filters two warnings users can do nothing about and refuses Avalanche versions whose
private names the template was not tested with. See ``tests/test_avalanche_seam.py`` for the names relied on.
"""

from __future__ import annotations

import sys
import warnings
from importlib import metadata

from incrlt.errors import UserError

# qpsolvers warns at import that no QP solver is there; only GEM would need one.
warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
warnings.filterwarnings("ignore", module="qpsolvers")


def check_version() -> None:
    """Raise unless Avalanche 0.6 is installed.

    Raises:
        UserError: Another release is installed; 0.7 announces the removal of names we override.
    """
    version = metadata.version("avalanche-lib")
    if not version.startswith("0.6."):
        raise UserError(
            f"incrlt works with avalanche-lib 0.6; {version} is installed. "
            "Run: pip install 'avalanche-lib>=0.6,<0.7'"
        )


def make_optimizers_picklable() -> None:
    """Restore ``torch.optim.sgd`` and its siblings, which torch deletes from its namespace.

    dill then pickles optimizer classes by value and fails, so Avalanche's own ``save_checkpoint`` raises for
    every strategy. Ours does not use it; this lets users' scripts do so.
    """
    import torch.optim

    for name, module in list(sys.modules.items()):
        parent, _, leaf = name.rpartition(".")
        if parent == "torch.optim" and not hasattr(torch.optim, leaf):
            setattr(torch.optim, leaf, module)


def keep_streams_whole() -> None:
    """Let Avalanche's loaders and metrics see the whole stream in each process of :func:`incrlt.processes.joined`.

    Its own mode gives each process a part of the stream and shares no gradients; ours shares the passes of each batch.
    """
    import torch.distributed
    from avalanche.distributed import distributed_helper

    from incrlt.processes import world

    def is_distributed(helper: object) -> bool:
        return torch.distributed.is_initialized() and world().size == 1

    def is_main_process(helper: object) -> bool:
        return not is_distributed(helper) or torch.distributed.get_rank() == 0

    helper = distributed_helper._DistributedHelperCls
    helper.is_distributed, helper.is_main_process = property(is_distributed), property(is_main_process)


check_version()
make_optimizers_picklable()
keep_streams_whole()
