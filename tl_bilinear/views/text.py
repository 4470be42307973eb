"""Any string as text on a page: nothing a token holds may act as markup or stay invisible."""

import html
import math

from tl_bilinear.characters import visible as visible

WORD_JOINER = "\u2060"
MINUS = "\u2212"


def escape(text: str) -> str:
    """Text for HTML, in element content and in quoted attributes."""
    return html.escape(text, quote=True)


def inert(token: str) -> str:
    """A token for circuitsvis, which hands it to `innerHTML` without escaping.

    HTML opens a tag or an entity only where a letter, `/`, `!`, `?` or `#` follows; a word
    joiner, which has no width, stands there instead.
    """
    shown = visible(token)
    return shown.replace("<", "<" + WORD_JOINER).replace("&", "&" + WORD_JOINER)


def token_html(token: str) -> str:
    """A token as a chip, its spaces marked."""
    marked = escape(visible(token)).replace(" ", '<span class="space">␣</span>')
    return f'<span class="token">{marked}</span>'


def signed(value: float, digits: int = 4) -> str:
    """A number with its sign; a real minus; zero without a sign."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = text[1:]
    return text.replace("-", MINUS)


def scientific(value: float) -> str:
    """A small number such as a rounding error."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.1e}".replace("-", MINUS) if value else "0"


def percent(probability: float) -> str:
    """A probability, with as many digits as a small one needs."""
    share = 100 * probability
    if share and share < 0.01:
        return f"{share:.1e} %".replace("-", MINUS)
    return f"{share:.2f} %"
