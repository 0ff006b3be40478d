"""Tar archives: the headers against `tarfile`, the index, and archives that were made to do harm."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tutelage.data import archives, packed
from tutelage.data.archives import Tar
from tutelage.data.packed import PackedDataset
from tutelage.data.pixels import MAX_BYTES
from tutelage.data.source import BadImage, Dataset, Place
from tutelage.data.tar import Member, Note, Notes, NotTar, read_members
from tutelage.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def encoded(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 100, 50)).save(stream, "PNG")
    return stream.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, **options: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in options.items():
        setattr(info, key, value)
    return info


def pack(path: Path, *members: tuple[str | tarfile.TarInfo, bytes], kind: str = "pax") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for given, content in members:
            info = entry(given) if isinstance(given, str) else given
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(path: Path) -> tuple[list[Member], list[Note]]:
    notes = Notes()
    with path.open("rb") as file:
        return list(read_members(file.fileno(), notes)), notes.all()


def problems(path: Path) -> dict[str, int]:
    return {note.problem: note.times for note in read(path)[1]}


def opened(root: Path, archives: str, **options: object) -> Dataset:
    return Tar(archives=archives, **options).open("pool", Place(root, root / "cache"))  # type: ignore[arg-type]


def ids(dataset: Dataset) -> list[str]:
    return [dataset.id(i) for i in range(len(dataset))]


def refusal(root: Path, archives: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, archives, **options)
    return str(caught.value)


# --- headers


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_that_tarfile_finds(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    names = ["a.jpg", "b/c.d.json", "ü/ß.png", "x" * 100, f"{'folder/' * 20}{'y' * 90}.jpg", "z" * 99 + "/a.jpg"]
    if kind != "ustar":  # which has no room for them
        names += ["long/" * 60 + "name.jpg", "ö" * 400]
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        (n, rng.randbytes(rng.choice([0, 1, 512, 3000]))) for n in names
    ]
    if kind != "ustar":
        link = entry("link.jpg", tarfile.SYMTYPE, linkname="q" * 150)
        members[2:2] = [(entry("b/", tarfile.DIRTYPE), b""), (link, b"")]
    path = pack(tmp_path / "a.tar", *members, kind=kind)
    with tarfile.open(path) as archive:
        wanted = [Member(i.name, i.offset_data, i.size) for i in archive if i.isreg()]
    found, notes = read(path)
    assert found == wanted
    assert len(found) == len(names)
    assert [note.problem for note in notes] == ([] if kind == "ustar" else ["links are not followed"])
    content = path.read_bytes()
    given = [data for info, data in members if isinstance(info, str)]
    assert [content[m.offset : m.offset + m.size] for m in found] == given


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar program")
def test_an_archive_of_another_program(tmp_path: Path) -> None:
    """GNU or BSD tar, whichever is there: names begin with ./ and folders are members."""
    for name in ("a.png", "deep/er/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded())
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", "."], check=True)
    dataset = opened(tmp_path, "a.tar")
    assert sorted(ids(dataset)) == ["a.tar/a.png", "a.tar/deep/er/b.png"]
    assert dataset.faults == []
    assert dataset.picture(0).read().shape == (12, 16, 3)


def test_large_numbers_and_old_headers(tmp_path: Path) -> None:
    """A member of 9 GiB (a file with a hole) in both forms of the size; names as bytes; a header without "ustar"."""
    for kind in ("gnu", "pax"):
        info = entry("large.jpg")
        info.size = 9 * 2**30
        head = info.tobuf(FORMATS[kind])
        with (tmp_path / "a.tar").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + info.size)
            file.seek(0, os.SEEK_END)
            file.write(entry("b.jpg").tobuf(FORMATS[kind]) + bytes(1024))
        members, notes = read(tmp_path / "a.tar")
        assert [(m.name, m.size) for m in members] == [("large.jpg", 9 * 2**30), ("b.jpg", 0)]
        assert notes == []
        dataset = opened(tmp_path, "a.tar")
        for use in (dataset.sha256, dataset.picture):
            with pytest.raises(BadImage, match="more than"):
                use(0)
    old = bytearray(entry("a\udce4.jpg").tobuf(tarfile.USTAR_FORMAT, "latin-1", "surrogateescape"))
    old[156:157], old[257:265] = b"\0", bytes(8)
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + sum(old[156:]) + 256)
    (tmp_path / "old.tar").write_bytes(old + bytes(1024))
    assert read(tmp_path / "old.tar")[0] == [Member("a\\xe4.jpg", 512, 0)]
    gnu, link = bytearray(entry("a.jpg").tobuf(tarfile.GNU_FORMAT)), entry("link", tarfile.LNKTYPE)
    gnu[345:357] = b"14770000000 "  # the time of access, where others keep the first part of a long name
    gnu[148:156] = b"%06o\0 " % (sum(gnu[:148]) + sum(gnu[156:]) + 256)
    link.size = 5000  # of the file it leads to: no content follows
    (tmp_path / "gnu.tar").write_bytes(link.tobuf(tarfile.GNU_FORMAT) + gnu + bytes(1024))
    assert read(tmp_path / "gnu.tar")[0] == [Member("a.jpg", 1024, 0)]


# --- archives that are broken, or were made to do harm


def test_what_is_hostile_is_left_out_and_counted(tmp_path: Path) -> None:
    data = encoded()
    sparse = entry("holes.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x.jpg"}
    named = entry("harmless.jpg")
    named.pax_headers = {"path": "../../etc/cron.d/x.jpg"}
    volume = entry("label.jpg", b"V")
    path = pack(
        tmp_path / "a.tar",
        ("good-1.png", data),
        ("/etc/passwd.jpg", data),
        ("../up.jpg", data),
        ("a/../../up.jpg", data),
        ("./../up.jpg", data),
        (named, data),
        (entry("link.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (entry("hard.jpg", tarfile.LNKTYPE, linkname="good-1.png"), b""),
        (entry("device.jpg", tarfile.BLKTYPE), b""),
        (entry("pipe.jpg", tarfile.FIFOTYPE), b""),
        (sparse, data),
        (volume, b""),
        ("good-2.png", data),
    )
    assert problems(path) == {
        "a member's name leads outside of the archive": 5,
        "links are not followed": 2,
        "devices and pipes are left out": 2,
        "sparse files are left out": 1,
        "members of an unknown kind are left out": 1,
    }
    dataset = opened(tmp_path, "a.tar")
    assert ids(dataset) == ["a.tar/good-1.png", "a.tar/good-2.png"]
    assert {(f.file, f.outcome) for f in dataset.faults} == {(str(path), "counted")}
    assert dataset.faults[0].value == "5"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "cache"]


def test_a_cut_archive_gives_what_stands_before_the_cut(tmp_path: Path) -> None:
    members = [(f"{'long/' * 30 if i == 2 else ''}{i}.png", encoded(i)) for i in range(4)]
    whole = pack(tmp_path / "a.tar", *members, kind="gnu").read_bytes()
    everything, _ = read(tmp_path / "a.tar")
    assert len(everything) == 4
    last = everything[-1].offset + everything[-1].size
    for length in [*range(0, len(whole), 173), last - 1, last, last + 300]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        if length < 512:
            with pytest.raises(NotTar):
                read(tmp_path / "cut.tar")
            continue
        found, notes = read(tmp_path / "cut.tar")
        assert found == [m for m in everything if m.offset + m.size <= length], length
        ends = -(-last // 512) * 512
        assert len(notes) == (0 if length >= ends + 512 else 1), (length, notes)
    (tmp_path / "cut.tar").write_bytes(whole[: last - 1])
    dataset = opened(tmp_path, "cut.tar")
    assert len(dataset) == 3
    assert [(f.problem, f.record) for f in dataset.faults] == [
        ("the archive is cut, its last member is not whole", "3.png")
    ]
    assert dataset.picture(2).read()[0, 0].tolist() == [2, 100, 50]


def test_damage_ends_an_archive_and_is_counted(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "a.tar", *((f"{i}.png", encoded()) for i in range(4))).read_bytes())
    third = read(tmp_path / "a.tar")[0][2].offset - 512
    content[third + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    dataset = opened(tmp_path, "a.tar")
    assert len(dataset) == 2
    assert dataset.faults[0].problem == "a header's checksum is wrong; what follows is not read"
    assert dataset.faults[0].record == f"byte {third}"


def test_joined_archives_are_told(tmp_path: Path) -> None:
    one, two = (pack(tmp_path / f"{n}.tar", (f"{n}.png", encoded())).read_bytes() for n in "ab")
    (tmp_path / "c.tar").write_bytes(one + two)
    assert list(problems(tmp_path / "c.tar")) == [
        "what stands behind the archive's end mark is not read (archives joined into one?)"
    ]


@pytest.mark.parametrize("kind", ["L", "x", "g", "K"])
def test_headers_that_ask_for_memory_are_refused(tmp_path: Path, kind: str) -> None:
    info = entry("././@LongLink", kind.encode())
    info.size = 2**40
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(entry("a.png").tobuf(tarfile.GNU_FORMAT) + info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33)
    members, notes = read(tmp_path / "a.tar")
    assert len(members) == 1
    assert "PAX header of 1,099,511,627,776 bytes" in notes[0].problem


def test_no_bytes_make_the_reader_fail_or_hang(tmp_path: Path) -> None:
    rng = random.Random(0)
    start = entry("a" * 150)
    start.pax_headers = {"size": "77", "comment": "x"}
    for kind in FORMATS:
        if kind == "ustar":
            whole = pack(tmp_path / "a.tar", *((f"{i}.png", b"x" * 600) for i in range(3)), kind=kind).read_bytes()
        else:
            whole = pack(tmp_path / "a.tar", (start, b"x" * 77), ("b" * 200, b"y"), ("c", b"z"), kind=kind).read_bytes()
        whole = whole[: len(whole.rstrip(b"\0")) + 1024]
        for _ in range(150):
            broken = bytearray(whole)
            for _ in range(rng.choice([1, 1, 3, 30])):
                broken[rng.randrange(len(broken))] = rng.choice([0, 0x20, 0x31, 0x37, 0x80, 0xFF, rng.randrange(256)])
            for at in range(0, len(broken) - 511, 512):  # most headers get a checksum that is right again
                if rng.random() < 0.9 and broken[at + 257 : at + 262] == b"ustar":
                    total = sum(broken[at : at + 148]) + sum(broken[at + 156 : at + 512]) + 256
                    broken[at + 148 : at + 156] = b"%06o\0 " % total
            (tmp_path / "b.tar").write_bytes(broken)
            try:
                members, _ = read(tmp_path / "b.tar")
            except NotTar:
                continue
            assert all(m.offset >= 0 and m.offset + m.size <= len(broken) for m in members)


def test_pax_records_of_all_shapes(tmp_path: Path) -> None:
    def archive(records: bytes) -> tuple[list[Member], list[Note]]:
        header = entry("pax", b"x")
        header.size = len(records)
        block = header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
        (tmp_path / "a.tar").write_bytes(block + entry("plain.jpg").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
        return read(tmp_path / "a.tar")

    assert archive(b"")[0][0].name == "plain.jpg"
    assert archive(b"16 path=new.jpg\n")[0][0].name == "new.jpg"
    assert archive(b"16 path=one.jpg\n16 path=two.jpg\n")[0][0].name == "two.jpg"
    assert archive(b"16 path=a\nb=c.j\n")[0][0].name == "a\nb=c.j"
    lengths = (b"15 path=new.jpg\n", b"99 path=new.jpg\n", b"path=new.jpg\n", b"0 path=x\n", b"9999999 a=\n")
    for bad in (*lengths, b"11 size=-1\n", b"12 size=1e3\n"):
        members, notes = archive(bad)
        assert (members, [n.problem for n in notes]) == ([], ["a member's PAX header cannot be read"]), bad
    many, _ = archive(b"".join(b"6 a=b\n" for _ in range(170_000)))  # read once, not once a record
    assert many[0].name == "plain.jpg"


def test_what_is_no_plain_archive_is_refused(tmp_path: Path) -> None:
    plain = pack(tmp_path / "a.tar", ("a.png", encoded())).read_bytes()
    for content, reason in (
        (gzip.compress(plain), "compressed with gzip"),
        (bz2.compress(plain), "compressed with bzip2"),
        (lzma.compress(plain), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + plain, "compressed with zstd"),
        (b"<html>" * 200, "it begins with b'<html><h'"),
        (b"short", "it begins with b'short'"),
        (b"", "empty"),
    ):
        (tmp_path / "b.tar").write_bytes(content)
        text = refusal(tmp_path, "b.tar")
        assert reason in text
        assert "b.tar" in text
    (tmp_path / "b.tar").write_bytes(bytes(10240))  # an archive of nothing
    assert "no image is left" in refusal(tmp_path, "b.tar")
    assert len(opened(tmp_path, "{a,b}.tar")) == 1


# --- the source


def test_webdataset_layout(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar",
        *(
            (f"{i}.{ending}", encoded(i) if ending.endswith("g") else b"{}")
            for i in range(3)
            for ending in ("jpg", "json")
        ),
        ("3.seg.png", encoded()),
        ("4.JPEG", encoded()),
        ("__MACOSX/._3.jpg", b"?"),
        (".hidden/3.jpg", b"?"),
    )
    dataset = opened(tmp_path, "a.tar")
    assert ids(dataset) == [f"a.tar/{name}" for name in ("0.jpg", "1.jpg", "2.jpg", "3.seg.png", "4.JPEG")]
    assert [fault.value for fault in dataset.faults] == ["5"]
    assert dataset.file(1) == f"{tmp_path}/a.tar: 1.jpg"
    assert (dataset.head, dataset.space, dataset.target(0)) == (None, None, None)
    assert dataset.mended(0)[0].problem == "the name ends in '.jpg' but the content is PNG"
    assert ids(opened(tmp_path, "a.tar", endings=(".seg.png", ".jpeg"))) == ["a.tar/3.seg.png", "a.tar/4.JPEG"]
    with pytest.raises(ValidationError, match="begins with a dot"):
        Tar(archives="a.tar", endings=("jpg",))
    for index in (-1, 5):
        with pytest.raises(IndexError):
            dataset.id(index)


def test_of_two_members_of_one_name_the_last_is_taken(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar", ("a.png", encoded(1)), ("b.png", encoded(2)), ("./a.png", encoded(3)), ("a.png", encoded(4))
    )
    dataset = opened(tmp_path, "a.tar")
    assert ids(dataset) == ["a.tar/b.png", "a.tar/a.png"]
    assert dataset.picture(1).read()[0, 0, 0] == 4
    assert [(f.record, f.outcome, f.value) for f in dataset.faults] == [("a.png", "dropped", "2")]


def test_archives_are_named_by_path_folder_pattern_or_braces(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        pack(tmp_path / f"in/t-{number:02d}.tar", (f"{number}.png", encoded()))
    pack(tmp_path / "in/deep/t-99.tar", ("99.png", encoded()))
    (tmp_path / "in/.hidden.tar").write_bytes(b"")

    def labels(given: str) -> list[str]:
        return [id.rpartition("/")[0] for id in ids(opened(tmp_path, given))]

    flat = [f"t-{n}.tar" for n in ("00", "01", "02", "10")]
    assert labels("in/t-01.tar") == ["t-01.tar"]
    assert labels("in") == ["deep/t-99.tar", *flat]
    assert labels("in/*.tar") == labels("in/t-{00,01,02,10}.tar") == flat
    assert labels("in/**/t-?9.tar") == ["deep/t-99.tar"]
    assert labels("in/t-0{0..2}.tar") == labels("in/t-{00..02}.tar") == flat[:3]
    assert labels("in/t-{0,1}{0..0}.tar") == ["t-00.tar", "t-10.tar"]
    assert labels(str(tmp_path / "in/t-{02..00}.tar")) == flat[:3]
    pack(tmp_path / "in/odd[1].tar", ("o.png", encoded()))
    assert labels("in/odd[1].tar") == ["odd[1].tar"]
    assert "did you mean 't-10.tar'" in refusal(tmp_path, "in/t_10.tar")
    assert "t-03.tar" in refusal(tmp_path, "in/t-{00..03}.tar")
    assert "too many names" in refusal(tmp_path, "in/t-{0..99999999999}.tar")
    assert "named twice" in refusal(tmp_path, "in/t-{01,01}.tar")
    assert "no such file" in refusal(tmp_path, "gone/*.tar")


def test_images_are_picked_as_from_folders(tmp_path: Path) -> None:
    for a in range(2):
        pack(tmp_path / f"{a}.tar", *((f"{i}.png", encoded(i)) for i in range(6)))
    everything = ids(opened(tmp_path, "*.tar"))
    assert len(everything) == 12
    assert ids(opened(tmp_path, "*.tar", limit=3)) == everything[::4]
    assert ids(opened(tmp_path, "*.tar", blocks=(0.5, 1), every=2)) == everything[6::2]
    assert ids(opened(tmp_path, "*.tar", exclude=("0.tar/1", "1.tar/5.png"))) == [
        id for id in everything if id not in ("0.tar/1.png", "1.tar/5.png")
    ]
    assert "did you mean '0.tar/1'" in refusal(tmp_path, "*.tar", exclude=("0.tar/11",))
    picked = opened(tmp_path, "*.tar", limit=3)
    assert [picked.picture(i).read()[0, 0, 0] for i in range(3)] == [0, 4, 2]
    whole = opened(tmp_path, "*.tar")
    assert picked.listing(0, 3) != whole.listing(0, 3)
    assert picked.listing(0, 1) == whole.listing(0, 1)


# --- the index


def test_the_index_is_made_once_and_made_again_when_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "a.tar", *((f"{i}.png", encoded(i)) for i in range(3)), ("x.json", b"{}"))
    first = opened(tmp_path, "a.tar")
    (index,) = (tmp_path / "cache").iterdir()
    made = index.read_bytes()

    def again() -> Dataset:
        archives._index.cache_clear()
        return opened(tmp_path, "a.tar")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "read_members", lambda *_: pytest.fail("the archive was read again"))
        assert (ids(again()), again().faults) == (ids(first), first.faults)
    for damaged in (made[: len(made) // 2], made[:-1], b""):
        index.write_bytes(damaged)
        assert ids(again()) == ids(first)
        assert index.read_bytes() == made, "whoever makes it, makes the same bytes"
    pack(tmp_path / "a.tar", *((f"{i}.png", encoded(i)) for i in range(5)))
    assert len(again()) == 5
    assert len(opened(tmp_path, "a.tar", endings=(".png",))) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_an_archive_that_changes_while_it_is_read_stops(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", ("a.png", encoded()), ("b.png", encoded()))
    dataset = opened(tmp_path, "a.tar")
    pack(tmp_path / "a.tar", ("a.png", encoded()), ("b.png", encoded()), ("c.png", encoded() * 200))
    with pytest.raises(UserError, match="changed while it was read"):
        dataset.picture(0)
    path.unlink()
    with pytest.raises(BadImage, match="No such file"):
        dataset.sha256(0)
    assert dataset.changed(0, 2) is None


def test_an_open_archive_has_no_position_that_threads_or_processes_could_move(tmp_path: Path) -> None:
    members = [(f"{i}.png", bytes([i]) * (100 + 7 * i)) for i in range(200)]
    dataset = opened(pack(tmp_path / "a.tar", *members).parent, "a.tar")
    assert isinstance(dataset, PackedDataset)
    handle = packed._opened(dataset._containers[0])
    os.lseek(handle.number, 1234, os.SEEK_SET)
    for index in random.Random(0).sample(range(200), k=50):
        assert dataset.sha256(index) == hashlib.sha256(members[index][1]).hexdigest()
    assert packed._opened(dataset._containers[0]) is handle
    assert os.lseek(handle.number, 0, os.SEEK_CUR) == 1234


def test_many_archives_keep_few_files_open(tmp_path: Path) -> None:
    for number in range(70):
        pack(tmp_path / f"in/{number}.tar", ("a.png", encoded(number)))
    dataset = opened(tmp_path, "in")
    assert [int(dataset.picture(i).read()[0, 0, 0]) for i in range(70)] == list(range(70))
    assert packed._opened.cache_info().currsize <= 64
    assert dataset.changed(0, 70) == max(p.stat().st_ctime for p in (tmp_path / "in", *(tmp_path / "in").iterdir()))


def test_the_listing_tells_other_ids_apart(tmp_path: Path) -> None:
    def listing(folder: str, start: int, stop: int, *members: str) -> str:
        pack(tmp_path / folder / "a.tar", *((m, encoded()) for m in members[:2]))
        pack(tmp_path / folder / "b.tar", *((m, encoded(9)) for m in members[2:]))
        return opened(tmp_path / folder, "*.tar").listing(start, stop)

    names = ("1.png", "2.png", "1.png", "3.png")
    whole = listing("0", 0, 4, *names)
    assert listing("1", 0, 4, *names) == whole
    others = [
        listing("2", 0, 3, *names),
        listing("3", 1, 4, *names),
        listing("4", 0, 4, "2.png", "1.png", "1.png", "3.png"),
        listing("5", 0, 4, "1.png", "2.png", "3.png", "1.png"),
        listing("6", 0, 4, "1.png", "2.png", "1.png", "33.png"),
        listing("7", 0, 4, "x.png", "y.pngz.png", "1.png", "3.png"),
        listing("8", 0, 4, "x.pngy.png", "z.png", "1.png", "3.png"),
        listing("0", 1, 1, *names),
    ]
    assert len({whole, *others}) == 9


def test_reading_is_bounded_by_the_index(tmp_path: Path) -> None:
    assert MAX_BYTES < 2**31 - 4096, "one read must suffice on Linux"
    pack(tmp_path / "a.tar", ("empty.png", b""), ("a.png", encoded()))
    dataset = opened(tmp_path, "a.tar")
    with pytest.raises(BadImage, match="0 bytes"):
        dataset.picture(0)
    assert np.array_equal(dataset.picture(1).read(), np.asarray(Image.open(io.BytesIO(encoded()))))
