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


def percent(mean: float, std: float | None = None) -> str:
    """Shares of 1 as a cell of a table, in percent: mean, or mean and standard deviation."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def points(difference: float) -> str:
    """A difference of shares of 1 as a cell of a table, in percentage points."""
    return f"{100 * difference:+.2f}"


def p_text(p_value: float | None) -> str:
    """A p-value as a cell of a table; empty where there is none."""
    return "" if p_value is None else f"{p_value:.1g}"
