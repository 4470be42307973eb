"""Text that a figure can draw: installed fonts for its scripts, code points for what none has."""

import functools
import unicodedata

from tl_bilinear.characters import code_point

# Behind DejaVu Sans, which comes with matplotlib: what other systems have for what it lacks.
# Outlines only: matplotlib draws no bitmaps, as Apple's and Noto's colour emoji are.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Symbols 2",
    "Noto Emoji",
    "Symbola",
    "Segoe UI Emoji",
    "Segoe UI Symbol",
)
FIRST = "DejaVu Sans"


@functools.cache
def families() -> tuple[str, ...]:
    """DejaVu Sans and those fallbacks that this machine has."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return (FIRST, *(name for name in FALLBACKS if name in there))


@functools.cache
def _has(family: str, character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    path = findfont(FontProperties(family=[family]))
    return get_font(path).get_char_index(ord(character)) != 0


@functools.cache
def drawable(text: str) -> str:
    """The text, with ⟨U+4F60⟩ for a character that no font here has."""
    return "".join(
        c if any(_has(family, c) for family in families()) else code_point(c) for c in text
    )


@functools.cache
def text_width(text: str, size: float) -> float:
    """In points, as the figure draws it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    text = drawable(text)
    if not text.strip():
        return 0.35 * size * len(text)
    path = TextPath((0, 0), text, size=100, prop=FontProperties(family=list(families())))
    return float(path.get_extents().x1) * size / 100 + 0.05 * size


@functools.cache
def screen_width(text: str, size: float) -> float:
    """In pixels, at most, as a browser draws it: it has fonts that a figure has not."""
    return size * sum(map(_advance, text))


@functools.cache
def _advance(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.1
    if not _has(FIRST, character):
        return 1.3
    return text_width(f"x{character}x", 1) - text_width("xx", 1)
