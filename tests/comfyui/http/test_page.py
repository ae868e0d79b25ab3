"""The host's own page in a browser, as a person uses it: search, workflows dropped on it, a run, an error on its node,
the mask editor, cancel, previews, and sizes of nodes.

Needs a Chromium, and is skipped without it.
"""

import base64
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from stillmotion.networks.config import InflationConfig, Temporal

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZES = json.loads((ROOT / "tests/node_sizes.json").read_text(encoding="utf-8"))
READY = "() => window.LiteGraph?.registered_node_types.StillmotionXTSlice && window.app?.extensionManager"
NODE = "StillmotionVideoInpaint"
SUCCESS = ["execution_success", None, None]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


DROP = """([data, name, type]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type}));
    const at = {dataTransfer: carried, bubbles: true, cancelable: true, clientX: 800, clientY: 500};
    document.querySelector("#graph-canvas").dispatchEvent(new DragEvent("drop", at));
}"""
LISTEN = """() => {
    window.ended = [];
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(kind, ({detail: d}) => window.ended.push([kind, d.node_id, d.exception_message]));
    app.api.addEventListener("progress", ({detail: d}) => { window.step = d.value; });
}"""
PAINTED = """() => {
    const mask = document.querySelector("[role=dialog] canvas.z-30");
    return mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data.some(value => value > 0);
}"""
OF = "kind => app.graph._nodes.find(node => node.type === kind)"


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


def drop(page, content, name, kind):
    """Drop a file on an empty graph, and wait for the workflow in it."""
    page.evaluate("() => app.graph.clear()")
    page.evaluate(DROP, [base64.b64encode(content).decode(), name, kind])
    page.wait_for_function(f"() => ({OF})('{NODE}')", timeout=60_000)
    page.wait_for_timeout(1000)


def run(page):
    """Queue the graph of the page, and return how that ended: the event, the node and the message of an error."""
    page.evaluate("() => { window.ended = []; window.step = 0; app.queuePrompt(0); }")
    return lambda: page.wait_for_function("() => window.ended[0]", timeout=240_000).json_value()


def widgets(page, kind):
    return page.evaluate(f"kind => ({OF})(kind).serialize().widgets_values", kind)


def choose(page, kind, name, value):
    arguments = [kind, name, value]
    page.evaluate(
        f"([kind, name, value]) => {{ const widget = ({OF})(kind).widgets.find(w => w.name === name);"
        " widget.value = value; widget.callback?.(value); }",
        arguments,
    )


@pytest.fixture(scope="module")
def dropped(page, models, motion):
    """The page with a small image-to-video workflow that was dropped on it as a file."""
    motion("models/stillmotion/mm_sd15_v3.safetensors", InflationConfig(temporal=Temporal()))
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(models / "input/example.png")
    workflow = json.loads((ROOT / "workflows/image_to_video.json").read_text(encoding="utf-8"))
    for kind, places, value in (("ImageScale", (1, 2), 64), (NODE, (1,), 4), ("KSampler", (2,), 2)):
        (node,) = (node for node in workflow["nodes"] if node["type"] == kind)
        for place in places:
            node["widgets_values"][place] = value
    drop(page, json.dumps(workflow).encode(), "mine.json", "application/json")
    page.evaluate(LISTEN)
    return page


def test_a_dropped_workflow_runs_and_its_videos_bring_it_back(dropped, models):
    before = widgets(dropped, NODE)
    assert run(dropped)() == SUCCESS
    for pattern, kind in (("*.webp", "image/webp"), ("*.mp4", "video/mp4")):
        files = (models / "output").rglob(f"stillmotion_image_to_video{pattern}")
        made = max(files, key=lambda path: path.stat().st_mtime)
        drop(dropped, made.read_bytes(), made.name, kind)
        assert widgets(dropped, NODE) == before


def test_an_error_stands_on_its_node_and_a_painted_mask_mends_it(dropped, models):
    choose(dropped, NODE, "mode", "cinemagraph")
    choose(dropped, NODE, "mode.frames", 4)
    (kind, node, message) = run(dropped)()
    assert kind == "execution_error" and "'cinemagraph' needs one: paint it in the Mask Editor" in message
    assert int(node) == dropped.evaluate(f"kind => Number(({OF})(kind).id)", NODE)
    assert dropped.evaluate("() => app.lastExecutionError.node_id") == node, "the page draws a red frame around it"

    dropped.keyboard.press("Escape")
    dropped.evaluate(f"() => app.canvas.selectNode(({OF})('LoadImage'))")
    dropped.evaluate("() => app.extensionManager.command.execute('Comfy.MaskEditor.OpenMaskEditor')")
    save = dropped.get_by_role("dialog").get_by_role("button", name="Save").first
    save.wait_for(timeout=60_000)
    while not dropped.evaluate(PAINTED):  # the editor is there before it listens
        dropped.mouse.move(600, 550)
        dropped.mouse.down()
        dropped.mouse.move(800, 600, steps=10)
        dropped.mouse.up()
        dropped.wait_for_timeout(1000)
    save.click()
    dropped.wait_for_function(f"() => ({OF})('LoadImage').widgets[0].value.includes('clipspace')", timeout=60_000)
    dropped.evaluate(
        f"() => {{ const to = ({OF})('{NODE}');"
        f" ({OF})('LoadImage').connect(1, to, to.inputs.findIndex(i => i.name === 'mask')); }}"
    )
    assert run(dropped)() == SUCCESS


def test_a_cancelled_run_leaves_the_next_one_as_it_was(dropped):
    choose(dropped, "KSampler", "steps", 500)
    ended = run(dropped)
    dropped.wait_for_function("() => window.step > 3", timeout=120_000)
    dropped.get_by_role("button", name="Cancel current run").click()
    assert ended()[0] == "execution_interrupted"
    choose(dropped, "KSampler", "steps", 2)
    assert run(dropped)() == SUCCESS
