"""The command line. Heavy imports stand inside the commands, so that `tutelage --help` answers at once."""

from __future__ import annotations

import os
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.errors import UserError
from tutelage.progress import Progress, speaks

if TYPE_CHECKING:
    from tutelage.jobs import Jobs as AnyJobs
    from tutelage.recipe import Recipe

app = typer.Typer(
    help="Many single-task datasets, specialist models and unlabelled images in; one general vision model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The built-in recipes.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipe")
labels_app = typer.Typer(help="A labels store.", no_args_is_help=True)
app.add_typer(labels_app, name="labels")


class Engines(Enum):
    """Who labels."""

    LOCAL = "local"
    RAY = "ray"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML or Python file, or a built-in recipe.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one key; may be repeated.")]
Out = Annotated[Path, typer.Option(help="The run's folder.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Stages side by side; by default one a core (at most 4), or 1 on a GPU.")
]


@app.command()
def run(
    recipe: RecipeName,
    out: Out,
    settings: Settings = None,
    jobs: Jobs = None,
    engine: Annotated[
        Engines, typer.Option(help="Who trains side by side: processes of this machine, or a Ray cluster.")
    ] = Engines.LOCAL,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; left out, a local one is started.")] = None,
) -> None:
    """Train teachers, label all images, train the student, transfer it, and write the report."""
    from tutelage import api

    _tell(out, api.run(_recipe(recipe, settings), out, jobs=_workers(engine, address, jobs)))


@app.command()
def transfer(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Model folders, runs, random, timm:NAME[=FILE], torchvision:NAME[=FILE] or transformers:FOLDER.",
        ),
    ],
    suite: Annotated[
        str, typer.Option(help="Downstream sets: a YAML or Python file, a named suite, or a built-in recipe's.")
    ],
    out: Out,
    settings: Settings = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="A row of plain ImageNet weights, where there are any.")
    ] = True,
    engine: Annotated[
        Engines, typer.Option(help="local: processes of this machine. ray: a Ray cluster.")
    ] = Engines.LOCAL,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; left out, a local one is started.")] = None,
    jobs: Jobs = None,
) -> None:
    """Compare networks on labelled sets: one table, with the spread over seeds and what is inside the noise."""
    from tutelage import api

    found = _suite(suite)
    report = api.transfer(
        checkpoints, found, out, settings=settings or [], controls=controls, jobs=_workers(engine, address, jobs)
    )
    _tell(out, report)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    fast: Annotated[bool, typer.Option("--fast", help="Smaller: about a minute on two cores.")] = False,
    settings: Settings = None,
    jobs: Jobs = None,
) -> None:
    """The whole method on the embedded scenes: no download, a few minutes on two cores."""
    from tutelage import api

    _tell(out, api.run(_recipe("demo-fast" if fast else "demo", settings), out, jobs=_jobs(jobs)))


def _tell(out: Path, report: Path) -> None:
    """A finished run's tables, and where its report is."""
    from tutelage.report.text import plain_report

    if speaks():
        typer.echo(f"\n{plain_report(out)}\n{report}")


@app.command()
def label(
    recipe: RecipeName,
    out: Out,
    settings: Settings = None,
    engine: Annotated[
        Engines, typer.Option(help="local: processes of this machine. ray: a Ray cluster.")
    ] = Engines.LOCAL,
    workers: Annotated[int, typer.Option(min=1, help="Processes that label, each with all teachers.")] = 1,
    decoders: Annotated[int, typer.Option(min=1, help="Threads a process that read images, and that compress.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; left out, a local one is started.")] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Label together with others that run this command on the same folder.")
    ] = False,
    jobs: Jobs = None,
) -> None:
    """Label all images for all heads: the first part of `run`, which goes on from here in the same folder."""
    from tutelage import api

    found = _recipe(recipe, settings)
    if worker:
        others = {
            "--engine": engine is not Engines.LOCAL,
            "--workers": workers > 1,
            "--address": address,
            "--jobs": jobs,
        }
        for option in (name for name, given in others.items() if given):
            raise UserError(
                "--worker is one process that labels with others like it",
                field=option,
                fix="leave it out: start as many workers as you want, on any machine; teachers are finished before",
            )
        typer.echo(f"\n{api.join(found, out, decoders=decoders)}")
    else:
        who = api.Engine(kind=engine.value, workers=workers, decoders=decoders, address=address)
        api.label_run(found, out, engine=who, jobs=_jobs(jobs))
    if speaks():
        typer.echo(f"\n{out / 'labels'}\nlook at it: tutelage labels show {out}")


@labels_app.command("show")
def show_labels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A labels store, or the folder of a run.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="HEAD.KEY=V", help="Another rule: things.pseudo_threshold=0.3")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard again and look for damage.")] = False,
) -> None:
    """What a labels store holds: counts, classes, scores, what thresholds keep, agreement, storage."""
    from tutelage.labels.health.show import show
    from tutelage.labels.store import find_store
    from tutelage.labels.verify import verify as find_damage

    if verify:
        faults = find_damage(find_store(folder), Progress(sys.stderr))
        for fault in faults:
            typer.echo(f"{fault.file}: {fault.problem}")
        typer.echo(f"{len(faults)} damaged" if faults else "every shard is as it was written")
        raise typer.Exit(2 if faults else 0)
    for line in show(folder, settings=settings or [], progress=Progress(sys.stderr)):
        typer.echo(line)


@app.command()
def plan(
    recipe: RecipeName,
    settings: Settings = None,
    workers: Annotated[int, typer.Option(min=1, help="Machines or GPUs like this one.")] = 1,
    assume: Annotated[
        list[str] | None, typer.Option("--assume", metavar="A=B", help="Another figure for boxes, mask, field...")
    ] = None,
) -> None:
    """What a run would cost: bytes of labels, device hours, wall time; also for 1M and 300M images. Keeps nothing."""
    from tutelage.part import override, parse
    from tutelage.plan import Assumed
    from tutelage.plan import plan as plan_recipe

    given = parse(Assumed, override({}, assume or []), "--assume")
    for line in plan_recipe(_recipe(recipe, settings), workers=workers, assume=given):
        typer.echo(line)


@app.command()
def check(recipe: RecipeName, settings: Settings = None) -> None:
    """Read all data of a recipe and say everything that is wrong with it, before anything is trained."""
    from tutelage.check import check as check_recipe

    faults = 0
    for line, is_fault in check_recipe(_recipe(recipe, settings), progress=Progress(sys.stderr)):
        typer.echo(line)
        faults += is_fault
    if faults:
        raise typer.Exit(2)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A model folder, or the folder of a finished run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option(help="Where pictures and JSON go.")],
) -> None:
    """Pictures and JSON of what every head says of some images."""
    from tutelage.api import predict_files

    failed = predict_files(checkpoint, images, out, Progress(sys.stderr))
    typer.echo(str(out))
    if failed:
        typer.echo(f"{failed} of {len(images)} images could not be read", err=True)
        raise typer.Exit(2)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Write a run's report again."""
    from tutelage.report.page import write_report

    if not (run / "recipe.yaml").is_file():
        raise UserError("this is not the folder of a run", file=run, fix="give the --out of a `tutelage run`")
    typer.echo(str(write_report(run)))


@recipes_app.command("list")
def list_recipes() -> None:
    """The names of the built-in recipes, one line each."""
    from tutelage.recipes import RECIPES

    width = max(map(len, RECIPES)) + 1
    for name, make in RECIPES.items():
        said = (make.func if isinstance(make, partial) else make).__doc__ or ""
        typer.echo(f"{name:<{width}} {said.strip().splitlines()[0]}")


@recipes_app.command("show")
def show_recipe(recipe: RecipeName, settings: Settings = None) -> None:
    """Print a recipe as YAML, to start from."""
    from tutelage.part import to_yaml

    typer.echo(to_yaml(_recipe(recipe, settings).plain()), nl=False)


def _recipe(name: str, settings: list[str] | None) -> Recipe:
    from tutelage.part import nearest, override, parse
    from tutelage.recipe import Recipe, read_recipe
    from tutelage.recipes import RECIPES

    if name in RECIPES:
        return parse(Recipe, override(RECIPES[name]().plain(), settings or [], Recipe), name)
    path = Path(name)
    if not path.exists() and path.suffix not in (".yaml", ".yml", ".py"):
        raise UserError(
            f"there is neither a file nor a built-in recipe of this name{nearest(name, RECIPES)}",
            value=name,
            fix=f"built-in: {', '.join(RECIPES)}",
        )
    return read_recipe(path, settings)


def _suite(name: str) -> Path | dict[str, Any]:
    """A suite's file, or the plain values of a named one."""
    from tutelage.part import nearest
    from tutelage.recipes import RECIPES
    from tutelage.recipes.suites import SUITES, recipe_keys

    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml", ".py"):  # a folder may have the name of a suite
        return path
    if name in SUITES:
        found = recipe_keys(SUITES[name]())
        plain = {"transfer": {key: part.plain() for key, part in found.pop("transfer").items()}}
        return {"name": name, **plain, **{key: part.plain() for key, part in found.items()}}
    if name in RECIPES:
        return RECIPES[name]().plain()
    known = [*SUITES, *RECIPES]
    raise UserError(
        f"there is neither a file nor a suite of this name{nearest(name, known)}",
        value=name,
        fix=f"suites: {', '.join(SUITES)}; or a built-in recipe: {', '.join(RECIPES)}",
    )


def _workers(engine: Engines, address: str | None, jobs: int | None) -> int | AnyJobs:
    """Who does independent pieces of work."""
    if engine is Engines.LOCAL:
        return _jobs(jobs)
    from tutelage.jobs import RayJobs

    return RayJobs(jobs or os.cpu_count() or 1, address)


def _jobs(wanted: int | None) -> int:
    import torch

    if wanted is not None or torch.cuda.is_available():
        return wanted or 1
    return min(4, os.cpu_count() or 1)


def main() -> None:
    """Run the command line: exit code 0, 2 for a fault of the input, 1 for a fault of ours."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command again to go on from here", err=True)
        sys.exit(130)
