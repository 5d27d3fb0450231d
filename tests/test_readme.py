"""README.md says what was measured."""

import pytest

from benchmarks import readme


@pytest.mark.parametrize("name", readme.parts())
def test_a_table_is_that_of_the_results(name):
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.replace(text, name, readme.parts()[name]) == text, "README.md is out of date; run `make results`"


def test_a_part_without_markers_is_named():
    with pytest.raises(ValueError, match="no markers <!-- speed: written by make results -->"):
        readme.replace("nothing", "speed", "")
