"""``ctfoundry doctor``: what works on this machine."""

from __future__ import annotations

from importlib import metadata, util
from typing import Any

from ctfoundry.cli.common import print_table, show, verb

OPTIONAL = {"gdcm": "compressed DICOM", "monai": "benchmarks and parity tests"}


@verb()
def doctor() -> None:
    """Devices, versions, optional parts, disk space and known conflicts."""
    import os
    import shutil

    import torch

    from ctfoundry.record import versions

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    problems = []
    if util.find_spec("torchvision") and "+cpu" in torch.__version__ and "+cpu" not in metadata.version("torchvision"):
        problems.append("torchvision does not belong to the CPU build of torch and breaks other packages: uninstall it")
    data: dict[str, Any] = {
        "versions": versions(),
        "cores": os.cpu_count(),
        "devices": ["cpu", *cuda],
        "bf16": "amx" if torch.backends.cpu.get_cpu_capability() == "AMX" else torch.backends.cpu.get_cpu_capability(),
        "optional": {name: bool(util.find_spec(name)) for name in OPTIONAL},
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "problems": problems,
    }

    def table() -> None:
        rows = [(k, v) for k, v in data["versions"].items()]
        rows += [("cores", data["cores"]), ("devices", ", ".join(data["devices"])), ("CPU capability", data["bf16"])]
        rows += [(f"{n} ({OPTIONAL[n]})", "there" if v else "not installed") for n, v in data["optional"].items()]
        rows.append(("free disk, GiB", data["disk_free_gib"]))
        print_table(("what", "value"), rows)
        for problem in problems:
            print(f"problem: {problem}")

    show(data, table)
