"""The whole way: from a server, or from a pack, to a data set that its own reader finds whole."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import re
import shutil
import tarfile
from types import SimpleNamespace

import large_trees as trees
import pytest
from conftest import tar_of, zip_of  # of this folder
from filelock import FileLock

from incrlt import prepare as command
from incrlt.benchmarks import large
from incrlt.errors import UserError
from incrlt.fetching import download, packs, preparing, sources


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@pytest.fixture
def net(served, tmp_path, monkeypatch):
    """Serve tiny forms of the data sets in place of the published ones; their layouts are the same."""
    away, recipes = tmp_path / "away", dict(sources.RECIPES)

    def offer(dataset, *contents, **faults):
        told = []
        for source, content in zip(sources.RECIPES[dataset].sources, contents, strict=True):
            url = served.put(f"/{source.name}", content, *faults.get("faults", ()))
            told.append(
                dataclasses.replace(
                    source, url=url, checksum=md5(content), size=len(content), unpacked=10**6, files=100
                )
                if source.top
                else dataclasses.replace(source, url=url, checksum=md5(content), size=len(content))
            )
        recipes[dataset] = dataclasses.replace(recipes[dataset], sources=tuple(told))

    offer("food101-lt", tar_of(trees.food(away)))
    offer("tiny-imagenet", zip_of(trees.tiny(away)))
    nature = trees.inaturalist(away)
    lists = [(nature / name).read_bytes() for name in ("iNaturalist18_train.txt", "iNaturalist18_val.txt")]
    offer("inaturalist2018", tar_of(nature / "train_val2018"), *lists)
    image = trees.imagenet(away)
    offer("imagenet-lt", *((image / f"ImageNet_LT_{part}.txt").read_bytes() for part in ("train", "test")))
    monkeypatch.setattr(sources, "RECIPES", recipes)
    served.offer = offer
    return served


def run(*words) -> int:
    return command.main([str(word) for word in words])


FETCHED = {
    "food101-lt": "food-101",
    "tiny-imagenet": "tiny-imagenet-200",
    "inaturalist2018": "inaturalist2018",
}


@pytest.mark.parametrize("dataset", FETCHED)
def test_what_is_fetched_is_what_the_data_set_reads(net, tmp_path, capsys, dataset):
    data = tmp_path / "my data"
    assert run(dataset, "--data", data) == 0
    assert f"{dataset} is whole" in capsys.readouterr().out
    found = [
        large.scan(dataset, root, 32, large.SETS[dataset].own_tail) for root in (data, tmp_path / "away")
    ]
    assert found[0].name == found[1].name and found[0].counts == found[1].counts
    pictures = [path for part in (found[0].train, found[0].test) for own in part for path in own]
    assert all(path.is_file() for path in pictures)
    asked = len(net.asked)
    assert run(dataset, "--data", data) == 0 and len(net.asked) == asked  # nothing is fetched again


def test_cifar_goes_where_torchvision_reads_it(served, tmp_path, monkeypatch):
    """The archive holds files whose checksums torchvision knows; those of a toy are its own."""
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "away" / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps({name: 1}))
    for attribute in ("train_list", "test_list"):
        (name, _), *_ = getattr(CIFAR100, attribute)
        monkeypatch.setattr(CIFAR100, attribute, [[name, md5((folder / name).read_bytes())[4:]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5((folder / "meta").read_bytes())[4:]})
    content = tar_of(folder)
    (known,) = sources.RECIPES["cifar100"].sources
    url = served.put("/cifar", content)
    toy = dataclasses.replace(known, url=url, checksum=md5(content), size=len(content))
    monkeypatch.setitem(sources.RECIPES, "cifar100", sources.Recipe((toy,), "none"))
    assert preparing.told("cifar100", tmp_path)[0] is False
    assert run("cifar100", "--data", tmp_path) == 0
    assert (tmp_path / "cifar-100-python" / "train").read_bytes() == (folder / "train").read_bytes()
    (tmp_path / "cifar-100-python" / "test").unlink()
    whole, what = preparing.told("cifar100", tmp_path)
    assert not whole and "test is missing" in what


def test_a_pack_carries_all_to_a_machine_without_network(net, tmp_path, capsys):
    here, there, pack = tmp_path / "here", tmp_path / "there", tmp_path / "data.pack"
    assert run("food101-lt", "inaturalist2018", "tiny-imagenet", "--data", here, "--pack", pack) == 0
    assert "incrlt prepare --unpack data.pack" in capsys.readouterr().out
    assert [path.name for path in here.iterdir()] == [preparing.DOWNLOADS]  # nothing is unpacked here
    asked = len(net.asked)
    assert run("--unpack", pack, "--data", there) == 0 and len(net.asked) == asked
    for dataset in FETCHED:
        found = [large.scan(dataset, r, 32, large.SETS[dataset].own_tail) for r in (there, tmp_path / "away")]
        assert found[0].name == found[1].name
    assert run("--unpack", pack, "--data", there) == 0  # again: all is here
    one = tmp_path / "one"
    assert run("food101-lt", "--unpack", pack, "--data", one) == 0
    assert sorted(path.name for path in one.iterdir()) == [preparing.DOWNLOADS, "food-101"]


def test_packs_of_the_same_files_are_the_same(net, tmp_path):
    for name in ("one", "two"):
        assert run("tiny-imagenet", "--data", tmp_path / name, "--pack", tmp_path / f"{name}.pack") == 0
    assert (tmp_path / "one.pack").read_bytes() == (tmp_path / "two.pack").read_bytes()


def packed(net, tmp_path):
    pack = tmp_path / "data.pack"
    assert run("food101-lt", "tiny-imagenet", "--data", tmp_path / "here", "--pack", pack) == 0
    return pack


def rebuilt(pack, change):
    """Write a pack anew, each member changed by ``change(name, content)``; None leaves it out."""
    with tarfile.open(pack) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(pack, "w") as tar:
        for name, content in members:
            new = change(name, content)
            if new is not None:
                info = new if isinstance(new, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = 0 if new is info else len(new)
                tar.addfile(info, None if new is info else io.BytesIO(new))


def linked(name, content):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


PACKS = {
    "another archive": (lambda n, c: c[:-1] + b"!" if n.startswith("food") else c, "damaged or another file"),
    "a shorter archive": (lambda n, c: c[:-9] if n.startswith("food") else c, "damaged or another file"),
    "no archive": (lambda n, c: None if n.startswith("food") else c, "food-101.tar.gz is not in"),
    "a link": (lambda n, c: linked(n, c) if n.startswith("food") else c, "is no ordinary file"),
    "another format": (
        lambda n, c: c.replace(b'"format": 1', b'"format": 2') if n == packs.TOLD else c,
        "of format 2",
    ),
    "another data set": (
        lambda n, c: c.replace(b"food101-lt", b"faces") if n == packs.TOLD else c,
        "'faces' is no data",
    ),
    "no JSON": (lambda n, c: b"{" if n == packs.TOLD else c, "cannot be read"),
    "not told": (lambda n, c: None if n == packs.TOLD else c, "is no pack of"),
}


@pytest.mark.parametrize("what", PACKS)
def test_a_pack_is_not_believed(net, tmp_path, capsys, what):
    pack = packed(net, tmp_path)
    change, said = PACKS[what]
    rebuilt(pack, change)
    assert run("--unpack", pack, "--data", tmp_path / "there") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "there" / "food-101").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_pack_is_told_and_unpacks_nothing(net, tmp_path, capsys, share):
    pack = packed(net, tmp_path)
    content = pack.read_bytes()
    pack.write_bytes(content[: int(share * len(content.rstrip(b"\0")))])  # a tar ends in zeros
    assert run("--unpack", pack, "--data", tmp_path / "there") == 2
    assert "whole pack" in capsys.readouterr().err and not (tmp_path / "there" / "food-101").exists()


def test_a_pack_does_not_give_what_it_has_not(net, tmp_path, capsys):
    pack = packed(net, tmp_path)
    assert run("inaturalist2018", "--unpack", pack, "--data", tmp_path / "there") == 2
    assert "does not hold inaturalist2018; it holds food101-lt, tiny-imagenet" in capsys.readouterr().err
    assert run("food101-lt", "--pack", pack, "--data", tmp_path / "here") == 2
    assert "is there already" in capsys.readouterr().err


def test_what_must_be_got_by_hand_is_told_and_where_it_goes(net, tmp_path, capsys):
    data = tmp_path / "data"
    assert run("imagenet-lt", "--data", data) == 1
    said = capsys.readouterr().out
    assert "imagenet-lt is not whole" in said
    assert "by hand: the pictures of ILSVRC 2012, from image-net.org" in said
    assert f"{data}/imagenet/train/WNID" in said
    for part in ("train", "val"):
        shutil.copytree(tmp_path / "away" / "imagenet" / part, data / "imagenet" / part)
    assert run("imagenet-lt", "--data", data) == 0
    lost = data / "imagenet" / "train" / "n1003" / "n1003_4.JPEG"
    lost.unlink()
    assert run("imagenet-lt", "--data", data) == 1
    assert f"1 of 22 pictures are not there, such as {lost}" in capsys.readouterr().out


def test_a_list_of_the_users_own_stays(net, tmp_path, capsys):
    own = tmp_path / "data" / "imagenet" / "ImageNet_LT_train.txt"
    own.parent.mkdir(parents=True)
    own.write_text("train/n1000/n1000_0.JPEG 0\n")
    run("imagenet-lt", "--data", tmp_path / "data")
    assert own.read_text() == "train/n1000/n1000_0.JPEG 0\n"
    assert "another file of this name is here, and stays" in capsys.readouterr().out


def test_a_folder_that_is_not_whole_is_told_and_left(net, tmp_path, capsys):
    place = tmp_path / "data" / "food-101"
    shutil.copytree(tmp_path / "away" / "food-101", place)
    lost = next(iter(sorted((place / "images").rglob("*.jpg"))))
    lost.unlink()
    assert run("food101-lt", "--data", tmp_path / "data") == 1
    assert f"1 of 32 pictures are not there, such as {lost}" in capsys.readouterr().out and net.asked == []


def test_the_plan_comes_first_with_sizes_and_nothing_is_done(tmp_path, capsys):
    data = tmp_path / "data"
    (data / preparing.DOWNLOADS).mkdir(parents=True)
    (data / preparing.DOWNLOADS / "train_val2018.tar.gz.part").write_bytes(bytes(3 << 20))
    assert run("inaturalist2018", "--data", data, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "train_val2018.tar.gz  about 112 GiB, to be fetched, 3 MiB in" in said
    assert "md5:b1c6952ce38f31868cc50ea72d066cc3, of torchvision.datasets.INaturalist" in said
    assert "needs about 225 GiB in" in said and "must not be handed on" in said
    assert [path.name for path in data.rglob("*")] == [preparing.DOWNLOADS, "train_val2018.tar.gz.part"]
    assert run("cifar100", "--dry-run", "--data", data, "--pack", tmp_path / "p") == 0
    assert f"into {tmp_path / 'p'}" in capsys.readouterr().out and not (tmp_path / "p").exists()


def test_too_little_room_is_told_before_anything_is_fetched(net, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**8))
    assert run("food101-lt", "--data", tmp_path / "data") == 2
    assert "are needed in" in capsys.readouterr().err and net.asked == []


def test_a_stopped_command_goes_on(net, tmp_path, monkeypatch):
    content = tar_of(tmp_path / "away" / "food-101")
    net.offer("food101-lt", content, faults=[("cut", 1000)])
    stopped = []

    def stop(seconds):
        stopped.append(seconds)
        raise KeyboardInterrupt

    real = download.fetch
    monkeypatch.setattr(preparing, "fetch", lambda *told: real(*told, pause=stop))
    assert run("food101-lt", "--data", tmp_path / "data") == 130 and stopped == [1.0]
    assert (tmp_path / "data" / preparing.DOWNLOADS / "food-101.tar.gz.part").read_bytes() == content[:1000]
    assert run("food101-lt", "--data", tmp_path / "data") == 0
    assert net.asked[-1] == ("/food-101.tar.gz", "bytes=1000-")


def test_a_folder_gets_its_name_when_its_files_are_on_the_disk(net, tmp_path, monkeypatch):
    """A name that reaches the disk before the pictures would tell a half data set as whole after a power cut."""
    place, seen = tmp_path / "data" / "food-101", []
    monkeypatch.setattr(os, "sync", lambda: seen.append(place.exists()))
    assert run("food101-lt", "--data", tmp_path / "data") == 0 and seen == [False]


def test_downloads_stay_unless_they_are_unwanted(net, tmp_path):
    for words, left in (([], ["food-101.tar.gz"]), (["--remove-archives"], [])):
        data = tmp_path / f"data{len(words)}"
        assert run("food101-lt", "--data", data, *words) == 0
        downloads = data / preparing.DOWNLOADS
        assert [path.name for path in downloads.iterdir() if path.name != ".lock"] == left


def test_two_processes_take_turns(net, tmp_path, capsys):
    (tmp_path / preparing.DOWNLOADS).mkdir()
    with FileLock(tmp_path / preparing.DOWNLOADS / ".lock"):
        assert run("food101-lt", "--data", tmp_path) == 2
    assert "another process prepares data sets" in capsys.readouterr().err and net.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which data sets: one or more of cifar10, cifar100"),
        (["food101"], "'food101' is no data set that can be prepared.*Did you mean 'food101-lt'"),
        (["--unpack", "x", "--remove-archives"], "leave it out"),
        (["--unpack", "/nowhere/x"], "/nowhere/x cannot be read: No such file"),
        (["cifar10", "--pack", "/nowhere/x"], "/nowhere is no folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, words, said):
    assert run(*words, "--data", tmp_path) == 2
    assert re.search(said, capsys.readouterr().err)


def test_addresses_and_checksums_are_torchvisions_and_the_published_ones():
    from torchvision.datasets import CIFAR10, CIFAR100, Food101, inaturalist

    def of(dataset):
        return sources.RECIPES[dataset].sources[0]

    for dataset, known in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        told = of(dataset)
        assert (told.url, told.checksum, told.name, told.top) == (
            known.url, f"md5:{known.tgz_md5}", known.filename, known.base_folder,
        )  # fmt: skip
    assert (of("food101-lt").url, of("food101-lt").checksum) == (Food101._URL, f"md5:{Food101._MD5}")
    nature = of("inaturalist2018")
    assert (nature.url, nature.checksum) == (
        inaturalist.DATASET_URLS["2018"], f"md5:{inaturalist.DATASET_MD5['2018']}",
    )  # fmt: skip
    lists = [one for recipe in sources.RECIPES.values() for one in recipe.sources if not one.top]
    assert len(lists) == 7
    for one in lists:
        value = one.checksum.split(":")[1]
        assert any(value.startswith(known) for known in large.FINGERPRINTS[one.name]), one.name
        assert one.folder in {known.folder for known in large.SETS.values()}


def test_every_large_set_has_a_recipe_and_names_the_command(tmp_path):
    assert set(large.SETS) <= set(sources.RECIPES)
    for dataset in large.SETS:
        with pytest.raises(UserError) as told:
            large.scan(dataset, tmp_path / "none", 32, large.SETS[dataset].own_tail)
        assert f"python -m incrlt.prepare {dataset} --data {tmp_path / 'none'}" in str(told.value)
