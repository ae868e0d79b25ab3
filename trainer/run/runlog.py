"""What a run says of itself: a line of JSON for every event, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path

from accelerate import Accelerator


class RunLog:
    """Writes `log.jsonl` in a run's folder, on the first process only. Every line with numbers has its `step`.

    A resumed run forgets the lines after its save: those steps are made again.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, step: int):
        self.path, self.accelerator = folder / "log.jsonl", accelerator
        if accelerator.is_main_process:
            kept = [line for line in read_log(self.path) if line.get("step", 0) <= step] if step else []
            self.path.write_text("".join(map(as_line, kept)), encoding="utf-8")

    def event(self, **values) -> None:
        """A line that is no curve: text, names, lists."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(as_line(values))

    def numbers(self, step: int, **values: float) -> None:
        self.event(step=step, **values)
        self.accelerator.log(values, step=step)


def as_line(values: dict) -> str:
    """JSON has no NaN: it is written as a string."""
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, ensure_ascii=False) + "\n"


def read_log(path: Path) -> list[dict]:
    """The events of a log; a last line cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
