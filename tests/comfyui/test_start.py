"""What the pack costs ComfyUI at its start."""

import asyncio
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
BUDGET = 0.05  # seconds


def test_loading_the_nodes_takes_less_than_50_ms(pack, tmp_path, monkeypatch, record_testsuite_property):
    """`pack` has imported torch, einops and comfy, as the host has; each link is loaded as if it were another pack."""
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict(nodes.NODE_CLASS_MAPPINGS))

    def seconds(name):
        link = tmp_path / name
        link.symlink_to(PACK, target_is_directory=True)
        before, start = set(sys.modules), time.process_time()
        assert asyncio.run(nodes.load_custom_node(str(link)))
        taken = time.process_time() - start
        assert any(module.endswith("nodes.host") for module in set(sys.modules) - before), "nothing was loaded anew"
        return taken

    fastest = min(seconds(name) for name in ("first", "second", "third"))
    record_testsuite_property("seconds to load the nodes", fastest)
    assert fastest < BUDGET, f"loading the nodes takes {1000 * fastest:.0f} ms"
