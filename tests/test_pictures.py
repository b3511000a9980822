"""The README's pictures: they show the template as it is now, and nothing of who made them."""

import ast
import json
import re
import struct
from xml.etree import ElementTree as ET

import pytest
from cookiecutter.environment import StrictEnvironment
from rich.text import Text

from scripts.pictures import ANSWERS, CHARACTER, IMAGES, ROW
from tests.project import REPOSITORY

SVG = "{http://www.w3.org/2000/svg}"
QUESTIONS = json.loads((REPOSITORY / "cookiecutter.json").read_text("utf-8"))
drawings = pytest.mark.parametrize("name", ["prompts.svg", "running.svg"])


def parsed(name: str) -> ET.Element:
    return ET.fromstring((IMAGES / name).read_text("utf-8"))  # noqa: S314 - our own file


def rows_of(pane: ET.Element) -> str:
    """Return what a terminal shows in a picture, row by row as plain text."""
    rows: dict[int, dict[int, str]] = {}
    for element in pane.iter(f"{SVG}text"):
        column = round(float(element.attrib["x"]) / CHARACTER)
        rows.setdefault(int(element.attrib["y"]) // ROW, {})[column] = str(element.text)
    lines = []
    for number in range(max(rows) + 1):
        line = ""
        for column, text in sorted(rows.get(number, {}).items()):
            line = line.ljust(column) + text
        lines.append(line)
    return "\n".join(lines)


def panes(name: str) -> list[str]:
    return [rows_of(pane) for pane in parsed(name).findall(f"{SVG}svg")]


def conversation() -> str:
    """Return the questions of today, each with its default and the answer in the picture."""
    asked = []
    answers: dict[str, str] = {}
    for number, (question, words) in enumerate(QUESTIONS["__prompts__"].items(), 1):
        template = StrictEnvironment(context=QUESTIONS).from_string(QUESTIONS[question])
        default = template.render(cookiecutter=answers)
        answers[question] = ANSWERS.get(question, default)
        count = f"[{number}/{len(QUESTIONS['__prompts__'])}]"
        line = f"  {count} {Text.from_markup(words).plain} ({default}): {ANSWERS.get(question, '')}"
        asked.append(line.rstrip())
    return "\n".join(asked)


def test_prompts_are_those_of_today() -> None:
    """The picture shows every question of cookiecutter.json, its default and what is typed."""
    assert conversation() in panes("prompts.svg")[0]


def test_prompts_begin_and_end_as_a_user_sees() -> None:
    """It begins with the README's command, and ends with what the hook says."""
    hook = ast.parse((REPOSITORY / "hooks" / "post_gen_project.py").read_text("utf-8"))
    (what_now,) = (
        ast.literal_eval(node.value)
        for node in hook.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WHAT_NOW"
    )
    (shown,) = panes("prompts.svg")
    command = shown.splitlines()[0].removeprefix("$ ")
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert re.search(rf"{re.escape(command)}\s", readme)
    assert shown.endswith(what_now % ("lamp-shop", "lamp-shop") + "\n$")


def test_running_shows_calls_and_their_logs() -> None:
    """The service's log has the request of each call, and the task that one of them caused."""
    dev, shell = panes("running.svg")
    log = dev.replace("\n", "")  # long lines are wrapped
    assert dev.startswith("$ make dev\nStarting PostgreSQL ...\n")
    assert "Documentation: http://127.0.0.1:8000/api/docs" in dev
    assert len(re.findall(r'- "(?:GET|POST) /api', log)) == shell.count("$ curl") == 4
    (task,) = re.findall(r'"task_id":"([^"]+)"', shell)
    assert re.search(rf"items_imported .*request_id=\w+ task={task}", log)


@drawings
def test_drawings_stand_alone(name: str) -> None:
    """They run no script and load nothing, and are small enough for a README."""
    picture = parsed(name)
    elements = list(picture.iter())
    assert {element.tag.removeprefix(SVG) for element in elements} == {
        "svg", "title", "style", "symbol", "g", "rect", "circle", "path", "text", "use",
    }  # fmt: skip
    for element in elements:
        for attribute, value in element.attrib.items():
            assert not attribute.startswith("on")
            assert "href" not in attribute or value.startswith("#")
            assert "url(" not in value
    style = picture.findtext(f"{SVG}style", "")
    assert "@keyframes" in style
    assert not re.search(r"url\(|@import|@font-face", style)
    assert (IMAGES / name).stat().st_size < 150_000


@drawings
def test_drawings_name_no_machine(name: str) -> None:
    """The only folders of a machine in them are those of a made-up user."""
    shown = "".join(pane.replace("\n", "") for pane in panes(name))
    folders = re.findall(r"(?<![\w/.:])/(?:home|root|tmp|var|Users|private|work|opt)/\w+", shown)
    assert set(folders) <= {"/home/you"}


def test_page_is_a_picture_of_sensible_size() -> None:
    """It is a PNG, wide enough to be sharp and small enough to load at once."""
    content = (IMAGES / "service.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 <= width <= 1600
    assert 600 <= height <= 1400
    assert len(content) < 200_000
