"""The one error class that reaches a user: a clear sentence, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message is one sentence naming the file, class or option.

    Names come from files and tables, so what a terminal would obey is written out (:func:`printable`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return ``text`` with control characters and halves of broken ones escaped: a newline becomes ``\\n``."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return ``1 class`` or ``3 classes``; ``many`` is ``one`` with an s if not given."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown ``kind`` (method, encoder, ...), with near matches named first."""
    names = sorted(known)
    same = [known_name for known_name in names if known_name.lower() == name.lower()]
    near = same or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(names)}."
    return UserError(f"unknown {kind} {name!r}; {hint}")
