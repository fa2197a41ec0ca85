"""The description on an index page, which is made from README.md; setup.cfg has all the rest."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

_ELSEWHERE = r"\((?!https?://)([^)]*)\)"
"""The target of a link into the source tree."""


def index_page(readme: str) -> str:
    """A README without what an index page cannot show: files of the source tree.

    Paragraphs that begin with a picture are left out, and links become the path of their file.
    """
    paragraphs = readme.split("\n\n")
    shown = [text for text in paragraphs if not re.match(rf"!\[[^]]*\]{_ELSEWHERE}", text)]
    return re.sub(rf"\[([^]]*)\]{_ELSEWHERE}", r"\1 (`\2` in the source tree)", "\n\n".join(shown))


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=index_page(readme), long_description_content_type="text/markdown")
