import re


def test_comfyui_loads_every_node(pack):
    assert pack
    assert all(re.fullmatch(r"Stillmotion[A-Z]\w+", id) for id in pack)


def test_every_node_is_in_our_category_and_says_what_it_does(pack):
    for node in pack.values():
        schema = node.GET_SCHEMA()
        assert schema.category.partition("/")[0] == "stillmotion"
        assert schema.description and schema.display_name


def test_no_output_shares_an_id_with_an_input(pack):
    for node in pack.values():
        schema = node.GET_SCHEMA()
        assert not {i.id for i in schema.inputs} & {o.id for o in schema.outputs}


def test_every_input_has_a_tooltip(pack):
    untold = [f"{id}.{i.id}" for id, node in pack.items() for i in node.GET_SCHEMA().inputs if not i.tooltip]
    assert untold == []
