"""Make the README's pictures, docs/images, from the template at work: python -m scripts.pictures.

What a terminal shows becomes an SVG, and a browser photographs the service's own page. Ids, times
and pids differ each time.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rich
from cookiecutter.main import cookiecutter
from rich.console import Console
from rich.text import Text

from scripts.demo import ROOT, Service, environment, run
from scripts.tables import names

IMAGES = ROOT / "docs" / "images"
# chromium is a package of Debian's; where it is called otherwise, CHROMIUM names it.
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
PORT = 8000  # the default, which the pictures show
ANSWERS = {"project_name": "Lamp Shop", "description": "Sells lamps."}  # Enter takes the default
ITEMS = "localhost:8000/api/v1/items/"
CALLS = [
    f"""curl -s {ITEMS} --json '{{"name": "Green lamp"}}' | jq -C""",
    "curl -s localhost:8000/api/v1/item-imports/ -H 'Content-Type: text/csv' --data-binary @lamps.csv | jq -cC",
    f"curl -s '{ITEMS}search?q=lamp' | jq -C '.items[].name'",
    f"curl -s {ITEMS} --json '{{}}' | jq -cC '{{title, errors}}'",
]
SHOWN = re.compile(
    r"^(Starting|PostgreSQL|Migrating|Documentation)|items?_imported|item[\w/-]* HTTP|\?q="
)
LAMPS = "name,description\nDesk lamp,Brass\nWall lamp,Two arms\nFloor lamp,\n"


def terminal() -> Console:
    """Return rich's own console, through which cookiecutter asks, anew and with nothing on it."""
    rich.reconfigure(record=True, width=110, force_terminal=True, file=io.StringIO())
    return rich.get_console()


def show(console: Console, command: str, output: str = "") -> None:
    console.print(Text.assemble("$ ", (command, "bold")))
    console.print(Text.from_ansi(output), end="\n" if output else "")


def save(console: Console, name: str, title: str) -> None:
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # of the internet
    (IMAGES / name).write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), "utf-8")


class Typing(io.StringIO):
    """Standard input from somebody whose typing is seen."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override] # as StringIO's
        line = super().readline(-1 if size is None else size)
        rich.get_console().print(Text(line.strip(), "yellow"))
        return line


def scaffold(folder: Path) -> Path:
    """Answer the questions in a picture."""
    console = terminal()
    [address] = set(re.findall(r"cookiecutter (gh:\S+)", (ROOT / "README.md").read_text("utf-8")))
    show(console, f"cookiecutter {address}")
    sys.stdin = Typing("".join(ANSWERS.get(question, "") + "\n" for question in names()))
    project = Path(cookiecutter(str(ROOT), output_dir=str(folder)))
    save(console, "prompts.svg", "Scaffolding a service")
    return project


def serve(project: Path) -> None:
    """Run the service and call it in a picture, and photograph its documentation."""
    console, log = terminal(), project.parent / "service.log"
    (project / "lamps.csv").write_text(LAMPS, "utf-8")
    run("make", "--no-print-directory", "setup", f"PYTHON={sys.executable}", cwd=project)
    make, env = ["make", "--no-print-directory", "dev"], environment(project, PORT)
    with log.open("wb") as output:
        dev = subprocess.Popen(make, cwd=project, env=env, stdout=output, stderr=output)
    try:
        address = f"http://127.0.0.1:{PORT}"
        Service(address).until("/api/v1/health/ready", lambda body: body["status"] == "ok")
        calls = {}
        for call in CALLS:
            calls[call] = subprocess.check_output(["bash", "-c", call], cwd=project, text=True)
            time.sleep(1)  # the import is done in it
        photograph(f"{address}/api/docs", project.parent)
    finally:
        dev.terminate()
        dev.wait(30)
    logged = re.sub(r"^(\w+ +\| )\S+ ", r"\1", log.read_text("utf-8"), flags=re.MULTILINE)
    lines = logged.replace(str(project.parent), "~").splitlines()
    show(console, "make dev", "\n".join(line for line in lines if SHOWN.search(line)))
    console.rule()
    for call, printed in calls.items():
        show(console, call, printed)
    save(console, "running.svg", "The service runs, and is called")


def photograph(address: str, folder: Path) -> None:
    """Take a screenshot of a page, in a browser that reaches nothing but this machine."""
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
        Path(folder).chmod(0o755)  # else root's PostgreSQL could not keep its data in the project
        serve(scaffold(Path(folder).resolve()))


if __name__ == "__main__":
    main()
