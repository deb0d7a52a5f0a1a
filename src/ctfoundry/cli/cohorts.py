"""Verbs about public archives: cohort build, stats, check, manifest, download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ctfoundry.cli.common import app, finish, print_table, say, show, verb

cohort_app = typer.Typer(
    help="Choose scans from the Imaging Data Commons, and get them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cohort_app, name="cohort")

CohortFile = Annotated[Path, typer.Argument(help="a file of `cohort build`", metavar="COHORT")]


@verb(cohort_app, "build")
def build(
    out: Annotated[Path, typer.Option("-o", "--out", help="target, .parquet")],
    preset: Annotated[str, typer.Option(help="all-ct, ct-fm, ct-fm-18, flexict-corpus, or a YAML file")] = "all-ct",
    collection: Annotated[list[str] | None, typer.Option(help="only this collection (repeat)")] = None,
    exclude_collection: Annotated[list[str] | None, typer.Option(help="without this collection (repeat)")] = None,
    licence: Annotated[str | None, typer.Option(help="open, commercial or any")] = None,
    body_part: Annotated[list[str] | None, typer.Option(help="Body Part Examined (repeat)")] = None,
    min_instances: Annotated[int | None, typer.Option(help="fewest slices", min=1)] = None,
    per_patient: Annotated[int | None, typer.Option(help="most series of a patient", min=1)] = None,
    per_collection: Annotated[int | None, typer.Option(help="most series of a collection", min=1)] = None,
    thin: Annotated[str | None, typer.Option(help="none, reconstructions, study or patient")] = None,
    exclude_benchmarks: Annotated[bool, typer.Option(help="leave out patients of known evaluation sets")] = False,
    ct_index: Annotated[Path | None, typer.Option(help="the release's ct_index.parquet")] = None,
    geometry_index: Annotated[Path | None, typer.Option(help="the release's volume_geometry_index.parquet")] = None,
) -> None:
    """Choose series by a preset's rules and these; one file with every UID, licence, DOI, version and the query."""
    from ctfoundry.archive import build as build_cohort
    from ctfoundry.archive import load_rules
    from ctfoundry.archive.cohort import bundled
    from ctfoundry.settings import from_data, to_data

    rules = load_rules(preset)
    changes: dict[str, Any] = {
        "collections": tuple(collection or ()) or None,
        "exclude_collections": tuple(exclude_collection or ()) or None,
        "licence": licence,
        "body_parts": tuple(body_part or ()) or None,
        "instances": None if min_instances is None else (min_instances, rules.instances[1]),
        "per_patient": per_patient,
        "per_collection": per_collection,
        "thin": thin,
        "exclude_benchmarks": exclude_benchmarks or None,
    }
    changed = replace(rules, **{name: value for name, value in changes.items() if value is not None})
    rules = from_data(type(rules), to_data(changed), "options")  # checks words such as the licence
    made = build_cohort(rules, out, bundled(ct=ct_index, geometry=geometry_index))
    counts = made.counts()
    data = {
        "cohort": out.name,
        "series": len(made),
        "patients": made.patients,
        "collections": len(counts),
        "size_gb": round(made.size_gb, 1),
        "index_version": made.index_version,
        "unchecked": list(made.unchecked),
        "licences": made.counts("licence"),
        "without_archive_collection": [s.name for s in rules.sources if not s.collections],
    }

    def table() -> None:
        print(
            f"{data['series']:,} series of {data['patients']:,} patients in {data['collections']} collections, "
            f"{made.size_gb / 1000:.2f} TB -> {out}"
        )
        for licence_name, count in made.counts("licence").items():
            print(f"  {count:>8,}  {licence_name or 'no licence stated'}")
        if made.unchecked:
            print(
                f"not asked yet, because the index does not know: {', '.join(made.unchecked)}; run `ctfoundry cohort check` "
                "on the downloaded scans, or give --ct-index and --geometry-index"
            )
        for source in rules.sources:
            if not source.collections:
                way = f"adapter {source.adapter}" if source.adapter else "not in the archive"
                print(
                    f"  named by the paper, not here: {source.name} ({way}{'; ' + source.note if source.note else ''})"
                )

    show(data, table)


@verb(cohort_app, "stats")
def stats(
    cohort: CohortFile,
    html: Annotated[Path | None, typer.Option(help="a page with the comparison drawn")] = None,
) -> None:
    """Counts per collection beside the paper's table (CT-FM, 148,394 scans of 69 collections)."""
    from ctfoundry.archive import read_cohort
    from ctfoundry.archive.counts import compare

    made = read_cohort(cohort)
    rows = compare(made)
    verdicts = [row.verdict for row in rows if row.paper is not None]
    words = {name: verdicts.count(name) for name in ("equal", "within 5 %", "more", "fewer", "missing")}
    data = {
        "series": len(made),
        "patients": made.patients,
        "size_gb": round(made.size_gb, 1),
        "unchecked": list(made.unchecked),
        "of_69": words,
        "collections": [
            {"collection": r.collection, "cohort": r.cohort, "paper": r.paper, "verdict": r.verdict} for r in rows
        ],
        "licences": made.counts("licence"),
        "body_parts": made.counts("body_part"),
    }
    if html is not None:
        _page(made, rows, words, html)

    def table() -> None:
        print_table(("collection", "cohort", "paper", ""), [(r.collection, r.cohort, r.paper, r.verdict) for r in rows])
        told = ", ".join(f"{count} {name}" for name, count in words.items() if count)
        print(f"{len(made):,} series of {made.patients:,} patients; of the paper's {len(verdicts)} collections: {told}")
        if made.unchecked:
            print(f"not asked yet: {', '.join(made.unchecked)}, so counts can only fall")

    show(data, table)


def _page(made: Any, rows: list[Any], words: dict[str, int], path: Path) -> None:
    """The comparison as one page."""
    from ctfoundry.report import charts, page

    paper = {r.collection: (r.cohort, r.paper) for r in rows if r.paper}
    ratio = {name: here / there for name, (here, there) in paper.items() if here}
    page.write(
        path,
        page.Page(
            title=f"Cohort {made.rules.name}",
            sections=(
                page.Numbers(
                    (
                        (f"{len(made):,}", "series"),
                        (f"{made.patients:,}", "patients"),
                        (f"{made.size_gb / 1000:.2f} TB", "to download"),
                        (
                            f"{words['equal'] + words['within 5 %']} of {len(paper)}",
                            "collections within 5 % of the paper",
                        ),
                    )
                ),
                page.Prose(
                    f"Rules: {made.rules.origin or made.rules.name}. Index version {made.index_version}. "
                    + (f"Not asked yet: {', '.join(made.unchecked)}; counts can only fall." if made.unchecked else "")
                ),
                page.Heading("Series in this cohort for each scan in the paper's table"),
                page.Figure(
                    charts.bars(ratio, xlabel="series here / scans in the paper (1: equal)", reference=1.0),
                    "Below 1 the archive has lost series or the rules take more out than the paper's did.",
                    "Bars of the number of series of each collection divided by the number of scans in the paper",
                ),
                page.Heading("All collections"),
                page.Table(
                    ("collection", "cohort", "paper", "verdict"),
                    tuple((r.collection, r.cohort, r.paper, r.verdict) for r in rows),
                ),
                page.Heading("The query"),
                page.Details("SQL on the archive's index", (page.Prose(made.query),)),
            ),
        ),
    )
    say(f"the page: {path}")


@verb(cohort_app, "check")
def check(
    cohort: CohortFile,
    data: Annotated[Path, typer.Option(help="folder that the series were downloaded to")],
    out: Annotated[Path, typer.Option("-o", "--out", help="target, .parquet")],
) -> None:
    """The rules that need headers (thickness, positions, localizers), asked of the downloaded series."""
    from collections import Counter

    from ctfoundry.archive import read_cohort
    from ctfoundry.archive.check import check_headers

    kept, left = check_headers(read_cohort(cohort), data, out, say=say)

    def table() -> None:
        print(f"{len(kept):,} series keep all rules -> {out}")
        for reason, count in Counter(left.values()).most_common(20):
            print(f"  {count:>8,}  {reason}")

    show({"cohort": out.name, "series": len(kept), "left_out": left}, table)


@verb(cohort_app, "manifest")
def manifest(
    cohort: CohortFile, out: Annotated[Path, typer.Option("-o", "--out", help="target, e.g. manifest.s5cmd")]
) -> None:
    """Lines for `s5cmd --no-sign-request run`: one copy command a series."""
    from ctfoundry import files
    from ctfoundry.archive import read_cohort
    from ctfoundry.archive.download import manifest as lines

    text = lines(read_cohort(cohort))
    files.write_text(out, text)
    count = text.count("\n")
    show({"manifest": out.name, "series": count}, lambda: print(f"{count:,} lines -> {out}"))


@verb(cohort_app, "download")
def download(
    cohort: CohortFile,
    out: Annotated[Path, typer.Argument(help="folder")],
    endpoint: Annotated[str | None, typer.Option(help="another S3 service, http://host:port")] = None,
    jobs: Annotated[int, typer.Option(help="series at a time", min=1)] = 4,
    attempts: Annotated[int, typer.Option(help="attempts for each series", min=1)] = 4,
    reserve_gb: Annotated[float, typer.Option(help="free space to leave on the disk", min=0)] = 5.0,
) -> None:
    """Get the series with s5cmd, checked one by one; run it again to continue. What failed stands in failed.csv."""
    from ctfoundry.archive import read_cohort
    from ctfoundry.archive.download import Transfer
    from ctfoundry.archive.download import download as fetch

    transfer = Transfer(endpoint=endpoint, jobs=jobs, attempts=attempts, reserve_gb=reserve_gb)
    outcome = fetch(read_cohort(cohort), out, transfer, say=say)

    def table() -> None:
        print(
            f"{len(outcome.fetched):,} fetched ({outcome.bytes / 1e9:.2f} GB), {len(outcome.skipped):,} there already, "
            f"{len(outcome.failed):,} failed"
        )

    show(
        {
            "fetched": outcome.fetched,
            "skipped": outcome.skipped,
            "failed": outcome.failed,
            "bytes": outcome.bytes,
        },
        table,
    )
    finish(outcome.failed, len(outcome.fetched) + len(outcome.skipped))
