"""metrics.jsonl: a line per logged step and per evaluation, in step order, none twice."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hfpretrain.files import write_whole
from hfpretrain.run import step_of


@dataclass
class Window:
    """Sums since the last logged step. Saved with a checkpoint, so that a resumed run logs the same averages."""

    loss: float = 0.0
    targets: int = 0
    gradient_norm: float = 0.0
    steps: int = 0
    seconds: float = 0.0


class Metrics:
    """Collects what each step came to on the device, and writes a line when asked."""

    def __init__(self, file: Path, accelerator: Accelerator, *, window: Window, upto_step: int) -> None:
        self.file, self.accelerator, self.window = file, accelerator, window
        self.clock = time.monotonic()
        self.losses: list[torch.Tensor] = []
        self.norms: list[torch.Tensor] = []
        if accelerator.is_main_process and file.exists():
            # Lines after the checkpoint will be written again.
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if step_of(line) <= upto_step]
            write_whole(file, "".join(line + "\n" for line in lines))

    def add(self, loss: torch.Tensor, targets: int, gradient_norm: torch.Tensor) -> None:
        """One step: this process's summed loss, the targets of all processes, the gradient's norm."""
        self.losses.append(loss)
        self.norms.append(gradient_norm)
        self.window.targets += targets
        self.window.steps += 1

    def gather(self) -> Window:
        """The window with everything added so far, over all processes. This is where the device is waited for."""
        if self.losses:
            sums = torch.stack([torch.stack(values).cpu().double().sum() for values in (self.losses, self.norms)])
            if self.accelerator.num_processes > 1:
                total = sums[0].float().to(self.accelerator.device)
                sums[0] = self.accelerator.reduce(total, reduction="sum").double().cpu()
            loss, norm = sums.tolist()
            self.window.loss += loss
            self.window.gradient_norm += norm
            self.losses, self.norms = [], []
        now = time.monotonic()
        self.window.seconds += now - self.clock
        self.clock = now
        return self.window

    def restart_clock(self) -> None:
        """What passed since the last `gather` (an evaluation, a checkpoint) is not training time."""
        self.clock = time.monotonic()

    def start_window(self) -> None:
        self.window = Window()

    def write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
