"""What README and docs give to copy is accepted."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tutelage.data.source import LabelSpace
from tutelage.models.backbone import Timm
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.recipe import Recipe
from tutelage.tasks import Classification
from tutelage.training.checkpoint import load_model, save_model
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


def test_the_backbone_is_taken_elsewhere_as_the_docs_say(tmp_path, monkeypatch):
    text = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    torch.manual_seed(0)
    part = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]})
    student = Model(backbone=part, size=64).build({"kinds": Classification(classes=("a", "b"))}).eval()
    save_model(tmp_path / "runs/mine/student", student, {"kinds": LabelSpace(("a", "b"))})
    monkeypatch.chdir(tmp_path)
    options = "layers=[1, 1, 1, 1], channels=[8, 16, 24, 32]"
    names: dict[str, Any] = {}
    exec(code.replace('"resnet50"', f'"resnet18", {options}'), names)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    said = yaml.safe_load((tmp_path / "runs/mine/student/model.yaml").read_text())["model"]
    mean, std = (torch.tensor(said[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        theirs = names["backbone"].eval()((image / 255 - mean) / std)
        again = load_model(Path("runs/mine/student")).student.eval().features(image).embedding
    torch.testing.assert_close(theirs, again, rtol=1e-4, atol=1e-4)
