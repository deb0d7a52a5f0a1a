"""Tables, words and pictures of head triage: every method on both scanners, pretrained against from scratch, and what was missed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, metrics, stats
from ctfoundry.adapt.class_scores import FEW
from ctfoundry.classifier import Rule
from ctfoundry.evaluate import comparison
from ctfoundry.evaluate.comparison import Measure, Report, measured, plain
from ctfoundry.evaluate.triage import BLOB, FROZEN, FROZEN_RANDOM, HISTOGRAM, PRETRAINED, READ, SCRATCH, TUNED, Plan
from ctfoundry.report.page import Card, Cards, Table
from ctfoundry.settings import from_data, to_data
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from ctfoundry.report.page import Cell, Section

SITES = {"source": "same scanner", "target": "other scanner"}
AUROC = Measure("auroc", "AUROC", digits=2)
MEASURES = (
    AUROC,
    Measure("average_precision", "average precision", digits=2),
    Measure("f1", "F1", digits=2),
    Measure("sensitivity", "sensitivity", digits=2),
    Measure("specificity", "specificity", digits=2),
    Measure("brier", "Brier score", higher=False),
    Measure("brier_calibrated", "Brier, calibrated", higher=False),
)
COMPARED = (
    Measure("auroc", "AUROC"),
    Measure("average_precision", "average precision"),
    Measure("balanced_accuracy", "balanced accuracy"),
    Measure("brier_calibrated", "Brier, calibrated", higher=False),
)
MOVED = (AUROC, MEASURES[3], MEASURES[4])
"""What is followed from the one scanner to the other."""
PAIRS = ((PRETRAINED, SCRATCH), (PRETRAINED, HISTOGRAM), (PRETRAINED, BLOB), (FROZEN, FROZEN_RANDOM))
"""Which method stands against which, on the same heads."""
SHARE = "method, share of training"
ALL_POSITIVE = "every head called abnormal"
KINDS = {
    "epidural_haemorrhage": "epidural",
    "subdural_haemorrhage": "subdural",
    "parenchymal_haemorrhage": "parenchymal",
}
REPEATS = 2000
Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each head counts, (repeats, heads), to a number for each repeat."""
Results = Sequence[Mapping[str, Any]]
Setup = Mapping[str, Any]


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

    @property
    def which(self) -> dict[str, Any]:
        """Method and share, as rows of the summary name them."""
        return {"method": self.name, "share": self.share}

    @cached_property
    def probabilities(self) -> np.ndarray:
        """As they are, (seeds, heads)."""
        return np.stack([rule.probabilities(z) for rule, z in zip(self.rules, self.logits, strict=True)])

    @cached_property
    def calibrated(self) -> np.ndarray:
        """At the temperature found on validation heads."""
        both = zip(self.rules, self.logits, strict=True)
        return np.stack([rule.probabilities(z, calibrated=True) for rule, z in both])

    @cached_property
    def called(self) -> np.ndarray:
        """Which heads each seed calls abnormal, at its own threshold."""
        return self.probabilities >= np.array([[rule.thresholds[0]] for rule in self.rules])

    def statistic(self, measure: str) -> Statistic:
        """A measure as a function of how often each head counts in each repeat: the mean of the seeds' own values."""
        if measure in ("auroc", "average_precision"):
            area = metrics.aurocs if measure == "auroc" else metrics.average_precisions
            return lambda w: np.mean([area(p, self.truth, w) for p in self.probabilities], axis=0)
        if measure in ("brier", "brier_calibrated"):
            p = self.calibrated if measure == "brier_calibrated" else self.probabilities
            each = np.square(p - self.truth).mean(0)
            return lambda w: w @ each / w.sum(1)
        counts = [metrics.confusion(own.astype(float), self.truth, 0.5) for own in self.called]
        return lambda w: np.mean([metrics.many_rates(w @ own)[measure] for own in counts], axis=0)

    def calibration_error(self, *, calibrated: bool) -> float:
        """Expected calibration error in ten bins of equal mass, mean of the seeds. Without an interval: drawing heads again enlarges it."""
        rows = self.calibrated if calibrated else self.probabilities
        return float(np.mean([metrics.expected_calibration_error(p, self.truth) for p in rows]))


def truth_of(setup: Setup, site: str) -> np.ndarray:
    """Which test heads of a site are abnormal."""
    return np.array([head["abnormal"] for head in setup["heads"][site]]) > 0


def gathered(results: Results, setup: Setup) -> dict[tuple[str, float, str], Method]:
    """Methods by name, share and site; the seeds in order."""
    found = {}
    for name in (*TUNED, *READ):
        for share in sorted({r["share"] for r in results}):
            own = sorted((r for r in results if (r["method"], r["share"]) == (name, share)), key=lambda r: r["seed"])
            rules = tuple(from_data(Rule, r["rule"], "rule") for r in own)
            for site in SITES if own else ():
                logits = np.array([r["logits"][site] for r in own])
                found[name, share, site] = Method(name, share, site, logits, rules, truth_of(setup, site))
    return found


def interval(method: Method, measure: str) -> Interval:
    """A measure with its 95 % interval over patients."""
    return _drawn(method.statistic(measure), method)


def change(ours: Method, other: Method, measure: str) -> Interval:
    """Ours minus the other's on the same heads and the same draws of patients."""
    a, b = ours.statistic(measure), other.statistic(measure)
    return _drawn(lambda w: a(w) - b(w), ours)


def transfer(source: Method, target: Method, measure: str) -> Interval:
    """The other scanner minus the same one: other patients, drawn apart."""
    n, m = len(source.truth), len(target.truth)
    a, b = source.statistic(measure), target.statistic(measure)
    return stats.resampled_at_once(
        n + m, lambda w: b(w[:, n:]) - a(w[:, :n]), target.logits.size, repeats=REPEATS, strata=[0] * n + [1] * m
    )


def _drawn(statistic: Statistic, method: Method) -> Interval:
    truth = method.truth
    rare = min(int(truth.sum()), int((~truth).sum())) < FEW
    strata = truth.astype(int).tolist() if rare else None
    return stats.resampled_at_once(len(truth), statistic, method.logits.size, repeats=REPEATS, strata=strata)


def summarise(results: Results, setup: Setup) -> dict[str, Any]:
    """All numbers: measures of each method, paired differences, transfer, and what was found by kind of blood."""
    known = gathered(results, setup)
    names = (*(m.name for m in MEASURES), "balanced_accuracy")
    pairs = [(a, known.get((b, a.share, a.site))) for ours, b in PAIRS for a in known.values() if a.name == ours]
    return {
        "measures": [
            {**m.which, "site": m.site, "seeds": len(m.rules), **{name: interval(m, name) for name in names}}
            | {f"calibration_error{tail}": m.calibration_error(calibrated=bool(tail)) for tail in ("", "_calibrated")}
            for m in known.values()
        ],
        "paired": [
            {"ours": a.name, "other": b.name, "share": a.share, "site": a.site}
            | {m.name: change(a, b, m.name) for m in COMPARED}
            for a, b in pairs
            if b is not None and len(a.rules) == len(b.rules)
        ],
        "transfer": [
            {**one.which, **{m.name: transfer(one, known[one.name, one.share, "target"], m.name) for m in MOVED}}
            for one in known.values()
            if one.site == "source"
        ],
        "kinds": [
            {**m.which, "site": m.site, **_kinds(m, setup["heads"][m.site])}
            for m in known.values()
            if m.share == max(key[1] for key in known) and m.name in (*TUNED, BLOB)
        ],
    }


def _kinds(method: Method, heads: Results) -> dict[str, Interval | None]:
    """Share of the heads with one kind of blood alone that are called abnormal."""
    found: dict[str, Interval | None] = {}
    for kind in KINDS:
        own = [i for i, head in enumerate(heads) if {f["kind"] for f in head["findings"]} == {kind}]
        calls = {heads[i]["name"]: method.called[:, i].astype(float).tolist() for i in own}
        found[kind] = stats.mean(calls, repeats=REPEATS) if calls else None
    return found


def base_rates(truth: np.ndarray) -> dict[str, float]:
    """What calling every head abnormal comes to."""
    share = float(truth.mean())
    return {"f1": 2 * share / (1 + share), "sensitivity": 1.0, "specificity": 0.0, "average_precision": share}


# ---------------------------------------------------------------------- tables and words


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['method']}, {row['share']:.0%}"


def tables(summary: Mapping[str, Any], setup: Setup) -> list[Table]:
    """What stands in the page and in the Markdown file."""
    found = []
    for site, words in SITES.items():
        truth, rows = truth_of(setup, site), _by_share(r for r in summary["measures"] if r["site"] == site)
        errors = [f"{row['calibration_error']:.2f}, {row['calibration_error_calibrated']:.2f}" for row in rows]
        caption = f"{words.capitalize()}: {len(truth)} test patients, {int(truth.sum())} with blood. Mean of the seeds [95 % interval]."
        table = measured([SHARE], [([_name(r)], r) for r in rows], MEASURES, caption, more={"ECE, calibrated": errors})
        base = base_rates(truth)
        every = [ALL_POSITIVE, *(f"{base[m.name]:.2f}" if m.name in base else "" for m in MEASURES), ""]
        found.append(replace(table, rows=[*table.rows, every]))
    kinds: list[list[Cell]] = [
        [
            _name(row),
            SITES[row["site"]],
            *("" if (own := row[k]) is None else f"{own.text(2)}, n = {own.patients}" for k in KINDS),
        ]
        for row in summary["kinds"]
    ]
    return [
        *found,
        measured(
            ["ours - other", "training", "test"],
            [([f"{r['ours']} - {r['other']}", f"{r['share']:.0%}", SITES[r["site"]]], r) for r in summary["paired"]],
            COMPARED,
            "Paired differences on the same patients [95 % interval]; better, worse or undecided by the interval.",
            judged=True,
        ),
        measured(
            [SHARE],
            [([_name(row)], row) for row in _by_share(summary["transfer"])],
            MOVED,
            "Other scanner minus same scanner, the threshold kept (other patients, drawn apart).",
        ),
        Table(
            ["method", "test", *KINDS.values()], kinds, caption="Sensitivity among heads with one kind of blood alone."
        ),
    ]


def _by_share(rows: Iterable[Mapping[str, Any]]) -> Results:
    return sorted(rows, key=lambda row: float(row["share"]))


def conclusions(summary: Mapping[str, Any]) -> list[str]:
    """In words: whether pretraining helped, whether any method beats the histogram, and what the other scanner costs."""
    said = [
        f"{row['share']:.0%} of the training heads, {SITES[row['site']]}: {row['ours']} minus {row['other']} is "
        f"{row['auroc'].text(3)} of AUROC: **{AUROC.verdict(row['auroc'])}**."
        for row in summary["paired"]
        if (row["ours"], row["other"]) in ((PRETRAINED, SCRATCH), (PRETRAINED, BLOB))
    ]
    for site, words in SITES.items():
        areas = {_name(row): row["auroc"] for row in summary["measures"] if row["site"] == site}
        best = max(areas, key=lambda name: float(areas[name].value))
        said.append(f"Highest AUROC on the {words}: {best} ({areas[best].value:.2f}).")
        chance = [name for name, area in areas.items() if area.low is not None and area.low <= 0.5 <= area.high]
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


def about(setup: Setup, results: Results) -> str:
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


def misses(known: Mapping[tuple[str, float, str], Method], site: str) -> tuple[list[int], list[int], np.ndarray]:
    """Heads with blood, least probable first; heads without, most probable first; what the pretrained classifier gave each head.

    At the largest share; calibrated, mean of the seeds.
    """
    method = known[PRETRAINED, max(key[1] for key in known), site]
    p = method.calibrated.mean(0)
    order = np.argsort(p, kind="stable")
    return [int(i) for i in order if method.truth[i]], [int(i) for i in order[::-1] if not method.truth[i]], p


def _picture(out: Path, site: str, head: Mapping[str, Any]) -> np.ndarray:
    """Three planes of a head through its largest finding, which is outlined; through the middle where there is none."""
    from ctfoundry.evaluate.triage_heads import made_again
    from ctfoundry.report import planes

    made = made_again(out / site / head["name"])
    found = max(head["findings"], key=lambda f: f["volume_ml"], default=None)
    picture: np.ndarray = planes.three_planes(
        made.ct,
        point=None if found is None else found["centre_mm"],
        window=(40, 100),
        height=220,
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


def pictures(out: Path, summary: Mapping[str, Any], results: Results, setup: Setup) -> list[Section]:
    """The page's: areas of every method, and what the pretrained classifier missed. Writes ``triage.png`` with the worst of it."""
    rows, known = _by_share(summary["measures"]), gathered(results, setup)
    chart = comparison.intervals(
        [(f"{_name(row)}: {SITES[row['site']]}", row["auroc"]) for row in rows],
        "AUROC",
        "AUROC on test heads; dashed: chance.",
        "AUROC of every method on both scanners",
        reference=0.5,
        marked=[n for n, row in enumerate(rows) if row["method"] == PRETRAINED],
    )
    cards: list[Section] = []
    missed: list[tuple[str, np.ndarray]] = []
    for site, words in SITES.items():
        heads = setup["heads"][site]
        bleeding, healthy, given = misses(known, site)
        drawn = {i: _picture(out, site, heads[i]) for i in (*bleeding[:4], *healthy[:4])}
        missed += [(f"missed, {words}: {_facts(heads[i])}; given {given[i]:.2f}", drawn[i]) for i in bleeding[:2]]
        for chosen, title in ((bleeding[:4], "Blood that got the least"), (healthy[:4], "No blood, and the most")):
            own = [
                Card(
                    drawn[i],
                    f"three planes of {heads[i]['name']}",
                    heads[i]["name"],
                    {"shows": _facts(heads[i]), "given": f"{given[i]:.2f}"},
                    tone="poor",
                )
                for i in chosen
            ]
            caption = f"{title} probability, {words}: pretrained, calibrated, mean of the seeds."
            cards.append(Cards(own, caption, 320))
    comparison.write_picture(
        out / "triage.png",
        {words: {_name(row): row["auroc"] for row in rows if row["site"] == site} for site, words in SITES.items()},
        missed,
        "AUROC on test heads, 95 % interval over patients",
        reference=0.5,
    )
    return [chart, *cards]


def write_results(out: Path, results: Results, setup: Setup, plan: Plan) -> dict[str, Any]:
    """``results.json``, ``triage.md``, ``triage.png`` and ``report.html`` into `out`; returns the summary."""
    summary = summarise(results, setup)
    bases = {site: base_rates(truth_of(setup, site)) for site in SITES}
    files.write_json(
        out / "results.json", {"plan": to_data(plan), "encoder": setup["encoder"], "base": bases, **plain(summary)}
    )
    Report(
        "Head CT triage",
        "Phantoms with and without blood in the skull: one scanner to learn on, another one to be tested on",
        about(setup, results),
        conclusions(summary),
        pictures(out, summary, results, setup),
        tables(summary, setup),
    ).write(out, "triage")
    return summary
