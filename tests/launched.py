"""Runs of several processes, as torchrun starts them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hfpretrain.run import Run


def launched(
    file: Path, processes: int, *options: str, script: bool = False, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """`hfpretrain train` of a recipe in so many processes on this machine; or a Python script."""
    torchrun = ["torch.distributed.run", f"--nproc-per-node={processes}"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    return subprocess.run(
        [sys.executable, "-m", *torchrun, *([] if script else ["-m", "hfpretrain", "train"]), str(file), *options],
        cwd=file.parent,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def cut_back(run: Run, name: str, step: int) -> Run:
    """A copy of a finished run beside it, as if it had been killed after the checkpoint of that step."""
    copy = Run(run.path.with_name(name))
    shutil.copytree(run.path, copy.path)
    for file in (copy.report_file, copy.manifest_file, copy.path / "model.safetensors"):
        file.unlink()
    for checkpoint in copy.checkpoints.iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return copy
