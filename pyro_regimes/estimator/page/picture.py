"""matplotlib figures as SVG inside a page, in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pyro_regimes.estimator.page.html import Html, element
from pyro_regimes.estimator.plots.figure import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS = 96 / 72  # in a point
_THEMED = {
    INK: "currentColor",
    "#000000": "currentColor",
    "#ffffff": "var(--page)",
    "#d9d9d9": "var(--line)",
}
_HREF = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_DROPPED = ("metadata", "style", "title")


def default_style() -> AbstractContextManager[Any]:
    """Matplotlib's own settings for a while, whatever the user's are; text stays text."""
    from matplotlib import style

    return style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "pyro_regimes"}])


def picture(
    draw: Callable[[], Figure], description: str, *, name: str, class_: str | None = None
) -> Html:
    """A figure as inline SVG. It shrinks where the page is narrower than the figure.

    Black and :data:`.INK` become the colour of the text of the page, white that of the page, and
    light grey that of its lines.

    :param draw: makes the figure.
    :param description: what a screen reader says.
    :param name: unique in the page, for the names inside the SVG.
    """
    file = io.StringIO()
    with default_style():
        figure = draw()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    width = float(root.get("width", "0").removesuffix("pt")) * _PIXELS
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("style", f"max-width: {width:.0f}px")
    root.set("role", "img")
    root.set("aria-label", description)
    _adapt(root, name)
    return element("div", Html(ElementTree.tostring(root, encoding="unicode")), class_=class_)


def _adapt(root: ElementTree.Element, name: str) -> None:
    """Make names unique in the page, colours those of the page, and tags plain."""
    used = set()
    for each in root.iter():
        for value in each.attrib.values():
            used |= set(_REFERENCE.findall(value))
        used.add(each.get(_HREF, "").removeprefix("#"))
    for parent in root.iter():
        for child in [each for each in parent if _plain(each.tag) in _DROPPED]:
            parent.remove(child)
    for each in root.iter():
        each.tag = _plain(each.tag)
        own = each.attrib.pop("id", None)
        if own in used:
            each.set("id", f"{name}-{own}")
        target = each.attrib.pop(_HREF, None)
        if target is not None:
            each.set("href", f"#{name}-{target[1:]}" if target.startswith("#") else target)
        for key, value in each.attrib.items():
            if key not in ("aria-label", "href"):
                each.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
        if "style" in each.attrib:
            each.set("style", _themed(each.attrib["style"]))


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2]


def _themed(style: str) -> str:
    for color, other in _THEMED.items():
        style = style.replace(color, other)
    return style
