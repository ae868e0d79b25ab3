"""Stillmotion: still-image diffusion models become video models, in ComfyUI and in a trainer of its own.

Nothing is imported here: ComfyUI waits for this module at its start, and pytest imports it for every test.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import StillmotionExtension

    return StillmotionExtension()
