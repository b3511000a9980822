"""A plugin of pytest: ``--only`` runs a part of the variants; a line tells of each, a table of all."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from _pytest.terminal import TerminalReporter

from tests.variants import STRUCTURAL, VARIANTS, chosen

COLUMNS = {  # of the table, and whose seconds stand there
    "checks": "test_passes_its_own_checks",
    "boot": "test_boots_from_its_own_requirements",
    "tests": "test_passes_its_own_tests",
}
HEAD = [*STRUCTURAL, *COLUMNS, ""]
WIDTHS = [max(map(len, (head, *STRUCTURAL.get(head, ["999 s"])))) for head in HEAD]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only",
        default="",
        metavar="CONDITIONS",
        help="of the variants, those that fit: 'cache_backend=file,none task_queue=redis'",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        chosen(config.getoption("--only"))
    except ValueError as error:
        raise pytest.UsageError(f"--only: {error}") from None
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(), "progress of variants")


@pytest.hookimpl(trylast=True)  # once it is known what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop variants that are not wanted; let the reports of the others say whose they are."""
    wanted = {None, *chosen(config.getoption("--only"))}
    if dropped := [item for item in items if _variant(item) not in wanted]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if _variant(item) in wanted]
    number = Counter(map(_variant, items))
    for item in items:
        if variant := _variant(item):
            item.user_properties.append(("variant", [variant, number[variant]]))


def _variant(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    variant = callspec.params.get("variant") if callspec else None
    return variant if isinstance(variant, str) else None


@dataclass
class Row:
    """What is known of a variant; ``left`` tests are not done."""

    left: int
    seconds: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    result: str = ""

    def add(self, report: pytest.TestReport) -> None:
        self.left -= report.when == "teardown"
        self.failed |= report.failed
        self.result = str(dict(report.user_properties).get("result", self.result))
        for column, test in COLUMNS.items():
            if f"::{test}[" in report.nodeid:
                self.seconds[column] = self.seconds.get(column, 0) + report.duration

    def cells(self, variant: str) -> list[str]:
        answers = [VARIANTS[variant][question] for question in STRUCTURAL]
        times = [f"{self.seconds.get(column, 0):.0f} s" for column in COLUMNS]
        return [*answers, *times, "FAILED" if self.failed else self.result]


@dataclass
class Progress:
    """Gathers the reports of all workers, and prints."""

    rows: dict[str, Row] = field(default_factory=dict)
    reporter: TerminalReporter | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.reporter = session.config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties).get("variant")
        if not isinstance(told, list):
            return
        variant, number = told
        row = self.rows.setdefault(variant, Row(left=number))
        row.add(report)
        if not row.left and self.reporter:
            done = sum(not row.left for row in self.rows.values())
            self.reporter.ensure_newline()
            self.reporter.write_line(f"variant {done:2}: {_line(row.cells(variant))}")

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        if self.rows:
            terminalreporter.section("variants")
            terminalreporter.write_line(_line(HEAD))
            for variant in sorted(self.rows, key=list(VARIANTS).index):
                terminalreporter.write_line(_line(self.rows[variant].cells(variant)))


def _line(cells: list[str]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
