"""What JupyterLab calls before it saves a notebook."""

from typing import Any

from generate import ROOT, is_story
from nbdev.clean import clean_nb
from nbdev.config import get_config


def clean_before_save(
    model: dict[str, Any],  # what is about to be written
    **_: Any,  # where, and by whom
) -> None:
    """Take out what `make export` would: the outputs unless the notebook tells a story, and stray metadata."""
    if model["type"] != "notebook" or model["content"]["nbformat"] != 4:
        return
    notebook, config = model["content"], get_config(path=ROOT)
    if not is_story(notebook):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = []
    names = (config.get(f"allowed_{kind}metadata_keys").split() for kind in ("", "cell_"))
    clean_nb(notebook, False, *names)
