"""What becomes of a MODEL with motion files where another node merges it into a second one."""

from __future__ import annotations

from weakref import ref

from comfy.patcher_extension import CallbacksMP

from .settings import KEY


def refuse_merging(model) -> None:
    """Let nodes that mix the weights of this MODEL into another one's fail with a sentence.

    They take weights alone from their second MODEL, so that the motion would be lost without a word. The host has no
    place to say so but the method by which they ask for weights, on each clone.
    """
    _guard(model)
    if not model.get_callbacks(CallbacksMP.ON_CLONE, KEY):
        model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _guard_clone)


def _guard_clone(model, clone) -> None:
    _guard(clone)


def _guard(model) -> None:
    weak = ref(model)  # a model that holds itself would stay in memory

    def get_key_patches(filter_prefix=None):
        model = weak()
        if filter_prefix is not None and model.get_attachment(KEY):  # the host itself asks for all of them
            raise ValueError(
                f"The second model of this merge has {', '.join(s.motion.path.name for s in model.get_attachment(KEY))}"
                " on it, and merging would drop the motion: connect it as the first model, or merge image models before"
                " the STUNet Loader."
            )
        return type(model).get_key_patches(model, filter_prefix)

    model.get_key_patches = get_key_patches
