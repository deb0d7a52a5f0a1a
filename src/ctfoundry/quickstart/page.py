"""The report of the main job: what was done, what came of it, what it means and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import __version__, files, stats
from ctfoundry.quickstart.pictures import colour_picture, sheet
from ctfoundry.report import charts, page
from ctfoundry.report.page import Callout, Card, Cards, Details, Facts, Figure, Heading, Numbers, Prose, Section, Table
from ctfoundry.report.planes import three_planes
from ctfoundry.retrieval.pages import hit_picture, query_picture

if TYPE_CHECKING:
    from ctfoundry.evaluate.gather import Scan
    from ctfoundry.quickstart.run import Results

SHOWN_SCANS = 12
SHOWN_QUERIES = 4


def write_report(results: Results, path: Path) -> int:
    """Write the report; returns its size in bytes."""
    return page.write(path, build(results))


def write_overview(results: Results, path: Path) -> None:
    """One picture to show: two searches (query and answer) above two colour maps."""
    from PIL import Image

    rows = [
        [query_picture(e.query_volume, e.point, height=360), hit_picture(e.target_volume, e.hit, e.truth, height=360)]
        for e in results.examples[:2]
    ]
    if results.colours:
        rows.append([colour_picture(volume, colours, height=360) for _, volume, colours in results.colours[:2]])
    if rows:
        with files.whole(path) as part:
            Image.fromarray(sheet(rows)).save(part, "PNG", optimize=True)


def build(results: Results) -> page.Page:
    """The report as data."""
    kind = "synthetic torsos" if results.phantoms else "CT scans"
    sections: list[Section] = [
        *_summary(results),
        *_scans(results),
        *_pretraining(results),
        *_views(results),
        *_search(results),
        *_retrieval(results),
        *_colours(results),
        *_meaning(results),
        *_account(results),
    ]
    return page.Page(
        "What an encoder learns from your scans in minutes",
        sections,
        subtitle=f"{len(results.gathered.scans)} {kind} of {len(results.gathered.patients)} patients, no labels used in training",
        footer=f"ctfoundry {__version__}, seed {results.seed}, device {results.device}. Paths of scans stand in private.json only.",
    )


def _summary(results: Results) -> Iterator[Section]:
    split = results.split
    yield Numbers(
        [
            (str(len(results.gathered.patients)), "patients"),
            (str(len(results.gathered.scans)), "scans"),
            (str(len(split.held_out)) if split.honest else "0", "patients held out"),
            (str(results.pretraining["steps"]), "training steps"),
        ]
    )
    if not split.honest:
        yield Callout(
            "There are fewer than four patients, so nobody could be held out: every number below is measured on the scans "
            "that the encoder was trained on, and shows nothing about new ones.",
            "No held-out patients",
            "warning",
        )
    for warning in results.pretraining["warnings"]:
        yield Callout(warning, "Training", "warning")
    yield Prose(_gain_in_words(results))


def _gain_in_words(results: Results) -> str:
    gain = results.view_gain
    assert gain is not None
    views = f"Two views of one place find each other {_percent(results.view_hits['pretrained'])} of the time with the pretrained encoder, "
    views += f"{_percent(results.view_hits['random weights'])} with random weights; chance is {100 / 16:.0f} %. The gain, paired by patient, is **{_percent(gain)}**. "
    if gain.low is None or gain.high is None:
        views += "With this few patients that is an example, not evidence. "
    elif gain.low > 0:
        views += "Its interval lies above zero: the objective was learned and carries over to patients that training never saw. "
    else:
        views += "Its interval does not lie above zero: no gain on new patients is shown in this time. Train longer or on more scans. "
    found = results.localisation_gain
    if found is None:
        return (
            views
            + "\n\nNo structure is labelled in two held-out patients, so search across patients can be shown, but not measured."
        )
    text = f"\n\nSearching a landmark of one patient in another, the pretrained encoder errs {abs(found.value):.1f} mm {'less' if found.value < 0 else 'more'} than random weights on average "
    text += f"(difference {found.text(1, 'mm')}). "
    if found.low is None or found.high is None:
        text += "That is an example, not evidence."
    elif found.high < 0:
        text += "That is a gain; whether it beats the trivial methods stands in the table."
    elif found.low > 0:
        text += "That is a loss."
    else:
        text += "The interval holds zero: no difference is shown."
    return views + text


def _scans(results: Results) -> Iterator[Section]:
    gathered = results.gathered
    yield Heading("The scans")
    text = (
        "Synthetic torsos with known anatomy, drawn at random from a seed: body shape, field of view, spacing, kernel, noise and contrast differ. "
        if results.phantoms
        else "Every file under the folder was opened once; what is a CT in Hounsfield units was used. "
    )
    if gathered.twins:
        text += f"{len(gathered.twins)} pair(s) of scans are near duplicates and count as one patient. "
    shown = _spread(gathered.scans)
    if len(shown) < len(gathered.scans):
        text += f"{len(shown)} of {len(gathered.scans)} scans are shown."
    yield Prose(text)
    cards = [
        Card(
            three_planes(scan.read(), height=150),
            f"three planes of scan {scan.name}",
            scan.name,
            {
                "size": "x".join(map(str, scan.grid.shape)),
                "spacing": "x".join(f"{s:.2g}" for s in scan.grid.spacing) + " mm",
                "known places": str(len(scan.landmarks)),
            },
            badge="held out" if scan.patient in results.split.held_out and results.split.honest else "",
            tone="accent" if scan.patient in results.split.held_out and results.split.honest else "plain",
        )
        for scan in shown
    ]
    yield Cards(cards, "Axial, coronal and sagittal plane through the middle of each body. R and L are the patient's.")
    sections: list[Section] = [
        Table(
            ("scan", "format", "size", "spacing, mm", "axes", "HU range", "known places", "used for"),
            [
                (
                    s.name,
                    s.format,
                    "x".join(map(str, s.grid.shape)),
                    "x".join(f"{v:.2f}" for v in s.grid.spacing),
                    s.grid.orientation,
                    f"{s.range_hu[0]:.0f} to {s.range_hu[1]:.0f}",
                    len(s.landmarks),
                    "measuring" if s.patient in results.split.held_out else "training",
                )
                for s in gathered.scans
            ],
            caption="All scans that were used. A letter after the patient's number tells several scans of one patient apart.",
        )
    ]
    if gathered.left_out:
        sections.append(
            Table(("left out because", "files"), list(gathered.left_out.items()), caption="What was left out.")
        )
    yield Details("All scans, and what was left out", sections)


def _spread(scans: list[Scan]) -> list[Scan]:
    """The first scan of each patient, large fields of view first, because they show most."""
    first: dict[str, Scan] = {}
    for scan in scans:
        first.setdefault(scan.patient, scan)

    return sorted(first.values(), key=lambda scan: -scan.size_mm3)[:SHOWN_SCANS]


def _pretraining(results: Results) -> Iterator[Section]:
    done = results.pretraining
    yield Heading("Pretraining")
    yield Prose(
        "The encoder never saw a label. From each scan several boxes of 96 x 128 x 128 mm were cut, each was zoomed, flipped, blurred "
        "and shifted in intensity twice, and the network learned to tell which two views show the same box of the same scan "
        f"(intra-sample SimCLR, CT-FM). Recipe `{done['recipe']}`: {done['steps']} steps in {done['seconds']:.0f} s on {done['scans']} scans of "
        f"{done['patients']} patients, precision {done['precision']}."
    )
    rows = results.metrics
    if len(rows) > 1:
        steps = [row["step"] for row in rows]
        yield Figure(
            charts.lines({"loss": (steps, [row["loss"] for row in rows])}, xlabel="step", ylabel="loss"),
            "Training loss. Lower is better.",
            f"line from {rows[0]['loss']:.2f} to {rows[-1]['loss']:.2f}",
        )
        yield Figure(
            charts.lines(
                {
                    "views of one place": (steps, [row["positive"] for row in rows]),
                    "other places": (steps, [row["negative"] for row in rows]),
                },
                xlabel="step",
                ylabel="cosine similarity",
            ),
            "Similarity of two views of one place, and of views of different places of one scan. They should part; if both rise to 1 "
            "the network has collapsed.",
            "two lines",
        )
        yield Figure(
            charts.lines(
                {"effective rank": (steps, [row["rank"] for row in rows])}, xlabel="step", ylabel="effective rank"
            ),
            f"How many directions the vectors use, of {rows[-1]['rank_of']:.0f} possible in a batch (Roy and Vetterli 2007).",
            f"line from {rows[0]['rank']:.1f} to {rows[-1]['rank']:.1f}",
        )


def _views(results: Results) -> Iterator[Section]:
    yield Heading("Do two views of one place find each other?")
    yield Prose(
        "This is what training optimises, measured where it counts: on held-out patients. 16 places of a scan, two views each; a view must find its "
        "own place among the 16. Beside the encoder: the same network with random weights, and the share of voxels in eight bands of HU, which needs no network at all."
    )
    rows = [(name, *(_scaled(value, 100))) for name, value in results.view_hits.items()]
    yield Figure(
        charts.intervals(rows, xlabel="places found, %", reference=100 / 16, marked=[0], digits=1),
        f"Mean over patients with its 95 % bootstrap interval; the line is chance. {_patients(results.view_hits['pretrained'])}",
        "; ".join(f"{name}: {value.text(2)}" for name, value in results.view_hits.items()),
    )
    gain = results.view_gain
    assert gain is not None
    yield Table(
        ("method", "places found", "patients", "views"),
        [(name, _percent(value), value.patients, value.values) for name, value in results.view_hits.items()]
        + [("pretrained minus random, paired", _percent(gain), gain.patients, gain.values)],
        caption="Views of one place that find each other (95 % interval, bootstrap over patients).",
        marked=[0],
    )


def _search(results: Results) -> Iterator[Section]:
    yield Heading("The same place in another patient")
    if results.localisation:
        count = sum(results.landmarks.values())
        yield Prose(
            f"{len(results.landmarks)} structures, {count} searches between held-out patients: the centre of a structure in one scan is the query, and the most similar cell "
            "of the other scan is the answer. The grid of cells limits what is possible at all (best possible cell); a guess from the position in the body's box needs no image. "
            "All methods are compared by plain cosine here. `ctfoundry search`, and the examples below, also whiten the features by the query's scan and answer between cells: "
            "`ctfoundry evaluate search` measures that."
        )
        rows = sorted(results.localisation.items(), key=lambda item: item[0] != "pretrained")
        yield Figure(
            charts.intervals(
                [(name, *_scaled(value, 1)) for name, value in rows], xlabel="median error, mm", marked=[0], digits=1
            ),
            "Median distance between the found and the true place; 95 % interval by a two-way bootstrap over patients.",
            "; ".join(f"{name}: {value.text(1)}" for name, value in rows),
        )
        table: list[tuple[str | int, ...]] = [
            (name, value.text(1, "mm"), value.patients, value.values) for name, value in rows
        ]
        gain = results.localisation_gain
        assert gain is not None
        table.append(("pretrained minus random, mean, paired", gain.text(1, "mm"), gain.patients, gain.values))
        yield Table(
            ("method", "median error", "patients", "searches"),
            table,
            caption="Localisation error across patients. Below zero in the last row is a gain.",
            marked=[0],
        )
        yield Details(
            "Which structures",
            [
                Table(
                    ("structure", "searches"), sorted(results.landmarks.items()), caption="Searches for each structure."
                )
            ],
        )
    else:
        yield Prose(
            "No structure is labelled in two held-out patients, so the error cannot be measured here. What a search gives is shown below."
        )
    cards = []
    for example in results.examples:
        error = ""
        if example.truth is not None:
            error = f"{np.linalg.norm(np.array(example.hit.point) - np.array(example.truth)):.0f} mm"
        cards.append(
            Card(
                query_picture(example.query_volume, example.point),
                f"query: {example.landmark} in {example.query}",
                f"{example.landmark.replace('_', ' ')} in {example.query}",
                {"point": _point(example.point)},
                badge="query",
                tone="accent",
            )
        )
        facts = {"similarity": f"{example.hit.similarity:.3f}", "point": _point(example.hit.point)}
        if error:
            facts["error"] = error
        cards.append(
            Card(
                hit_picture(example.target_volume, example.hit, example.truth),
                f"answer in {example.target}",
                f"found in {example.target}",
                facts,
                badge="answer",
            )
        )
    if cards:
        yield Cards(
            cards,
            "Queries and answers of the pretrained encoder, drawn by the seed and not by their success. Crosshair: query and found place; ring: the true place; "
            "warm colours: the tenth of the cells that is most like the query.",
            width=420,
        )


def _retrieval(results: Results) -> Iterator[Section]:
    yield Heading("The most similar scans")
    yield Prose(
        "Each scan is one vector (the mean of its cells). For a held-out scan, the nearest vectors of other patients by cosine. Vectors of one network lie close together, so look at the order rather than at the numbers."
    )
    if "pretrained" in results.retrieval:
        yield Table(
            ("neighbour chosen by", "shared structures", "patients"),
            [(name, _percent(value), value.patients) for name, value in results.retrieval.items()],
            caption="Structures that lie wholly in both the query and its nearest scan, as a share of those in either (Jaccard index); 'any other scan' is the mean over all scans of other patients.",
        )
    scans = {scan.id: scan for scan in results.gathered.scans}
    seen: set[str] = set()
    cards: list[Card] = []
    for id, near in results.neighbours.items():
        if scans[id].patient in seen or len(seen) == SHOWN_QUERIES:
            continue
        seen.add(scans[id].patient)
        cards.append(_scan_card(scans[id], "query", {}))
        cards += [
            _scan_card(scans[other], f"no. {rank}", {"similarity": f"{value:.4f}"})
            for rank, (other, value) in enumerate(near[:3], 1)
        ]
    yield Cards(
        cards,
        "Held-out scans and their three nearest scans of other patients, a row each where the page is wide enough.",
        width=205,
    )


def _scan_card(scan: Scan, badge: str, facts: dict[str, str]) -> Card:
    return Card(
        three_planes(scan.read(), height=100),
        f"three planes of {scan.name}",
        scan.name,
        facts,
        badge=badge,
        tone="accent" if badge == "query" else "plain",
    )


def _colours(results: Results) -> Iterator[Section]:
    if not results.colours:
        return
    yield Heading("What the features tell apart")
    share = ", ".join(f"{100 * value:.0f} %" for value in results.explained)
    yield Prose(
        f"The three directions in which the features of these scans differ most ({share} of their variance), fitted on all of them together and shown as colours. "
        "Where two patients have one colour, the encoder sees alike tissue; a smooth drift from head to foot means that it sees position."
    )
    cards = [
        Card(colour_picture(volume, colours), f"colour map of {name}", name)
        for name, volume, colours in results.colours
    ]
    yield Cards(cards, "Principal components 1 to 3 as L, a and b of CIELAB.", width=420)


def _meaning(results: Results) -> Iterator[Section]:
    yield Heading("What this means, and what not")
    text = [
        "**It means** that the whole way works on these files: they were read, checked, stored, trained on, embedded, searched and measured, "
        "and each number stands beside what no training at all gives.",
        f"**It does not mean** that this encoder is good. It is {results.minutes:g} minutes of a network sixteen times smaller than the published one, on a grid "
        "twice as coarse; the published one saw 148,000 scans for 24 days. No weights of it are used here.",
        "**View matching is the training task.** A gain there shows that training works on new patients, not that anatomy is understood. Search across patients and shared anatomy are the first steps "
        "towards that, and random weights, HU bands and the position in the body are strong there.",
    ]
    if results.phantoms:
        text.append(
            "**Phantoms are not patients.** They have the order, the HU and the noise of CT but only some of its variety; nothing here carries over to a clinical claim."
        )
    else:
        text.append(
            "**Landmarks** are the centres of label maps found beside the scans; some of those were drawn by experts, others made by another model. Where structures are shared by two patients only, the numbers are examples."
        )
    yield Prose("\n\n".join(text))


def _account(results: Results) -> Iterator[Section]:
    yield Details(
        "How long it took",
        [Facts({name: f"{seconds:.1f} s" for name, seconds in results.seconds.items()})],
    )
    if results.gathered.twins:
        names = {scan.id: scan.name for scan in results.gathered.scans}
        yield Details(
            "Near duplicates",
            [
                Table(
                    ("scan", "and", "because they have"),
                    [(names[t.first], names[t.second], t.reason) for t in results.gathered.twins],
                    caption="Scans that count as one patient because their content is alike.",
                )
            ],
        )


def _percent(value: stats.Interval) -> str:
    if value.low is None or value.high is None:
        return f"{100 * value.value:.1f} % (example)"
    return f"{100 * value.value:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _scaled(value: stats.Interval, by: float) -> tuple[float, float | None, float | None]:
    low = None if value.low is None else by * value.low
    return by * value.value, low, None if value.high is None else by * value.high


def _patients(value: stats.Interval) -> str:
    return f"{value.patients} patients, {value.values} views, seed {value.seed}."


def _point(point: tuple[float, float, float]) -> str:
    return ", ".join(f"{v:.0f}" for v in point) + " mm"
