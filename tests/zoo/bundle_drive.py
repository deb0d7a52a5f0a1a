"""``monai.bundle run`` on two exported bundles, in one process of the side environment: ``bundle_drive.py WORK``."""

import sys
from pathlib import Path


def main(work: Path) -> None:
    from monai.bundle import run

    for name in ("segmenter", "encoder"):
        folder = work / name
        run(
            config_file=str(folder / "configs" / "inference.json"),
            bundle_root=str(folder),
            dataset_dir=str(work / "images"),
            output_dir=str(work / "out" / name),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
