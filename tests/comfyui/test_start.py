"""What the pack costs ComfyUI at its start."""

import asyncio
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def seconds_of_a_million_steps():
    """The yardstick, about 50 ms where nothing else runs: a busy machine slows it as it slows what is measured."""
    start = time.process_time()
    sum(number * number for number in range(10**6))
    return time.process_time() - start


def test_loading_the_nodes_takes_less_than_a_million_steps_of_python(
    pack, tmp_path, monkeypatch, record_testsuite_property
):
    """`pack` has imported torch, einops and comfy, as the host has; a link is loaded as if it were another pack.

    The first time compiles it, as the first start of a user does; the bytecode is in a place where it may be written.
    """
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict(nodes.NODE_CLASS_MAPPINGS))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "bytecode"))
    link = tmp_path / "link"
    link.symlink_to(PACK, target_is_directory=True)

    def seconds():
        before, start = set(sys.modules), time.process_time()
        assert asyncio.run(nodes.load_custom_node(str(link)))
        taken = time.process_time() - start
        files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in set(sys.modules) - before}
        loaded = {name for name, file in files.items() if file.startswith(str(link))}
        assert any(module.endswith("nodes.settings") for module in loaded), "nothing was loaded anew"
        for name in loaded:
            del sys.modules[name]
        return taken

    rounds = [(seconds(), seconds_of_a_million_steps()) for _ in range(8)]
    fastest, budget = map(min, zip(*rounds, strict=True))
    record_testsuite_property("seconds to load the nodes", fastest)
    assert fastest < budget, f"loading the nodes takes {1000 * fastest:.0f} ms, a million steps {1000 * budget:.0f} ms"
