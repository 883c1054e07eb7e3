"""The reference of the command line, from the commands themselves."""

from typing import Any

from typer.main import get_command

from tsjt_pyg.cli import app


def reference() -> str:
    """Markdown: a section a command with its usage, help and options."""
    group: Any = get_command(app)
    sections = [f"# The command line\n\n`tsjt --help` and `tsjt COMMAND --help` say the same.\n\n{options_of(group)}"]
    for name, command in group.commands.items():
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["tsjt", name, *(f"[{a}]" for a in arguments), "[OPTIONS]"])
        sections.append(f"## tsjt {name}\n\n```text\n{usage}\n```\n\n{plain(command.help)}\n\n{options_of(command)}")
    return "\n\n".join(sections) + "\n"


def options_of(command: Any) -> str:
    rows = [f"| {names_of(p)} | {default_of(p)} | {plain(p.help).replace('|', '/')} |" for p in command.params]
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows])


def names_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return " / ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def default_of(parameter: Any) -> str:
    named = f" (or `{parameter.envvar}`)" if parameter.envvar else ""
    if parameter.required:
        return "*has to be given*" + named
    default = parameter.default
    if isinstance(default, bool):
        return ("yes" if default else "no") + named
    return ("" if default is None or callable(default) else f"`{default}`") + named


def plain(text: str | None) -> str:
    """Help as Markdown: lines joined within a paragraph, ``code`` with one tick."""
    paragraphs = (text or "").replace("``", "`").replace("\f", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
