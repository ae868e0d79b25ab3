"""What the pages say: links lead somewhere, and commands are ones that the program understands."""

import re
import shlex
from pathlib import Path

import pytest
from stillmotion.trainer.cli import COMMANDS
from stillmotion.trainer.config import read_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def anchors(page):
    """The headings of a page as GitHub names them: small letters, spaces to hyphens, no other signs."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(there), f"{target} leads to no heading"


def commands_in(page):
    """Every command of the trainer in the blocks of code of a page, as words."""
    for block in re.findall(r"^```(?!yaml)\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").replace("`\n", " ").splitlines():
            for part in line.split(" && "):
                if (at := part.find("-m trainer ")) >= 0 and "…" not in part:
                    yield shlex.split(part[at:])[2:]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_in_a_block_of_code_is_understood(page):
    for name, *words in commands_in(page):
        here = [str(ROOT / word) if word.startswith("trainer/presets/") else word for word in words]
        read_options(COMMANDS[name].options, here, name)


def test_the_readers_of_pages_find_what_is_there():
    assert sum(len(list(commands_in(page))) for page in PAGES) > 20
    assert "the-run" in anchors(ROOT / "docs/training.md")


def test_every_page_is_in_the_index_and_the_index_is_in_the_readme():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert all(f"({page.name}" in index for page in PAGES[1:] if page.name != "README.md")
    assert "docs/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def said_by_the_program():
    """The texts of all its files, with sentences in one piece that stand on several lines there."""
    files = (file for folder in ("trainer", "nodes", "networks", "samplers") for file in (ROOT / folder).rglob("*.py"))
    return "\n".join(re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")) for file in files)


def test_the_index_of_messages_has_messages_that_there_are():
    page = (ROOT / "docs/messages.md").read_text(encoding="utf-8")
    cells = [row.split(" | ")[0] for row in re.findall(r"^\| (.+)$", page, re.MULTILINE)]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell) if " " in message]
    program = said_by_the_program()
    assert len(messages) > 25 and [message for message in messages if message not in program] == []
