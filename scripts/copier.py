"""Write copier.yml from cookiecutter.json and the hooks."""

import runpy
from typing import Any

import yaml

from scripts.tables import ASKED, ROOT, names, prompt_of

TARGET = ROOT / "copier.yml"
BEFORE = runpy.run_path(str(ROOT / "hooks/pre_gen_project.py"))
AFTER = runpy.run_path(str(ROOT / "hooks/post_gen_project.py"))

SERVICE = "{% raw %}{{cookiecutter.project_slug}}{% endraw %}"
TEMPLATE = "{{ _copier_conf.src_path }}"
PYTHON = "{{ _copier_python }}"

HEADER = """\
# Copier's description of this template.  Do not edit it: scripts/copier.py writes it from
# cookiecutter.json (the questions) and from hooks (the checks, and the files of each feature).
"""
SLUG = """\
{% from "hooks/copier.jinja" import slugify -%}
{% set slug = slugify(project_name)[:55] -%}
{{ slugify(slug if slug[:1].isalpha() else "service-" ~ slug) }}"""
IMPORT = '{% from "hooks/copier.jinja" import refusal, taken -%}\n'


def label_of(name: str, choice: str) -> str:
    labels = ASKED["__prompts__"][name]
    return str(labels.get(choice, choice)) if isinstance(labels, dict) else choice


def question(name: str) -> dict[str, Any]:
    default = ASKED[name]
    kind = "bool" if isinstance(default, bool) else "str"
    found: dict[str, Any] = {"type": kind, "help": prompt_of(name)}
    if isinstance(default, list):
        found["choices"] = {label_of(name, choice): choice for choice in default}
        default = default[0]
    found["default"] = SLUG if name == "project_slug" else default
    if name in BEFORE["RULES"]:
        found["validator"] = validator(name)
    return found


def validator(name: str) -> str:
    """Return an expression for the error message of an answer."""
    error = f'refusal("{name}", {name}, refused.{name})'
    if name == "project_slug":
        error += " or taken(project_slug, refused.taken)"
    return f"{IMPORT}{{{{ {error} }}}}"


def variable(value: object) -> dict[str, Any]:
    """Return what Copier calls a computed value: it is neither asked for nor stored."""
    return {"type": "json", "when": False, "default": value}


def context() -> str:
    """Return the variable `cookiecutter`, which the template's files contain."""
    lines = ["{% set cookiecutter = {", *(f'  "{name}": {name},' for name in names()), "} %}"]
    for name, value in ASKED.items():
        if name.startswith("_") and isinstance(value, str):
            text = value.replace("{% now 'utc', '%Y' %}", "{{ '%Y' | strftime }}")
            lines.append(f"{{% set x %}}{text}{{% endset %}}")
            lines.append(f"{{% set _ = cookiecutter.update({name}=x) %}}")
    return "\n".join([*lines, "{{ cookiecutter | tojson }}"])


def exclude() -> list[str]:
    """Return the patterns of each feature's files, which stay out unless it is selected."""
    found = []
    for condition, paths in AFTER["FEATURES"]:
        patterns = "\n".join(f"/{path}" for path in paths.split())
        if condition:
            patterns = f"{{% if not ({condition[3:-3]}) %}}\n{patterns}\n{{% endif %}}"
        found.append(patterns)
    return found


def document() -> dict[str, Any]:
    return {
        "_min_copier_version": "9.18",
        "_subdirectory": SERVICE,
        "_templates_suffix": "",
        "_envops": ASKED["_jinja2_env_vars"],
        "refused": variable(BEFORE["RULES"] | {"taken": AFTER["TAKEN"]}),
        **{name: question(name) for name in names()},
        "cookiecutter": variable(context()),
        "_exclude": exclude(),
        # In an update, tasks run in the user's project too.
        "_tasks": [[PYTHON, f"{TEMPLATE}/hooks/post_gen_project.py", f"{TEMPLATE}/{SERVICE}"]],
        "_migrations": [[PYTHON, "-m", "dev.relink_migrations"]],
        "_message_after_copy": AFTER["NEXT_STEPS"]
        % ("{{ project_slug }}", "{{ _copier_conf.dst_path | string | quote }}"),
    }


def write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write a text of several lines as a block."""
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(str, write_text)


def text() -> str:
    parts = [
        yaml.dump({key: value}, Dumper=Dumper, sort_keys=False, width=1000)
        for key, value in document().items()
    ]
    return "\n".join([HEADER, *parts])


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
