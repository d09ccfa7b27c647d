"""scikit-learn's conventions, and the same numbers as ``incrlt update``."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from pictures import CLASSES, picture, write
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

import incrlt
from incrlt import LongTailClassifier
from incrlt.errors import UserError
from incrlt.lifecycle import update, versions

QUICK = {"model": "resnet8", "epochs": 2, "device": "cpu", "memory_per_class": 4, "strategy": "replay"}
SMALL = {"model.width": 4, "training.precision": "fp32"}


def small(**more):
    return LongTailClassifier(**{**QUICK, "settings": SMALL, **more})


def arrays(labels, first=0, number=4):
    images = [np.asarray(picture(label, index)) for label in labels for index in range(first, first + number)]
    return np.stack(images), np.repeat([CLASSES[label] for label in labels], number)


@pytest.fixture(scope="module")
def fitted():
    return small().fit(*arrays([3, 0, 2], number=8))


def test_the_digits_arrive_in_four_parts():
    digits = load_digits()
    pictures, labels = (digits.images * 15.9).astype("uint8"), digits.target
    train = np.arange(len(labels)) % 3 > 0
    model = LongTailClassifier(
        model="resnet8", epochs=5, device="cpu", settings={"training.precision": "fp32"}
    )
    for part in ([0, 1, 2, 3], [4, 5], [6, 7], [8, 9, 0]):
        now = train & np.isin(labels, part)
        model.partial_fit(pictures[now], labels[now])
    assert model.classes_.tolist() == list(range(10))
    assert model.n_pictures_seen_[0] == 2 * (train & (labels == 0)).sum()
    assert model.score(pictures[~train], labels[~train]) > 0.7  # chance is 0.1


def test_parameters_are_stored_as_they_are_and_clone_works():
    model = small(strategy={"name": "lucir", "margin": 0.4}, lr=0.05)
    again = clone(model)
    assert again.get_params() == model.get_params() and again is not model
    assert again.set_params(lr=0.2).lr == 0.2 and model.lr == 0.05
    assert not hasattr(clone(small().fit(*arrays([0, 1]))), "classes_")


def test_nothing_is_answered_before_something_is_learned():
    for call in (small().predict, small().predict_proba, small().score, small().save):
        with pytest.raises(NotFittedError, match="has learned nothing yet; call fit or partial_fit first"):
            call(arrays([0])[0])


def test_classes_are_sorted_and_probabilities_stand_under_them(fitted):
    assert fitted.classes_.tolist() == sorted([CLASSES[3], CLASSES[0], CLASSES[2]])
    pictures, labels = arrays([3, 0, 2], first=50)
    chances = fitted.predict_proba(pictures)
    assert np.allclose(chances.sum(1), 1) and chances.shape == (12, 3)
    answers = fitted.predict(pictures)
    assert (answers == fitted.classes_[chances.argmax(1)]).all()
    assert fitted.score(pictures, labels) == np.mean(answers == labels)
    assert incrlt.LongTailClassifier is LongTailClassifier


def test_fit_begins_anew_and_is_repeatable(fitted):
    pictures, labels = arrays([3, 0, 2], number=8)
    other = small().fit(*arrays([4, 5])).fit(pictures, labels)
    probe = arrays([0, 2, 3], first=70)[0]
    assert np.array_equal(other.predict_proba(probe), fitted.predict_proba(probe))
    assert other.classes_.tolist() == fitted.classes_.tolist()


def test_whole_numbers_and_text_stay_what_they_are():
    pictures, _ = arrays([0, 1])
    numbers = small(epochs=1).fit(pictures, np.repeat([11, 2], 4))
    assert numbers.classes_.tolist() == [2, 11] and numbers.predict(pictures).dtype.kind == "i"
    with pytest.raises(UserError, match="'2' and 2 have one name"):
        numbers.partial_fit(pictures[:1], ["2"])


def test_folders_lists_paths_arrays_and_datasets_are_the_same(tmp_path):
    folder = write(tmp_path / "birds", {"coot": 4, "heron": 4})
    files = sorted(folder.rglob("*.png"))
    names = [file.parent.name for file in files]
    (tmp_path / "list.txt").write_text("".join(f"{file} {file.parent.name}\n" for file in files))
    opened = [picture(CLASSES.index(file.parent.name), int(file.stem)) for file in files]
    dataset = torch.utils.data.StackDataset(opened, names)
    kinds = [(folder,), (str(tmp_path / "list.txt"),), (files, names), (np.array(files, dtype=str), names)]
    kinds += [(dataset,), (opened, names)]
    model = small(image_size=12, epochs=1)
    probe = arrays([0, 2], first=60)[0]
    expected = clone(model).fit(np.stack([np.asarray(p) for p in opened]), names).predict_proba(probe)
    for kind in kinds:
        found = clone(model).fit(*kind)
        assert np.array_equal(found.predict_proba(probe), expected), kind
    assert found.predict(folder).shape == (8,) and 0 <= found.score(folder) <= 1
    assert found.predict(files[:2]).shape == (2,)


def test_a_column_of_a_table_is_taken(tmp_path):
    pandas = pytest.importorskip("pandas")
    files = sorted(write(tmp_path / "birds", {"coot": 3, "heron": 3}).rglob("*.png"))
    columns = {"path": map(str, files), "label": [file.parent.name for file in files]}
    table = pandas.DataFrame(columns, index=range(5, 11))
    model = small(image_size=12, epochs=1).fit(table["path"], table["label"])
    assert model.predict(table["path"]).shape == (6,)


def test_a_saved_model_is_a_run_that_goes_on(fitted, tmp_path, capsys):
    from incrlt.console import Console

    place = fitted.save(tmp_path / "saved")
    probe = arrays([0, 2, 3], first=70)[0]
    loaded = LongTailClassifier.load(place)
    assert loaded.get_params() == fitted.get_params()
    assert np.array_equal(loaded.predict_proba(probe), fitted.predict_proba(probe))
    with pytest.raises(UserError, match="is not empty"):
        fitted.save(place)
    new = write(tmp_path / "new", {"teal": 2}, first=300)  # too few to split a test off
    update.update(update.Asked(place, new, accept="none"), Console())
    direct = LongTailClassifier.load(place)  # the version that answers
    assert versions.current(place) == 2 and "teal" in direct.classes_
    images = np.stack([np.asarray(picture(4, number)) for number in (300, 301)])
    loaded.partial_fit(images, ["teal", "teal"])
    assert np.array_equal(direct.predict_proba(probe), loaded.predict_proba(probe)), "one code for both"
    shutil.rmtree(new)


def test_it_can_be_pickled_and_the_same_pictures_may_come_again(fitted):
    probe = arrays([0, 2, 3], first=70)[0]
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(probe), fitted.predict_proba(probe))
    again.partial_fit(*arrays([3, 0, 2], number=8)).partial_fit(*arrays([3, 0, 2], number=8))
    assert again.learned_.experiences == 3 and len(again.learned_.exemplars) == 12


@pytest.mark.parametrize(
    ("pictures", "labels", "said"),
    [
        (np.zeros((2, 64)), [0, 1], "float64 from 0 to 0; give uint8"),
        (np.full((2, 8, 8), 0.5), [0, 1], r"\(255 \* x\).round"),
        (np.full((2, 8, 8), 16), [0, 1], r"x.astype\('uint8'\)"),
        (np.full((2, 8, 8), -1.5), [0, 1], "look normalised"),
        (np.full((2, 8, 8), np.nan), [0, 1], "not finite"),
        (np.zeros((2, 64), np.uint8), [0, 1], r"array of shape \[2, 64\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), [0, 1], "with 1 or 3 channels"),
        (np.zeros((2, 8, 8), np.uint8), [0], "2 pictures and 1 labels"),
        (np.zeros((2, 8, 8), np.uint8), [0, None], "1 labels are missing, the first is number 1"),
        (np.zeros((2, 8, 8), np.uint8), [0, np.nan], "1 labels are missing"),
        (np.zeros((2, 8, 8), np.uint8), [(0,), (1,)], "labels must be text or numbers"),
        (np.zeros((2, 8, 8), np.uint8), None, "y is missing"),
        (np.zeros((0, 8, 8), np.uint8), [], "no pictures to learn from"),
        ([object()], [0], "picture number 0 is a object"),
        ("nowhere", None, "nowhere is not there"),
    ],
)
def test_what_cannot_be_used_is_said(pictures, labels, said):
    with pytest.raises(UserError, match=said):
        small().fit(pictures, labels)


def test_pictures_of_another_size_are_refused_with_both(fitted):
    with pytest.raises(
        UserError, match="one channel of 8 x 8 pixels; this model takes three channels of 12 x 12"
    ):
        fitted.predict(np.zeros((2, 8, 8), np.uint8))


def test_parameters_that_cannot_be_are_told_in_one_sentence():
    with pytest.raises(UserError, match=r"LongTailClassifier: .*lucr.* Did you mean 'lucir'"):
        small(strategy="lucr").fit(*arrays([0, 1]))
    with pytest.raises(UserError, match=r"write section\.key"):
        small(settings={"lr": 1}).fit(*arrays([0, 1]))
