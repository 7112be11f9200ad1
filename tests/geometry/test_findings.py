"""The list of findings: stable codes, sentences that can be filled in, and their table for users."""

import re
from pathlib import Path
from string import Formatter

import pytest

from shapespace.geometry.findings import FINDINGS, Finding

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "findings.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z-]+)` \| .* \| (.*) \|$", PAGE, re.MULTILINE)


def fields(code: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(FINDINGS[code]) if field} - {"name"}


def test_the_page_lists_each_code_with_its_values_in_the_same_order() -> None:
    assert [code for code, _ in ROWS] == list(FINDINGS)
    for code, values in ROWS:
        assert set(re.findall(r"`(\w+)`", values)) == fields(code)


@pytest.mark.parametrize("code", FINDINGS)
def test_a_sentence_names_the_scan(code: str) -> None:
    assert re.fullmatch("[a-z]+(-[a-z]+)*", code)
    assert "{name}" in FINDINGS[code]
    assert FINDINGS[code].endswith((".", "{reason}"))


def test_a_finding_has_a_known_code_and_all_values() -> None:
    found = Finding("zero-points-dropped", {"count": 1200, "total": 3000})
    assert found.message("anna") == "dropped 1,200 of 3,000 points of anna at exactly (0, 0, 0) (unmeasured)."
    assert found.record("anna") == {
        "code": "zero-points-dropped",
        "message": found.message("anna"),
        "count": 1200,
        "total": 3000,
    }
    with pytest.raises(KeyError):
        Finding("zero-points-dropped", {"count": 1200})
    with pytest.raises(KeyError):
        Finding("something-else")
