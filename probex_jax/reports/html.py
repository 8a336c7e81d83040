"""Self-contained HTML documents, and text of strangers in them."""

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

# Nothing is fetched: styles and scripts are inline, pictures are data URIs.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_MAX_CHARACTERS = 200
_NUMBER = re.compile(r"[-\d.]*")

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem 1rem 3rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; border-bottom: 2px solid #1a1a1a; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; }
code { font: .88em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0;
  border-bottom: 1px solid #ccc; }
th { border-bottom: 1.5px solid #1a1a1a; white-space: nowrap; }
tbody th { border-bottom: 1px solid #ccc; font-weight: 400; white-space: normal; }
td code { display: inline-block; min-width: 12rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0; }
figcaption { font-size: .88rem; max-width: 46rem; }
nav ul { columns: 14rem; padding-left: 1.2rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 0 2rem; }
.side figure img { width: 100%; max-width: 28rem; height: auto; }
meter { width: 7.5rem; }
.nb { display: inline-block; max-width: 100%; }
.whole { white-space: nowrap; }
.model td, h3, figcaption { overflow-wrap: anywhere; }
.matrix td, .matrix th { padding: .15rem .35rem; border: 1px solid #ddd; }
th.up { vertical-align: bottom; }
th.up span { writing-mode: vertical-rl; transform: rotate(180deg); }
td, rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr, .model { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  nav { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .wide { overflow: visible; }
}
"""


def page(title: str, body: str) -> str:
    """A self-contained HTML document.

    Args:
      title: of the window, as plain text.
      body: trusted HTML; text of strangers in it must be `escaped`.

    Returns:
      The document. Its content security policy forbids all requests.

    Example:
      >>> "<title>&lt;i&gt;</title>" in page("<i>", "<p>Hello</p>")
      True
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


@cache
def asset(name: str) -> str:
    """A style or script of this package, to stand in a document."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def escaped(text: str, most: int = _MAX_CHARACTERS) -> str:
    """Text of a stranger as harmless HTML.

    Unprintable characters become spaces, and long text is cut.

    Args:
      text: any text.
      most: the maximal number of characters.

    Returns:
      HTML for use between tags and in quoted attributes.

    Example:
      >>> escaped("a <b> & 'c'\\x00")
      'a &lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(printable(text, most))


def printable(text: str, most: int = _MAX_CHARACTERS) -> str:
    """Text of a stranger as `escaped` shows it, but as plain text."""
    shown = "".join(c if c.isprintable() else " " for c in text).strip()
    return shown if len(shown) <= most else shown[: most - 1] + "…"


class Html(str):
    """Trusted HTML for a table cell."""

    __slots__ = ()


def html_table(rows: Sequence[Mapping[str, str]], caption: str = "") -> str:
    """A table; the first column is the row header, and numbers are right-aligned.

    Args:
      rows: mappings with the same keys, which are the header unless they are all blank; text is
        escaped, `Html` is not.
      caption: plain text above the table.

    Example:
      >>> print(html_table([{"class": "<i>", "models": "7"}]))
      <div class="wide" tabindex="0"><table><thead><tr><th scope="col">class</th><th scope="col"
      class="n">models</th></tr></thead><tbody><tr><th scope="row">&lt;i&gt;</th><td
      class="n">7</td></tr></tbody></table></div>
    """
    if not rows:
        return ""
    numeric = {name: all(_NUMBER.fullmatch(row[name]) for row in rows) for name in rows[0]}
    right = {name: ' class="n"' if number else "" for name, number in numeric.items()}
    names = [f'<th scope="col"{right[name]}>{escaped(name)}</th>' for name in rows[0]]
    head = f"<thead><tr>{''.join(names)}</tr></thead>" if any(map(str.strip, rows[0])) else ""
    body = "".join(f"<tr>{''.join(_cells(row, right))}</tr>" for row in rows)
    title = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return f'<div class="wide" tabindex="0"><table>{title}{head}<tbody>{body}</tbody></table></div>'


def _cells(row: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    shown = [value if isinstance(value, Html) else escaped(value) for value in row.values()]
    first, *others = zip(shown, right.values(), strict=True)
    return [
        f'<th scope="row"{first[1]}>{first[0]}</th>',
        *(f"<td{at}>{text}</td>" for text, at in others),
    ]


def figure(drawn: str, caption: str) -> str:
    """A picture as HTML with a plain-text caption."""
    return f"<figure>{drawn}<figcaption>{escaped(caption)}</figcaption></figure>"
