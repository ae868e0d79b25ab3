// Shows animated previews of clips on the node that samples them: see nodes/previews.py for what is sent.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const WIDGET = "stillmotion_preview";
const SETTING = "stillmotion.previews";
const sizes = new Map(); // of nodes as they were before they showed a preview

// In a subgraph the id is a path, of which the first part is on the canvas
const nodeOf = (id) => app.graph.getNodeById(Number(String(id).split(":")[0]));

function show({ node: id, image }) {
  const node = app.extensionManager.setting.get(SETTING) ? nodeOf(id) : null;
  if (!node) return;
  let widget = node.widgets?.find(({ name }) => name === WIDGET);
  if (!widget) {
    const element = document.createElement("img");
    element.style.objectFit = "contain";
    sizes.set(node, [...node.size]);
    widget = node.addDOMWidget(WIDGET, "preview", element, { serialize: false, hideOnZoom: false, getMinHeight: () => 220 });
    widget.serialize = false; // neither in the workflow nor in the prompt
  }
  widget.element.src = image;
}

function clear() {
  for (const [node, size] of sizes) {
    const widget = node.widgets?.find(({ name }) => name === WIDGET);
    widget?.onRemove?.();
    widget?.element.remove();
    node.widgets = node.widgets?.filter((other) => other !== widget);
    node.setSize(size);
  }
  sizes.clear();
  app.graph.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "stillmotion.previews",
  settings: [
    {
      id: SETTING,
      name: "Animated previews of clips",
      category: ["Stillmotion", "Sampling", "Previews"],
      tooltip: "Shown where ComfyUI's live preview method is not none.",
      type: "boolean",
      defaultValue: true,
    },
  ],
  setup() {
    api.addEventListener("stillmotion.preview", ({ detail }) => show(detail));
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, clear);
  },
});
