"""Interpolation of a model's weights with those of a style, another checkpoint of its family."""

from __future__ import annotations

from collections.abc import Mapping

from .compat import io, schema
from .node import Node
from .settings import KEY, predicts

UNET = "diffusion_model."


def balance(model, style, alpha: float, factors: Mapping[str, float]):
    """Return MODEL with W = α W_style + (1 - α) W in the place of each weight W of its U-Net.

    What is attached to MODEL stays as it is: motion files, and LoRAs, which act on the mixed weights at their full
    strength. LoRAs on the style belong to the style.

    Source: Bar-Tal et al. 2024, "Lumiere" (arXiv 2401.12945), section 4.1, where α is 0.5 to 1.

    Args:
        factors: of α, for weights whose name in the U-Net starts so; the others have α itself.

    Raises:
        ValueError: the two are no checkpoints of one family, or the style has motion files attached.
    """
    check_pair(model, style)
    shares, weights = {}, style.get_key_patches(UNET)
    for name in shapes_of(model):
        factor = next((f for start, f in factors.items() if name.startswith(start)), 1.0)
        shares.setdefault(alpha * factor, []).append(UNET + name)
    mixed = model.clone()
    for share, keys in shares.items():
        if share:
            mix_below_adapters(mixed, {key: weights[key] for key in keys}, share)
    return mixed


def mix_below_adapters(model, weights: Mapping[str, list], share: float) -> None:
    """Mix a style's weights into those that MODEL has before LoRAs and motion files change them."""
    adapters = {}
    for key in weights:
        patches = model.patches.pop(key, [])
        # the host marks another model's weights by a list; what comes after the last of them are adapters
        own = max((i + 1 for i, patch in enumerate(patches) if isinstance(patch[1], list)), default=0)
        model.patches[key], adapters[key] = patches[:own], patches[own:]
    model.add_patches(weights, share, 1 - share)
    for key, patches in adapters.items():
        model.patches[key] += patches


def check_pair(model, style) -> None:
    """Raise ValueError where the weights of two MODELs cannot be mixed."""
    if style.get_attachment(KEY):
        raise ValueError("The style model has a motion file on it; attach motion files to the other model, or after.")
    if predicts(style) != predicts(model):
        predictions = (predicts(m).lower() for m in (style, model))
        raise ValueError("The style model predicts {} and the model {}; they must agree.".format(*predictions))
    theirs, ours = shapes_of(style), shapes_of(model)
    if unlike := sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)):
        kinds = (type(m.model.model_config).__name__ for m in (style, model))
        raise ValueError(
            "The style model ({}) and the model ({}) are of different architectures".format(*kinds)
            + f": {unlike[0]} is {shown(theirs.get(unlike[0]))} and {shown(ours.get(unlike[0]))}. Take two checkpoints"
            " of one family."
        )


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a U-Net's weights and biases, without the scales of quantised ones."""
    tensors = model.model.diffusion_model.state_dict()
    return {key: tuple(t.shape) for key, t in tensors.items() if key.endswith((".weight", ".bias"))}


def shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))


class StyleBalance(Node):
    """Node that mixes the weights of a style into those of a model, and leaves its motion files as they are."""

    @classmethod
    def define_schema(cls):
        def factor(name, blocks):
            tooltip = f"Factor of alpha in {blocks}. 0: the model's own weights, 1: as much of the style as elsewhere."
            return io.Float.Input(name, default=1.0, min=0.0, max=1.0, step=0.05, tooltip=tooltip)

        return schema(
            node_id="StillmotionStyleBalance",
            display_name="Style Balance",
            category="stillmotion/load",
            description="Mixes the look of another checkpoint into a model and leaves its motion as it is.",
            search="merge models, model merge, style transfer, lumiere, interpolate weights",
            inputs=[
                io.Model.Input("model", tooltip="The model, with motion files on it or to come after."),
                io.Model.Input("style_model", tooltip="A checkpoint of the same family with the look that is wanted."),
                io.Float.Input(
                    "alpha",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the style in the weights. 0: none, 1: all. Paper: 0.5 to 1; with more of it the"
                    " motion fades.",
                ),
                factor("input", "the input blocks (encoder of the U-Net)"),
                factor("middle", "the middle block"),
                factor("output", "the output blocks (decoder of the U-Net)"),
            ],
            outputs=[io.Model.Output("styled_model", display_name="model")],
        )

    @classmethod
    def execute(cls, model, style_model, alpha, input, middle, output) -> io.NodeOutput:
        factors = {"input_blocks.": input, "middle_block.": middle, "output_blocks.": output, "out.": output}
        return io.NodeOutput(balance(model, style_model, alpha, factors))
