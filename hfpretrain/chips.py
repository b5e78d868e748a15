"""The chips that are known by name: what they multiply, hold and move, from their makers' data sheets."""

import re
from dataclasses import dataclass

from hfpretrain.errors import UserError, nearest


@dataclass(frozen=True)
class Chip:
    """One accelerator. The rates are the most that it can do, of which a program reaches a part."""

    name: str
    """As a person writes it."""
    device: str
    """A pattern of the name that the driver gives."""
    bf16: float
    """Dense matrix products with fp32 sums, in 1e12 operations per second."""
    tf32: float
    fp32: float
    memory: float
    """In 1e9 bytes, as it is sold."""
    bandwidth: float
    """Of that memory, in 1e12 bytes per second."""
    link: float
    """To the other chips of a node, each way, in 1e9 bytes per second."""
    link_name: str
    network: float
    """To other nodes, in 1e9 bits per second for each chip, as such nodes usually are built."""


CHIPS = (
    Chip("b200", "B200", 2250, 1125, 75, 180, 8.0, 900, "NVLink 5", 400),
    Chip("h200-nvl", "H200 NVL", 835, 417, 60, 141, 4.8, 64, "PCIe 5", 200),
    Chip("h200", "H200", 989, 495, 67, 141, 4.8, 450, "NVLink 4", 400),
    Chip("h100-pcie", "H100 PCIe", 756, 378, 51, 80, 2.0, 64, "PCIe 5", 200),
    Chip("h100-nvl", "H100 NVL", 835, 417, 60, 94, 3.9, 64, "PCIe 5", 200),
    Chip("h100", "H100", 989, 495, 67, 80, 3.35, 450, "NVLink 4", 400),
    Chip("a100-80-pcie", "A100(?=.*80GB).*PCI[eE]", 312, 156, 19.5, 80, 1.935, 32, "PCIe 4", 100),
    Chip("a100-40-pcie", "A100.*PCI[eE]", 312, 156, 19.5, 40, 1.555, 32, "PCIe 4", 100),
    Chip("a100-80", "A100.*80GB", 312, 156, 19.5, 80, 2.0, 300, "NVLink 3", 200),
    Chip("a100-40", "A100", 312, 156, 19.5, 40, 1.55, 300, "NVLink 3", 200),
    Chip("l40s", "L40S", 362, 183, 91.6, 48, 0.864, 32, "PCIe 4", 100),
    Chip("l40", "L40", 181, 90.5, 90.5, 48, 0.864, 32, "PCIe 4", 100),
    Chip("l4", "L4", 121, 60, 30.3, 24, 0.3, 32, "PCIe 4", 25),
    Chip("a10g", "A10G", 70, 35, 35, 24, 0.6, 32, "PCIe 4", 25),
    Chip("a10", "A10", 125, 62.5, 31.2, 24, 0.6, 32, "PCIe 4", 25),
    Chip("rtx-4090", "RTX 4090", 165, 82.6, 82.6, 24, 1.01, 32, "PCIe 4", 10),
    Chip("rtx-3090", "RTX 3090", 71, 35.6, 35.6, 24, 0.936, 32, "PCIe 4", 10),
    Chip("mi300x", "MI300X", 1307, 654, 163, 192, 5.3, 448, "Infinity Fabric", 400),
)
"""The first whose pattern is found in the driver's name is the one."""
_OTHERS = r"\b(MIG|Laptop|Ti|D)\b"
"""In a driver's name: a part of a chip, or another one that is called after it."""


def chip_of(device: str) -> Chip | None:
    """The chip that a driver calls so, or None if it is not known, or a part or a variant of one that is."""
    if re.search(_OTHERS, device):
        return None
    return next((chip for chip in CHIPS if re.search(rf"\b{chip.device}\b", device)), None)


def chip_called(name: str) -> Chip:
    """The chip that a person calls so, whatever the case and the dashes. Raises UserError with the known names."""
    known = {_bare(chip.name): chip for chip in CHIPS}
    if (bare := _bare(name)) in known:
        return known[bare]
    longer = [chip.name for called, chip in known.items() if bare and bare in called]
    similar = " or ".join(longer) or nearest(name.lower(), [chip.name for chip in CHIPS])
    names = ", ".join(chip.name for chip in CHIPS)
    raise UserError(
        f"--gpu {name}: no such chip is known",
        hint=f"did you mean {similar}? known are {names}" if similar else f"known are {names}",
    )


def _bare(name: str) -> str:
    """Without case, dashes and spaces."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
