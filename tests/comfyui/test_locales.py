"""Translations in the host's form: every node and every input has a name in each language, and no key is left over."""

import json
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = ["de", "es", "fr", "ja", "ko", "ru", "zh"]


def read(language, name):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def test_these_are_the_languages():
    assert sorted(folder.name for folder in LOCALES.iterdir()) == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_input_has_a_name(pack, language):
    told = read(language, "nodeDefs")
    assert set(told) == set(pack)
    for id, node in pack.items():
        schema = node.GET_SCHEMA()
        assert list(told[id]["inputs"]) == [i.id for i in schema.inputs], id
        names = [told[id]["display_name"], told[id]["description"], *(i["name"] for i in told[id]["inputs"].values())]
        assert all(name.strip() == name and name for name in names), id
        assert told[id]["description"] != schema.description, id


@pytest.mark.parametrize("language", LANGUAGES)
def test_settings_of_the_page_have_names(language):
    script = (LOCALES.parent / "web/js/previews.js").read_text(encoding="utf-8")
    (told,) = read(language, "settings").items()
    assert f'"{told[0].replace("_", ".")}"' in script
    assert set(told[1]) == {"name", "tooltip"} and all(told[1].values())
