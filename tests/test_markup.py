from __future__ import annotations

from fpe_hf.markup import code, plain, table


def test_plain_text_is_no_markup() -> None:
    assert plain("a|b\n*c* [d](e) `f` <g> !#&~") == r"a\|b \*c\* \[d\](e) \`f\` \<g\> \!\#\&\~"
    assert code("a`b|c\nd") == "`a'b\\|c d`"


def test_numbers_are_on_the_right() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
