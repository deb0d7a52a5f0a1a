"""The verb classify: labels of whole scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Device, finish, print_table, say, show, verb
from ctfoundry.cli.search import Scans


@verb()
def classify(
    scans: Scans,
    model: Annotated[
        str, typer.Option(help="a run of `finetune` with labels of whole scans, or a .safetensors with its card")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder for the predictions; a part-filled one is continued")
    ],
    device: Device = "auto",
) -> None:
    """Say what a classifier finds in each scan: probabilities, and what is called at the model's own thresholds."""
    import time

    from ctfoundry import identity, zoo
    from ctfoundry.adapt.predict import predict_many
    from ctfoundry.record import Record
    from ctfoundry.retrieval.sources import resolve

    classifier = zoo.load_classifier(model, device=device)
    record = Record(["classify", "--model", classifier.card.name], {}, str(classifier.device))
    found = resolve(scans)
    began, total = time.monotonic(), len(found.scans)

    def told(done: int, id: str) -> None:
        left = (time.monotonic() - began) / done * (total - done)
        say(f"{id} done, {done} of {total}, {left:.0f} s left")

    rows, skipped, failed = predict_many(
        [(s.scan.id, s.scan.digest, s.scan.read) for s in found.scans], classifier, out, told
    )
    identity.write_private(out, found.paths)
    record.inputs = {s.scan.id: s.scan.digest for s in found.scans} | {"model": classifier.card.sha256}
    record.results = {
        "done": [row["id"] for row in rows if row["id"] not in skipped],
        "skipped": skipped,
        "failed": failed,
        "unreadable": sorted(found.failed),  # ids alone: the reason may quote what a header says of a person
    }
    failed = failed | found.failed
    record.write(out, ["predictions.csv", "predictions.json"])
    names = classifier.classes
    show(
        {"predictions": rows, "failed": failed},
        lambda: print_table(
            ("scan", "called", *names[:6]),
            [
                (
                    row["id"],
                    ", ".join(row["found"]) or "-",
                    *(f"{row['probabilities'][name]:.3f}" for name in names[:6]),
                )
                for row in rows
            ],
        ),
    )
    finish(failed, len(rows), found.paths)
