"""Numbers that come past the page's own limits: each is refused in a sentence that names node and input."""

import math

import pytest

BAD = [math.nan, math.inf, -math.inf, 10**400, "1", 1e30, -1e30]


def cases(pack):
    from comfy_api.latest import io

    for node in pack.values():
        schema = node.GET_SCHEMA()
        for known in schema.inputs:
            if isinstance(known, io.Float.Input | io.Int.Input):
                yield node, schema, known


def defaults(schema):
    """Something for every input: numbers within their limits, None for what is not a number."""
    return {known.id: getattr(known, "default", None) for known in schema.inputs}


def test_every_number_of_every_node_is_held_to_its_limits(pack):
    from stillmotion.nodes.compat import io
    from stillmotion.nodes.node import check_numbers

    seen = 0
    for node, schema, known in cases(pack):
        outside = [known.min - 1, known.max + 1, *([] if isinstance(known, io.Float.Input) else [0.5 + known.min])]
        for bad in [b for b in BAD if b is not None] + outside:
            values = defaults(schema) | {known.id: bad}
            for call in (node.execute, node.EXECUTE_NORMALIZED):
                with pytest.raises(ValueError, match="; it must be a") as caught:
                    call(**values)
                message = str(caught.value)
                assert message.startswith(f"{schema.display_name}: {known.id} is ") and len(message) < 200
            seen += 1
        for good in (known.min, known.max, known.default):
            check_numbers(schema, defaults(schema) | {known.id: good})
    assert seen > 200


def test_the_hosts_own_copy_of_a_node_checks_once(pack):
    loader = pack["StillmotionSTUNetLoader"]
    copy = loader.PREPARE_CLASS_CLONE(None)
    assert copy.execute.__func__ is loader.execute.__func__
    with pytest.raises(ValueError, match="^STUNet Loader: strength is nan; it must be a number from 0 to 2"):
        copy.EXECUTE_NORMALIZED(**defaults(copy.GET_SCHEMA()) | {"strength": math.nan})


def test_a_node_of_other_numbers_goes_on(pack):
    """Whole numbers for Float inputs, and what other packs give for numbers."""
    import numpy as np
    from stillmotion.nodes.node import check_numbers

    schema = pack["StillmotionSTUNetLoader"].GET_SCHEMA()
    for strength in (1, np.float32(0.5), np.int64(1), True, None):
        check_numbers(schema, defaults(schema) | {"strength": strength})
