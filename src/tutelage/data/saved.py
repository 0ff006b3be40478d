"""Pools in Hugging Face datasets on disk, as `save_to_disk` of the package `datasets` writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from tutelage.data.files import FileSource, existing, inside, read_text, several
from tutelage.data.packed import Container, look
from tutelage.data.source import Dataset, Place
from tutelage.data.tables import Ids, TableDataset, check_column, column_type, reading
from tutelage.errors import UserError


class Arrow(FileSource):
    """Images without labels in a Hugging Face dataset on disk; ids are "data-00000-of-00001.arrow/row".

    Its files are mapped into memory, so any order of reading is as good as any other. The column is of struct<bytes,
    path> (the Image feature) or of binary; cells without bytes are set aside one by one. The package `datasets` is not
    needed.
    """

    format: Literal["arrow"] = "arrow"
    head: None = None
    folder: Path
    """The folder that `save_to_disk` wrote."""
    split: str | None = None
    """Which part of a DatasetDict, such as "train"; none for a single Dataset."""
    image: str = "image"
    """The column of images."""
    ids: str | None = None
    """A column of text or integers, different in every row, that gives the ids in place of file and row."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        folder = _split_folder(existing(place.root / self.folder, "`folder`", name, folder=True), self.split, name)
        containers = _saved_files(folder, name)
        counts = [len(_mapped_images(container, self.image)) for container in containers]
        ids = None if self.ids is None else Ids(containers, _arrow_ids, self.ids, place.cache)
        return _ArrowDataset(name, containers, counts, self, self.image, ids)


def _split_folder(folder: Path, split: str | None, name: str) -> Path:
    """The folder of one split; the folder itself for a single Dataset."""
    listed = folder / "dataset_dict.json"
    splits = _plain(listed, name).get("splits") if listed.is_file() else []
    known = [s for s in splits if isinstance(s, str) and inside(s)] if isinstance(splits, list) else []
    if split is None and not listed.is_file():
        return folder
    if split is None or split not in known:
        raise UserError(
            f"source '{name}': " + ("there is no such split" if split else "it holds several splits"),
            file=folder,
            field="split",
            value=split,
            fix=f"`split` is one of: {', '.join(known)}" if known else "leave out `split`: this is a single dataset",
        )
    return folder / split


def _saved_files(folder: Path, name: str) -> list[Container]:
    """The data files of a dataset in the order that its state.json states."""
    state = folder / "state.json"
    if not state.is_file():
        raise UserError(
            f"source '{name}': there is no dataset here that `save_to_disk` of Hugging Face datasets wrote",
            file=state,
            fix="give the folder that holds state.json and data-*.arrow (of a DatasetDict: dataset_dict.json)",
        )
    plain = _plain(state, name)
    if plain.get("_indices_files") or plain.get("_indices_data_files"):
        raise UserError(
            f"source '{name}': an index over the rows is saved beside them, as old versions of `datasets` do",
            file=state,
            fix="load it and save it again with a current version of `datasets`",
        )
    listed = plain.get("_data_files")
    records = listed if isinstance(listed, list) else []
    entries = [str(record.get("filename", "")) if isinstance(record, dict) else "" for record in records]
    wrong = [entry for entry in entries if not inside(entry)]
    missing = [entry for entry in entries if entry not in wrong and not (folder / entry).is_file()]
    if wrong or missing or not entries or len(set(entries)) < len(entries):
        raise UserError(
            f"source '{name}': the files that state.json lists are not all below its folder, each once",
            file=state,
            field="_data_files",
            value=several(wrong or missing or entries),
            fix="copy the whole folder, or save the dataset again",
        )
    return [look(entry, str(folder / entry)) for entry in entries]


def _plain(file: Path, name: str) -> dict[str, Any]:
    try:
        plain = json.loads(read_text(file, name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        plain = None
    if not isinstance(plain, dict):
        raise UserError(
            f"source '{name}': the file is not the JSON it should be", file=file, fix="save the dataset again"
        )
    return plain


@lru_cache(maxsize=64)  # a process may hold about a thousand open files
def _mapped_images(container: Container, column: str) -> pa.ChunkedArray:
    """The column of images, mapped and checked: offsets that lead out of the file would end the process."""
    with reading(container):
        table = _mapped(container)
        check_column(container, table.schema, column)
        images = table.column(column)
        images.validate(full=True)
        return images


def _arrow_ids(container: Container, column: str) -> pa.ChunkedArray:
    with reading(container):
        table = _mapped(container)
        column_type(container, table.schema, column)
        ids = table.column(column)
        ids.validate(full=True)
        return ids


def _mapped(container: Container) -> pa.Table:
    container.check(os.stat(container.path))  # noqa: PTH116
    with pa.memory_map(container.path) as file:
        is_file = file.read(6) == b"ARROW1"
    source = pa.memory_map(container.path)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).read_all()


class _ArrowDataset(TableDataset):
    def _cell(self, container: int, row: int) -> pa.Scalar:
        return _mapped_images(self._containers[container], self._column)[row]
