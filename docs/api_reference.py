"""Every public function and class with its signature and a table of its parameters, read from the exported cells."""

import ast
import io
import tokenize
from collections.abc import Iterator

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITION = FUNCTION | ast.ClassDef


def comments(
    source: str,  # a cell
) -> dict[int, str]:
    """What is written beside a line, by its number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def row(
    *cells: str,  # what stands in them
) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ticked(
    node: ast.expr | None,  # a type or a value
) -> str:
    """An expression as code; nothing for none."""
    return f"`{ast.unparse(node)}`" if node else ""


def parameters(
    node: FUNCTION,  # a definition
    beside: dict[int, str],  # what is written beside its lines
) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each parameter, in order; `self` and `cls` are left out."""
    asked = node.args
    plain = [*asked.posonlyargs, *asked.args]
    defaults = [None] * (len(plain) - len(asked.defaults)) + [*asked.defaults]
    named = [*zip(plain, defaults, strict=True)]
    named += [(arg, None) for arg in [asked.vararg] if arg]
    named += [*zip(asked.kwonlyargs, asked.kw_defaults, strict=True)]
    named += [(arg, None) for arg in [asked.kwarg] if arg]
    stars = {asked.vararg: r"\*", asked.kwarg: r"\*\*"}
    for arg, default in named:
        if arg.arg not in ("self", "cls"):
            last = max(n.end_lineno or 0 for n in (arg, default) if n)
            name = f"{stars.get(arg, '')}`{arg.arg}`"
            yield name, ticked(arg.annotation), ticked(default), beside.get(last, "")


def table(
    head: tuple[str, ...],  # the titles of the columns
    rows: list[tuple[str, ...]],  # what stands below
) -> str:
    """A table, without the columns that are empty; nothing where there are no rows."""
    full = [i for i in range(len(head)) if i == 0 or any(r[i] for r in rows)]
    lines = [row(*(line[i] for i in full)) for line in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(full), *lines[1:]]) if rows else ""


def entry(
    kind: str,  # of Sphinx's: `py:function`
    signature: str,  # as it is shown
    parts: list[str],  # what stands below
    depth: int = 3,  # colons of the fence; one around others needs more
) -> str:
    """A definition as Sphinx takes it, so that its name is found."""
    fence = ":" * depth
    return "\n\n".join([f"{fence}{{{kind}}} {signature}", *filter(None, parts), fence])


def of_function(
    node: FUNCTION,  # a definition
    beside: dict[int, str],  # what is written beside the lines of its cell
    kind: str = "py:function",  # or a method
    more: str = "",  # what else to say
) -> str:
    """The entry of a function."""
    gives = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{node.name}({ast.unparse(node.args)}){gives}".replace("\n", " ")
    rows = [*parameters(node, beside)]
    said = (ast.get_docstring(node) or "").strip()
    return entry(
        kind, signature, [said, table(("parameter", "type", "default", "meaning"), rows), more]
    )


def of_class(
    node: ast.ClassDef,  # a definition
    beside: dict[int, str],  # what is written beside the lines of its cell
    more: str = "",  # what else to say
) -> str:
    """The entry of a class: its fields, what it is made from, and its public methods."""
    fields = [
        (f"`{n.target.id}`", ticked(n.annotation), beside.get(n.lineno, ""))
        for n in node.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        if not n.target.id.startswith("_")
    ]
    parts = [(ast.get_docstring(node) or "").strip(), table(("field", "type", "meaning"), fields)]
    signature, methods = node.name, []
    for inner in node.body:
        if isinstance(inner, FUNCTION) and inner.name == "__init__":
            signature += f"({ast.unparse(inner.args).removeprefix('self').lstrip(', ')})"
            rows = [*parameters(inner, beside)]
            parts.append(table(("parameter", "type", "default", "meaning"), rows))
        elif isinstance(inner, FUNCTION) and not inner.name.startswith("_"):
            ways = {ast.unparse(d).rpartition(".")[2] for d in inner.decorator_list}
            kind = "py:property" if ways & {"property", "cached_property"} else "py:method"
            if "setter" not in ways:
                methods.append(of_member(inner, beside, kind, ways))
    bases = ", ".join(ticked(base) for base in node.bases)
    parts = [parts[0], f"A kind of {bases}." if bases else "", *parts[1:], more, *methods]
    return entry("py:class", signature.replace("\n", " "), parts, depth=4)


def of_member(
    node: FUNCTION,  # a method
    beside: dict[int, str],  # what is written beside the lines of its cell
    kind: str,  # `py:method` or `py:property`
    ways: set[str],  # its decorators
) -> str:
    """The entry of a method or property."""
    said = (ast.get_docstring(node) or "").strip()
    if kind == "py:property":
        of = f":type: {ast.unparse(node.returns)}" if node.returns else ""
        return "\n".join([f":::{{{kind}}} {node.name}", of, "", said, ":::"])
    first = [*node.args.posonlyargs, *node.args.args][:1]
    text = of_function(node, beside, kind)
    if first and first[0].arg in ("self", "cls"):
        text = text.replace(f"{node.name}({first[0].arg}, ", f"{node.name}(", 1)
        text = text.replace(f"{node.name}({first[0].arg})", f"{node.name}()", 1)
    options = [f":{way}:" for way in ("classmethod", "staticmethod") if way in ways]
    head, _, rest = text.partition("\n")
    return "\n".join([head, *options, rest])


def entries(
    source: str,  # a cell that is exported
    more: dict[str, str],  # what else to say of a name
) -> Iterator[str]:
    """The entries of what a cell defines for others."""
    beside = comments(source)
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITION) and not node.name.startswith("_"):
            said = more.get(node.name, "")
            if isinstance(node, ast.ClassDef):
                yield of_class(node, beside, said)
            else:
                yield of_function(node, beside, more=said)
