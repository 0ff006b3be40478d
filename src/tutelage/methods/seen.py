"""Test images among those that are learned from: looked for before anything is learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from tutelage.data.source import BadImage, Dataset
from tutelage.errors import UserError
from tutelage.files import write_json
from tutelage.methods.material import place, prepare
from tutelage.stages import Run
from tutelage.training.processes import barrier, rank


def refuse_seen(run: Run) -> None:
    """That no image of a source, labelled or not, is one that figures are measured on, byte for byte.

    These are the images of the held-out sources and of the test parts of the downstream sets. A stage of its own, once
    for all seeds and rounds; test images are read whole, of the sources only those of a size that a test image has.

    Raises:
        UserError: naming some of them; `copies.json` in the stage's folder has all.
    """
    for variant in run.variants():
        _refuse_seen(variant)


def _refuse_seen(run: Run) -> None:
    recipe = run.recipe
    tests = {f"held_out.{name}": source for name, source in recipe.held_out.items()}
    tests |= {f"transfer.{name}.test": downstream.test for name, downstream in recipe.transfer.items()}
    if recipe.method == "transfer" or not recipe.sources or not tests:
        return
    about = {
        "sources": {name: source.plain() for name, source in recipe.sources.items()},
        "tests": {name: source.plain() for name, source in tests.items()},
        "data": recipe.data,
    }
    stage = run.stage("seen", about, shared=True, again=True)
    if stage.finished:
        return
    prepare(run, {**recipe.sources, **tests})
    if rank() == 0:
        copies = find_seen(run, *_opened(run))
        write_json(stage.folder / "copies.json", copies)
        for source, found in copies.items():
            total = sum(map(len, copies.values()))
            raise UserError(
                f"{total} images that are learned from are test images as well, byte for byte: what is measured on "
                "them is not what new images would give",
                file=stage.folder / "copies.json",
                field=f"sources.{source}",
                value=", ".join(f"{id} = {other}" for id, other in list(found.items())[:3]),
                fix="leave them out of the source (`exclude`), or test on other images; the file names them all",
            )
    barrier()
    stage.finish(sources=len(recipe.sources), tests=len(tests))


def _opened(run: Run) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """The sources, and what figures are measured on."""
    recipe = run.recipe
    known = {head: task.classes for head, task in recipe.heads.items()}
    sources = {n: s.open(n, place(run), known.get(s.head or "")) for n, s in recipe.sources.items()}
    tests = {f"held_out.{n}": s.open(n, place(run), known.get(s.head or "")) for n, s in recipe.held_out.items()}
    for name, downstream in recipe.transfer.items():
        tests[f"transfer.{name}.test"] = downstream.test.open(name, place(run), downstream.head.classes)
    return sources, tests


def find_seen(run: Run, sources: Mapping[str, Dataset], tests: Mapping[str, Dataset]) -> dict[str, dict[str, str]]:
    """Of each source that has any, the images that a test shows, byte for byte: id to "test: id there"."""
    digests: dict[str, str] = {}
    sizes: set[int | None] = set()
    for read, lengths in run.each("read the test images", _read, list(tests.items()), list(map(len, tests.values()))):
        digests |= read
        sizes |= lengths
    calls = [(name, dataset, digests, sizes) for name, dataset in sources.items()]
    found = run.each("look for test images", _find, calls, list(map(len, sources.values())))
    return {name: copies for name, copies in zip(sources, found, strict=True) if copies}


def _read(run: Run, name: str, dataset: Dataset) -> tuple[dict[str, str], set[int | None]]:
    """Digest to "name: id" of every image that can be read, and the sizes that occur."""
    digests: dict[str, str] = {}
    sizes: set[int | None] = set()
    with run.progress.bar(f"read {name}", len(dataset)) as bar:
        for index in range(len(dataset)):
            with suppress(BadImage, OSError):
                digests[dataset.sha256(index)] = f"{name}: {dataset.id(index)}"
                sizes.add(dataset.bytes_of(index))
            bar.advance()
    return digests, sizes


def _find(
    run: Run, name: str, dataset: Dataset, digests: Mapping[str, str], sizes: Collection[int | None]
) -> dict[str, str]:
    """Id to test image, of the images of a source that are one. Files that are no image at all do not count."""
    found = {}
    with run.progress.bar(f"look through {name}", len(dataset)) as bar:
        for index in range(len(dataset)):
            with suppress(BadImage, OSError):
                size = dataset.bytes_of(index)
                if size is None or None in sizes or size in sizes:
                    same = digests.get(dataset.sha256(index))
                    if same is not None:
                        dataset.picture(index).read()
                        found[dataset.id(index)] = same
            bar.advance()
    return found
