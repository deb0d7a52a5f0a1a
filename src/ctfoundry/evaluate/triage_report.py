"""Tables, words and pictures of head triage: every method on both scanners, pretrained against from scratch, and what was missed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, metrics, stats
from ctfoundry.adapt.class_scores import FEW, interval_data
from ctfoundry.classifier import Rule
from ctfoundry.evaluate.triage import BLOB, FROZEN, FROZEN_RANDOM, HISTOGRAM, PRETRAINED, READ, SCRATCH, TUNED, Plan
from ctfoundry.report import charts
from ctfoundry.report.page import Cards, Figure, Heading, Page, Prose, Table, write
from ctfoundry.settings import from_data, to_data
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from ctfoundry.report.page import Section

SITES = {"source": "same scanner", "target": "other scanner"}
MEASURES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "brier_calibrated": "Brier, calibrated",
}
COMPARED = ("auroc", "average_precision", "balanced_accuracy", "brier_calibrated")
LABELS = {**MEASURES, "balanced_accuracy": "balanced accuracy"}
PAIRS = ((PRETRAINED, SCRATCH), (PRETRAINED, HISTOGRAM), (PRETRAINED, BLOB), (FROZEN, FROZEN_RANDOM))
"""Which method stands against which, on the same heads."""
LOWER = ("brier", "brier_calibrated")
"""Measures of which less is better."""
ALL_POSITIVE = "every head called abnormal"
KINDS = {
    "epidural_haemorrhage": "epidural",
    "subdural_haemorrhage": "subdural",
    "parenchymal_haemorrhage": "parenchymal",
}
REPEATS = 2000
Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each head counts, (repeats, heads), to a number for each repeat."""


@dataclass(frozen=True, eq=False)
class Method:
    """One method at one share on one site: a row of scores for each seed.

    Attributes
    ----------
    name, share, site : which.
    logits : (seeds, heads). rules : of each seed. truth : of each head.
    """

    name: str
    share: float
    site: str
    logits: np.ndarray
    rules: tuple[Rule, ...]
    truth: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """As they are, (seeds, heads)."""
        return np.stack([rule.probabilities(z) for rule, z in zip(self.rules, self.logits, strict=True)])

    @cached_property
    def calibrated(self) -> np.ndarray:
        """At the temperature found on validation heads."""
        return np.stack(
            [rule.probabilities(z, calibrated=True) for rule, z in zip(self.rules, self.logits, strict=True)]
        )

    @cached_property
    def called(self) -> np.ndarray:
        """Which heads each seed calls abnormal, at its own threshold."""
        limits = np.array([rule.thresholds[0] for rule in self.rules])
        return self.probabilities >= limits[:, None]

    def statistic(self, measure: str) -> Statistic:
        """A measure as a function of how often each head counts in each repeat: the mean of the seeds' own values."""
        if measure in ("auroc", "average_precision"):
            area = area_under if measure == "auroc" else average_precision
            return lambda w: np.mean([area(p, self.truth, w) for p in self.probabilities], axis=0)
        if measure in LOWER:
            p = self.calibrated if measure == "brier_calibrated" else self.probabilities
            each = np.square(p - self.truth).mean(0)
            return lambda w: w @ each / w.sum(1)
        return lambda w: np.mean([_rate(measure, own, self.truth, w) for own in self.called], axis=0)

    def calibration_error(self, *, calibrated: bool) -> float:
        """Expected calibration error in ten bins of equal mass, mean of the seeds. Without an interval: drawing heads again enlarges it."""
        rows = self.calibrated if calibrated else self.probabilities
        return float(np.mean([metrics.expected_calibration_error(p, self.truth) for p in rows]))


def area_under(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`metrics.auroc` for many rows of weights (repeats, heads) at once."""
    own, other = scores[positive][:, None], scores[~positive]
    right = (own > other) + 0.5 * (own == other)
    a, b = weight[:, positive], weight[:, ~positive]
    with np.errstate(invalid="ignore"):
        return np.asarray(((a @ right) * b).sum(1) / (a.sum(1) * b.sum(1)))


def average_precision(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`metrics.average_precision` for many rows of weights at once."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are called together
    taken = np.cumsum(weight[:, order], 1)[:, last]
    hit = np.cumsum(weight[:, order] * positive[order], 1)[:, last]
    gain = np.diff(hit, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((gain * hit / np.maximum(taken, 1e-300)).sum(1) / hit[:, -1])


def _rate(measure: str, called: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`metrics.rates` for many rows of weights at once."""
    tp, fp, fn, tn = (weight @ metrics.confusion(called.astype(float), positive, 0.5)).T
    with np.errstate(invalid="ignore"):
        if measure == "f1":
            return np.asarray(2 * tp / (2 * tp + fp + fn))
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    found = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }
    return np.asarray(found[measure])


def gathered(results: Sequence[Mapping[str, Any]], setup: Mapping[str, Any]) -> dict[tuple[str, float, str], Method]:
    """Methods by name, share and site; the seeds in order."""
    found = {}
    for name in (*TUNED, *READ):
        for share in sorted({r["share"] for r in results}):
            own = sorted((r for r in results if (r["method"], r["share"]) == (name, share)), key=lambda r: r["seed"])
            if not own:
                continue
            for site in SITES:
                truth = np.array([head["abnormal"] for head in setup["heads"][site]]) > 0
                rules = tuple(from_data(Rule, r["rule"], "rule") for r in own)
                found[name, share, site] = Method(
                    name, share, site, np.array([r["logits"][site] for r in own]), rules, truth
                )
    return found


def interval(method: Method, measure: str) -> Interval:
    """A measure with its 95 % interval over patients."""
    return _drawn(method.statistic(measure), method.truth, method.logits.size)


def change(ours: Method, other: Method, measure: str) -> Interval:
    """Ours minus the other's on the same heads and the same draws of patients."""
    a, b = ours.statistic(measure), other.statistic(measure)
    return _drawn(lambda w: a(w) - b(w), ours.truth, ours.logits.size)


def transfer(source: Method, target: Method, measure: str) -> Interval:
    """The other scanner minus the same one: other patients, drawn apart."""
    n = len(source.truth)
    a, b = source.statistic(measure), target.statistic(measure)
    strata = [0] * n + [1] * len(target.truth)
    return stats.resampled_at_once(
        n + len(target.truth), lambda w: b(w[:, n:]) - a(w[:, :n]), target.logits.size, repeats=REPEATS, strata=strata
    )


def _drawn(statistic: Statistic, truth: np.ndarray, values: int) -> Interval:
    rare = min(int(truth.sum()), int((~truth).sum())) < FEW
    strata = truth.astype(int).tolist() if rare else None
    return stats.resampled_at_once(len(truth), statistic, values, repeats=REPEATS, strata=strata)


def verdict(measure: str, found: Interval) -> str:
    """better, worse or undecided, by whether the interval holds 0."""
    if found.low is None or found.high is None:
        return "an example"
    if found.low <= 0 <= found.high:
        return "undecided"
    return "better" if (found.value > 0) != (measure in LOWER) else "worse"


def summarise(results: Sequence[Mapping[str, Any]], setup: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers: measures of each method, paired differences, transfer, and what was found by kind of blood. Plain values."""
    known = gathered(results, setup)
    measures = [
        {
            "method": m.name,
            "share": m.share,
            "site": m.site,
            "seeds": len(m.rules),
            **{name: interval(m, name) for name in (*MEASURES, "balanced_accuracy")},
            "calibration_error": m.calibration_error(calibrated=False),
            "calibration_error_calibrated": m.calibration_error(calibrated=True),
        }
        for m in known.values()
    ]
    paired = [
        {
            "ours": a,
            "other": b,
            "share": share,
            "site": site,
            **{m: change(known[a, share, site], known[b, share, site], m) for m in COMPARED},
        }
        for a, b in PAIRS
        for share in sorted({key[1] for key in known})
        for site in SITES
        if (a, share, site) in known and (b, share, site) in known
        and len(known[a, share, site].rules) == len(known[b, share, site].rules)
    ]  # fmt: skip
    moved = [
        {
            "method": name,
            "share": share,
            **{
                m: transfer(known[name, share, "source"], known[name, share, "target"], m)
                for m in ("auroc", "sensitivity", "specificity")
            },
        }
        for name, share, site in known
        if site == "source"
    ]
    return {"measures": measures, "paired": paired, "transfer": moved, "kinds": _kinds(known, setup)}


def _kinds(known: Mapping[tuple[str, float, str], Method], setup: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Share of the heads with one kind of blood alone that are called abnormal, at the largest share of training heads."""
    most, found = max(key[1] for key in known), []
    for (name, share, site), method in known.items():
        if share != most or name not in (*TUNED, BLOB):
            continue
        row: dict[str, Any] = {"method": name, "share": share, "site": site}
        for kind in KINDS:
            own = [i for i, head in enumerate(setup["heads"][site]) if {f["kind"] for f in head["findings"]} == {kind}]
            calls = {setup["heads"][site][i]["name"]: method.called[:, i].astype(float).tolist() for i in own}
            row[kind] = stats.mean(calls, repeats=REPEATS) if calls else None
        found.append(row)
    return found


def base_rates(truth: np.ndarray) -> dict[str, float]:
    """What calling every head abnormal comes to."""
    share = float(truth.mean())
    return {"f1": 2 * share / (1 + share), "sensitivity": 1.0, "specificity": 0.0, "average_precision": share}


# ---------------------------------------------------------------------- tables and words


def _row_name(name: str, share: float) -> str:
    return f"{name}, {share:.0%}"


def tables(summary: Mapping[str, Any], setup: Mapping[str, Any]) -> list[Table]:
    """What stands in the page and in the Markdown file."""
    found = []
    for site, words in SITES.items():
        own = [row for row in summary["measures"] if row["site"] == site]
        truth = np.array([head["abnormal"] for head in setup["heads"][site]])
        rows: list[list[Any]] = [
            [
                _row_name(row["method"], row["share"]),
                *(row[m].text(3 if m.startswith("brier") else 2) for m in MEASURES),
                f"{row['calibration_error']:.2f}, {row['calibration_error_calibrated']:.2f}",
            ]
            for row in sorted(own, key=lambda row: row["share"])
        ]
        base = base_rates(truth)
        rows.append([ALL_POSITIVE, *(f"{base[m]:.2f}" if m in base else "" for m in MEASURES), ""])
        caption = f"{words.capitalize()}: {len(truth)} test patients, {int(truth.sum())} with blood. Mean of the seeds [95 % interval]."
        found.append(Table(["method, share of training", *MEASURES.values(), "ECE, calibrated"], rows, caption=caption))
    found.append(
        Table(
            ["ours - other", "training", "test", *(LABELS[m] for m in COMPARED)],
            [
                [
                    f"{row['ours']} - {row['other']}",
                    f"{row['share']:.0%}",
                    SITES[row["site"]],
                    *(f"{row[m].text(3)} {verdict(m, row[m])}" for m in COMPARED),
                ]
                for row in summary["paired"]
            ],
            caption="Paired differences on the same patients [95 % interval]; better, worse or undecided by the interval.",
        )
    )
    found.append(
        Table(
            ["method, share of training", "AUROC", "sensitivity", "specificity"],
            [
                [
                    _row_name(row["method"], row["share"]),
                    *(row[m].text(2) for m in ("auroc", "sensitivity", "specificity")),
                ]
                for row in sorted(summary["transfer"], key=lambda row: row["share"])
            ],
            caption="Other scanner minus same scanner, the threshold kept (other patients, drawn apart).",
        )
    )
    found.append(
        Table(
            ["method", "test", *KINDS.values()],
            [
                [
                    _row_name(row["method"], row["share"]),
                    SITES[row["site"]],
                    *("" if row[kind] is None else f"{row[kind].text(2)}, n = {row[kind].patients}" for kind in KINDS),
                ]
                for row in summary["kinds"]
            ],
            caption="Sensitivity among heads with one kind of blood alone.",
        )
    )
    return found


def conclusions(summary: Mapping[str, Any]) -> list[str]:
    """In words: whether pretraining helped, whether any method beats the histogram, and what the other scanner costs."""
    said = []
    for row in summary["paired"]:
        if (row["ours"], row["other"]) in ((PRETRAINED, SCRATCH), (PRETRAINED, BLOB)):
            area = row["auroc"]
            said.append(
                f"{row['share']:.0%} of the training heads, {SITES[row['site']]}: {row['ours']} minus {row['other']} is "
                f"{area.text(3)} of AUROC: **{verdict('auroc', area)}**."
            )
    for site, words in SITES.items():
        areas = {
            _row_name(row["method"], row["share"]): row["auroc"].value
            for row in summary["measures"]
            if row["site"] == site
        }
        best = max(areas, key=areas.__getitem__)
        said.append(f"Highest AUROC on the {words}: {best} ({areas[best]:.2f}).")
        chance = [
            _row_name(row["method"], row["share"])
            for row in summary["measures"]
            if row["site"] == site and row["auroc"].low is not None and row["auroc"].low <= 0.5 <= row["auroc"].high
        ]
        if chance:
            said.append(f"Not told from chance (0.5) on the {words}: {'; '.join(chance)}.")
    most = max(row["share"] for row in summary["transfer"])
    said += [
        f"{row['method'].capitalize()}, from the one scanner to the other: AUROC {row['auroc'].text(2)}; at the kept threshold "
        f"sensitivity {row['sensitivity'].text(2)} and specificity {row['specificity'].text(2)}."
        for row in summary["transfer"]
        if row["method"] in TUNED and row["share"] == most
    ]
    return said


def about(setup: Mapping[str, Any], plan: Plan, results: Sequence[Mapping[str, Any]]) -> str:
    """What was done, in a paragraph."""
    steps = sorted({r["steps"] for r in results if "steps" in r})
    train = setup["train"]
    return (
        f"{len(train)} training heads ({sum(train)} with blood) and {len(setup['heads']['validation'])} validation heads of one scanner, "
        f"{len(setup['heads']['source'])} test heads of it and {len(setup['heads']['target'])} of another one (sharper kernel, three and a half "
        f"times the noise, slices of 5 instead of 2.5 mm, other pixels); {len(seeds := {r['seed'] for r in results})} seed{'s' * (len(seeds) > 1)}; {'/'.join(map(str, steps))} steps a run. "
        "Every head is another patient. Step, threshold (Youden) and temperature are chosen on the "
        "validation heads and kept on both scanners. Regressions read pooled features of the frozen encoder, the HU histogram, or one hand-made "
        "number (how bright the brightest blob inside the skull is) of the same training heads. Intervals are bootstrapped over test patients, "
        "with seeds averaged within; they do not show how much other seeds or other training heads would change."
    )


# ---------------------------------------------------------------------- pictures and pages


def chart(summary: Mapping[str, Any]) -> charts.Svg:
    """AUROC of every method and share on both scanners."""
    rows = [
        (f"{_row_name(row['method'], row['share'])}: {SITES[row['site']]}", row["auroc"])
        for row in sorted(summary["measures"], key=lambda r: r["share"])
    ]
    marked = [i for i, (name, _) in enumerate(rows) if name.startswith(f"{PRETRAINED}, ") and FROZEN not in name]
    return charts.intervals(
        [(name, area.value, area.low, area.high) for name, area in rows],
        xlabel="AUROC",
        reference=0.5,
        marked=marked,
    )


def misses(
    results: Sequence[Mapping[str, Any]], setup: Mapping[str, Any], site: str, count: int = 4
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Heads with blood that the pretrained classifier gave least to, and heads without that it gave most to: (row, probability).

    At the largest share; calibrated, mean of the seeds.
    """
    known = gathered(results, setup)
    share = max(key[1] for key in known)
    method = known[PRETRAINED, share, site]
    p = method.calibrated.mean(0)
    order = np.argsort(p, kind="stable")
    missed = [(int(i), float(p[i])) for i in order if method.truth[i]][:count]
    alarms = [(int(i), float(p[i])) for i in order[::-1] if not method.truth[i]][:count]
    return missed, alarms


def _picture(out: Path, site: str, head: Mapping[str, Any], height: int = 170) -> np.ndarray:
    """Three planes of a head through its largest finding, which is outlined; through the middle where there is none."""
    from ctfoundry.evaluate.triage_heads import made_again
    from ctfoundry.report import planes

    made = made_again(out / site / head["name"])
    found = max(head["findings"], key=lambda f: f["volume_ml"], default=None)
    picture: np.ndarray = planes.three_planes(
        made.ct,
        point=None if found is None else found["centre_mm"],
        window=(40, 100),
        height=height,
        overlay=made.lesions if found else None,
        outlined=True,
    )
    return picture


def _facts(head: Mapping[str, Any]) -> str:
    if not head["findings"]:
        return "no blood"
    return "; ".join(
        f"{KINDS.get(f['kind'], f['kind'])}, {f['attributes'].get('stage', '')}, {f['size_mm']:.0f} mm, {f['volume_ml']:.1f} ml"
        for f in head["findings"]
    )


def overview(
    out: Path, summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]], setup: Mapping[str, Any]
) -> None:
    """``triage.png``: areas of every method on both scanners, and the four worst misses of the pretrained classifier."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(
        {"font.size": 8.5, "font.family": ["DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False}
    ):
        canvas = Canvas(figsize=(12, 8), dpi=100)
        grid = canvas.add_gridspec(
            4, 2, width_ratios=(0.8, 1.0), wspace=0.04, hspace=0.16, left=0.15, right=0.995, top=0.94, bottom=0.07
        )
        axes = canvas.add_subplot(grid[:, 0])
        names = [(row["method"], row["share"]) for row in summary["transfer"]]
        names.sort(key=lambda own: own[1])
        for n, own in enumerate(names):
            for site, colour, off in (("source", charts.SERIES[0], -0.14), ("target", charts.SERIES[1], 0.14)):
                area = next(
                    r["auroc"] for r in summary["measures"] if (r["method"], r["share"], r["site"]) == (*own, site)
                )
                axes.plot([area.low, area.high], [n + off] * 2, color=colour, linewidth=1.4)
                axes.plot(
                    area.value,
                    n + off,
                    "o" if site == "source" else "s",
                    color=colour,
                    markersize=5,
                    label=SITES[site] if not n else None,
                )
        axes.axvline(0.5, color="#888", linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(names)), [_row_name(*own) for own in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("AUROC on test heads, 95 % interval over patients")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
        for row, (site, index, p) in enumerate(
            [("source", *own) for own in misses(results, setup, "source", 2)[0]]
            + [("target", *own) for own in misses(results, setup, "target", 2)[0]]
        ):
            head = setup["heads"][site][index]
            place = canvas.add_subplot(grid[row, 1])
            place.imshow(_picture(out, site, head, 220))
            place.set_axis_off()
            place.set_title(f"missed, {SITES[site]}: {_facts(head)}; given {p:.2f}", fontsize=8, pad=3)
        image = io.BytesIO()
        canvas.savefig(image, format="png", metadata={"Software": None})
    files.write_bytes(out / "triage.png", image.getvalue())


def _cards(out: Path, results: Sequence[Mapping[str, Any]], setup: Mapping[str, Any], site: str) -> list[Section]:
    from ctfoundry.report.page import Card

    found: list[Section] = []
    for heads, words in zip(
        misses(results, setup, site), ("Blood that got the least", "No blood, and the most"), strict=True
    ):
        cards = [
            Card(
                _picture(out, site, setup["heads"][site][i], 150),
                f"three planes of {setup['heads'][site][i]['name']}",
                setup["heads"][site][i]["name"],
                {"shows": _facts(setup["heads"][site][i]), "given": f"{p:.2f}"},
                tone="poor",
            )
            for i, p in heads
        ]
        found.append(
            Cards(cards, f"{words} probability, {SITES[site]}: pretrained, calibrated, mean of the seeds.", 320)
        )
    return found


def plain(value: Any) -> Any:
    """A summary as JSON takes it."""
    if isinstance(value, Interval):
        return {**interval_data(value), "patients": value.patients}
    if isinstance(value, Mapping):
        return {key: plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    return value


def write_results(
    out: Path, results: Sequence[Mapping[str, Any]], setup: Mapping[str, Any], plan: Plan
) -> dict[str, Any]:
    """``results.json``, ``triage.md``, ``triage.png`` and ``report.html`` into `out`; returns the summary."""
    summary = summarise(results, setup)
    made, words, told = tables(summary, setup), conclusions(summary), about(setup, plan, results)
    files.write_json(
        out / "results.json",
        {"plan": to_data(plan), "encoder": setup["encoder"], "base": _bases(setup), **plain(summary)},
    )
    lines = ["# Head CT triage", "", told, ""]
    for table in made:
        lines += [
            f"**{table.caption}**",
            "",
            "| " + " | ".join(table.headers) + " |",
            "|---" * len(table.headers) + "|",
        ]
        lines += ["| " + " | ".join("" if c is None else str(c) for c in row) + " |" for row in table.rows]
        lines.append("")
    files.write_text(out / "triage.md", "\n".join([*lines, "## In words", "", *(f"- {line}" for line in words), ""]))
    overview(out, summary, results, setup)
    sections: list[Section] = [
        Prose(told),
        Heading("In words"),
        Prose("\n\n".join(words)),
        Heading("Pictures"),
    ]
    sections.append(
        Figure(chart(summary), "AUROC on test heads; dashed: chance.", "AUROC of every method on both scanners")
    )
    for site in SITES:
        sections += _cards(out, results, setup, site)
    sections += [Heading("Tables"), *made]
    subtitle = "Phantoms with and without blood in the skull: one scanner to learn on, another one to be tested on"
    write(out / "report.html", Page("Head CT triage", sections, subtitle))
    return summary


def _bases(setup: Mapping[str, Any]) -> dict[str, Any]:
    return {site: base_rates(np.array([h["abnormal"] for h in setup["heads"][site]])) for site in SITES}
