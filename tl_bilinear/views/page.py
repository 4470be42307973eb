"""One self-contained page: no network, no second file.

The circuitsvis bundle stands in the page once, in a classic script, and each view is one
closed div and one `CircuitsVis.render` call. A content security policy names the page's scripts
by their hashes: the browser runs nothing else and loads nothing from anywhere.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_bilinear.views.extra import require_views
from tl_bilinear.views.figure import figure_svg
from tl_bilinear.views.text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE_SHEET = Path(__file__).with_name("page.css")


class Page:
    """Sections of HTML in order, with figures, circuitsvis views and data for machines."""

    def __init__(self, title: str):
        require_views()
        self.title = title
        self._body: list[str] = []
        self._views: list[dict[str, Any]] = []
        self._figures = 0
        self._data: dict[str, str] = {}
        self._styles = [STYLE_SHEET.read_text(encoding="utf-8")]
        self._scripts: list[str] = []

    def add(self, *html: str) -> None:
        """Append HTML; whatever it holds from outside must have been escaped."""
        self._body.extend(html)

    def view(self, element: str, props: Mapping[str, Any]) -> str:
        """The div of a circuitsvis view, to be placed on the page once.

        Args:
            element: a React element of the bundle, such as "ColoredTokens".
            props: its properties; tensors and arrays are converted, NaN becomes 0. Tokens
                must be `inert`.
        """
        from circuitsvis.utils.convert_props import convert_prop_type

        name = f"view-{len(self._views)}"
        plain = {key: _finite(convert_prop_type(value)) for key, value in props.items()}
        self._views.append({"id": name, "element": element, "props": plain})
        return f'<div class="view"><div id="{name}"></div></div>'

    def figure(self, figure: "Figure", alt: str) -> str:
        """A matplotlib figure as inline SVG, to be placed on the page once."""
        self._figures += 1
        svg = figure_svg(figure, alt, f"fig{self._figures}")
        return f'<div class="figure">{svg}</div>'

    def data(self, name: str, value: Any) -> None:
        """Put JSON on the page for machines, as `<script type="application/json" id=name>`."""
        self._data[name] = script_json(value)

    def style(self, sheet: str) -> None:
        """Append a style sheet of our own."""
        self._styles.append(sheet)

    def script(self, code: str) -> None:
        """Append a script of our own, run behind the body; it may read `data`."""
        self._scripts.append(code)

    def html(self) -> str:
        """The whole file."""
        scripts = [_bundle(), _render_calls(self._views)] if self._views else []
        scripts += self._scripts
        hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}"
        data = [
            f'<script type="application/json" id="{escape(name)}">{value}</script>'
            for name, value in self._data.items()
        ]
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{''.join(self._styles)}</style></head><body><main>",
                *self._body,
                "</main>",
                *data,
                *(f"<script>{script}</script>" for script in scripts),
                "</body></html>\n",
            ]
        )


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no `<`, no NaN."""
    return json.dumps(_finite(value), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON lacks, as 0 and the largest float."""
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0 if math.isnan(value) else math.copysign(1.7e308, value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _bundle() -> str:
    import circuitsvis

    path = Path(str(circuitsvis.__file__)).parent / "dist" / "cdn" / "iife.js"
    code = path.read_text(encoding="utf-8")
    code = re.sub(r"^//# sourceMappingURL=.*$", "", code, flags=re.MULTILINE)
    code = re.sub(r"</(script)", r"<\\/\1", code, flags=re.IGNORECASE)
    package = distribution("circuitsvis")
    licence = package.read_text("LICENSE.txt") or "MIT licence"  # its notice goes with its code
    return f"/*! CircuitsVis {package.version}\n{licence.strip()} */\n{code.strip()}"


def _render_calls(views: list[dict[str, Any]]) -> str:
    # A page whose drawing fails says so in place of the drawing.
    return (
        f"\nfor (const view of {script_json(views)}) {{\n"
        "  try { CircuitsVis.render(view.id, CircuitsVis[view.element], view.props); }\n"
        "  catch (error) { document.getElementById(view.id).textContent = String(error); }\n"
        "}\n"
    )


def _sha256(script: str) -> str:
    # The parser turns CRLF into LF before it hashes; nothing here holds a CR.
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
