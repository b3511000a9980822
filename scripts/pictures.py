"""Make the README's pictures, docs/images, from the template at work: python -m scripts.pictures.

A person's keys are typed into a real terminal, and what it shows becomes an animated SVG; a browser
takes a screenshot of the service's own page. Ids, pids, times of day and the order of log lines
change with each run; nothing else does.
"""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme

from scripts.demo import ROOT, DemoError, run, say, step

IMAGES = ROOT / "docs" / "images"
# chromium is a package of Debian's; where it is called otherwise, CHROMIUM names it.
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
TOOLS = ("bash", "curl", "jq", "make", CHROMIUM)
PORT = 8000  # the default, which the pictures shall show
LIMIT = 120.0  # seconds that anything may take to show on a terminal

# The answers that are not the defaults.
ANSWERS = {
    "project_name": "Lamp Shop",
    "description": "Sells lamps.",
    "ci_provider": "gitlab",
}
LAMPS = "name,description\nDesk lamp,Brass\nWall lamp,Two arms\nFloor lamp,\n"
ITEMS = "localhost:8000/api/v1/items/"
IMPORTS = "localhost:8000/api/v1/item-imports/"
CALLS = (
    # what is typed, and what the service then logs
    (
        f"""curl -s {ITEMS} --json '{{"name": "Green lamp"}}' | jq""",
        ['"POST /api/v1/items/'],
    ),
    (
        f"curl -s {IMPORTS} -H 'Content-Type: text/csv' --data-binary @lamps.csv | jq -c",
        ['"POST /api/v1/item-imports/', "items_imported"],
    ),
    (
        f"curl -s '{ITEMS}search?q=lamp' | jq '.items[].name'",
        ['"GET /api/v1/items/search'],
    ),
    (
        f"curl -s {ITEMS} --json '{{}}' | jq -c '{{title, errors}}'",
        ['"POST /api/v1/items/'],
    ),
)

# Seconds in a picture, whatever it really took.
KEY, THINK, READ_LINE, LOG_LINE, REST = 0.045, 0.6, 0.15, 0.2, 8.0

# Pixels.
CHARACTER, ROW, MARGIN, TITLE_BAR = 8.4, 19, 18, 34

THEME = TerminalTheme(
    (0x0D, 0x11, 0x17),
    (0xE6, 0xED, 0xF3),
    [
        (0x8B, 0x94, 0x9E),  # black, in which jq writes null: a grey can be read
        (0xFF, 0x7B, 0x72),
        (0x7E, 0xE7, 0x87),
        (0xE3, 0xB3, 0x41),
        (0x79, 0xC0, 0xFF),
        (0xD2, 0xA8, 0xFF),
        (0x56, 0xD4, 0xDD),
        (0xE6, 0xED, 0xF3),
    ],
)
TYPED = "#f2cc60"
LINE = "#30363d"
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
CONSOLE = Console()

STYLE = """
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 14px }
.title { font-family: system-ui, sans-serif; font-size: 13px }
"""
# The key that is pressed, also where the default is taken.
ENTER = (
    '<symbol id="enter" overflow="visible"><g fill="none" stroke="#f2cc60" stroke-width="1.2">'
    '<rect x="1" y="-12" width="19" height="15" rx="3" opacity=".6"/>'
    '<path d="M15-8.5v4.5H6m3-3l-3 3l3 3"/></g></symbol>'
)


class Place(NamedTuple):
    """Where the cursor was at a moment."""

    at: float
    row: int
    column: int


@dataclass(frozen=True)
class Span:
    """What came up at one moment, on one row, in one style."""

    at: float
    row: int
    column: int
    text: str
    style: Style


@dataclass
class Screen:
    """What a terminal shows of programs that only write on, and never move the cursor."""

    columns: int
    spans: list[Span] = field(default_factory=list)
    entered: list[Place] = field(default_factory=list)
    cursor: list[Place] = field(default_factory=lambda: [Place(0, 0, 0)])
    _decoder: AnsiDecoder = field(default_factory=AnsiDecoder)

    def write(self, at: float, text: str) -> None:
        for number, line in enumerate(text.replace("\r", "").split("\n")):
            if number:
                self._move(at, self.row + 1, 0)
            for segment in self._decoder.decode_line(line).render(CONSOLE):
                self.put(at, segment.text, segment.style or Style.null())

    def put(self, at: float, text: str, style: Style) -> None:
        while text:
            if self.column == self.columns:
                self._move(at, self.row + 1, 0)
            piece = text[: self.columns - self.column]
            self.spans.append(Span(at, self.row, self.column, piece, style))
            self._move(at, self.row, self.column + len(piece))
            text = text[len(piece) :]

    def enter(self, at: float) -> None:
        self.entered.append(Place(at, self.row, self.column))

    @property
    def row(self) -> int:
        return self.cursor[-1].row

    @property
    def column(self) -> int:
        return self.cursor[-1].column

    def _move(self, at: float, row: int, column: int) -> None:
        self.cursor.append(Place(at, row, column))


@dataclass
class Clock:
    """The time in a picture."""

    now: float = THINK


class Terminal:
    """A shell in a pseudo-terminal, somebody who types, and what is seen."""

    def __init__(self, clock: Clock, home: Path, folder: Path, columns: int) -> None:
        self.clock = clock
        self.screen = Screen(columns)
        # What names this machine, and what the pictures call it.
        self._names = {
            str(home): "/home/you",
            f"holder={socket.gethostname()}:": "holder=laptop:",
        }
        self._shell, self._descriptor = pty.fork()
        if self._shell == 0:
            # Where we run in the background, Ctrl-C is ignored; what the shell runs must not.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile"], _variables(home))  # noqa: S606 - a shell is wanted
        termios.tcsetwinsize(self._descriptor, (50, columns))
        self.shows(r"\$ \Z")

    def types(self, text: str, *, think: float = THINK) -> None:
        """Type, and press Enter."""
        self.clock.now += think
        self._send(text)
        self._read_until([re.escape(text) + r"\Z"])
        for key in text:
            self.screen.put(self.clock.now, key, Style(color=TYPED))
            self.clock.now += KEY
        self.screen.enter(self.clock.now)
        self.clock.now += 2 * KEY
        self._send("\r")

    def shows(self, *patterns: str, line: float = 0.0) -> None:
        """Wait until each pattern was shown; in the picture each line takes the seconds given."""
        for shown in self._read_until(patterns).splitlines(keepends=True):
            self.screen.write(self.clock.now, shown)
            self.clock.now += line

    def interrupt(self) -> None:
        """Press Ctrl-C, after the end of the picture, and wait until the program has ended."""
        self._send("\x03")
        self._read_until([r"\$ \Z"])

    def close(self) -> None:
        os.close(self._descriptor)  # hangs up, which ends the shell and what it runs
        os.waitpid(self._shell, 0)

    def _send(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def _read_until(self, patterns: Sequence[str]) -> str:
        """Read until all patterns were seen, and nothing came after them for a moment."""
        received = b""
        deadline = time.monotonic() + LIMIT
        while True:
            if select.select([self._descriptor], [], [], 0.15)[0]:
                received += os.read(self._descriptor, 1 << 16)
                continue
            plain = CONTROL.sub("", received.decode())
            missing = [pattern for pattern in patterns if not re.search(pattern, plain, re.DOTALL)]
            if not missing:
                return self._renamed(received.decode())
            if time.monotonic() > deadline:
                raise DemoError(f"The terminal does not show {missing}:\n{plain}")

    def _renamed(self, text: str) -> str:
        for name, shown in self._names.items():
            text = text.replace(name, shown)
        return text


def _variables(home: Path) -> dict[str, str]:
    """Return a user's environment without any of our own settings."""
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PS1": "$ ",
        "TERM": "xterm-256color",
    }


@contextmanager
def terminal(clock: Clock, home: Path, folder: Path, columns: int) -> Iterator[Terminal]:
    opened = Terminal(clock, home, folder, columns)
    try:
        yield opened
    finally:
        opened.close()


def scaffold(home: Path) -> str:
    """Answer the questions in a terminal, and return the picture of it."""
    readme = (ROOT / "README.md").read_text("utf-8")
    address = re.findall(r"cookiecutter (gh:\S+)", readme)[0]
    # The README's address leads here, so that what is seen is what the template is now.
    (home / ".cookiecutterrc").write_text(json.dumps({"abbreviations": {"gh": str(ROOT)}}))
    questions = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))["__prompts__"]
    clock = Clock()
    with terminal(clock, home, home, columns=96) as shell:
        shell.types(f"cookiecutter {address}")
        for number, (question, words) in enumerate(questions.items(), 1):
            shell.shows(rf"\[{number}/{len(questions)}\].*: \Z")
            lines = words.count("\n") + 1
            shell.types(ANSWERS.get(question, ""), think=THINK + lines * READ_LINE)
        shell.shows(r"is ready.*\$ \Z")
    pane = Pane(shell.screen, rows=shell.screen.row + 1)
    return drawn("Scaffolding a service: the questions and the answers", "~", [pane], clock.now)


@contextmanager
def served(home: Path, project: Path) -> Iterator[str]:
    """Run the service in a terminal and call it from another; yield the picture of both."""
    clock = Clock()
    columns = 112
    with (
        terminal(clock, home, project, columns) as dev,
        terminal(clock, home, project, columns) as shell,
    ):
        dev.types("make dev")
        try:
            dev.shows("startup complete", "scheduler_leads", "worker_started", line=LOG_LINE)
            for call, logged in CALLS:
                shell.types(call, think=3 * THINK)
                shell.shows(r"\$ \Z")
                dev.shows(*map(re.escape, logged), line=LOG_LINE)
            panes = [Pane(dev.screen, rows=15), Pane(shell.screen, rows=shell.screen.row + 1)]
            yield drawn("The service runs and is called", "~/lamp-shop", panes, clock.now)
        finally:
            dev.interrupt()


@dataclass(frozen=True)
class Pane:
    """A screen in a picture, of which the last rows are seen."""

    screen: Screen
    rows: int

    @property
    def height(self) -> int:
        return self.rows * ROW

    def scrolled(self) -> list[tuple[float, str]]:
        return [
            (at, f"translateY({-max(0, row + 1 - self.rows) * ROW}px)")
            for at, row, _ in self.screen.cursor
        ]

    def cursor(self) -> list[tuple[float, str]]:
        return [
            (at, f"translate({column * CHARACTER:.1f}px,{row * ROW}px)")
            for at, row, column in self.screen.cursor
        ]


class Animation:
    """Style rules that repeat a picture's course; where nothing shall move, its end is seen."""

    def __init__(self, end: float) -> None:
        self._seconds = end + REST
        self._still: list[str] = []
        self._rules: list[str] = []
        self._appearances: dict[float, str] = {}

    def appearing(self, at: float) -> str:
        """Return the class of what appears at that time."""
        if at not in self._appearances:
            name = self._appearances[at] = f"t{len(self._appearances)}"
            self._add(name, f"0%{{visibility:hidden}}{self._when(at)}{{visibility:visible}}")
        return self._appearances[at]

    def moving(self, name: str, places: list[tuple[float, str]]) -> str:
        """Return the class of what is moved at those times."""
        last = dict(places)  # of several places at one time
        frames: dict[str, str] = {}
        for at, place in last.items():
            if place not in list(frames.values())[-1:]:
                frames[self._when(at)] = place
        self._still.append(f".{name}{{transform:{places[-1][1]}}}")
        self._add(name, "".join(f"{when}{{transform:{place}}}" for when, place in frames.items()))
        return name

    def style(self) -> str:
        moving = "\n".join(self._rules)
        return (
            f"{STYLE}{''.join(self._still)}\n"
            f"@media (prefers-reduced-motion: no-preference) {{\n{moving}\n}}\n"
        )

    def _when(self, at: float) -> str:
        return f"{at / self._seconds * 100:.2f}%"

    def _add(self, name: str, frames: str) -> None:
        self._rules.append(
            f".{name}{{animation:{name} {self._seconds:.2f}s step-end infinite}}"
            f"@keyframes {name}{{{frames}}}"
        )


def element(tag: str, *content: str, **attributes: object) -> str:
    """Return an XML element; the names of attributes have _ for -, and one more at the end."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{value}"' for name, value in attributes.items()
    )
    return f"<{tag}{written}>{''.join(content)}</{tag}>"


def drawn(title: str, folder: str, panes: list[Pane], end: float) -> str:
    """Return the SVG of a window with panes."""
    animation = Animation(end)
    columns = max(pane.screen.columns for pane in panes)
    width = round(columns * CHARACTER + 2 * MARGIN)
    body, height = [], TITLE_BAR
    for number, pane in enumerate(panes):
        if number:
            body.append(element("path", d=f"M0 {height}H{width}", stroke=LINE))
        body.append(_pane(pane, number, height + MARGIN - 4, animation))
        height += pane.height + 2 * MARGIN - 4
    content = [
        element("title", title),
        element("style", animation.style()),
        ENTER,
        *_window(width, height, folder),
        *body,
        "",
    ]
    svg = element(
        "svg", "\n".join(["", *content]), xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
    )  # fmt: skip
    return svg + "\n"


def _window(width: int, height: int, folder: str) -> list[str]:
    lights = zip((20, 40, 60), ("#ff5f57", "#febc2e", "#28c840"), strict=True)
    middle = TITLE_BAR // 2
    bar = f"M1 {TITLE_BAR}V10a9 9 0 0 1 9-9H{width - 10}a9 9 0 0 1 9 9V{TITLE_BAR}z"
    frame = {"x": 0.5, "y": 0.5, "width": width - 1, "height": height - 1, "rx": 9}
    name = {"class": "title", "x": width // 2, "y": middle + 5, "text-anchor": "middle"}
    return [
        element("rect", **frame, fill=THEME.background_color.hex, stroke=LINE),
        element("path", d=bar, fill="#21262d"),
        *(element("circle", cx=x, cy=middle, r=6, fill=fill) for x, fill in lights),
        element("text", escape(folder), **name, fill="#8b949e"),
    ]


def _pane(pane: Pane, number: int, top: int, animation: Animation) -> str:
    shown: dict[float, list[str]] = {}
    for span in pane.screen.spans:
        shown.setdefault(span.at, []).extend(_texts(span))
    for at, row, column in pane.screen.entered:
        key = element("use", href="#enter", x=_x(column + 0.5), y=_baseline(row))
        shown.setdefault(at, []).append(key)
    content = [
        element("g", *elements, class_=animation.appearing(at))
        for at, elements in sorted(shown.items())
    ]
    cursor = element(
        "rect", class_=animation.moving(f"c{number}", pane.cursor()), y=2, width=CHARACTER,
        height=ROW - 3, fill=THEME.foreground_color.hex, opacity=0.5,
    )  # fmt: skip
    scrolled = animation.moving(f"s{number}", pane.scrolled())
    # An <svg> within hides what has been scrolled away.
    return element(
        "svg", element("g", "\n".join(["", *content, cursor]), class_=scrolled),
        x=MARGIN, y=top, width=_x(pane.screen.columns + 2), height=pane.height,
    )  # fmt: skip


def _x(column: float) -> str:
    return f"{column * CHARACTER:.1f}"


def _baseline(row: int) -> int:
    return row * ROW + 14


def _texts(span: Span) -> Iterator[str]:
    """Yield its text without wide gaps, which not every browser would keep."""
    color = span.style.color.get_truecolor(THEME) if span.style.color else THEME.foreground_color
    looks = {"fill": color.hex}
    if span.style.bold:
        looks["font-weight"] = "bold"
    if span.style.dim:
        looks["opacity"] = "0.6"
    for part in re.finditer(r"\S+(?: \S+)*", span.text):
        # The length keeps the columns, whatever the font.
        yield element(
            "text", escape(part[0], quote=False), x=_x(span.column + part.start()),
            y=_baseline(span.row), textLength=_x(len(part[0])), **looks,
        )  # fmt: skip


def photograph(address: str, folder: Path, picture: Path) -> None:
    """Take a screenshot of a page, in a browser that reaches nothing but this machine."""
    run(
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=20000",
        "--window-size=1000,980", "--force-device-scale-factor=1.25",
        f"--screenshot={picture}", address,
    )  # fmt: skip


def save(name: str, content: str) -> None:
    path = IMAGES / name
    path.write_text(content, "utf-8")
    say(f"    {path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


def check() -> None:
    """Find out now, rather than in the middle, what is missing."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise DemoError(f"Not on the PATH: {', '.join(missing)}.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            raise DemoError(f"Port {PORT}, which the pictures show, is taken.")


def make_pictures(folder: Path) -> None:
    home = folder / "home"
    project = home / "lamp-shop"
    home.mkdir()
    folder.chmod(0o755)  # else root's PostgreSQL could not keep its data in the project
    IMAGES.mkdir(exist_ok=True)
    say("Answering the questions")
    save("prompts.svg", scaffold(home))
    with step("Installing the requirements of the service into its own .venv"):
        run("make", "--no-print-directory", "setup", f"PYTHON={sys.executable}", cwd=project)
    (project / "lamps.csv").write_text(LAMPS)
    say("Running the service and calling it")
    with served(home, project) as picture:
        save("running.svg", picture)
        photograph(f"http://127.0.0.1:{PORT}/api/docs", folder, IMAGES / "service.png")
        say(f"    {(IMAGES / 'service.png').relative_to(ROOT)}")


def main() -> int:
    try:
        check()
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            make_pictures(Path(folder).resolve())
    except KeyboardInterrupt:
        say("Interrupted; nothing is left running.")
        return 130
    except (DemoError, OSError) as error:
        say(f"\n{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
