"""The log of a run: a line of JSON for every event, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path

from accelerate import Accelerator

from ...networks.atomic import write_bytes


class RunLog:
    """`log.jsonl` in a run's folder, written on the first process only. Every line with numbers has its `step`.

    A resumed run forgets the lines after its save: those steps are made again.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, step: int):
        self.path, self.accelerator = folder / "log.jsonl", accelerator
        if accelerator.is_main_process:
            kept = [line for line in read_log(self.path) if line.get("step", 0) <= step] if step else []
            write_bytes(self.path, "".join(map(as_line, kept)).encode())

    def event(self, **values) -> None:
        """Write a line that is no curve: text, names, lists."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(as_line(values))

    def numbers(self, step: int, **values: float) -> None:
        """Write a line, and a point of TensorBoard's curve of each name."""
        self.event(step=step, **values)
        self.accelerator.log(values, step=step)


def as_line(values: dict) -> str:
    """Write values as a line of JSON, which has no NaN: that becomes a string."""
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, ensure_ascii=False) + "\n"


def read_log(path: Path) -> list[dict]:
    """Return the events of a log; a last line cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
