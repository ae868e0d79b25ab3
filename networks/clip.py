"""The frames of clips as rows of a batch, and the inputs of a layer for each of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """The frames of one clip in a batch of rows `(clips * frames, ...)`, the frames of a clip adjacent.

    `indices` says which frame of the whole video each row of a clip is: 0, 1, 2 … for a whole clip, the window's own
    frames where a sampler runs the network on windows, every second one where the time axis has been halved.
    """

    indices: tuple[int, ...]

    @classmethod
    def of(cls, frames: int) -> Clip:
        """Return a whole clip."""
        return cls(tuple(range(frames)))

    @property
    def frames(self) -> int:
        return len(self.indices)

    def thinned(self) -> Clip:
        """Return frames 0, 2, 4, …: `ceil(frames / 2)` of them."""
        return Clip(self.indices[::2])


def thin_rows(rows: Tensor, frames: int) -> Tensor:
    """Keep rows 0, 2, 4, … of each clip: `(clips * frames, ...)` to `(clips * ceil(frames / 2), ...)`."""
    return rows.unflatten(0, (-1, frames))[:, ::2].flatten(0, 1)


@dataclass(frozen=True)
class Rows:
    """The inputs of a layer beside its activations: a row for each frame, at the frame rate that the layer runs at.

    `emb` is the time embedding, `text` the prompt's (a list where each transformer block has one of its own), `tokens`
    what each inflation adds to the prompt, where it does.
    """

    clip: Clip
    emb: Tensor
    text: Tensor | list[Tensor] | None
    tokens: tuple[Tensor | None, ...] = ()

    def thinned(self) -> Rows:
        """Return the rows of frames 0, 2, 4, … of each clip."""

        def thin(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else thin_rows(rows, self.clip.frames)

        text = [thin(t) for t in self.text] if isinstance(self.text, list) else thin(self.text)
        return Rows(self.clip.thinned(), thin(self.emb), text, tuple(map(thin, self.tokens)))
