"""What figures were measured on, in words."""

from pathlib import Path

import torch


def machine() -> str:
    """Processor, threads, GPU if there is one, and version of torch."""
    cpu = "unknown processor"
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((s.split(":")[1].strip() for s in info.read_text().splitlines() if "model name" in s), cpu)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"
