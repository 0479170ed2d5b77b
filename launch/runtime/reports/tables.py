"""Tables of text, and the cells that reports have in common."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], rule: bool = False) -> str:
    """A table for a terminal: the cells of the first column begin together, the others' end so.

    Args:
        header: of the columns; empty above notes.
        rows: as many cells each.
        rule: whether a line is drawn below the header.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for name, *cells in (header, *rows):
        ends = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *ends]).rstrip())
    if rule:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def fitting_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 120) -> str:
    """As `text_table` with a rule; where that is too wide each row is a column, in several tables.

    Args:
        header: of the columns.
        rows: as many cells each.
        width: letters that a line may have; the cells of one row always stay together.
    """
    whole = text_table(header, rows, rule=True)
    if _width(whole) <= width:
        return whole
    parts: list[list[Sequence[str]]] = [[]]
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
    """Shares of 1 as a cell of a table, in percent: mean, or mean and standard deviation."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def points(difference: float) -> str:
    """A difference of shares of 1 as a cell of a table, in percentage points."""
    return f"{100 * difference:+.2f}"


def p_text(p_value: float | None) -> str:
    """A p-value as a cell of a table; empty where there is none."""
    return "" if p_value is None else f"{p_value:.1g}"
