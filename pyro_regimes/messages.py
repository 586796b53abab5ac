"""Values in messages."""

from __future__ import annotations

_MOST_BITS = 63  # of an integer that is printed in full


def shown(value: object) -> str:
    """A value for a message: what Python prints of it, cut to a hundred characters.

    Of an integer that no tensor holds, the number of bits; Python refuses to print thousands of
    digits.
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        kind = "a negative" if value < 0 else "too large an"
        return f"{kind} integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # a container of such an integer
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:70]}...{text[-20:]}"
