from __future__ import annotations

import pytest

from incrlt.errors import UserError
from incrlt.metrics import published, summarise


def summary(**numbers):
    return {"numbers": {name.replace("__", "/"): value for name, value in numbers.items()}}


LUCIR = summary(average_incremental_accuracy__over_tasks=33.59, last_accuracy__over_tasks=33.0)


def test_rows_are_the_published_table():
    table = {(row.protocol, row.method): row for row in published.rows() if row.status == "ok"}
    assert table["lfh-shuffled-10", "LUCIR"].figures == {"average": 34.59, "last": 32.5}
    assert table["lfh-ordered-5", "PODNet+GPA"].figures == {"average": 49.2, "last": 32.5}
    assert table["offline", "RIDE-3"].figures == {"overall": 48.6, "many": 67.0, "medium": 49.9, "few": 25.7}
    assert {row.status for row in published.rows()} == {"ok", "unverified", "rerun"}


def test_remarks_keep_what_follows_a_comma():
    notes = {row.method: row.note for row in published.for_protocol("offline")}
    assert notes["RIDE-3"] == "RIDE model zoo, 200 epochs, with expert assignment"
    assert notes["SHIKE-3"] == "official log, 200 epochs"


def test_a_row_with_a_key_that_means_nothing_is_refused():
    row = "- {protocol: offline, method: X, overall: 1, status: ok, note: a, b}"
    with pytest.raises(UserError, match=r"row X of offline: unknown b; allowed are .*Quote a note"):
        published.parse(row)


@pytest.mark.parametrize(
    ("protocol", "method", "experts", "name"),
    [
        ("offline", "Finetune", {"name": "single", "num_experts": 1}, "CE"),
        ("offline", "Finetune+RIDE", {"num_experts": 3, "teacher": None}, "RIDE-3"),
        ("offline", "Finetune+RIDE+router", {"num_experts": 4, "teacher": "runs/a"}, "RIDE-4+distill"),
        ("offline", "Finetune+SHIKE", {"num_experts": 3}, "SHIKE-3"),
        ("offline", "Finetune+balanced softmax", {"num_experts": 1}, "Finetune+balanced softmax"),
        ("offline", "Finetune+RIDE", None, "Finetune+RIDE"),
        ("lfh-shuffled-10", "Finetune", {"num_experts": 1}, "Finetune"),
    ],
)
def test_offline_rows_are_named_by_experts(protocol, method, experts, name):
    assert published.row_name(protocol, method, experts) == name


@pytest.mark.parametrize(
    ("protocol", "method", "training", "said"),
    [
        ("lfh-shuffled-10", "LUCIR", {"epochs": 160}, None),
        ("lfh-shuffled-10", "LUCIR", {"epochs": 10}, "10 epochs per experience instead of 160"),
        ("lfh-shuffled-10", "LUCIR+GVAlign", {"epochs": 160}, "160 epochs per experience instead of 500"),
        ("lfh-shuffled-10", "Replay", {"epochs": 10}, "10 epochs per experience instead of 160 to 500"),
        (
            "lfs-20",
            "DGR",
            {"epochs": 10, "base_epochs": 40},
            "40 epochs in the base experience and 10 in each later one instead of 160",
        ),
        ("offline", "RIDE-3", {"epochs": 40}, "40 epochs per experience instead of 200"),
        ("offline", "RIDE-3", {"epochs": 40, "base_epochs": 200}, None),
        ("offline", "CE", {"epochs": 40}, None),  # its source does not say
        ("digits-2", "LUCIR", {"epochs": 1}, None),
        ("lfh-shuffled-10", "LUCIR", {"epochs": "x"}, None),
    ],
)
def test_another_length_is_said(protocol, method, training, said):
    assert published.differing_epochs(protocol, method, training) == said


def test_what_differs_names_data_memory_and_length():
    protocol = {"name": "lfh-shuffled-10", "dataset": "cifar10", "memory": {"per_class": 5}}
    assert published.what_differs(protocol, "LUCIR", {"epochs": 10}) == [
        "dataset cifar10 instead of cifar100",
        "exemplars per class 5 instead of 20",
        "10 epochs per experience instead of 160",
    ]


def test_another_memory_is_said_but_for_offline_runs():
    def said(name, memory):
        return published.differing_setting({"name": name, "memory": memory})

    assert said("lfh-shuffled-10", {}) == ["no exemplars instead of 20 per class"]
    assert said("lfh-shuffled-10", {"total": 2000}) == ["2000 exemplars in all instead of 20 per class"]
    assert said("offline", {}) == []


def test_distance_is_ours_minus_published_under_the_task_mean():
    line = published.distance("lfh-shuffled-10", "lucir", LUCIR)
    assert "average_incremental_accuracy/over_tasks 33.59 - 34.59 = -1.00" in line
    assert "last_accuracy/over_tasks 33.00 - 32.50 = +0.50" in line


def test_verified_row_is_preferred_to_a_rerun():
    assert "39.00" in published.distance("lfh-shuffled-10", "LUCIR + LWS", LUCIR)


def test_status_and_note_stand_in_the_line():
    assert "unverified" in published.distance("lfh-ordered-5", "DGR", LUCIR)
    assert "500 epochs" in published.distance("lfh-shuffled-5", "lucir+gvalign", LUCIR)


@pytest.mark.parametrize(("protocol", "method"), [("lfh-shuffled-10", "finetune"), ("lfs-10", "LUCIR")])
def test_nothing_published_is_none(protocol, method):
    assert published.distance(protocol, method, LUCIR) is None


def test_undefined_number_is_a_dash():
    line = published.distance("lfs-20", "DGR", summary(average_incremental_accuracy__over_tasks=None))
    assert "– (published 34.35)" in line


def test_works_on_a_real_summary(worked_example):
    assert "63.33 - 34.59 = +28.74" in published.distance(
        "lfh-shuffled-10", "LUCIR", summarise(worked_example)
    )


def test_setting_that_differs_is_named():
    same = {"dataset": "CIFAR-100", "imbalance_ratio": 100.0, "memory": {"per_class": 20}}
    assert published.differing_setting(same) == []
    assert published.differing_setting({}) == []
    other = {"dataset": "digits", "imbalance_ratio": 50, "memory": {"per_class": 5}}
    assert published.differing_setting(other) == [
        "dataset digits instead of cifar100",
        "imbalance_ratio 50 instead of 100",
        "exemplars per class 5 instead of 20",
    ]


def test_large_data_sets_have_rows_of_their_own():
    """A run on ImageNet-LT was set against CIFAR-100's rows, with a remark."""
    assert (
        published.table_of({"name": "offline", "dataset": "imagenet-lt@bb26d19097"}) == "imagenet-lt/offline"
    )
    assert published.table_of({"name": "offline", "dataset": "CIFAR-100"}) == "offline"
    subset = {
        "name": "lfh-shuffled-10",
        "dataset": "imagenet-subset-lt@1",
        "imbalance_ratio": 100,
        "memory": {"per_class": 20},
    }
    row = published.row_of(published.table_of(subset), "LUCIR+LWS")
    assert (row.figures["average"], row.figures["last"], row.epochs) == (47.96, 40.10, 90)
    assert published.what_differs(subset, "LUCIR+LWS", {"epochs": 90}) == []
    assert published.what_differs(subset, "LUCIR+LWS", {"epochs": 10}) == [
        "10 epochs per experience instead of 90"
    ]
    assert published.row_of("imagenet-lt/offline", "RIDE-3") is None


def test_every_large_data_set_has_a_table_of_its_own():
    from incrlt.experiment.sections import FROM_FILES  # which metrics do not import

    assert set(published.OWN_TABLES) == FROM_FILES - {"folder"}
