"""A run that skipped a suite of real components does not pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.suites import verdict

if TYPE_CHECKING:
    from pathlib import Path

WANTED = ("tests/e2e", "tests/rules")


def judge(tmp_path: Path, *cases: str) -> list[str]:
    report = tmp_path / "junit.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return verdict(report, WANTED)


def case(classname: str, inside: str = "") -> str:
    return f'<testcase classname="{classname}" name="test_it">{inside}</testcase>'


def test_all_ran(tmp_path: Path) -> None:
    assert judge(tmp_path, case("tests.e2e.test_a"), case("tests.rules.test_b.TestC"), case("tests.unit.test_d")) == []


def test_a_suite_without_tests(tmp_path: Path) -> None:
    assert judge(tmp_path, case("tests.e2e.test_a"), case("tests.unit.test_b")) == ["tests/rules: no test ran"]


def test_a_skipped_test(tmp_path: Path) -> None:
    skipped = case("tests.e2e.test_b", '<skipped type="pytest.skip" message="no root"/>')
    wrong = judge(tmp_path, case("tests.e2e.test_a"), case("tests.rules.test_c"), skipped)
    assert wrong == ["tests/e2e: test_it was skipped: no root"]


def test_skips_elsewhere_and_expected_failures_pass(tmp_path: Path) -> None:
    skipped = case("tests.web.test_a", '<skipped type="pytest.skip" message="no browser"/>')
    expected = case("tests.e2e.test_b", '<skipped type="pytest.xfail" message="known"/>')
    assert judge(tmp_path, skipped, expected, case("tests.e2e.test_c"), case("tests.rules.test_d")) == []
