"""What the pages to look things up in have to hold, whoever wrote them; and how the site is made."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import typer
from fastapi.testclient import TestClient
from processes import ROOT
from pydantic import SecretStr

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import Behaviour, Declaration, Feature, Source, Target, load_dataset
from housing_mlops.serving.api import create_app

sys.path.insert(0, str(ROOT / "docs"))
import check_site
import execute
import generate
import operations_reference
import pictures
import record_answers
import release
import save_hook
import staged

# A room, and its notebook that is read where nothing runs.
STORIES = {
    "data": "1_data/03_table.ipynb",
    "preprocessing": "2_preprocessing/01_pipeline.ipynb",
    "explanation": "3_model/06_explanation.ipynb",
    "training": "4_training/05_figures.ipynb",
    "drift": "7_monitoring/02_drift.ipynb",
    "serving": "8_serving/06_routes.ipynb",
    "loop": "9_operations/05_loop.ipynb",
}


def page(name: str) -> str:
    """A page of docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables of a page, by what is ticked in the first cell."""
    found = {}
    for line in re.findall(r"^\| (`.*) \|$", text, re.M):
        first, *cells = re.split(r" ?(?<!\\)\| ?", line)
        found |= {name: cells for name in re.findall(r"`([^`]+)`", first)}
    return found


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its whole name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    for one in (below or {}).values():
        yield from commands(one, f"{name} {one.name}")


def test_every_setting_is_on_its_page() -> None:
    listed = rows(page("settings"))
    for name, field in Settings.model_fields.items():
        kind, *_, meaning = listed[f"HOUSING_{name.upper()}"]
        assert kind and meaning == field.description, name
    assert len(listed) == len(Settings.model_fields)


def test_every_route_is_on_its_page_with_a_request_and_its_answer() -> None:
    parts = dict(re.findall(r"^### (\w+ /\S*)\n(.*?)(?=^##|\Z)", page("routes"), re.M | re.S))
    api = create_app().openapi()
    asked = {f"{m.upper()} {path}" for path, by in api["paths"].items() for m in by}
    assert parts.keys() == asked
    for name, part in parts.items():
        assert "it answers 200:" in part and "```json" in part, name
        path, method = name.split()[1], name.split()[0].lower()
        about = api["paths"][path][method]
        assert {*re.findall(r"^\| (\d{3}) \|", part, re.M)} == about["responses"].keys(), name
        for parameter in about.get("parameters", []):
            assert f"| `{parameter['name']}` |" in part, name


def test_every_field_that_is_sent_or_answered_is_on_the_page() -> None:
    listed = rows(page("routes").partition("## What is sent and answered")[2])
    for schema in create_app().openapi()["components"]["schemas"].values():
        assert schema.get("properties", {}).keys() <= listed.keys()


def test_every_command_and_option_is_on_its_page() -> None:
    parts = dict(
        re.findall(r"^##+ (housing-mlops [^\n]*)\n(.*?)(?=^##|\Z)", page("commands"), re.M | re.S)
    )
    there = dict(commands(typer.main.get_command(app), "housing-mlops"))
    assert there.keys() <= parts.keys()
    for name, command in there.items():
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                shown = (
                    [*parameter.opts] if parameter.opts[0][0] == "-" else [parameter.name.upper()]
                )
                assert all(f"`{option}`" in parts[name] for option in shown), (name, parameter.name)


def test_every_column_and_every_key_of_a_declaration_is_on_its_page() -> None:
    dataset, listed = load_dataset("boston"), rows(page("data-dictionary"))
    for feature in dataset.features:
        assert listed[feature.name][-1] == feature.meaning or feature.name in dataset.columns
        assert f"| `{feature.name}` | {feature.type} |" in page("data-dictionary")
    keys = rows(page("declaration"))
    for model in (Declaration, Target, Source, Feature, Behaviour):
        assert model.model_fields.keys() - {"folder"} <= keys.keys()  # where the file lies


def test_every_metric_is_on_its_page() -> None:
    listed = rows(page("metrics-and-logs")).keys()
    published = {f.name + "_total" * (f.type == "counter") for f in operations_reference.families()}
    assert len(published) > 40 and published <= listed


def shape(value: Any) -> Any:
    """The names in an answer, without the values."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


# What depends on the model or on what happened before.
VARIES = {
    *("values", "prices", "reasons", "contrasts", "by_route", "errors_by_reason", "checks"),
    *("metrics", "calls", "error", "latency_ms", "versions", "by_version", "effects", "edges"),
    *("live_error", "training", "interval", "parameters", "git_commit"),
}


def same(one: Any, other: Any) -> bool:
    """Whether two answers have the same names, where they have to."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = (one.keys() | other.keys()) - VARIES
        return all(n in one and n in other and same(one[n], other[n]) for n in names)
    return True


def test_the_answers_shown_are_such_as_are_given(bundles: dict[str, Path], tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, admin_keys=SecretStr(record_answers.ADMIN))
    install_bundle(bundles["Ridge"], "1", settings)
    shown = json.loads(record_answers.ANSWERS.read_text(encoding="utf-8"))
    with TestClient(create_app(settings)) as api:
        given = record_answers.ask(api, load_dataset("boston").example)
    assert shown.keys() == given.keys()
    for name, was in shown.items():
        now = given[name]
        assert (was["path"], was["status"]) == (now["path"], now["status"]), name
        assert same(shape(was["answer"]), shape(now["answer"])), (name, was, now)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "rooms").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">Home</h1><a href="rooms/a.html#here">a</a><a href="#top">up</a>'
        '<a href="https://example.com">elsewhere</a><code>&lt;a href=&quot;x&quot;&gt;</code>'
    )
    (tmp_path / "rooms/a.html").write_text('<p id="here"></p><a href="../index.html#top">home</a>')
    assert check_site.faults(tmp_path) == []
    (tmp_path / "rooms/a.html").write_text(
        '<a href="../index.html#gone">home</a><a href="b.html">b</a>'
        '<script src="https://example.com/x.js"></script>'
    )
    assert check_site.faults(tmp_path) == [
        "index.html links to rooms/a.html#here: there is no such place.",
        "rooms/a.html links to ../index.html#gone: there is no such place.",
        "rooms/a.html links to b.html: there is no such file.",
        "rooms/a.html fetches https://example.com/x.js from another site.",
    ]


def test_a_notebook_is_run_again_when_what_it_uses_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ROOT / "nbs/1_data/03_table.ipynb"
    used = {str(path.relative_to(ROOT)) for path in execute.used(notebook)}
    assert {"housing_mlops/data/validation.py", "housing_mlops/config.py"} <= used
    assert not any("serving" in name or "training" in name for name in used)
    training = execute.used(ROOT / "nbs/9_operations/01_notebooks.ipynb")
    assert ROOT / "nbs/4_training/08_training.ipynb" in training
    before, digest = execute.key(notebook), execute.file_digest
    monkeypatch.setattr(
        execute,
        "file_digest",
        lambda path: b"new" if path.name == "validation.py" else digest(path),
    )
    assert execute.key(notebook) != before
    assert execute.key(ROOT / "nbs/02_files.ipynb") == execute.key(ROOT / "nbs/02_files.ipynb")


def test_outputs_of_other_cells_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    assert not generate.is_story(notebook)
    notebook.metadata["story"] = generate.sources_digest(notebook)
    assert generate.is_story(notebook) and not generate.is_stale(notebook)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("Prose may change."))
    assert not generate.is_stale(notebook)
    notebook.cells[1].source = "1 + 2"
    assert generate.is_stale(notebook)


def test_a_story_of_each_room_carries_its_outputs() -> None:
    told = {}
    for path in generate.notebooks(ROOT):
        notebook = nbformat.read(path, 4)
        shown = any(cell.get("outputs") for cell in notebook.cells)
        assert shown == generate.is_story(notebook), path
        told[str(path.relative_to(ROOT / "nbs"))] = shown
    assert all(told[name] for name in STORIES.values())


def test_what_a_story_tells_otherwise_is_told() -> None:
    cell = nbformat.v4.new_code_cell(
        "price", outputs=[nbformat.v4.new_output("stream", text="24\n")]
    )
    saved = nbformat.v4.new_notebook(cells=[cell])
    assert execute.changes(saved, nbformat.from_dict(saved)) == []
    ran = nbformat.reads(nbformat.writes(saved), 4)
    ran.cells[0].outputs[0].text = "25\n"
    assert execute.changes(saved, ran) == ["price\ntold\n24\n\nand tells\n25\n"]


@pytest.mark.process
@pytest.mark.train
@pytest.mark.nightly
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other Pythons have other libraries")
@pytest.mark.parametrize("name", STORIES.values())
def test_a_story_still_tells_what_it_told(name: str) -> None:
    path = ROOT / "nbs" / name
    assert execute.changes(nbformat.read(path, 4), execute.executed(path)) == []


MEASURED = re.compile(
    r"(?<![\w.,/])(?:\d*\.\d+|\d[\d,]*(?= (?:µs|ms|s|GB|MB|kB|thousand dollars|microseconds)\b))(?!\w)"
)


def unfounded(notebook: Any) -> list[str]:
    """Figures of the prose that no cell has, and whose paragraph names neither a command nor a date."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = "\n".join([cell.source + "".join(execute.told(cell)) for cell in cells])
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    texts = [re.sub(r"\]\([^)]*\)|\$[^$]*\$", "", text) for text in re.split(r"\n\n(?!\|)", prose)]
    free = [
        text
        for text in texts
        if not re.search(r"`(make|cross_validate|python benchmarks)\b|\b20\d\d-\d\d-\d\d\b", text)
    ]
    return [f for text in free for f in MEASURED.findall(text) if f.lstrip("0") not in shown]


def test_a_figure_in_prose_has_its_cell_or_its_command_or_its_date() -> None:
    prose, cell = "It takes 2.5 ms, or 31 s.", nbformat.v4.new_code_cell("print(31)")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), cell])
    assert unfounded(notebook) == ["2.5"]
    for path in {
        *(ROOT / "nbs" / name for name in STORIES.values()),
        *(ROOT / "nbs/4_training").glob("*.ipynb"),
    }:
        assert unfounded(nbformat.read(path, 4)) == [], path


def test_each_figure_of_a_decision_stands_on_the_page_it_names() -> None:
    found = 0
    for section in page("decisions").split("\n## ")[1:]:
        figures = re.findall(r"\*\*([\d.,]+(?: [\wµ]+)?)\*\*", section)
        links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", section)
        text = "\n".join((ROOT / "docs" / link).read_text(encoding="utf-8") for link in links)
        assert not figures or links, section
        assert [f for f in figures if f not in text] == []
        found += len(figures)
    assert found >= 12


def test_the_changelog_is_given_the_heading_of_a_version() -> None:
    text = "# Changelog\n\n## Unreleased\n\n### Added\n\n- Prices.\n\n## 0.0.1 (2026-01-01)\n"
    made = release.released(text, "0.1.0", "2026-12-01")
    assert "## Unreleased\n\n## 0.1.0 (2026-12-01)\n\n### Added" in made
    assert release.released(made, "0.1.0", "2026-12-02") == made
    with pytest.raises(ValueError, match="what is new"):
        release.released(made, "0.2.0", "2026-12-02")


def test_a_conflict_or_a_large_file_is_not_committed(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("print(1)\n")
    assert staged.objections(file) == []
    file.write_text("<" * 7 + " HEAD\n")
    assert staged.objections(file) == [f"{file}:1 is a mark of a conflict."]
    file.write_bytes(b"0" * 1_000_001)
    assert staged.objections(file) == [f"{file} has 1,000,001 bytes."]


def test_jupyterlab_saves_what_the_repository_holds() -> None:
    for name in ("02_files.ipynb", STORIES["training"]):
        kept = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))
        ran = json.loads(json.dumps(kept))
        ran["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
        for cell in ran["cells"]:
            cell["metadata"]["trusted"] = True
            if cell["cell_type"] == "code":
                cell["execution_count"] = 7
                if not generate.is_story(kept):
                    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
        save_hook.clean_before_save({"type": "notebook", "content": ran})
        assert ran == kept


def test_the_pictures_are_those_that_the_stories_drew() -> None:
    for name, where in pictures.FROM.items():
        kept = (pictures.PICTURES / name).read_bytes()
        assert kept == pictures.drawn(*where), "run `make pictures`"
    assert (pictures.PICTURES / "dashboard.png").stat().st_size > 10_000
