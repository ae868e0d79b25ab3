"""Translations in the host's form: what a node shows is there in each language, and no key is left over."""

import json
import re
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = ["de", "es", "fr", "ja", "ko", "ru", "zh"]


def read(language, name):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(schema):
    """Inputs by the page's keys: one that a choice brings, `mode.frames` on the node, is `mode_frames` there."""
    inputs = {}
    for i in schema.inputs:
        choices = [own for option in getattr(i, "options", None) or () for own in getattr(option, "inputs", ())]
        inputs |= {i.id: i} | {f"{i.id}_{own.id}": own for own in choices}
    return inputs


def outputs_of(schema):
    return {str(place): output for place, output in enumerate(schema.outputs)}


def numbers(text):
    return sorted(re.findall(r"(?:(?<!\w)-)?\d+(?:\.\d+)?", text))


def kept(tooltip, schema):
    """What a translation leaves as it is: commands, and options, which the page shows in English."""
    options = [str(getattr(o, "key", o)) for i in schema.inputs for o in getattr(i, "options", None) or ()]
    told = [option for option in options if re.search(rf"(^|[.;] ){re.escape(option)}[:,] ", tooltip, re.MULTILINE)]
    return [*told, *re.findall(r"`python[^`]*`", tooltip)]


def holds(text, word):
    return re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", text)


def texts(told):
    return [text for value in told.values() for text in (texts(value) if isinstance(value, dict) else [value])]


def test_these_are_the_languages():
    assert sorted(folder.name for folder in LOCALES.iterdir()) == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_a_name(pack, language):
    told = read(language, "nodeDefs")
    assert set(told) == set(pack)
    for id, node in pack.items():
        schema = node.GET_SCHEMA()
        assert list(told[id]["inputs"]) == list(inputs_of(schema)), id
        assert list(told[id]["outputs"]) == list(outputs_of(schema)), id
        slots = [*told[id]["inputs"].values(), *told[id]["outputs"].values()]
        names = [told[id]["display_name"], told[id]["description"], *(slot["name"] for slot in slots)]
        assert all(name.strip() == name and name for name in names), id
        assert told[id]["description"] != schema.description, id


@pytest.mark.parametrize("language", LANGUAGES)
def test_tooltips_say_what_the_schema_says_with_its_numbers(pack, language):
    told = read(language, "nodeDefs")
    for id, node in pack.items():
        schema = node.GET_SCHEMA()
        for kind, shown in ("inputs", inputs_of(schema)), ("outputs", outputs_of(schema)):
            for key, slot in shown.items():
                where, tooltip = f"{language}: {id}.{kind}.{key}", told[id][kind][key].get("tooltip")
                if not slot.tooltip:
                    assert tooltip is None, f"{where} has a tooltip, and none in English"
                    continue
                assert tooltip and tooltip != slot.tooltip, f"{where} has no tooltip yet: {slot.tooltip}"
                assert numbers(tooltip) == numbers(slot.tooltip), f"{where} has other numbers than: {slot.tooltip}"
                changed = [word for word in kept(slot.tooltip, schema) if not holds(tooltip, word)]
                assert not changed, f"{where} translates what the page shows in English: {changed}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_has_a_sign_that_the_page_takes_for_syntax(language):
    for name in "nodeDefs", "settings", "main":
        assert not [text for text in texts(read(language, name)) if set("{}@|") & set(text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_categories_that_the_host_does_not_know_have_names(pack, language):
    """Node categories are the host's for every pack: those that it has itself, and names, stay as they are."""
    told = read(language, "main")
    ours = {part for node in pack.values() for part in node.GET_SCHEMA().category.split("/")}
    assert set(told) == {"nodeCategories", "settingsCategories"}
    assert set(told["nodeCategories"]) == ours - {"stillmotion", "higen", "conditioning", "noise", "sampling"}
    script = (LOCALES.parent / "web/js/previews.js").read_text(encoding="utf-8")
    (categories,) = re.findall(r"category: (\[.*\])", script)
    assert ["Stillmotion", *told["settingsCategories"]] == json.loads(categories)


@pytest.mark.parametrize("language", LANGUAGES)
def test_settings_of_the_page_have_names(language):
    script = (LOCALES.parent / "web/js/previews.js").read_text(encoding="utf-8")
    (told,) = read(language, "settings").items()
    assert f'"{told[0].replace("_", ".")}"' in script
    assert set(told[1]) == {"name", "tooltip"} and all(told[1].values())
