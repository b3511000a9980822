"""Fuzz the API with its OpenAPI document, and open its documentation pages in a browser."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Bake
from tests.running import running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
KEY = "8f14e45fceea167a5a36dedd4bea2543"
CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    # No host name resolves, so a page that needs the internet is not drawn.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--virtual-time-budget=20000",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(bake: Bake) -> Iterator[str]:
    variables = {"LOG_LEVEL": "ERROR", "API_KEYS": KEY}
    with running(bake(project_name="Lamps & Co").path, **variables) as address:
        yield address


def test_everything_has_a_description(address: str) -> None:
    document = httpx.get(f"{address}/api/openapi.json", trust_env=False).json()
    operations = [each for path in document["paths"].values() for each in path.values()]
    parameters = [each for operation in operations for each in operation.get("parameters", [])]
    schemas = document["components"]["schemas"].values()
    fields = [each for schema in schemas for each in schema.get("properties", {}).values()]
    missing = [each for each in operations + parameters + fields if not each.get("description")]
    assert missing == []


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_fuzzing_finds_no_error(address: str, tmp_path: Path, mode: str) -> None:
    """No request causes a 5xx response, and every response matches the document."""
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis", "run", f"{address}/api/openapi.json",
            "--header", f"X-API-Key: {KEY}", "--mode", mode, "--max-examples", "40", "--seed", "1",
            "--phases", "examples,coverage,fuzzing,stateful",
            "--checks", ",".join(CHECKS),
            "--report", "junit", "--report-junit-path", report, "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[:30_000]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
@pytest.mark.parametrize(
    ("page", "shown"),
    [("docs", 'id="operations-items-create_item'), ("redoc", 'data-item-id="tag/items"')],
)
def test_pages_work_without_the_internet(
    address: str, tmp_path: Path, page: str, shown: str
) -> None:
    """A browser that can connect to the service only draws the whole page."""
    done = subprocess.run(
        [
            str(CHROMIUM), *CHROMIUM_FLAGS, f"--user-data-dir={tmp_path}", "--dump-dom",
            f"{address}/api/{page}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    assert "Lamps &amp; Co" in done.stdout
    assert shown in done.stdout
