"""Pools of every kind: the same images in a folder, a list, archives, Parquet or a saved dataset are the same pool."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kill_labelling import FakeTeacher, records
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from tutelage.data import FORMATS, tables
from tutelage.data.archives import Tar
from tutelage.data.audit import audit
from tutelage.data.files import FileSource
from tutelage.data.folders import Pool
from tutelage.data.saved import Arrow, _mapped_images
from tutelage.data.source import BadImage, Dataset, Place, Source
from tutelage.data.tables import Parquet
from tutelage.errors import UserError
from tutelage.labels.labelling import label_pool
from tutelage.labels.work import Labelling
from tutelage.part import one_of
from tutelage.types import Boxes, Label, Mask

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A picture of 40 x 24 whose corners differ."""
    y, x = np.mgrid[:24, :40]
    image = Image.fromarray(np.stack([x * 6, y * 10, 128 + 0 * x], 2).astype(np.uint8)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def contents() -> dict[str, bytes]:
    """Names, in natural order, and bytes of images of many kinds, some of them of no use."""
    turned = Image.Exif()
    turned[274] = 6
    jpeg = encoded("JPEG", quality=90)
    return {
        "0.jpg": jpeg,
        "1-turned.jpg": encoded("JPEG", exif=turned),
        "2-ink.jpg": encoded("JPEG", "CMYK"),
        "3.png": encoded("PNG", "RGBA"),
        "4.webp": encoded("WEBP"),
        "5-wrong.png": jpeg,
        "6-page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "7-empty.jpg": b"",
        "8-cut.jpg": jpeg[: len(jpeg) // 2],
        "9.png": encoded("PNG"),
    }


def write_folder(root: Path, files: dict[str, bytes]) -> Source:
    (root / "images").mkdir(parents=True)
    for name, data in files.items():
        (root / "images" / name).write_bytes(data)
    return Pool(images=Path("images"))


def write_list(root: Path, files: dict[str, bytes]) -> Source:
    write_folder(root, files)
    (root / "list.txt").write_text("\n".join(files))
    return Pool(images=Path("images"), list=Path("list.txt"))


def write_tar(root: Path, files: dict[str, bytes]) -> Source:
    """Two archives."""
    root.mkdir()
    for number, names in enumerate((list(files)[:4], list(files)[4:])):
        with tarfile.open(root / f"{number}.tar", "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(files[name])
                archive.addfile(info, io.BytesIO(files[name]))
    return Tar(archives="{0..1}.tar")


def cells(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": name} for name, data in files.items()]


def write_parquet(root: Path, files: dict[str, bytes]) -> Source:
    """Two files of row groups of three."""
    root.mkdir()
    table = pa.table({"image": pa.array(cells(files), CELL), "label": list(range(len(files)))})
    pq.write_table(table.slice(0, 7), root / "0.parquet", row_group_size=3)
    pq.write_table(table.slice(7), root / "1.parquet", row_group_size=3)
    return Parquet(files="*.parquet")


def write_arrow(folder: Path, *tables: pa.Table) -> Path:
    """As `save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(tables):05d}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def write_saved(root: Path, files: dict[str, bytes]) -> Source:
    table = pa.table({"image": pa.array(cells(files), CELL)})
    write_arrow(root / "saved", table.slice(0, 5), table.slice(5))
    return Arrow(folder=Path("saved"))


KINDS: dict[str, Callable[[Path, dict[str, bytes]], Source]] = {
    "folder": write_folder,
    "list": write_list,
    "tar": write_tar,
    "parquet": write_parquet,
    "arrow": write_saved,
}


def opened(source: Source, root: Path) -> Dataset:
    return source.open("pool", Place(root, root / "cache"))


def refusal(source: Source, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(source, root)
    return str(caught.value)


def ids(dataset: Dataset) -> list[str]:
    return [dataset.id(i) for i in range(len(dataset))]


def reason(dataset: Dataset, index: int) -> str:
    with pytest.raises(BadImage) as caught:
        dataset.picture(index).read()
    return str(caught.value)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = tmp_path_factory.mktemp("pools")
    return {kind: opened(write(root / kind, contents()), root / kind) for kind, write in KINDS.items()}


# --- what all have in common


def all_there_is(dataset: Dataset, index: int) -> tuple[Any, ...]:
    try:
        picture = dataset.picture(index)
        return (
            dataset.sha256(index),
            (picture.height, picture.width),
            [picture.read(scale).tobytes() for scale in (0.4, 1.0)],
            [fault.problem for fault in dataset.mended(index)],
        )
    except BadImage as error:
        return dataset.sha256(index), str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_all_pools_show_the_same(pools: dict[str, Dataset], kind: str) -> None:
    found = [all_there_is(pools[kind], i) for i in range(len(pools[kind]))]
    assert found == [all_there_is(pools["folder"], i) for i in range(10)]
    assert [row[0] for row in found] == [hashlib.sha256(data).hexdigest() for data in contents().values()]
    assert [len(row) for row in found] == [4] * 6 + [2] * 3 + [4]
    assert found[1][1] == (40, 24)
    assert [row[3] for row in found[2:6:3]] == [
        ["CMYK converted to RGB without an ink profile"],
        ["the name ends in '.png' but the content is JPEG"],
    ]
    assert len(set(ids(pools[kind]))) == 10
    assert pools[kind].faults == []
    assert audit(pools[kind], workers=2).tally.quarantined == 3


@pytest.mark.parametrize("kind", KINDS)
def test_all_pools_get_the_same_labels(pools: dict[str, Dataset], kind: str, tmp_path: Path) -> None:
    def rows(name: str) -> list[Any]:
        teachers = [FakeTeacher(Boxes), FakeTeacher(Mask), FakeTeacher(Label)]
        report = label_pool([pools[name]], teachers, tmp_path / name, Labelling(shard=4, batch=3), decoders=2)
        assert all((n.read, n.undecodable) == (10, 3) for n in report.counts.values())
        found = []
        for file in sorted((tmp_path / name).glob("*/part-*.parquet")):
            table = pq.read_table(file)
            found.append((file.relative_to(tmp_path / name), table.drop_columns(["source", "id"]).to_pylist()))
        labelled = {record.id for record in records(tmp_path / name, "mask")}
        assert labelled == {pools[name].id(i) for i in (0, 1, 2, 3, 4, 5, 9)}
        return found

    assert rows(kind) == rows("folder")


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_other_processes_read_the_same(pools: dict[str, Dataset], kind: str) -> None:
    dataset = pools[kind]
    good = [0, 9, 1, 5, 2, 4, 3]
    alone = [dataset.picture(i).read().tobytes() for i in good]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda i: dataset.picture(i).read().tobytes(), good * 8)) == alone * 8
        pictures = [dataset.picture(i) for i in good]  # found in one thread, decoded in another
        assert [p.tobytes() for p in threads.map(lambda picture: picture.read(), pictures)] == alone
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.picture(i).read().tobytes() for i in good] == alone
    assert len(pickle.dumps(dataset)) < 10_000
    children = []
    for _ in range(2):  # both read at once what was open before
        child = os.fork()
        if child == 0:
            try:
                same = all([dataset.picture(i).read().tobytes() for i in good] == alone for _ in range(8))
                os._exit(0 if same and ids(dataset) == ids(again) else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert [dataset.picture(i).read().tobytes() for i in good] == alone
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_and_some_of_many(kind: str, tmp_path: Path) -> None:
    single = opened(KINDS[kind](tmp_path / "one", {"a.png": encoded("PNG")}), tmp_path / "one")
    assert (len(single), single.picture(0).read().shape) == (1, (24, 40, 3))
    files = {f"{i}.png": encoded("PNG") for i in range(8)}
    source = KINDS[kind](tmp_path / "many", files)
    assert isinstance(source, FileSource)
    whole = opened(source, tmp_path / "many")
    names = ids(whole)
    for options, wanted in (
        ({"limit": 3}, [0, 2, 5]),
        ({"every": 3}, [0, 3, 6]),
        ({"blocks": (0.5, 1)}, [4, 5, 6, 7]),
        ({"exclude": (names[2], names[7])}, [0, 1, 3, 4, 5, 6]),
        ({"exclude": (names[0],), "limit": 1}, [1]),
    ):
        some = opened(source.but(**options), tmp_path / "many")
        assert ids(some) == [names[i] for i in wanted], options
        assert [some.sha256(i) for i in range(len(some))] == [whole.sha256(i) for i in wanted]
        assert some.file(0) == whole.file(wanted[0])
    assert "no image is left" in refusal(source.but(exclude=tuple(names)), tmp_path / "many")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_shard_is_made_from(pools: dict[str, Dataset], kind: str, tmp_path: Path) -> None:
    dataset = pools[kind]
    assert dataset.listing(0, 10) == pickle.loads(pickle.dumps(dataset)).listing(0, 10)
    parts = {dataset.listing(a, b) for a, b in ((0, 10), (0, 9), (1, 10), (0, 5), (5, 10), (3, 8), (4, 4))}
    assert len(parts) == 7
    changed = dataset.changed(0, 10)
    assert changed is not None
    source = KINDS[kind](tmp_path / kind, contents())
    later = opened(source, tmp_path / kind)
    assert later.listing(2, 9) == dataset.listing(2, 9)
    assert (later.changed(0, 10) or 0) >= changed
    kinds = {".jpg", ".png", ".webp", ".tar", ".parquet", ".arrow"}
    holders = [p for p in (tmp_path / kind).rglob("*") if p.suffix in kinds and "cache" not in p.parts]
    assert (later.changed(0, 10) or 0) >= max(path.stat().st_ctime for path in holders)
    at = (later.changed(0, 10) or 0) + 0.02
    while (tmp_path / "touched").touch() or (tmp_path / "touched").stat().st_ctime < at:
        time.sleep(0.01)
    holders[-1].parent.rename(tmp_path / "away")  # what lies there may be another one's now
    (tmp_path / "away").rename(holders[-1].parent)
    assert (later.changed(0, 10) or 0) >= at


def test_all_have_a_text_form() -> None:
    adapter: TypeAdapter[Source] = TypeAdapter(one_of(Source, "format", FORMATS))
    for plain, wanted in (
        ({"format": "tar", "archives": "t-{000..009}.tar", "limit": 5}, Tar(archives="t-{000..009}.tar", limit=5)),
        ({"format": "parquet", "files": "t/*.parquet", "image": "jpg"}, Parquet(files="t/*.parquet", image="jpg")),
        ({"format": "arrow", "folder": "saved", "split": "train"}, Arrow(folder=Path("saved"), split="train")),
        ({"format": "pool", "list": "list.txt"}, Pool(list=Path("list.txt"))),
    ):
        assert adapter.validate_python(plain) == wanted
        with pytest.raises(ValidationError):
            adapter.validate_python({**plain, "head": "things"})


# --- lists


def test_a_list_keeps_its_order_and_sets_missing_files_aside(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": encoded("PNG"), "b 1.png": encoded("PNG")})
    (tmp_path / "list.txt").write_text("b 1.png\r\n\n  a.png  \ngone/c.png\n\n")
    dataset = opened(Pool(images=Path("images"), list=Path("list.txt")), tmp_path)
    assert ids(dataset) == ["b 1.png", "a.png", "gone/c.png"]
    assert dataset.picture(0).read().shape == (24, 40, 3)
    assert reason(dataset, 2) == "cannot be read: No such file or directory"
    assert dataset.changed(0, 3) is None
    report = label_pool([dataset], [FakeTeacher(Mask)], tmp_path / "labels")
    assert (report.counts["mask"].labelled, report.counts["mask"].undecodable) == (2, 1)


def test_a_list_of_absolute_paths_needs_no_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": encoded("PNG")})
    (tmp_path / "list.txt").write_text(f"{tmp_path}/images/../images/a.png\n")
    dataset = opened(Pool(list=Path("list.txt")), tmp_path)
    assert ids(dataset) == [f"{tmp_path}/images/../images/a.png"]
    assert dataset.picture(0).read().shape == (24, 40, 3)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/images/a.png\nimages/a.png\n")
    text = refusal(Pool(list=Path("list.txt")), tmp_path)
    assert "not absolute" in text
    assert "line 2" in text


def test_lists_that_are_wrong(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": encoded("PNG")})
    source = Pool(images=Path("images"), list=Path("list.txt"))
    for text, problem, line in (
        ("a.png\n\n../list.txt\n", "leads out", "line 3"),
        ("a.png\nb/../../x\n", "leads out", "line 2"),
        ("/etc/passwd\n", "leads out", "line 1"),
        ("a\\..\\..\\b.png", "leads out", "line 1"),
        ("a.png\0b.png\n", "leads out", "line 1"),
        ("b..png\n\na.png\nb.png\na.png\n a.png\n", "stands twice", "line 5"),
        ("\n \n\t\r\n", "the list is empty", ""),
        ("", "the list is empty", ""),
    ):
        (tmp_path / "list.txt").write_text(text)
        found = refusal(source, tmp_path)
        assert problem in found, text
        assert line in found
    assert "did you mean 'list.txt'" in refusal(source.but(list=Path("lists.txt")), tmp_path)
    for wrong in ({}, {"images": Path("x"), "list": Path("x"), "ids": Path("x")}, {"ids": Path("x")}):
        with pytest.raises(ValidationError, match="give `i"):
            Pool(**wrong)


# --- Parquet


def parquet(root: Path, file: str = "a.parquet", group: int = 2, **columns: Any) -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / file, row_group_size=group)
    return root


def test_images_may_be_plain_bytes(tmp_path: Path) -> None:
    data = [encoded("JPEG"), None, b"", encoded("PNG")]
    for kind in (pa.binary(), pa.large_binary()):
        dataset = opened(Parquet(files="a.parquet", image="jpg"), parquet(tmp_path, jpg=pa.array(data, kind)))
        assert ids(dataset) == ["a.parquet/0", "a.parquet/1", "a.parquet/2", "a.parquet/3"]
        assert dataset.picture(3).read().shape == (24, 40, 3)
        assert dataset.mended(3) == []  # without a name none can be wrong
        assert [reason(dataset, 1), reason(dataset, 2)] == ["the cell is null", "empty (0 bytes)"]
        assert dataset.file(2) == f"{tmp_path}/a.parquet: row 2"
        with pytest.raises(BadImage, match="null"):
            dataset.sha256(1)
        report = label_pool([dataset], [FakeTeacher(Mask)], tmp_path / str(kind))
        assert (report.counts["mask"].labelled, report.counts["mask"].undecodable) == (2, 2)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_cells_without_bytes_are_set_aside(tmp_path: Path, kind: str) -> None:
    rows = [{"bytes": None, "path": "/data/a.jpg"}, {"bytes": None, "path": None}, None, {"bytes": encoded("PNG")}]
    table = pa.table({"image": pa.array(rows, CELL)})
    if kind == "parquet":
        dataset = opened(Parquet(files="a.parquet"), parquet(tmp_path, image=table["image"]))
    else:
        write_arrow(tmp_path / "saved", table)
        dataset = opened(Arrow(folder=Path("saved")), tmp_path)
    assert [reason(dataset, i) for i in range(3)] == [
        "the cell holds a path ('/data/a.jpg') and no bytes",
        "the cell is null",
        "the cell is null",
    ]
    assert dataset.picture(3).read().shape == (24, 40, 3)


def test_ids_from_a_column(tmp_path: Path) -> None:
    image = pa.array([encoded("PNG")] * 3)
    coded = pa.array(["x", "y", "z"]).dictionary_encode()
    for name, values in (("text", ["x", "y/1", "ü"]), ("number", [7, 0, 2**62]), ("coded", coded)):
        parquet(tmp_path / name, "a.parquet", image=image.slice(0, 2), key=values[:2])
        parquet(tmp_path / name, "b.parquet", image=image.slice(2), key=values[2:])
        dataset = opened(Parquet(files="*.parquet", ids="key"), tmp_path / name)
        wanted = [str(v) for v in (values.to_pylist() if isinstance(values, pa.Array) else values)]
        assert ids(dataset) == wanted
        assert ids(pickle.loads(pickle.dumps(dataset))) == wanted
        assert dataset.file(2).endswith("b.parquet: row 0")
        limited = opened(Parquet(files="*.parquet", ids="key", limit=2, exclude=(wanted[0],)), tmp_path / name)
        assert ids(limited) == wanted[1:]
        assert limited.listing(0, 2) != dataset.listing(0, 2)
        assert limited.listing(1, 2) == dataset.listing(2, 3)
    write_arrow(tmp_path / "saved", pa.table({"image": image, "key": ["c", "b", "a"]}))
    assert ids(opened(Arrow(folder=Path("saved"), ids="key"), tmp_path)) == ["c", "b", "a"]
    for values, problem in (
        ([1, 2, 1], "1 ids stand in several rows"),
        (["a", None, "b"], "a row has no id"),
        (["a", "", "b"], "row 1"),
        ([0.5, 1.5, 2.5], "neither text nor integers"),
    ):
        parquet(tmp_path, image=image, key=values)
        assert problem in refusal(Parquet(files="a.parquet", ids="key"), tmp_path)
    assert "did you mean 'key'" in refusal(Parquet(files="a.parquet", ids="keys"), tmp_path)


def test_tables_that_are_wrong(tmp_path: Path) -> None:
    parquet(tmp_path, image=pa.array(["text"]), img=pa.array([encoded("PNG")]), odd=pa.array([{"bytes": 1}]))
    assert "neither binary nor struct<bytes, path>" in refusal(Parquet(files="a.parquet"), tmp_path)
    assert "neither binary nor struct<bytes, path>" in refusal(Parquet(files="a.parquet", image="odd"), tmp_path)
    assert "did you mean 'img'" in refusal(Parquet(files="a.parquet", image="imgs"), tmp_path)
    parquet(tmp_path, "b.parquet", image=pa.array([], CELL))
    assert "no image is left" in refusal(Parquet(files="b.parquet"), tmp_path)
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:-9], whole[:20], b"", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", b"<html>"):
        (tmp_path / "c.parquet").write_bytes(content)
        text = refusal(Parquet(files="c.parquet", image="img"), tmp_path)
        assert "cannot be read as a table" in text
        assert "c.parquet" in text
    assert "no such file" in refusal(Parquet(files="*.pq"), tmp_path)


def test_a_row_group_that_is_damaged_costs_its_images(tmp_path: Path) -> None:
    parquet(tmp_path, group=2, image=pa.array([encoded("PNG")] * 6))
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    footer = pq.read_metadata(tmp_path / "a.parquet")
    column = footer.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    (tmp_path / "a.parquet").write_bytes(data)
    dataset = opened(Parquet(files="a.parquet"), tmp_path)
    good = [i for i in range(6) if all_there_is_or_none(dataset, i)]
    assert good == [0, 1, 4, 5]
    assert "row group 1 cannot be read" in reason(dataset, 2)


def all_there_is_or_none(dataset: Dataset, index: int) -> bool:
    try:
        return dataset.picture(index).read().shape == (24, 40, 3)
    except BadImage:
        return False


def test_row_groups_are_unpacked_once_a_thread_and_not_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(Parquet(files="a.parquet"), parquet(tmp_path, group=5, image=pa.array([encoded("PNG")] * 20)))
    made: list[int] = []
    unpack = tables._ParquetDataset._unpack
    monkeypatch.setattr(
        tables._ParquetDataset, "_unpack", lambda self, file, group: (made.append(group), unpack(self, file, group))[1]
    )
    for i in range(20):
        dataset.sha256(i)
        dataset.picture(i).read()
    assert made == [0, 1, 2, 3]
    monkeypatch.setattr(tables, "_KEPT_BYTES", 1)
    other = pickle.loads(pickle.dumps(dataset))
    made.clear()
    for i in (0, 1, 5, 6, 0, 5):
        other.sha256(i)
    assert made == [0, 1, 0, 1]
    assert len(other._unpacked._columns) == 1
    monkeypatch.setattr(tables._ParquetDataset, "_unpack", lambda *_: pa.chunked_array([[b"one"]]))
    assert "has not the rows that the file states" in reason(pickle.loads(pickle.dumps(dataset)), 1)
    monkeypatch.setattr(tables, "_GROUP_BYTES", 100)
    text = refusal(Parquet(files="a.parquet"), tmp_path)
    assert "row group 0" in text
    assert "row_group_size" in text


def test_a_table_that_changes_while_it_is_read_stops(tmp_path: Path) -> None:
    parquet(tmp_path, image=pa.array([encoded("PNG")] * 4))
    dataset = opened(Parquet(files="a.parquet"), tmp_path)
    parquet(tmp_path, image=pa.array([encoded("PNG")] * 5))
    with pytest.raises(UserError, match="changed while it was read"):
        dataset.picture(0)
    (tmp_path / "a.parquet").unlink()
    assert "cannot be read" in reason(dataset, 0)


# --- Hugging Face datasets on disk


def test_what_hugging_face_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    datasets.disable_progress_bars()
    files = {name: data for name, data in contents().items() if name[0] in "0134"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    columns = {"image": [str(tmp_path / name) for name in files], "key": list(files)}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select([2])}).save_to_disk(tmp_path / "both")
    made.to_parquet(tmp_path / "a.parquet")
    for source, names in (
        (Arrow(folder=Path("saved"), ids="key"), list(files)),
        (Arrow(folder=Path("both"), split="train", ids="key"), list(files)),
        (Arrow(folder=Path("both"), split="test", ids="key"), ["3.png"]),
    ):
        dataset = opened(source, tmp_path)
        assert ids(dataset) == names
        assert [dataset.sha256(i) for i in range(len(names))] == [
            hashlib.sha256(files[name]).hexdigest() for name in names
        ]
    assert ids(opened(Arrow(folder=Path("saved")), tmp_path))[::3] == [
        "data-00000-of-00002.arrow/0",
        "data-00001-of-00002.arrow/1",
    ]
    for wrong in (None, "validation"):
        assert "`split` is one of: train, test" in refusal(Arrow(folder=Path("both"), split=wrong), tmp_path)
    assert "leave out `split`" in refusal(Arrow(folder=Path("saved"), split="train"), tmp_path)


def test_saved_datasets_that_are_wrong(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array(cells(contents()), CELL)})
    folder = write_arrow(tmp_path / "saved", table)
    source, state = Arrow(folder=Path("saved")), folder / "state.json"
    good, file = state.read_text(), folder / "data-00000-of-00001.arrow"
    for plain, problem in (
        ({"_data_files": [{"filename": "../list.arrow"}]}, "not all below"),
        ({"_data_files": [{"filename": str(file)}]}, "not all below"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow"),
        ({"_data_files": [{"filename": file.name}] * 2}, "each once"),
        ({"_data_files": [{}]}, "not all below"),
        ({"_data_files": [file.name]}, "not all below"),
        ({"_data_files": 7}, "not all below"),
        ({}, "not all below"),
        ([], "not the JSON"),
        ({**json.loads(good), "_indices_files": [{"filename": "i.arrow"}]}, "an index over the rows"),
    ):
        state.write_text(json.dumps(plain))
        assert problem in refusal(source, tmp_path), plain
    state.write_text("{")
    assert "not the JSON" in refusal(source, tmp_path)
    state.unlink()
    assert "that `save_to_disk` of Hugging Face datasets wrote" in refusal(source, tmp_path)
    (folder / "dataset_dict.json").write_text('{"splits": ["../x", 3]}')
    assert "no such split" in refusal(source.but(split="../x"), tmp_path)
    (folder / "dataset_dict.json").unlink()
    state.write_text(good)
    assert "there is no such column" in refusal(source.but(image="picture"), tmp_path)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"<html>" * 20):
        file.write_bytes(content)
        assert "cannot be read as a table" in refusal(source, tmp_path)
    with pa.ipc.new_file(file, table.schema) as writer:  # some tools write the file form
        writer.write_table(table)
    assert len(opened(source, tmp_path)) == 10


def test_offsets_that_lead_out_of_the_file_are_found(tmp_path: Path) -> None:
    """Reading such a cell would end the process, or show other memory."""
    data = [encoded("PNG"), encoded("PNG")]
    write_arrow(tmp_path / "saved", pa.table({"image": pa.array(data)}))
    file = tmp_path / "saved/data-00000-of-00001.arrow"
    content, sizes = file.read_bytes(), np.cumsum([0, *map(len, data)]).astype("<i4").tobytes()
    assert content.count(sizes) == 1
    for bad in ([0, len(data[0]), 2**30], [0, 2**30, 2 * len(data[0])], [0, -5, 2 * len(data[0])]):
        file.write_bytes(content.replace(sizes, np.array(bad, "<i4").tobytes()))
        _mapped_images.cache_clear()
        assert "cannot be read as a table" in refusal(Arrow(folder=Path("saved")), tmp_path)


def test_loader_processes_read_packed_images(pools: dict[str, Dataset]) -> None:
    from torch.utils.data import DataLoader

    for kind in ("tar", "parquet", "arrow"):
        dataset = pools[kind]
        pictures = torch.utils.data.Subset([0, 1, 2, 3, 4, 5, 9], range(7))  # type: ignore[arg-type,var-annotated]
        loader = DataLoader(
            pictures,
            batch_size=None,
            num_workers=2,
            collate_fn=lambda i, dataset=dataset: int(dataset.picture(i).read().sum()),  # type: ignore[misc]
        )
        assert list(loader) == [int(pools["folder"].picture(i).read().sum()) for i in (0, 1, 2, 3, 4, 5, 9)]
