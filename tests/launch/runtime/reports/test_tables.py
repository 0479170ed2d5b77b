from launch.runtime.reports.tables import fitting_table, text_table

HEADER, ROWS = ["arm", "top-1", ""], [["real", "80.25", "(all)"], ["synthetic", "9", ""]]


def test_text_table():
    assert text_table(HEADER, ROWS).split("\n") == [
        "arm        top-1",
        "real       80.25  (all)",
        "synthetic      9",
    ]
    assert text_table(HEADER, []) == "arm  top-1"


def test_a_rule_is_as_long_as_the_longest_line():
    header, rule, *rows = text_table(HEADER, ROWS, rule=True).split("\n")
    assert [header, *rows] == text_table(HEADER, ROWS).split("\n")
    assert rule == "-" * len(rows[0])


def test_a_table_too_wide_has_its_rows_as_columns_in_parts():
    header, rows = ["set", "a", "b"], [["x", "1", "2"], ["yy", "3", "4"], ["z", "5", "6"]]
    whole = text_table(header, rows, rule=True)
    assert fitting_table(header, rows, width=len("set  a  b")) == whole
    assert fitting_table(header, rows, width=len("set  a  b") - 1).split("\n") == [
        "set  x",
        "------",
        "a    1",
        "b    2",
        "",
        "set  yy",
        "-------",
        "a     3",
        "b     4",
        "",
        "set  z",
        "------",
        "a    5",
        "b    6",
    ]
    both = fitting_table(header, [*rows, ["longer than all", "7", "8"]], width=14).split("\n")
    assert both[0] == "set  x  yy  z" and both[5] == "set  longer than all"
