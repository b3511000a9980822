"""Make the pictures in docs/images: python -m scripts.pictures.

The output of a terminal becomes an SVG, and a browser takes a screenshot of the API documentation.
IDs, times and process IDs differ each time.
"""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import rich
from cookiecutter.main import cookiecutter
from rich.console import Console
from rich.text import Text

from scripts.demo import ROOT, Service, environment, run
from scripts.tables import names

IMAGES = ROOT / "docs" / "images"
# The name of the program, which differs between systems.
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
PORT = 8000  # the pictures show the default port
ANSWERS = {"project_name": "Lamp Shop", "description": "Sells lamps."}  # Enter selects the default
ITEMS = "localhost:8000/api/v1/items/"
CALLS = [
    f"""curl -s {ITEMS} --json '{{"name": "Green lamp"}}' | jq""",
    "curl -s localhost:8000/api/v1/item-imports/ -H 'Content-Type: text/csv' --data-binary @lamps.csv",
    f"curl -s '{ITEMS}search?q=lamp' | jq '.items[].name'",
    f"curl -s {ITEMS} --json '{{}}' | jq -c '{{title, errors}}'",
]
SHOWN = re.compile(
    r"^(Starting|PostgreSQL|Migrating|Documentation)|items?_imported|item[\w/-]* HTTP|\?q="
)
LAMPS = "name,description\nDesk lamp,Brass\nWall lamp,Two arms\nFloor lamp,\n"


def terminal() -> Console:
    """Return rich's global console, which cookiecutter uses, without earlier output."""
    rich.reconfigure(record=True, width=102, force_terminal=True, file=io.StringIO())
    return rich.get_console()


def show(console: Console, command: str, output: str = "") -> None:
    console.print(Text.assemble("$ ", (command, "bold")))
    console.print(Text.from_ansi(output), end="\n" if output else "")


def save(console: Console, name: str, title: str) -> None:
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # from a CDN
    (IMAGES / name).write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), "utf-8")


class Typing(io.StringIO):
    """Standard input that shows the typed answers."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override] # as StringIO's
        line = super().readline(-1 if size is None else size)
        rich.get_console().print(Text(line.strip(), "yellow"))
        return line


def scaffold(folder: Path) -> Path:
    """Create a service, and record the questions and answers."""
    console = terminal()
    [address] = set(re.findall(r"cookiecutter (gh:\S+)", (ROOT / "README.md").read_text("utf-8")))
    show(console, f"cookiecutter {address}")
    sys.stdin = Typing("".join(ANSWERS.get(question, "") + "\n" for question in names()))
    project = Path(cookiecutter(str(ROOT), output_dir=str(folder)))
    save(console, "prompts.svg", "Creating a service")
    return project


def serve(project: Path) -> None:
    """Run the service and record calls to it, and take a screenshot of its documentation."""
    console, log = terminal(), project.parent / "service.log"
    (project / "lamps.csv").write_text(LAMPS, "utf-8")
    run("make", "--no-print-directory", "setup", f"PYTHON={sys.executable}", cwd=project)
    make, env = ["make", "--no-print-directory", "dev"], environment(project, PORT)
    with log.open("wb") as output:
        dev = subprocess.Popen(make, cwd=project, env=env, stdout=output, stderr=output)
    try:
        address = f"http://127.0.0.1:{PORT}"
        service = Service(address)
        service.until("/api/v1/health/ready", lambda body: body["status"] == "ok")
        calls = {}
        for call in CALLS:
            colored = ["bash", "-c", call.replace("| jq", "| jq -C")]
            calls[call] = subprocess.check_output(colored, cwd=project, text=True)
            if "item-imports" in call:
                task = json.loads(calls[call])["task_id"]
                service.until(f"/api/v1/tasks/{task}", lambda body: body["result"])
        screenshot(f"{address}/api/docs", project.parent)
    finally:
        dev.terminate()
        dev.wait(30)
    logged = re.sub(r"^(\w+ +\| )\S+ ", r"\1", log.read_text("utf-8"), flags=re.MULTILINE)
    logged = re.sub(r" (request_id|task)=\S+| \[uvicorn\.access\]| {2,}(?= \[src)", "", logged)
    lines = logged.replace(str(project.parent), "~").splitlines()
    show(console, "make dev", "\n".join(line for line in lines if SHOWN.search(line)))
    console.rule()
    for call, printed in calls.items():
        show(console, call, f"{printed.rstrip()}\n")
    save(console, "running.svg", "Running a service")


def screenshot(address: str, folder: Path) -> None:
    """Take a screenshot of a page, in a browser that can reach only this machine."""
    run(
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=20000",
        "--window-size=1000,980", "--force-device-scale-factor=1.25",
        f"--screenshot={IMAGES / 'service.png'}", address,
    )  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        Path(folder).chmod(0o755)  # as root, PostgreSQL runs as another user and needs access
        serve(scaffold(Path(folder).resolve()))


if __name__ == "__main__":
    main()
