"""Charts: nothing that they are given is missing, and titles are text."""

from ldm.report import charts


def test_more_lines_and_rows_than_colors_are_all_drawn():
    lines = {f"line {i}": [(0, i), (1, i + 1)] for i in range(len(charts.SERIES) + 2)}
    drawn = charts.curve("lines", "x", {"y": lines})
    assert all(f">{name}<" in drawn for name in lines)
    few, many = (
        charts.whiskers("rows", "x", {f"row {i}": (float(i), None) for i in range(count)})
        for count in (len(charts.SERIES), len(charts.SERIES) + 1)
    )
    assert many.count("var(--series-1)") > few.count("var(--series-1)")  # the last row has the first one's color


def test_a_title_is_text_in_the_label_for_screen_readers():
    drawn = charts.curve('a "<b>" & c', "x", {"y": {"line": [(0, 0), (1, 1)]}})
    assert 'aria-label="a &#34;&lt;b&gt;&#34; &amp; c"' in drawn
