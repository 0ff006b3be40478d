"""Images that are learned from and tested on: the check lists them, and a run stops before anything is learned."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tutelage
from tutelage import api
from tutelage.check import check
from tutelage.data import Folders, Join, Pool, Scenes, Tar
from tutelage.data.source import Place, Subset, Unlabelled
from tutelage.errors import UserError
from tutelage.methods import seen
from tutelage.methods.seen import find_seen, refuse_seen
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.progress import SILENT
from tutelage.recipe import Recipe, StudentPart, TransferSet
from tutelage.stages import Run
from tutelage.tasks import Classification
from tutelage.teachers import Trained
from tutelage.training.schedule import Training

PARTS = ("source", "pool", "held", "train", "validation", "test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Parts of two classes with three images each, all of them different; the pool has no classes."""
    random = np.random.default_rng(0)
    for part in PARTS:
        for name in ("a", "b"):
            folder = tmp_path / "data" / part / ("" if part == "pool" else name)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(3):
                pixels = random.integers(0, 256, (8 + number, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}{number}.png")
    return tmp_path / "data"


def learning(data: Path, **changes: object) -> Recipe:
    """A recipe of one labelled source and a pool, with a held-out source and a downstream set."""
    training = Training(steps=1, batch=2, workers=0)
    parts = {part: Folders(head="far", root=part) for part in ("train", "validation", "test")}
    return Recipe(
        name="seen",
        data=str(data),
        heads={"near": Classification()},
        sources={"source": Folders(head="near", root="source"), "pool": Pool(images="pool")},
        held_out={"held": Folders(head="near", root="held")},
        model=Model(backbone=Timm(name="test_resnet"), pyramid=Pyramid(width=16), size=32),
        teachers={"near": Trained(training=training)},
        student=StudentPart(training=training),
        transfer={"far": TransferSet(head=Classification(), **parts)},
    ).but(**changes)


@pytest.mark.parametrize(
    ("seen", "shown", "source", "told"),
    [
        ("test/b/b1.png", "source/a/twin.png", "source", "a/twin.png = transfer.far.test: b/b1.png"),
        ("test/a/a0.png", "pool/twin.png", "pool", "twin.png = transfer.far.test: a/a0.png"),
        ("held/a/a2.png", "source/b/twin.png", "source", "b/twin.png = held_out.held: a/a2.png"),
        ("held/b/b2.png", "pool/twin.png", "pool", "twin.png = held_out.held: b/b2.png"),
    ],
)
def test_what_is_learned_from_is_not_tested_on(data, tmp_path, seen, shown, source, told):
    shutil.copy(data / seen, data / shown)
    for number, begin in enumerate((tutelage.run, api.label_run)):
        out = tmp_path / f"run-{number}"
        with pytest.raises(UserError) as caught:
            begin(learning(data), out, SILENT)
        assert caught.value.field == f"sources.{source}"
        assert caught.value.value == told
        assert "`exclude`" in str(caught.value)
        assert json.loads((out / "seen" / "copies.json").read_text()) == {source: dict([told.split(" = ")])}
        assert not list(out.glob("teachers"))
        assert not (out / "seen" / "done.json").exists()
    (line,) = [line for line, wrong in check(learning(data)) if wrong]
    assert line.startswith(f"sources.{source} and {told.split(' = ')[1].split(':')[0]} share 1 images")
    left = learning(data)
    part = left.sources[source].but(exclude=(str(Path(shown).relative_to(Path(shown).parts[0])),))
    with Run(tmp_path / "mended", left.but(sources={**left.sources, source: part}), SILENT) as run:
        refuse_seen(run)


def test_labels_that_are_there_already_are_no_way_around_it(data, tmp_path):
    shutil.copy(data / "test/b/b1.png", data / "pool/twin.png")
    with pytest.raises(UserError, match=r"1 images that are learned from are test images"):
        tutelage.run(learning(data, labels="labels", teachers={}), tmp_path / "run", SILENT)


def test_what_may_be_shared_and_broken_files_are_let_pass(data, tmp_path):
    for part in ("train", "validation"):  # what a set learns from may be learned from before
        shutil.copy(data / part / "a/a0.png", data / "pool" / f"{part}.png")
    shutil.copy(data / "held/a/a1.png", data / "test/a/twin.png")  # both are tests
    for broken in (data / "pool/empty.png", data / "test/a/empty.png"):
        broken.write_bytes(b"")
    with Run(tmp_path / "run", learning(data), SILENT) as run:
        refuse_seen(run)
    assert json.loads((tmp_path / "run" / "seen" / "copies.json").read_text()) == {}


def test_a_finished_look_is_not_taken_again_and_a_study_shares_it(data, tmp_path, monkeypatch):
    looks = []
    whole = find_seen
    monkeypatch.setattr(seen, "find_seen", lambda *given: looks.append(1) or whole(*given))
    study = learning(data, transfer={}, study={"one": ("student.training.rate=0.1",), "two": ("seed=5",)})
    for recipe, folder in ((learning(data), "plain"), (study, "study")):
        for _ in range(2):
            with Run(tmp_path / folder, recipe, SILENT) as run:
                refuse_seen(run)
    assert len(looks) == 2
    for nothing in ({"held_out": {}, "transfer": {}}, {"method": "transfer"}):
        with Run(tmp_path / f"without {len(nothing)}", learning(data, **nothing), SILENT) as run:
            refuse_seen(run)
    assert len(looks) == 2


def test_images_of_other_sizes_are_not_read(data, tmp_path, monkeypatch):
    place = Place(data, tmp_path / "cache")
    source, test = (Folders(head="x", root=part).open(part, place) for part in ("source", "test"))
    tested = {test.bytes_of(index) for index in range(len(test))}
    (data / "source" / source.id(4)).write_bytes(b"\0" * 5000)
    read = []
    digest = type(source).sha256
    monkeypatch.setattr(type(source), "sha256", lambda self, i: read.append((self.name, i)) or digest(self, i))
    with Run(tmp_path / "run", learning(data), SILENT) as run:
        assert find_seen(run, {"source": source}, {"test": test}) == {}
        near = [i for name, i in read if name == "source"]
        assert near == [i for i in range(len(source)) if source.bytes_of(i) in tested]
        assert 4 not in near
        read.clear()
        monkeypatch.setattr(type(test), "bytes_of", lambda self, index: None)  # as of Parquet: nothing is left out
        find_seen(run, {"source": source}, {"test": test})
        assert len(read) == len(source) + len(test)


def test_every_reader_knows_how_many_bytes_its_digest_is_of(data, tmp_path):
    import hashlib
    import tarfile

    with tarfile.open(data / "images.tar", "w") as archive:
        archive.add(data / "pool/a1.png", "a1.png")
    place = Place(data, tmp_path / "cache")
    pool = Pool(images="pool").open("pool", place)
    folder = Folders(head="x", root="test")
    joined = Join(head="x", sources={"one": folder, "two": folder.but(root="train")}).open("joined", place)
    for dataset in (pool, Subset(pool, np.array([3, 1])), Unlabelled(pool), joined):
        for index in range(len(dataset)):
            assert dataset.bytes_of(index) == Path(dataset.file(index)).stat().st_size
    packed = Tar(archives="images.tar").open("packed", place)
    assert packed.bytes_of(0) == (data / "pool/a1.png").stat().st_size
    assert packed.sha256(0) == hashlib.sha256((data / "pool/a1.png").read_bytes()).hexdigest()
    scenes = Scenes(world="yard", images=2, size=32).open("scenes", place)
    assert scenes.bytes_of(1) == 32 * 32 * 3
