"""Draw the service's layers, processes and servers, from the contracts of its `pyproject.toml`.

What import-linter holds to be true decides which boxes there are; only their words and places are
given here. A layer or an entrance without words is a KeyError.
"""

import itertools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

WIDTH, ROW, HEIGHT = 920, 80, 58
TOP, STACK_TOP = 64, 196
SIDE, STACK, RIGHT = (32, 172), (232, 356), 648  # the columns: x, and the width of two

# What stands in a box: a title, and the words below it.
LAYERS = {
    "services": "use cases, no commits",
    "repositories": "every query",
    "db": "models, sessions, the one commit",
}
# A package that lets work in: the process that runs it, its command, and its words.
ENTRANCES = {
    "api": ("api", "HTTP in and out"),
    "schedulers": ("scheduler", "jobs by the clock"),
    "tasks": ("worker", "background tasks"),
}
ABOVE = "Processes, any number of each; below them the layers that they share"
BELOW = "relay: what has committed is sent"
SIDES = {"domain": "rules and errors", "core": "settings, logs, start", "cache": "leases and tags"}

STYLE = """\
  svg { --paper: #ffffff; --ink: #1f2933; --soft: #5b6875; --line: #8795a1; --layer: #e8f1fb; \
--edge: #5a8fc4; --entrance: #eaf6ee; --rim: #55a274; --server: #fdf3e1; --hem: #c4933a }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #15191e; --ink: #e6ebf0; --soft: #a3b0bc; --line: #74828f; --layer: #1c2c3d; \
--edge: #5a8fc4; --entrance: #1b3025; --rim: #55a274; --server: #352a17; --hem: #b98a35 }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--soft); text-anchor: middle }
  .title { font-size: 16px; font-weight: 600; fill: var(--ink) }
  .command { font-family: ui-monospace, monospace; font-size: 12px }
  .note { font-size: 12px; text-anchor: start }
  rect { rx: 8px; stroke-width: 1.5px }
  .paper { fill: var(--paper); stroke: none }
  .layer { fill: var(--layer); stroke: var(--edge) }
  .entrance { fill: var(--entrance); stroke: var(--rim) }
  .server { fill: var(--server); stroke: var(--hem); rx: 26px }
  path { fill: none; stroke: var(--line); stroke-width: 1.6px; marker-end: url(#arrow) }
  .knows { stroke-dasharray: 4 4 }
  #arrow path { fill: var(--line); stroke: none; marker-end: none }"""

DEFINITIONS = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker></defs>'
)


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int
    kind: str
    title: str
    lines: tuple[str, ...]

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    @property
    def bottom(self) -> int:
        return self.y + self.height

    def draw(self) -> str:
        first = self.y + self.height // 2 + 6 - 9 * len(self.lines)
        texts = [text(self.middle, first, self.title, "title")]
        for number, line in enumerate(self.lines, 1):
            kind = "command" if line.startswith("python") else ""
            texts.append(text(self.middle, first + 18 * number, line, kind))
        return (
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" '
            f'height="{self.height}"/>' + "".join(texts)
        )


def text(x: int, y: int, words: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(words)}</text>'


def arrow(path: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<path{attribute} d="{path}"/>'


@dataclass(frozen=True)
class Contracts:
    layers: list[str]  # from the top
    entrances: list[str]  # the topmost layer is one
    sides: list[str]  # what lies beside or below the layers


def read(pyproject: str) -> Contracts:
    """Read the contracts of the un-rendered service, with every feature on."""
    contracts = tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"]
    (stack,) = (list(map(plain, each["layers"])) for each in contracts if each["type"] == "layers")
    forbidden = [each for each in contracts if each["type"] == "forbidden"]
    alone = [plain(*each["source_modules"]) for each in forbidden if one(each["source_modules"])]
    shunned = [
        plain(*each["forbidden_modules"]) for each in forbidden if one(each["forbidden_modules"])
    ]
    return Contracts(stack[1:], [stack[0], *shunned], alone)


def one(modules: list[str]) -> bool:
    return len(modules) == 1


def plain(module: str) -> str:
    return re.sub(r"^src\.", "", module)


def entrances_of(contracts: Contracts) -> list[Box]:
    gap, x = 24, SIDE[0]
    width = (WIDTH - 2 * x - gap * (len(contracts.entrances) - 1)) // len(contracts.entrances)
    boxes = []
    for package in contracts.entrances:
        process, words = ENTRANCES[package]
        lines = (f"src/{package}: {words}", f"python cli.py {process}")
        boxes.append(Box(x, TOP, width, 84, "entrance", process, lines))
        x += width + gap
    return boxes


def draw(pyproject: str) -> str:
    """Draw what the contracts name; a part that has no words or no place here is a KeyError."""
    contracts = read(pyproject)
    entrances = entrances_of(contracts)
    layers = [
        Box(STACK[0], STACK_TOP + ROW * row, STACK[1], HEIGHT, "layer", name, (LAYERS[name],))
        for row, name in enumerate(contracts.layers)
    ]
    floor = layers[-1].bottom
    beside = {name: side(name, floor) for name in contracts.sides}
    servers = servers_below(floor)
    parts = [
        *arrows_of_layers(entrances, layers, beside["domain"], servers[0]),
        *arrows_of_servers(entrances, layers[0], beside["cache"], servers),
        *(box.draw() for box in [*entrances, *layers, *beside.values(), *servers]),
        text(SIDE[0], 32, ABOVE, "note"),
        text(servers[0].middle + 8, servers[0].bottom + 44, BELOW, "note"),
    ]
    return document(parts, servers[0].bottom + 64)


def arrows_of_layers(
    entrances: list[Box], layers: list[Box], domain: Box, database: Box
) -> Iterator[str]:
    top = layers[0]
    for box in entrances:
        yield arrow(f"M{box.middle} {box.bottom}V{top.y - 26}H{top.middle}V{top.y}")
    for upper, lower in itertools.pairwise([*layers, database]):
        yield arrow(f"M{upper.middle} {upper.bottom}V{lower.y}")
    for layer in layers:
        yield arrow(f"M{layer.x} {layer.y + HEIGHT // 2}H{domain.x + domain.width}", "knows")


def arrows_of_servers(
    entrances: list[Box], services: Box, cache: Box, servers: tuple[Box, Box, Box]
) -> Iterator[str]:
    database, valkey, broker = servers
    below = database.bottom + 26
    yield arrow(f"M{services.x + services.width} {cache.y + HEIGHT // 2}H{cache.x}")
    yield arrow(f"M{cache.middle} {cache.bottom}V{valkey.y}")
    yield arrow(f"M{database.middle} {database.bottom}V{below}H{broker.middle}V{broker.bottom}")
    yield arrow(f"M{broker.middle} {broker.y}V{entrances[-1].bottom}")  # the last is the worker


def side(name: str, floor: int) -> Box:
    x, y, width, height = {
        "cache": (RIGHT, STACK_TOP, 150, HEIGHT),
        "core": (SIDE[0], floor + 44, SIDE[1], HEIGHT),
        "domain": (SIDE[0], STACK_TOP, SIDE[1], floor - STACK_TOP),
    }[name]
    return Box(x, y, width, height, "layer", name, (SIDES[name],))


def servers_below(floor: int) -> tuple[Box, Box, Box]:
    y = floor + 44
    return (
        Box(STACK[0], y, STACK[1], HEIGHT, "server", "PostgreSQL", ("rows, outbox, leases, keys",)),
        Box(RIGHT - 24, y, 130, HEIGHT, "server", "Valkey", ("or Redis: cache",)),
        Box(RIGHT + 120, y, 130, HEIGHT, "server", "Broker", ("Valkey, RabbitMQ",)),
    )


def document(parts: list[str], height: int) -> str:
    words = "The processes and the layers of the service, and the servers that they use"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{words}</title>",
            f"<style>\n{STYLE}\n</style>",
            DEFINITIONS,
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )
