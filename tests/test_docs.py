"""The documents say what the program does: settings, messages, commands, alerts, wiring, links."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.core
import typer.main
import yaml
from builders import OPEN_NS
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from actors.messages import MESSAGE_TYPES, STREAMS, Alert
from actors.policies import MonitoringSettings
from daemon.bus import Envelope
from daemon.cli import app
from daemon.journal import RecordedEntry, SessionWriter
from daemon.settings import WRITTEN_ELSEWHERE, Settings
from daemon.wiring import graph
from hrm.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted({ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")})
RECORDS = sorted((DOCS / "adr").glob("[0-9]*.md"))
NEW_SECTIONS = (
    "hierarchical_reasoning_model",
    "feed",
    "complexity",
    "reasoning",
    "risk_limits",
    "execution",
    "news",
    "session",
    "bus",
    "broker",
    "backend",
)
ALERT_PARTS = ("**From**", "**You see**", "**It means**", "**Type**", "**It worked when**")

Row = dict[str, str]


class Setting(NamedTuple):
    """A setting as the program knows it."""

    section: str
    key: str  # dotted, below the section
    field: FieldInfo


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def headings(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [found.strip() for found in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)]


def anchor(heading: str) -> str:
    """Return what a heading is linked by, as the usual renderers make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def section_of(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    found = re.search(
        rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |^\1 |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"no heading {heading!r}"
    return found[2]


def tables(text: str) -> list[list[Row]]:
    """Return the tables of a page; cells by their column's head."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def settings_of(section: str, model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(section, inner, f"{prefix}{name}.")
        elif (section, f"{prefix}{name}") not in WRITTEN_ELSEWHERE:
            yield Setting(section, f"{prefix}{name}", field)


def new_settings() -> list[Setting]:
    found = list(settings_of("monitoring", MonitoringSettings))
    for section in NEW_SECTIONS:
        model = Settings.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        found.extend(settings_of(section, model))
    return found


def documented_settings() -> dict[tuple[str, str], Row]:
    page = text_of("docs/settings.md")
    return {
        (section, row["key"].strip("`")): row
        for section in ("monitoring", *NEW_SECTIONS)
        for table in tables(section_of(page, section))
        for row in table
    }


def limits_of(field: FieldInfo) -> dict[str, Decimal]:
    """Return the numeric limits of a field: ge, gt, le, lt."""
    return {
        name: Decimal(str(getattr(constraint, name)))
        for constraint in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(constraint, name)
    }


def limits_in(text: str) -> dict[str, Decimal] | None:
    """Read a range as the page writes it: [0, 1), from 1, above 0; None where it is in words."""
    number = r"(-?\d+(?:\.\d+)?)"
    if found := re.fullmatch(rf"([\[(]){number}, {number}([\])])", text):
        return {
            "ge" if found[1] == "[" else "gt": Decimal(found[2]),
            "le" if found[4] == "]" else "lt": Decimal(found[3]),
        }
    if found := re.fullmatch(rf"from {number}", text):
        return {"ge": Decimal(found[1])}
    if found := re.fullmatch(rf"above {number}", text):
        return {"gt": Decimal(found[1])}
    return None


def test_every_setting_of_the_new_sections_is_described_and_no_other() -> None:
    known = {(setting.section, setting.key) for setting in new_settings()}

    assert documented_settings().keys() == known


@pytest.mark.parametrize("setting", new_settings(), ids=lambda s: f"{s.section}.{s.key}")
def test_the_described_default_and_range_of_a_setting_are_the_programs(setting: Setting) -> None:
    row = documented_settings()[setting.section, setting.key]

    default = setting.field.default
    default = list(default) if isinstance(default, tuple) else default
    assert yaml.safe_load(row["default"]) == json.loads(json.dumps(default, default=plain))

    described = limits_in(row["range"])
    limits = limits_of(setting.field)
    if described is not None and limits:
        assert described == limits
    elif limits:
        # A range in words must be one that the program narrows further elsewhere.
        assert row["range"] == "20 only"


def plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)


def test_every_older_section_has_its_line_and_the_values_that_the_daemon_reads() -> None:
    page = text_of("docs/settings.md")
    (rows,) = tables(section_of(page, "Older sections"))
    described = {row["section"].strip("`"): row["the daemon reads"] for row in rows}
    older = set(Settings.model_fields) - set(NEW_SECTIONS) - {"secrets"}

    assert described.keys() == older
    for section, key in WRITTEN_ELSEWHERE.values():
        assert f"`{key}`" in described[section] or section == "monitoring"


def test_every_message_and_stream_stands_in_the_table_of_messages() -> None:
    page = section_of(text_of("docs/architecture.md"), "Messages and streams")
    (rows,) = tables(page)
    described = {name.strip(): row["stream"] for row in rows for name in row["message"].split(",")}

    assert described == {
        kind.__name__: f"`{kind.stream}`" + (" *" if kind.latest_by else "")
        for kind in MESSAGE_TYPES
    }
    assert {stream.strip("` *") for stream in described.values()} == set(STREAMS)


def test_the_wiring_tables_equal_what_the_command_prints() -> None:
    page = text_of("docs/architecture.md")
    shown = page.partition("<!-- wiring")[2].partition("<!-- end of wiring -->")[0]
    actors, edges = tables(shown)

    def cell(names: list[str]) -> str:
        return ", ".join(names)

    wiring = graph()

    assert actors == [
        {
            "actor": wire["actor"],
            "takes": cell(wire["inputs"]),
            "gives": cell(wire["outputs"]),
            "own thread": "yes" if wire["heavy"] else "no",
            "when it fails": wire["on_crash"],
        }
        for wire in wiring
        if "actor" in wire
    ]
    assert edges == [
        {"edge": wire["edge"], "reads": cell(wire["reads"]), "writes": cell(wire["writes"])}
        for wire in wiring
        if "edge" in wire
    ]


def arrows() -> dict[tuple[str, str], set[str]]:
    """Return the streams that lead from each part to each other, read off the wiring."""
    streams = {kind.__name__: kind.stream for kind in MESSAGE_TYPES}
    reads = {part_of(wire): streams_of(wire, "reads", "inputs", streams) for wire in graph()}
    writes = {part_of(wire): streams_of(wire, "writes", "outputs", streams) for wire in graph()}
    return {
        (source, target): written & reads[target]
        for source, written in writes.items()
        for target in reads
        if written & reads[target]
    }


def part_of(wire: dict[str, Any]) -> str:
    name: str = wire.get("actor") or wire["edge"]
    return name


def streams_of(wire: dict[str, Any], edge: str, actor: str, streams: dict[str, str]) -> set[str]:
    return {streams[name] for name in wire[actor]} if "actor" in wire else set(wire[edge])


def test_the_picture_shows_every_stream_between_the_parts_and_no_other() -> None:
    (picture,) = fenced(text_of("docs/architecture.md"), "mermaid")

    drawn = {
        (source, target): set(label.split(", "))
        for source, label, target in re.findall(r"^  (\w+) -- (.*) --> (\w+)$", picture, re.M)
    }

    assert drawn == arrows()


def commands() -> dict[str, typer.core.TyperCommand]:
    """Return every command by its name; one of a group by both words."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    found: dict[str, typer.core.TyperCommand] = {}
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            found |= {
                f"{name} {word}": part
                for word, part in command.commands.items()
                if isinstance(part, typer.core.TyperCommand)
            }
        elif isinstance(command, typer.core.TyperCommand):
            found[name] = command
    return found


def test_every_command_has_its_row_in_the_readme_and_no_other_has() -> None:
    (rows,) = tables(section_of(text_of("README.md"), "Commands"))
    described = {row["command"].strip("`") for row in rows}

    assert described == {f"hrm-trader {name}" for name in commands()} | {"hrm-train"}


def shown_invocations() -> list[tuple[str, str]]:
    """Return (page, arguments) of each call of hrm-trader in the shell examples."""
    return [
        (str(page.relative_to(ROOT)), call)
        for page in PAGES
        for block in fenced(page.read_text(), "sh")
        for call in re.findall(r"(?:^|bin/)hrm-trader (\w[^|\n]*)", block, re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "call"), shown_invocations())
def test_a_shown_command_is_one_that_the_command_line_takes(page: str, call: str) -> None:
    name, *arguments = shlex.split(call, comments=True)
    if name not in commands():
        name, arguments = f"{name} {arguments[0]}", arguments[1:]

    context = commands()[name].make_context(name, arguments)

    assert context.params


def test_the_shown_commands_are_found() -> None:
    shown = {call.split()[0] for _, call in shown_invocations()}

    assert {"check", "run", "resume", "status", "kill", "replay", "trace", "demo"} <= shown


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:`|^|sudo )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }

    assert named
    assert named <= targets


WRAPPERS = ("alert", "_alert")


def alert_runbooks() -> set[str]:
    """Return the runbook that each alert in the code names."""
    found: set[str] = set()
    for folder in ("actors", "daemon"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= runbooks_in(ast.parse(path.read_text()), path)
    return found


def runbooks_in(tree: ast.Module, path: Path) -> set[str]:
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    wrapper = next(
        (
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name in WRAPPERS
        ),
        None,
    )
    inside = set(ast.walk(wrapper)) if wrapper else set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or node in inside:
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "Alert":
            value = next(word.value for word in node.keywords if word.arg == "runbook")
        elif isinstance(node.func, ast.Attribute) and node.func.attr in WRAPPERS:
            value = node.args[2]
        else:
            continue
        name = value.value if isinstance(value, ast.Constant) else None
        if isinstance(value, ast.Name):
            name = constants.get(value.id)
        assert isinstance(name, str), f"{path}:{node.lineno}: which runbook does this alert name?"
        found.add(name)
    return found


def test_every_runbook_that_an_alert_names_is_written_and_no_other() -> None:
    page = section_of(text_of("docs/runbooks/monitoring.md"), "All alerts")

    assert set(headings(page)) == alert_runbooks()


@pytest.mark.parametrize("runbook", sorted(alert_runbooks()))
def test_a_runbook_says_what_to_see_to_type_and_to_expect(runbook: str) -> None:
    written = section_of(text_of("docs/runbooks/monitoring.md"), runbook)

    assert [part for part in ALERT_PARTS if part in written] == list(ALERT_PARTS)
    (block,) = fenced(written, "sh")
    assert block.strip()


def test_the_emergency_page_opens_with_the_kill_command_and_fits_a_screen() -> None:
    page = text_of("docs/runbooks/emergency.md")

    first, *_ = fenced(page, "sh")

    assert "hrm-trader kill" in first
    assert len(page.splitlines()) <= 50


def links_of(page: Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(page.read_text()))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings_that_exist(page: Path) -> None:
    for link in links_of(page):
        name, _, wanted = link.partition("#")
        target = (page.parent / name).resolve() if name else page

        assert target.exists(), f"{link} leads nowhere"
        if wanted:
            assert wanted in map(anchor, headings(target.read_text())), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_no_path_of_a_build_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|tmp|root|home|Users)/\S*", page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:actors|daemon|hrm|config|tests|benchmarks|systemd)/[\w./]+\.\w+)`", page.read_text()
    )
    made_up = {"actors/spreads.py", "tests/test_actors/test_spreads.py"}  # of the worked changes

    missing = [name for name in named if name not in made_up and not (ROOT / name).exists()]

    assert missing == []


def test_records_have_a_number_each_and_are_listed_in_order() -> None:
    index = text_of("docs/adr/README.md")

    assert len({path.name[:4] for path in RECORDS}) == len(RECORDS)  # reserved ones leave gaps
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\): (.*)", index) == [
        (path.name, headings(path.read_text())[0].partition(". ")[2]) for path in RECORDS
    ]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_its_four_parts_on_half_a_page(path: Path) -> None:
    title, *parts = headings(path.read_text())

    assert title.startswith(f"{int(path.name[:4])}. ")
    assert parts == ["Context", "Decision", "Consequences", "Status"]
    assert len(path.read_text().splitlines()) <= 45


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    (rows,) = tables(text_of("docs/glossary.md"))
    words = [row["word"] for row in rows]

    assert words == sorted(set(words), key=str.lower)


def test_the_readme_says_of_the_released_model_what_its_scores_say() -> None:
    manifest = read_manifest(ROOT / "models")
    scores: Any = manifest.models[manifest.released].scores["test"]

    assert ("shows no edge" in text_of("README.md")) is not scores["shows_an_edge"]


def python_examples() -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), code)
        for page in PAGES
        for code in fenced(page.read_text(), "python")
    ]


@pytest.mark.parametrize(("page", "code"), python_examples())
def test_a_python_example_compiles(page: str, code: str) -> None:
    compiled = compile(code, page, "exec")

    assert compiled.co_names


def test_the_example_that_lists_alerts_lists_them(tmp_path: Path) -> None:
    (code,) = fenced(text_of("docs/runbooks/monitoring.md"), "python")
    alert = Alert(severity="warning", text="no tick", runbook="Silent feed", at_ns=OPEN_NS)
    envelope = Envelope(
        source="market_feed",
        sequence=0,
        cause="",
        published_ns=1,
        cause_published_ns=0,
        origin_published_ns=1,
        message=alert,
    )
    folder = tmp_path / "var" / "sessions" / "s1"
    folder.mkdir(parents=True)
    (folder / "session.json").write_text("{}")
    writer = SessionWriter(folder)
    writer.append(RecordedEntry("alert", "1-0", envelope))
    writer.seal()

    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout

    assert printed == "warning | Silent feed | no tick\n"
