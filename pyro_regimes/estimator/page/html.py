"""Elements of HTML. Text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_WITHOUT_END = ("meta", "br")


class Html(str):
    """Text that is HTML; any other text is escaped where it becomes a part of an element."""


def element(name: str, /, *children: str | None, **attributes: str | None) -> Html:
    """An element of this name.

    :param children: text, which is escaped, or HTML; None is left out.
    :param attributes: an underscore at the end, as in ``class_``, is left out, and others become
        hyphens. None is left out.
    """
    given = {key: value for key, value in attributes.items() if value is not None}
    inside = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(value)}"'
        for key, value in given.items()
    )
    if name in _WITHOUT_END:
        return Html(f"<{name}{inside}>")
    return Html(f"<{name}{inside}>{join(children)}</{name}>")


def join(parts: Iterable[str | None], between: str = "") -> Html:
    """Several texts or elements, one after the other."""
    return Html(_escaped(between).join(_escaped(part) for part in parts if part is not None))


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], parts: Iterable[int] = (), caption: str = ""
) -> Html:
    """A table whose first column has the labels of the rows. A wide one is scrolled in itself.

    :param parts: the numbers of rows that are parts of one above, and indented.
    """
    indented = set(parts)
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_="part" if number in indented else None),
            *(element("td", cell) for cell in row[1:]),
        )
        for number, row in enumerate(rows)
    ]
    inside = element("table", element("thead", top), element("tbody", *body))
    said = element("p", caption, class_="caption") if caption else None
    return element("div", said, element("div", inside, class_="scroll", tabindex="0"))


def facts_table(rows: Iterable[Sequence[str]]) -> Html:
    """Names and what they are, without a head."""
    body = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in rows
    ]
    return element("table", element("tbody", *body), class_="facts")


def paragraph(*text: str) -> Html:
    """A paragraph of plain text."""
    return element("p", *text)


def note(*text: str) -> Html:
    """A paragraph of explanation, smaller than others."""
    return element("p", *text, class_="note")


def _escaped(part: str) -> str:
    return str(part) if isinstance(part, Html) else escape(part)
