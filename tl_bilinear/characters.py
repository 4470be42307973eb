"""Characters that a reader or a file format would not see: shown by name."""

import unicodedata

_NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍", "": "∅"}


def visible(token: str) -> str:
    """A token with its control characters shown: newline as ↵, others as ⟨U+0007⟩."""
    if token == "":
        return _NAMED[""]
    return "".join(_visible_character(character) for character in token)


def code_point(character: str) -> str:
    """A character's number, ⟨U+0007⟩."""
    return f"⟨U+{ord(character):04X}⟩"


def _visible_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    # Cc control, Cf format (right-to-left override among them), Cs lone surrogate,
    # Co private use, Cn no character at all, Zl and Zp line and paragraph separators.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return code_point(character)
    return character
