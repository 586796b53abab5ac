"""Values in messages."""

from __future__ import annotations


def shown(value: object) -> str:
    """A value for a message: what Python prints of it, cut to a hundred characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:70]}...{text[-20:]}"
