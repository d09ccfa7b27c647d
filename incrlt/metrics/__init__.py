"""Metrics of continual and long-tailed learning, computed with numpy from saved counts.

Everything starts from one :class:`StreamRecord`: after each experience, how many test images of each true
class were predicted as each class. A metric fix therefore never needs a training run again. Every value is in
percent, carries the name of its convention, and is ``None`` where it is undefined (first experience, empty
group).
"""

from __future__ import annotations

from incrlt.metrics.accuracy import (
    accuracy_matrix,
    average_incremental_accuracy,
    class_accuracy,
    seen_accuracy,
)
from incrlt.metrics.confusion import old_new_confusion
from incrlt.metrics.forgetting import backward_transfer, class_forgetting, forgetting
from incrlt.metrics.groups import (
    accuracy_by_group,
    class_groups,
    forgetting_by_group,
    forgetting_by_group_and_age,
)
from incrlt.metrics.record import (
    StreamRecord,
    load_confusions,
    load_records,
    main_readout,
    save_classes,
    save_confusions,
)
from incrlt.metrics.results import write_results
from incrlt.metrics.summary import CONVENTIONS, class_rows, experience_rows, summarise

__all__ = [
    "CONVENTIONS",
    "StreamRecord",
    "accuracy_by_group",
    "accuracy_matrix",
    "average_incremental_accuracy",
    "backward_transfer",
    "class_accuracy",
    "class_forgetting",
    "class_groups",
    "class_rows",
    "experience_rows",
    "forgetting",
    "forgetting_by_group",
    "forgetting_by_group_and_age",
    "load_confusions",
    "load_records",
    "main_readout",
    "old_new_confusion",
    "save_classes",
    "save_confusions",
    "seen_accuracy",
    "summarise",
    "write_results",
]
