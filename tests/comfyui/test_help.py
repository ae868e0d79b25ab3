"""Help pages for artists: one for each node, with every input on it."""

import re
from pathlib import Path

import pytest
from stillmotion.samplers.noise import STRATEGIES

PAGES = Path(__file__).resolve().parents[2] / "web/docs"


def inputs_on(page):
    """Names and ranges in the list of inputs."""
    inputs = page.partition("## Inputs")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\* \*\*`(\w+)`\*\*(?: \(([^)]*)\))?", inputs, re.MULTILINE))


def test_every_node_has_a_page_and_every_page_a_node(pack):
    assert {path.stem for path in PAGES.glob("*.md")} == set(pack)


def test_a_page_names_every_input_with_its_range(pack):
    for id, node in pack.items():
        schema, page = node.GET_SCHEMA(), (PAGES / f"{id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        told = inputs_on(page)
        assert set(told) == {i.id for i in schema.inputs}, f"the inputs on the page of {id}"
        for i in schema.inputs:
            if getattr(i, "max", None) is not None:
                assert told[i.id] == f"{i.min:g} to {i.max:g}", f"the range of {i.id} on the page of {id}"


@pytest.mark.parametrize(
    "heading", ["## Inputs", "## What to set first", "## Wiring", "## What goes wrong, and what to do"]
)
def test_a_page_has_what_its_readers_look_for(heading):
    assert all(heading in page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))


def test_the_page_on_noise_says_of_every_strategy_what_the_registry_does():
    page = (PAGES / "StillmotionMappingNetworkNoise.md").read_text(encoding="utf-8")
    section = page.partition("## Noise strategies")[2].partition("\n## ")[0]
    told = re.findall(r"^\* \*\*`(\w+)`\*\* \(share ([^)]*)\): .* 0.5, 1 by ([\d., ]*);", section, re.MULTILINE)
    known = [
        (name, strategy.allowed, ", ".join(f"{strategy.correlation(share, 1):.2f}" for share in (0.2, 0.5, 1.0)))
        for name, strategy in STRATEGIES.items()
    ]
    assert told == known
    assert re.findall(r"`(\w+)`", inputs_on(page)["strategy"]) == list(STRATEGIES)


def test_a_page_reads_in_a_narrow_panel():
    """The info panel is about 250 pixels wide: two columns are what it has room for."""
    for page in PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        wide = [line for line in text.splitlines() if line.startswith("|") and line.strip().count("|") > 3]
        assert not wide, f"{page.name} has a wide table: {wide[0]}"


def test_no_link_of_a_page_leads_nowhere():
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)|<img[^>]* src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            place = "".join(target)
            assert (page.parent / place).is_file(), f"{page.name} links {place}"


def test_templates_that_a_page_names_are_there():
    named = {
        name
        for page in PAGES.glob("*.md")
        for sentence in re.findall(r"[Tt]emplates?[^.]*\.", page.read_text(encoding="utf-8"))
        for name in re.findall(r"\*([a-z0-9_]+)\*", sentence)
    }
    assert named and named <= {path.stem for path in (PAGES.parents[1] / "workflows").glob("*.json")}
