"""The page as one HTML file that needs nothing else: styles, script and pictures are in it."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from leokit.report.dotplot import draw
from leokit.report.model import Block, Figure, Figures, Fold, Page, Part
from leokit.report.pictures import compact
from leokit.text import visible

MARK = "<!-- leokit report -->"


def to_html(page: Page, on_figure: Callable[[int, int], None] | None = None) -> str:
    """A page as HTML.

    Nothing but this text runs or loads: the content security policy admits the style and the script by their hashes,
    and pictures that are in the text. Every text of the page is escaped, unseen characters spelled out.

    Args:
        page: what to write.
        on_figure: called with the pictures that are done and their number.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    style, script = _part("page.css"), _part("page.js")
    pictures = _pictures(page, on_figure)

    def finalize(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("leokit.report", ""),
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.jinja").render(
        page=page,
        mark=Markup(MARK),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        picture=lambda figure: pictures[id(figure)],
        draw=draw,
    )


def figures_of(page: Page) -> list[Figure]:
    """All pictures of a page, in order."""
    return [figure for section in page.sections for block in section.blocks for figure in _figures(block)]


def _figures(block: Block) -> list[Figure]:
    if isinstance(block, Figures):
        return list(block.figures)
    inside = block.blocks if isinstance(block, Fold | Part) else ()
    return [figure for inner in inside for figure in _figures(inner)]


def _pictures(page: Page, on_figure: Callable[[int, int], None] | None) -> dict[int, str]:
    """Each picture as a data: URI, by its identity."""
    found = figures_of(page)
    done = {}
    for number, figure in enumerate(found, 1):
        done[id(figure)] = f"data:image/png;base64,{base64.b64encode(compact(figure.data)).decode('ascii')}"
        if on_figure:
            on_figure(number, len(found))
    return done


def _part(name: str) -> str:
    return (files("leokit.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
