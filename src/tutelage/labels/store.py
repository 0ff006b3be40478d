"""The labels store: pseudo labels on disk, one Parquet dataset a head, written once and read by all.

    <root>/<head>/part-00042.parquet          the labels of images 42,000 to 42,999 of the pool
    <root>/<head>/_manifest.json              written last: what a finished head consists of
    <root>/<head>/_random-access.arrow, .npy  derived, made when first needed; can be deleted at any time
    <root>/.leases/                           while labels are being made: who makes what (`leases.py`)

Names that begin with `_` or `.` are skipped by pandas, pyarrow and Spark, so that `<root>/<head>` opens there as
it is. One row is one image: `id`, `source`, `image_sha256`, `teacher` (hash), `height`, `width` (pixels) and the
columns of its kind (`encoding.py`). An image without a row is unlabelled; a row with an empty list of boxes is
labelled, nothing there. The metadata of each file (key `tutelage`, JSON) is a `ShardNote`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tutelage.errors import UserError
from tutelage.labels.encoding import CODECS
from tutelage.labels.random_access import RandomAccess
from tutelage.part import Part
from tutelage.tasks.task import Task
from tutelage.types import Target

VERSION = 2
"""Of the columns and the metadata; a store of another version is refused."""

MANIFEST = "_manifest.json"
KEY = b"tutelage"
"""Of the note, in a Parquet file's metadata."""

ROWS = 20  # a row group of pictures: what a reader must fetch for one row
_BUILDING = threading.Lock()  # threads of one process would write the same temporary file
KINDS = {kind.__name__: kind for kind in CODECS}


class SetAside(Part):
    """An image that a head has no label for, because something was wrong."""

    source: str
    id: str
    sha256: str
    stage: str
    reason: str


class Counts(Part):
    """What became of the images. Always `read == labelled + human + quarantined`."""

    read: int = 0
    labelled: int = 0
    human: int = 0
    """Left out, because a person labelled them."""
    undecodable: int = 0
    """Quarantined: the image could not be read."""
    faulty: int = 0
    """Quarantined: the teacher's prediction was no label (NaN, out of range)."""
    empty: int = 0
    """Labelled, but the pseudo-label rule as it was then left no box."""

    @property
    def quarantined(self) -> int:
        return self.undecodable + self.faulty

    def plus(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields})


class ShardNote(Part):
    """The metadata of one Parquet file."""

    version: int = VERSION
    head: str
    kind: str
    task: dict[str, Any]
    """The task as it was when the labels were made, its threshold included."""
    classes: tuple[str, ...] | None
    teacher: str
    settings: dict[str, Any]
    made_by: str
    """Fingerprint of what decides the labels, but the images: head, kind, classes, teacher, settings."""
    pool: str
    """The first image of the whole pool: tells a changed pool from another one."""
    listing: str = ""
    """Digest of the ids of the shard's images in order, and of which of them a person labelled; made without reading
    an image."""
    images: str
    """Digest of the shard's images in order: source, id, SHA-256, and whether a person labelled it."""
    counts: Counts
    quarantined: tuple[SetAside, ...] = ()


class Shard(Part):
    """One file of a finished head."""

    file: str
    rows: int
    bytes: int
    sha256: str
    note: str
    """Fingerprint of the file's `ShardNote`. Equal notes mean equal bytes."""


class Manifest(Part):
    """What a finished head consists of. A head without one is not finished."""

    version: int = VERSION
    head: str
    kind: str
    task: dict[str, Any]
    classes: tuple[str, ...] | None
    teacher: str
    about: dict[str, Any] = {}
    """What the teacher states of itself: make, input, normalisation, weights."""
    made_by: str
    counts: Counts
    bytes: int
    shards: tuple[Shard, ...]

    def stamp(self) -> str:
        """Digest of the labels themselves."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """One row: the raw prediction, the image's SHA-256 and size, and the teacher's hash."""

    source: str
    id: str
    sha256: str
    teacher: str
    height: int
    width: int
    target: Target


# Writing ----------------------------------------------------------------------------------------------------


def head_folder(root: Path, head: str) -> Path:
    """The folder of a head. Raises UserError where the head's name is no name for a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]*", head):
        raise UserError(
            "a head's name must do as the name of a folder", field="head", value=head, fix="rename the head"
        )
    return root / head


def shard_file(number: int) -> str:
    return f"part-{number:05d}.parquet"


def schema_of(kind: type) -> pa.Schema:
    """The columns of a head's Parquet files."""
    text = [pa.field(name, pa.string(), nullable=False) for name in ("id", "source", "image_sha256", "teacher")]
    size = [pa.field(name, pa.int32(), nullable=False) for name in ("height", "width")]
    return pa.schema(text + size + CODECS[kind].columns)


def read_note(file: Path) -> ShardNote | None:
    """The metadata of a shard; None when there is no such file, or it is cut short or of another version."""
    found = read_footer(file)
    return None if found is None else found[0]


def read_footer(file: Path) -> tuple[ShardNote, str] | None:
    """As `read_note`, with the note's fingerprint (`Shard.note`)."""
    try:
        content = pq.read_metadata(file).metadata[KEY]
        return ShardNote.model_validate_json(content), note_fingerprint(content)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValidationError):
        return None


def note_fingerprint(content: bytes) -> str:
    """Of a note as it stands in its file."""
    return hashlib.sha256(content).hexdigest()[:16]


# Reading ----------------------------------------------------------------------------------------------------


@dataclass
class Store:
    """The finished heads under one root, opened for reading. Cheap to send to loader processes.

    `get` needs a derived file a head (`prepare`), which is made when it is missing or of other labels; do that
    before loader processes start, or each of them makes its own.

    Attributes:
        root: the folder of the heads' folders.
    """

    root: Path
    _maps: dict[str, RandomAccess] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_maps": {}}

    def heads(self) -> list[str]:
        """The heads that are finished, by name."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{MANIFEST}"))

    def manifest(self, head: str) -> Manifest:
        """What the head consists of. Raises UserError when it is unfinished, damaged or of another version."""
        file = head_folder(self.root, head) / MANIFEST
        if not file.is_file():
            raise UserError(
                f"there are no finished labels for head '{head}'",
                file=file,
                fix=f"label the pool first; finished here: {', '.join(self.heads()) or 'none'}",
            )
        data = file.read_bytes()
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            _check_version(file, data)  # another version has other fields
            first = error.errors(include_url=False)[0]
            raise UserError(
                "the manifest of these labels is damaged",
                file=file,
                field=".".join(map(str, first["loc"])) or None,
                value=first["msg"],
                fix="delete the manifest and label again: finished shards are kept",
            ) from None
        if manifest.version != VERSION or manifest.kind not in KINDS:
            raise _other_version(file, f"{manifest.version}, kind {manifest.kind}")
        return manifest

    def check(self, head: str, task: Task) -> None:
        """That the labels of a head can be read as those of a task. Raises UserError: another kind, other classes."""
        manifest = self.manifest(head)
        for field_name, found, wanted in (
            ("kind", manifest.kind, task.kind.__name__),
            ("classes", manifest.classes, task.classes),
        ):
            if found != wanted:
                raise UserError(
                    f"the labels of head '{head}' are not those of this task",
                    file=head_folder(self.root, head) / MANIFEST,
                    field=field_name,
                    value=found,
                    fix=f"the head has {wanted}: give it the task and the classes that were labelled",
                )

    def prepare(self, heads: Sequence[str] | None = None) -> None:
        """Make missing files for random access. Raises UserError naming a damaged shard."""
        for head in self.heads() if heads is None else heads:
            self._map(head)

    def get(self, head: str, source: str, id: str) -> Target | None:
        """One image's raw prediction, before the pseudo-label rule, at the image's size; None where unlabelled.

        Raises:
            UserError: the head is not finished, or the record is damaged.
        """
        access = self._map(head)
        try:
            return access.get(source, id)
        except ValueError as error:
            raise UserError(
                f"a label is damaged: {error}",
                file=access.file,
                record=f"{source}/{id}",
                fix=f"delete {access.file.name}: it is made again from the labels, which `verify` checks",
            ) from None

    def image(self, head: str, source: str, id: str) -> int | None:
        """`short_digest` of the image that a head's label was made of; None where there is no label."""
        return self._map(head).image(source, id)

    def _map(self, head: str) -> RandomAccess:
        access = self._maps.get(head)
        if access is None:
            with _BUILDING:
                access = self._maps[head] = self._maps.get(head) or self._open(head)
        return access

    def _open(self, head: str) -> RandomAccess:
        manifest, folder = self.manifest(head), head_folder(self.root, head)
        access = RandomAccess(folder, KINDS[manifest.kind], manifest.stamp())
        if not access.usable():
            for shard in manifest.shards:
                problem = check_shard(folder, shard)
                if problem is not None:
                    raise UserError(
                        f"the labels are damaged: {problem}",
                        file=folder / shard.file,
                        fix="delete this file and label again: only its images are done again",
                    )
            access.build([folder / shard.file for shard in manifest.shards])
        return access


def _check_version(file: Path, manifest: bytes) -> None:
    try:
        version = json.loads(manifest)["version"]
    except (ValueError, TypeError, KeyError):  # not even JSON: damaged
        return
    if version != VERSION:
        raise _other_version(file, version)


def _other_version(file: Path, value: object) -> UserError:
    return UserError(
        "these labels were written by another version",
        file=file,
        field="version",
        value=value,
        fix=f"this program reads version {VERSION}; label again into another folder",
    )


def find_store(folder: Path) -> Path:
    """The folder of a store: itself, or its `labels` stage when it is a run's folder. Raises UserError."""
    for candidate in (folder, folder / "labels"):
        if any(candidate.glob(f"*/{MANIFEST}")):
            return candidate
    raise UserError(
        "there are no finished labels here", file=folder, fix="give the --out of a `tutelage label` that has ended"
    )


def check_shard(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard on disk, or None."""
    file = folder / shard.file
    if not file.is_file():
        return "the shard is missing"
    if file.stat().st_size != shard.bytes:
        return f"the shard has {file.stat().st_size} bytes, not {shard.bytes}"
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
            return "the shard's bytes have changed since it was written"
    return None


@dataclass(frozen=True)
class LabelsView:
    """Pseudo labels as training sees them: each task's rule applied to the stored predictions on reading.

    A threshold can therefore change without labelling again.

    Attributes:
        store: where the predictions are.
        tasks: head name to task, for the heads to be read.
    """

    store: Store
    tasks: Mapping[str, Task]

    def get(self, head: str, source: str, id: str) -> Target | None:
        """One head's pseudo label; None where unlabelled, where the rule keeps nothing, for heads not in `tasks`."""
        task = self.tasks.get(head)
        raw = None if task is None else self.store.get(head, source, id)
        return None if raw is None or task is None else task.pseudo(raw)
