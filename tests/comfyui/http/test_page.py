"""The host's own page in a browser: sizes of nodes, search, and animated previews on their node.

Needs Playwright (`pip install playwright`) and a Chromium, and is skipped without them.
"""

import json
import shutil
from pathlib import Path

import pytest

sync_playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright").sync_playwright

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZES = json.loads((ROOT / "tests/node_sizes.json").read_text(encoding="utf-8"))
READY = "() => window.LiteGraph?.registered_node_types.StillmotionXTSlice && window.app?.extensionManager"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
def page(server):
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(f"http://{server.address}/", timeout=240_000)
        page.wait_for_function(READY, timeout=240_000)
        page.wait_for_timeout(3000)  # dialogs of a first visit
        page.keyboard.press("Escape")
        yield page
        assert not [error for error in page.errors if "tillmotion" in error or "Still-Motion" in error]
        browser.close()


def test_nodes_are_no_larger_than_templates_make_room_for(page):
    kinds = [kind for kind in SIZES if kind.startswith("Stillmotion")]
    sizes = page.evaluate(
        "kinds => Object.fromEntries(kinds.map(kind => [kind, [...LiteGraph.createNode(kind).computeSize()]]))", kinds
    )
    for kind, size in sizes.items():
        assert size[1] <= SIZES[kind][1] + 1, f"measure {kind} again: {size}"


def test_search_finds_a_node_by_a_word_that_is_not_in_its_name(page):
    page.mouse.dblclick(1200, 700)
    page.keyboard.type("animatediff", delay=30)
    page.get_by_text("STUNet Loader", exact=True).first.wait_for(timeout=30_000)
    page.keyboard.press("Escape")


def test_a_preview_plays_on_its_node_and_leaves_nothing_behind(page):
    workflow = json.loads((ROOT / "workflows/animatediff.json").read_text(encoding="utf-8"))
    (sampler,) = (node for node in workflow["nodes"] if node["type"] == "KSampler")
    page.evaluate("graph => app.loadGraphData(graph)", workflow)
    page.wait_for_timeout(1000)
    look = f"() => {{const n = app.graph.getNodeById({sampler['id']}); return [n.widgets.length, ...n.size]}}"
    before = page.evaluate(look)
    detail = {"node": str(sampler["id"]), "image": PIXEL}
    page.evaluate("d => app.api.dispatchEvent(new CustomEvent('stillmotion.preview', {detail: d}))", detail)
    page.locator(f'img[src="{PIXEL}"]').wait_for(state="attached", timeout=10_000)
    shown = page.evaluate(look)
    assert shown[0] == before[0] + 1 and shown[2] > before[2]
    saved = page.evaluate(f"() => app.graph.getNodeById({sampler['id']}).serialize().widgets_values")
    assert saved == sampler["widgets_values"]
    page.evaluate("() => app.api.dispatchEvent(new CustomEvent('execution_success', {detail: {}}))")
    assert page.evaluate(look) == before and page.locator(f'img[src="{PIXEL}"]').count() == 0
