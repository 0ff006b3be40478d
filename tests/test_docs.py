"""What README and docs give to copy is accepted."""

import re
from pathlib import Path

import pytest
import yaml

from tutelage.part import parse
from tutelage.recipe import Recipe
from tutelage.transfer.compare import comparison

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = [
    (page, number, block)
    for page in PAGES
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S))
]
WHOLE = [found for found in BLOCKS if found[2].startswith("name:")]
ROWS = re.findall(r"\| ([^|]*) \| `(\{format: .*?\})`", (ROOT / "docs/data.md").read_text(encoding="utf-8"))


def test_there_is_something_to_look_at():
    assert len(WHOLE) >= 5
    assert len(ROWS) >= 13


@pytest.mark.parametrize(("page", "number", "text"), WHOLE, ids=[f"{page}-{number}" for page, number, _ in WHOLE])
def test_recipes_of_the_docs_are_taken(page, number, text):
    plain = yaml.safe_load(text)
    if "student" in plain:
        found = parse(Recipe, plain, page)
    else:  # a suite
        found = comparison(["random", "timm:resnet18"], plain, Path(page))
    assert found.name == plain["name"]
    assert set(plain.get("transfer", {})) == set(found.transfer)


@pytest.mark.parametrize(("task", "source"), ROWS, ids=[re.findall(r"format: ([a-z-]+)", row)[0] for _, row in ROWS])
def test_sources_of_the_table_are_taken(task, source):
    source = yaml.safe_load(source.replace("{...}", "{format: voc, root: a, head: things}"))
    sources = {"this": source}
    if "head" not in source:  # a pool
        sources["labelled"] = {"format": "folders", "root": "a", "head": "kinds"}
    head = source.get("head", "kinds")
    tasks = {head: yaml.safe_load(task.strip("`")) if "{" in task else {"task": "classification"}}
    learned = [name for name, part in sources.items() if "head" in part]
    plain = {"name": "x", "heads": tasks, "sources": sources, "student": {"labels": "human", "sources": learned}}
    assert parse(Recipe, plain, "docs/data.md").sources["this"].format == source["format"]
