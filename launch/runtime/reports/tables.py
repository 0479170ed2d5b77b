"""Tables of text, and formats of cells that reports share."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], rule: bool = False) -> str:
    """A table for a terminal, first column left, others right; `rule` underlines the header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for name, *cells in (header, *rows):
        ends = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *ends]).rstrip())
    if rule:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def fitting_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 120) -> str:
    """`text_table` with a rule; if wider than `width` letters, transposed and in several tables."""
    whole = text_table(header, rows, rule=True)
    if _width(whole) <= width:
        return whole
    parts: list[list[Sequence[str]]] = [[]]
    # Fill each table with as many rows as fit its width, at least one.
    for row in rows:
        if parts[-1] and _width(_turned(header, [*parts[-1], row])) > width:
            parts.append([])
        parts[-1].append(row)
    return "\n\n".join(_turned(header, part) for part in parts)


def _turned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *rest = zip(header, *rows, strict=True)
    return text_table(first, rest, rule=True)


def _width(table: str) -> int:
    return max(map(len, table.splitlines()))


def percent(mean: float, std: float | None = None) -> str:
    """A share, or its mean and standard deviation, in percent."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.2f}"


def p_text(p_value: float | None) -> str:
    """A p-value with one digit; '' for None."""
    return "" if p_value is None else f"{p_value:.1g}"
