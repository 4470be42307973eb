"""Views: what is on the page and in the figures; in a browser where there is one."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

HOSTILE = [
    "<s>",
    "</script>",
    "<script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "&amp;",
    "\n",
    "<!--",
    "\u202egnp",
    "\x00",
    "",
    " his",
]
SHOWN = [*HOSTILE[:5], "↵", "<!--", "⟨U+202E⟩gnp", "⟨U+0000⟩", "∅", " his"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def hostile_page() -> str:
    from tl_bilinear.views import Markup, Page, colored_tokens, table
    from tl_bilinear.views.text import token_html

    page = Page("hostile </title><script>document.title='run'</script>")
    values = [float(i) - 4 for i in range(len(HOSTILE))]
    page.add("<p>first</p>", colored_tokens(page, HOSTILE, values))
    chips = [Markup(token_html(token)) for token in HOSTILE]
    page.add(table(HOSTILE, [HOSTILE, chips], caption=HOSTILE[1]))
    page.add(colored_tokens(page, ["zero", "rows"], [0.0, 0.0]))
    page.data("numbers", {"tokens": HOSTILE, "value": float("nan")})
    return page.html()


class Elements(HTMLParser):
    """Scripts, styles and attributes of a page, as a browser's parser cuts it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.inside: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = {"script": self.scripts, "style": self.styles}.get(tag)
        if self.inside is not None:
            self.inside.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.inside[-1] += data


def scripts_of(text: str) -> list[str]:
    return Elements(text).scripts


def without_scripts(text: str) -> str:
    for script in scripts_of(text):
        text = text.replace(script, "")
    return text


FETCHING = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


def network_references(text: str) -> list[str]:
    """What in a page would make a browser fetch something."""
    page = Elements(text)
    found = [
        f"<{tag} {name}={value}>"
        for tag, name, value in page.attributes
        if tag in ("link", "base", "iframe", "object", "embed", "img")
        or (name in FETCHING and not value.startswith("#"))
        or "refresh" in value
    ]
    styles = [*page.styles, *(value for _, name, value in page.attributes if name == "style")]
    for style in styles:
        found += re.findall(r"@import.*|url\((?!#)[^)]*\)", style)
    for script in page.scripts:
        found += re.findall(r"^\s*import\b.*|\bimport\(.{40}|sourceMappingURL.*", script, re.M)
    return found


def render_calls(text: str) -> list[dict]:
    call = scripts_of(text)[-1]
    return json.loads(call[call.index("of ") + 3 : call.index(") {\n")])


def test_hostile_tokens_are_data_in_the_page() -> None:
    text = hostile_page()
    data, bundle, calls = scripts_of(text)
    assert json.loads(data) == {"tokens": HOSTILE, "value": 0.0}
    assert len(bundle) > 1_000_000 and "document.title" not in bundle
    tokens = render_calls(text)[0]["props"]["tokens"]
    assert [token.replace("\u2060", "") for token in tokens] == SHOWN
    assert not any(re.search("[<&](?!\u2060)", token) for token in tokens)
    body = without_scripts(text)
    assert "document.title" in body and "<img" not in body and "<s>" not in body
    for token in SHOWN:
        chip = html.escape(token).replace(" ", '<span class="space">␣</span>')
        assert f'<span class="token">{chip}</span>' in body


def test_one_bundle_and_closed_divs() -> None:
    text = hostile_page()
    assert len(scripts_of(text)) == 3
    assert "Copyright (c) 2022 Alan Cooney" in scripts_of(text)[1]
    assert text.count('<div id="view-0"></div>') == text.count('<div id="view-1"></div>') == 1
    assert len(text.encode()) < 2_000_000


def test_nothing_is_fetched() -> None:
    text = hostile_page()
    assert network_references(text) == []
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "fault",
    [
        '<img src="http://a.b/c.png">',
        '<link rel="stylesheet" href="x.css">',
        "<script src=x.js></script>",
        "<script>import x from 'http://a'</script>",
        "<style>@import 'http://a'</style>",
        '<p style="background:url(http://a)">',
        '<a href="http://a">',
    ],
)
def test_what_would_be_fetched_is_found(fault: str) -> None:
    assert len(network_references(fault)) >= 1


def test_bounds_are_symmetric_and_never_zero() -> None:
    first, second = (view["props"] for view in render_calls(hostile_page()))
    assert (first["minValue"], first["maxValue"]) == (-6.0, 6.0)
    assert (second["minValue"], second["maxValue"]) == (-1.0, 1.0)


def test_tokens_and_values_must_match() -> None:
    from tl_bilinear.views import Page, colored_tokens

    with pytest.raises(ValueError, match="2 tokens but 1 values"):
        colored_tokens(Page("title"), ["a", "b"], [1.0])


def test_tensors_and_bad_numbers_become_json() -> None:
    from tl_bilinear.views import Page

    page = Page("title")
    page.view("ColoredTokens", {"values": torch.tensor([1.0, float("nan"), float("inf")])})
    (view,) = render_calls(page.html())
    assert view["props"]["values"] == [1.0, 0.0, 1.7e308]


def eigendecomposition(gauge: Any = "none"):
    from tl_bilinear.decompositions import eigendecompose
    from tl_bilinear.tensor import BilinearTensor

    factors = torch.randn(3, 6, 9, dtype=torch.float64)
    return eigendecompose(BilinearTensor(*factors), torch.ones(6).double(), gauge=gauge)


@pytest.mark.parametrize("gauge", ["none", "traceless"])
def test_spectrum_shows_every_eigenvalue_and_its_gauge(gauge: str) -> None:
    from tl_bilinear.views import spectrum_figure

    eigen = eigendecomposition(gauge)
    (axes,) = spectrum_figure(eigen, title="L0", marked=[0, 2]).axes
    bars: Any = axes.patches
    heights = [bar.get_height() for bar in bars]
    assert heights == eigen.eigenvalues.tolist()
    colors = {bar.get_facecolor() for bar in bars if bar.get_height() > 0}
    assert len(colors) == 1
    assert f"gauge: {gauge}" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.texts] == ["0", "2"]


def test_spectrum_refuses_what_it_cannot_draw() -> None:
    from tl_bilinear.views import spectrum_figure

    with pytest.raises(ValueError, match="beyond the 6 kept"):
        spectrum_figure(eigendecomposition(), marked=[6])


def contributions():
    from tl_bilinear.views import Contributions

    heads = torch.tensor([[1.0, -2.0], [0.25, 0.5]], dtype=torch.float64)
    mlps = torch.tensor([3.0, -1.0], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    return Contributions(0.5, heads, zero, mlps, 0.0, target=2.25)


def test_contributions_show_the_sum_and_what_it_misses() -> None:
    from tl_bilinear.views import contribution_figure, contribution_table

    parts = contributions()
    assert parts.total == 2.25 and parts.discrepancy == 0
    text = contribution_table(parts)
    assert text.count("+2.2500") == 2 and "−2.000" in text and "bias</th>" not in text
    (axes,) = contribution_figure(parts).axes
    bars: Any = axes.patches
    assert [bar.get_width() for bar in bars] == [0.5, -1.0, 3.0, 0.75, -1.0, 0.0, 2.25]


def test_ablation_shows_every_control() -> None:
    from tl_bilinear.views import ablation_figure

    controls = [0.1 * i for i in range(20)]
    (axes,) = ablation_figure(-1.5, controls, name="mode $L$", direct=-1.0).axes
    strips: Any = axes.collections
    points = [tuple(strip.get_offsets()[:, 0]) for strip in strips]
    assert points == [tuple(controls), (-1.5,), (-1.0,)]


def test_figures_in_one_page_share_no_id() -> None:
    from tl_bilinear.views import Page, spectrum_figure

    page = Page("title")
    figure = spectrum_figure(eigendecomposition())
    page.add(page.figure(figure, 'a "spectrum"'), page.figure(figure, "again"))
    text = page.html()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 20
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used and used <= set(ids)
    assert 'aria-label="a &quot;spectrum&quot;"' in text
    assert scripts_of(text) == []


def test_figures_leave_the_style_of_others_alone(tmp_path: Path) -> None:
    import matplotlib

    from tl_bilinear.views import spectrum_figure

    before = dict(matplotlib.rcParams)
    figure = spectrum_figure(eigendecomposition())
    for suffix in ("png", "svg", "pdf"):
        figure.savefig(tmp_path / f"spectrum.{suffix}")
        assert (tmp_path / f"spectrum.{suffix}").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_bilinear.views import Page, extra

    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'tl_bilinear\[views\]'"):
        Page("title")


def browse(path: Path, profile: Path, width: int = 1200) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, offline, and what the console complained of."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page was not opened in a browser")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"),
        *(f"--window-size={width},1000", "--virtual-time-budget=8000"),
        *("--enable-logging=stderr", "--dump-dom", path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if re.search("CONSOLE|Uncaught", line)]
    return done.stdout, complaints


def test_hostile_tokens_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(hostile_page(), encoding="utf-8")
    dom, complaints = browse(path, tmp_path / "profile")
    assert complaints == []
    assert "<title>hostile &lt;/title&gt;" in dom and "<img" not in dom
    drawn = without_scripts(dom)
    spans = re.findall(r'<span style="display: inline-block;[^>]*>(.*?)</span>', drawn)
    seen = [html.unescape(span).replace("\u2060", "").replace("\xa0", " ") for span in spans]
    assert seen == [*SHOWN, "zero", "rows"]
