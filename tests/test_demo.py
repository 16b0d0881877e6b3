"""The demo answers what its page shows, in both languages."""

import sys
from pathlib import Path

import pytest
from processes import ROOT
from servers import program

sys.path.insert(0, str(ROOT / "docs"))
import run_demo


def test_both_languages_have_the_same_commands_and_answers() -> None:
    english, spanish = (
        run_demo.BLOCK.findall(page.read_text(encoding="utf-8")) for page in run_demo.PAGES
    )
    assert len(english) > 10 and english == spanish


@pytest.mark.process
@pytest.mark.train
@pytest.mark.nightly
def test_the_demo_answers_what_its_page_shows(tmp_path: Path) -> None:
    for name in ("jq", "lsof", "curl", "make"):
        program(name, name)
    assert run_demo.compare(tmp_path) == []
