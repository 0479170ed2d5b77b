"""A report as one HTML file, with its pictures inside."""

import base64
import html
from collections.abc import Sequence

from etils import epath
from matplotlib.figure import Figure

from launch.files import write_atomic
from launch.runtime.reports.image_grid import to_png

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #555; font-size: .9rem; }
.verdict { background: #eef5ee; border-left: 4px solid #4a7; padding: .6rem 1rem; }
.verdict.bad { background: #f8eeee; border-color: #b44; }
"""


class Report:
    """Collects elements in order; `write` makes the page. All text is escaped."""

    def __init__(self, title: str):
        self._title = title
        self._elements: list[str] = []

    def heading(self, text: str) -> None:
        """Starts a section."""
        self._elements.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._elements.append(f"<p>{html.escape(text)}</p>")

    def verdict(self, text: str, good: bool) -> None:
        """Adds a paragraph that stands out."""
        kind = "verdict" if good else "verdict bad"
        self._elements.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table of text cells."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        lines = [
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        ]
        self._elements.append(f"<table><tr>{head}</tr>{''.join(lines)}</table>")

    def figure(self, figure: Figure, caption: str) -> None:
        """Adds a figure as PNG inside the page."""
        self.png(to_png(figure), caption)

    def png(self, png: bytes, caption: str) -> None:
        """Adds a PNG file's bytes inside the page."""
        data = base64.b64encode(png).decode()
        caption = html.escape(caption)
        self._elements.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def write(self, path: epath.PathLike) -> None:
        """Writes the page."""
        title = html.escape(self._title)
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style><h1>{title}</h1>{''.join(self._elements)}</html>\n"
        )
        write_atomic(path, page.encode())
