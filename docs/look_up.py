"""The pages to look things up in: settings, routes, commands, metrics and log, the columns of the table, the declaration.

usage: python docs/look_up.py      (prints them as JSON; `make export` writes them beside this file)

Each is read from the code. What the routes answer was recorded by `python docs/record_answers.py`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import operations_reference
import typer
from api_reference import table

HERE = Path(__file__).resolve().parent
ANSWERS = HERE / "answers.json"
EDIT = "<!-- Generated from the code by `make export`. -->"


def page(
    title: str,  # its heading
    line: str,  # what it is about
    *parts: str,  # what stands below
) -> str:
    """A page, as Markdown."""
    return "\n\n".join([EDIT, f"# {title}", f"> {line}", *parts]) + "\n"


def kind(
    about: dict[str, Any],  # the JSON schema of a value
) -> str:
    """What a value is, in words."""
    if "anyOf" in about:
        return " or ".join(kind(one) for one in about["anyOf"] if one.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if about.get("type") == "array":
        return f"list of {kind(about.get('items', {}))}"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    plain = words.get(about.get("type", ""), about.get("type", "anything"))
    plain = {"path": "path", "password": "secret"}.get(about.get("format", ""), plain)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {about[name]:g}" for name, sign in signs.items() if name in about]
    return " ".join([plain, ", ".join(bounds)]).strip()


def settings_page() -> str:
    """Every setting, by group."""
    from housing_mlops.config import Settings, SettingsGroup

    about, parts = Settings.model_json_schema()["properties"], []
    for group in reversed(Settings.__mro__):
        own = [name for name in vars(group).get("__annotations__", {}) if name in about]
        if not issubclass(group, SettingsGroup) or not own:
            continue
        rows = []
        for name in own:
            field = Settings.model_fields[name]
            default = about[name].get("default", "the folder of the project")
            told = f"`{default}`" if isinstance(default, bool | int | float) else str(default or "")
            if name != "home" and told and not told.startswith("`"):
                told = f"`{told}`"
            rows.append(
                (
                    f"`HOUSING_{name.upper()}`",
                    kind(about[name]),
                    told.replace("True", "true").replace("False", "false"),
                    field.description or "",
                )
            )
        title = re.sub(
            r"(?<!^)([A-Z])", r" \1", group.__name__.removesuffix("Settings")
        ).capitalize()
        parts += [
            f"## {title}\n\n{group.__doc__}",
            table(("setting", "is", "default", "meaning"), rows),
        ]
    return page(
        "Settings",
        "Each is an environment variable, or a line of `.env`; `housing-mlops settings` prints the values in use.",
        "An empty value is the default. An unknown name and a value that cannot be are refused at the start, with the "
        "nearest name that there is. [How they are read](../nbs/00_config.ipynb).",
        *parts,
    )


def told(
    answer: Any,  # what a route answered, or what it was asked
) -> str:
    """JSON for people."""
    return "```json\n" + json.dumps(answer, indent=2, ensure_ascii=False) + "\n```"


def model_tables(
    schemas: dict[str, Any],  # of OpenAPI
) -> Iterator[str]:
    """A table for each object that is sent or answered."""
    for name, schema in sorted(schemas.items()):
        needed = set(schema.get("required", []))
        rows = [
            (
                f"`{field}`",
                kind(about),
                "yes" if field in needed else "",
                about.get("description", ""),
            )
            for field, about in schema.get("properties", {}).items()
        ]
        yield "\n\n".join(
            [
                f"### {name}",
                schema.get("description", ""),
                table(("field", "is", "needed", "meaning"), rows),
            ]
        )


def route_part(
    method: str,  # of HTTP
    path: str,  # of the route
    about: dict[str, Any],  # the operation, of OpenAPI
    recorded: dict[str, Any],  # a request and its answer
) -> str:
    """What there is to say of a route."""
    asked = [
        (
            f"`{p['name']}`",
            kind(p["schema"]),
            json.dumps(p["schema"]["default"]) if "default" in p["schema"] else "",
            p.get("description", ""),
        )
        for p in about.get("parameters", [])
    ]
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {})
    statuses = [(code, a["description"]) for code, a in sorted(about["responses"].items())]
    parts = [
        f"### {method.upper()} {path}",
        about.get("description", ""),
        table(("parameter", "is", "default", "meaning"), asked),
        f"The body: {kind(body['schema'])}." if body else "",
    ]
    if "json" in recorded:
        parts += [f"Asked `{recorded['path']}` with", told(recorded["json"])]
    else:
        parts.append(f"Asked `{recorded['path']}`")
    parts += [f"it answers {recorded['status']}:", told(recorded["answer"])]
    return "\n\n".join(filter(None, [*parts, table(("status", "meaning"), statuses)]))


def routes_page() -> str:
    """Every route, with a request and its answer."""
    from housing_mlops.serving.api import create_app

    api, recorded = create_app().openapi(), json.loads(ANSWERS.read_text(encoding="utf-8"))
    by_tag: dict[str, list[str]] = {"pricing": [], "monitoring": [], "operations": []}
    for path, methods in api["paths"].items():
        for method, about in methods.items():
            name = f"{method.upper()} {path}"
            if name not in recorded:
                raise SystemExit(f"{name} has no answer: run `python docs/record_answers.py`.")
            part = route_part(method, path, about, recorded[name])
            by_tag[about["tags"][0]].append(part)
    parts = [f"## {tag.capitalize()}\n\n" + "\n\n".join(of) for tag, of in by_tag.items()]
    return page(
        "Routes",
        "What the API takes and answers, as its own OpenAPI says it; `/docs` shows the same and asks it.",
        "Each answer was given by a running service with the embedded table's model; of long lists two entries are "
        "shown. Beside these routes there are pages for people: `/` leads on, `/dashboard` watches, `/docs` and "
        "`/redoc` document, and `/openapi.json` is what a generator of clients reads.",
        api["components"]["securitySchemes"]["key"]["description"],
        *parts,
        "## What is sent and answered",
        *model_tables(api["components"]["schemas"]),
    )


def command_parts(
    command: Any,  # of click
    name: str,  # with the names of the groups around it
) -> Iterator[str]:
    """What there is to say of a command and of those below it."""
    context = command.make_context(name, [], resilient_parsing=True)
    if hasattr(command, "commands"):
        if " " in name:
            yield f"## {name}\n\n{(command.help or '').strip()}"
        for below in command.commands.values():
            yield from command_parts(below, f"{name} {below.name}")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        names = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
        default = parameter.default
        shown = "" if default in (None, False, (), "") or callable(default) else f"`{default}`"
        if "argument" in type(parameter).__name__.lower():
            names = f"`{parameter.name.upper()}`"
        rows.append((names, shown, " ".join((getattr(parameter, "help", "") or "").split())))
    said = (command.help or "").replace("\b", "").strip()
    level = "###" if name.count(" ") > 1 else "##"
    yield "\n\n".join(
        [
            f"{level} {name}",
            f"`{name} {usage}`",
            said,
            table(("argument", "default", "meaning"), rows),
        ]
    ).rstrip()


def commands_page() -> str:
    """Every command."""
    from housing_mlops.cli import app

    return page(
        "Commands",
        "What `housing-mlops` does, as its own `--help` says it.",
        "Errors go to standard error and end with 1, wrong usage with 2. [How they are made](../nbs/cli.ipynb).",
        *command_parts(typer.main.get_command(app), "housing-mlops"),
    )


def dictionary_page() -> str:
    """Every column of the embedded table."""
    from housing_mlops.schema import load_dataset

    dataset = load_dataset("boston")
    target = dataset.target
    rows = [
        (
            f"`{f.name}`",
            f.type,
            f.unit,
            "" if f.minimum is None else f"{f.minimum:g} to {f.maximum:g}",
            "yes" if f.nullable else "",
            f.meaning,
        )
        for f in dataset.features
    ]
    moved = [
        (
            f"`{b.feature}`",
            b.expect,
            f"{b.within:.0%} of the price" if b.expect == "invariant" else "",
        )
        for b in dataset.behaviours
    ]
    return page(
        "The embedded table",
        f"{dataset.title}: {dataset.meaning}",
        f"From {dataset.reference}. `housing-mlops schema boston` prints it; "
        "[its declaration](declaration.md) is a file, and so is yours.",
        f"The price is `{target.name}` [{target.unit}]: {target.meaning}.",
        table(("column", "is", "unit", "range", "may be unknown", "meaning"), rows),
        "## What a model has to show\n\nWhen one column of every house is moved by half its spread, prices, on average, are",
        table(("column", "expected to be", "within"), moved),
        "## The column B\n\nIt was made from the share of Black residents by the study of 1978, on the assumption that "
        "people would pay for segregation. No price service should use it, and scikit-learn withdrew the table for "
        'that reason. It is here because methods are compared on the table as it was published; `exclude = ["B"]` '
        "leaves it out of everything, and [the data notebook](../nbs/1_data/03_table.ipynb) shows what that costs.",
    )


def declaration_page() -> str:
    """Every key of a declaration's file, and a whole one."""
    from housing_mlops.schema import format_page

    example = (HERE.parent / "housing_mlops/datasets/boston.toml").read_text(encoding="utf-8")
    return page(
        "The declaration of a table",
        "A TOML file names the columns, and everything else follows from it.",
        "`housing-mlops schema --from houses.csv --target SalePrice --unit USD > houses.toml` drafts one "
        "([how](../nbs/1_data/04_draft.ipynb)); `housing-mlops schema houses.toml` checks it, and "
        "`HOUSING_DATASET=houses.toml` uses it. These are the keys; any other is an error.",
        format_page().strip(),
        "## One that is whole\n\nThe embedded table's:",
        f"```toml\n{example.strip()}\n```",
    )


def pages() -> dict[str, str]:
    """The text of each page, by its file."""
    return {
        "settings.md": settings_page(),
        "routes.md": routes_page(),
        "commands.md": commands_page(),
        "metrics-and-logs.md": operations_reference.page(),
        "data-dictionary.md": dictionary_page(),
        "declaration.md": declaration_page(),
    }


if __name__ == "__main__":
    print(json.dumps(pages()))
