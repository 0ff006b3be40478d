"""Images that several sources show: each once in the union, with every label a person gave it."""

import json

import numpy as np
import pytest
from PIL import Image

from tutelage.data import CocoBoxes, Join, Masks, NormalPairs, Pool, Scenes
from tutelage.data.augment import Augment
from tutelage.data.loading import loader
from tutelage.data.mixture import Mixture, part_of
from tutelage.data.shared import Union
from tutelage.data.source import BadImage, Place, Subset
from tutelage.types import Boxes, Mask, Vectors


class Pseudo:
    """Says of every image and head that it asked."""

    def __init__(self):
        self.asked = set()

    def get(self, head, source, id):
        self.asked.add((head, source, id))
        return


@pytest.fixture
def sources(tmp_path):
    """Six photographs: 0 to 3 may have boxes, 2 to 4 have masks (found through a link), all of them are in a pool."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "link").symlink_to(photos)
    rng = np.random.default_rng(0)
    for n in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(photos / f"{n}.png")
    for n in (2, 3, 4):
        Image.fromarray(np.full((32, 32), n % 2, np.uint8)).save(tmp_path / "masks" / f"{n}.png")
    boxes = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in range(4)],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 5, "bbox": [4, 4, 8, 8], "area": 64, "iscrowd": 0}],
        "categories": [{"id": 5, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (tmp_path / "classes.json").write_text(json.dumps({"0": "ground", "1": "sky"}))
    place = Place(tmp_path, tmp_path / "cache")
    return [
        CocoBoxes(head="things", images="photos", annotations="boxes.json").open("boxes", place),
        Masks(head="parts", images="link", masks="masks", classes="classes.json").open("masks", place),
        Pool(images="photos").open("pool", place),
    ]


def test_a_label_that_cannot_be_used_leaves_an_image_its_other_labels(sources, monkeypatch):
    def fail(index):
        raise BadImage("no depth is valid")

    monkeypatch.setattr(sources[1], "target", fail)
    union, pseudo = Union(sources), Pseudo()
    assert union.labels(pseudo).get("parts", "boxes", "2.png") is None
    assert not pseudo.asked, "a person labelled it"
    (batch,) = loader(
        Mixture(union.datasets[:1], seed=1),
        ["things", "parts"],
        32,
        Augment(flip=False, scale=(1.0, 1.0)),
        batch=4,
        seed=1,
        first_step=0,
        steps=1,
        workers=0,
        labels=union.labels(None),
    )
    assert len(batch.heads["things"].rows) == 4
    assert len(batch.heads["parts"].rows) == 0


def test_every_file_is_one_image_of_the_union_with_the_labels_of_all_sources(sources):
    union = Union(sources)
    assert {d.name: [d.id(i) for i in range(len(d))] for d in union.datasets} == {
        "boxes": ["0.png", "1.png", "2.png", "3.png"],
        "masks": ["4.png", "5.png"],  # the source holds all six images; no person labelled the last
    }
    assert union.shared == 4 + 6  # nothing of the pool is left
    labels = union.labels(pseudo := Pseudo())
    found = labels.get("parts", "boxes", "3.png")
    assert isinstance(found, Mask)
    assert (found.ids == 1).all()
    assert labels.get("parts", "boxes", "1.png") is None
    assert labels.get("things", "masks", "4.png") is None
    assert pseudo.asked == {("parts", "boxes", "1.png"), ("things", "masks", "4.png")}  # never where a person spoke


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_a_source_that_is_learned_in_part_the_other_labels_are_unknown(sources, order):
    """Whichever source comes first: every mask is learned, and the boxes of the part alone."""
    boxes = part_of(sources[0], 0.5, seed=1)
    inside = {boxes.id(index) for index in range(len(boxes))}
    assert len(inside) == 2
    union = Union([(boxes, sources[1])[number] for number in order])
    assert sum(len(d) for d in union.datasets) == 6
    labels = union.labels(pseudo := Pseudo())
    known = {"things": set(), "parts": set()}
    for dataset in union.datasets:
        for index in range(len(dataset)):
            for head, ids in known.items():
                own = dataset.target(index) if dataset.head == head else None
                if own is not None or labels.get(head, dataset.name, dataset.id(index)) is not None:
                    ids.add(dataset.id(index))
    assert known == {"things": inside, "parts": {"2.png", "3.png", "4.png"}}
    assert {id for head, _, id in pseudo.asked if head == "things"} == {f"{n}.png" for n in range(6)} - inside


def test_what_is_left_out_of_a_part_is_still_in_the_pool(sources):
    boxes = part_of(sources[0], 0.5, seed=1)
    union = Union([boxes, sources[2]])
    assert [(d.name, len(d)) for d in union.datasets] == [("boxes", 2), ("pool", 4)]


def test_joined_sources_and_derived_normals_show_the_images_of_their_parts(sources, tmp_path):
    place = Place(tmp_path, tmp_path / "cache")
    part = CocoBoxes(head="things", images="photos", annotations="boxes.json")
    joined = Join(head="things", sources={"one": part.but(part=(0, 0.5)), "two": part.but(part=(0.5, 1))})
    boxes = joined.open("joined", place)
    (tmp_path / "depths").mkdir()
    Image.fromarray(np.full((32, 32), 2000, np.uint16)).save(tmp_path / "depths/2.png")
    camera = {"fx": 30.0, "fy": 30.0, "cx": 15.5, "cy": 15.5}
    normals = NormalPairs(head="slopes", images="photos", from_depth=True, depths="depths", camera=camera)
    slopes = normals.open("slopes", place)
    union = Union([sources[1], boxes, slopes])
    assert [(d.name, len(d)) for d in union.datasets] == [("masks", 6)]
    assert union.shared == 4 + 6
    labels = union.labels(pseudo := Pseudo())
    assert isinstance(labels.get("things", "masks", "2.png"), Boxes)
    assert isinstance(labels.get("slopes", "masks", "2.png"), Vectors)
    assert not pseudo.asked
    scenes = Scenes(world="playground", images=2, size=64)
    mixed = Join(sources={"photos": Pool(images="photos"), "scenes": scenes}).open("mixed", place)
    assert not mixed.in_files  # what is rendered has no file
    assert Subset(boxes, np.array([1])).in_files


def test_a_batch_of_the_union_carries_both_labels_of_a_shared_image(sources):
    union = Union(sources)
    settings = Augment(colour=0.0, flip=0.0, scale=(1.0, 1.0))
    batches = loader(
        Mixture(union.datasets, seed=1),
        ["things", "parts"],
        32,
        settings,
        batch=6,
        seed=1,
        first_step=0,
        steps=1,
        workers=0,
        labels=union.labels(None),
    )
    (batch,) = batches
    assert len(batch.heads["things"].rows) == 4
    assert len(batch.heads["parts"].rows) == 3
    both = set(batch.heads["things"].rows.tolist()) & set(batch.heads["parts"].rows.tolist())
    assert len(both) == 2


def test_sources_of_different_files_are_left_as_they_are(sources, tmp_path):
    (tmp_path / "copies").mkdir()
    for file in (tmp_path / "photos").iterdir():
        (tmp_path / "copies" / file.name).write_bytes(file.read_bytes())
    copies = Pool(images="copies").open("copies", Place(tmp_path, tmp_path / "cache"))
    union = Union([sources[0], copies])
    assert union.datasets == [sources[0], copies]
    assert union.shared == 0
    assert union.labels(None).get("things", "copies", "2.png") is None
