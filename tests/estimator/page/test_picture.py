"""Figures as SVG in the colours of the page."""

import re

from pyro_regimes.estimator.page.picture import picture
from pyro_regimes.estimator.plots.figure import INK, new_figure


def draw():
    figure = new_figure(4, 3)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], "o-", color=INK)
    panel.plot([0, 1], [1, 0], color="#123456")
    panel.set_title('a < b & "c"')
    return figure


def test_text_stays_text_and_black_is_the_colour_of_the_page():
    shown = picture(draw, 'with "quotes"', name="one", class_="wide")
    assert shown.startswith('<div class="wide"><svg') and shown.endswith("</svg></div>")
    assert 'a &lt; b &amp; "c"' in shown and 'aria-label="with &quot;quotes&quot;"' in shown
    assert INK not in shown and "#000000" not in shown and "#ffffff" not in shown
    assert "currentColor" in shown and "#123456" in shown
    assert "<style" not in shown and "<metadata" not in shown and "xlink" not in shown
    assert 'style="max-width: 384px"' in shown and 'viewBox="0 0 288 216"' in shown


def test_two_pictures_in_a_page_share_no_name():
    one, two = (picture(draw, "", name=name) for name in ("one", "two"))
    names = [set(re.findall(r' id="([^"]*)"', each)) for each in (one, two)]
    assert names[0] and not names[0] & names[1]
    for each, own in zip((one, two), names):
        used = set(re.findall(r'href="#([^"]*)"', each)) | set(re.findall(r"url\(#([^)]*)", each))
        assert used == own
