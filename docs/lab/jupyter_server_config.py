"""`make lab`: a notebook is saved clean, and with its outputs only where it tells a story."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from save_hook import clean_before_save

c = get_config()  # noqa: F821 (Jupyter defines it)
c.ContentsManager.pre_save_hook = clean_before_save
