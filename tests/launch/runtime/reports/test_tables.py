from launch.runtime.reports.tables import text_table

HEADER, ROWS = ["arm", "top-1", ""], [["real", "80.25", "(all)"], ["generated", "9", ""]]


def test_text_table():
    assert text_table(HEADER, ROWS).split("\n") == [
        "arm        top-1",
        "real       80.25  (all)",
        "generated      9",
    ]
    assert text_table(HEADER, []) == "arm  top-1"


def test_a_rule_is_as_long_as_the_longest_line():
    header, rule, *rows = text_table(HEADER, ROWS, rule=True).split("\n")
    assert [header, *rows] == text_table(HEADER, ROWS).split("\n")
    assert rule == "-" * len(rows[0])
