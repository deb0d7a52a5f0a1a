"""``RUN/report.html``: how a pretraining run goes, on one page, at each checkpoint and at its end.

Everything on it is read from the run's own folder, so it can be written at any time and again; drawn where matplotlib and jinja2
are installed. Public IDs, no paths.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import __version__
from ctfoundry.errors import UsageError
from ctfoundry.record import versions
from ctfoundry.report import charts, page
from ctfoundry.report.page import Callout, Details, Facts, Figure, Heading, Numbers, Prose, Section, Table
from ctfoundry.train import checkpoint
from ctfoundry.train.monitor import CollapseRule, read_lines, read_metrics

if TYPE_CHECKING:
    import torch

NAME = "report.html"
POINTS = 400
"""Points of a curve; of more log lines each point is the mean of some in a row."""
MOST = 200
"""Rows of a table of warnings or of scans left out."""

_OBJECTIVES = {
    "simclr": "SimCLR: the two views of a crop find each other among those of all crops of the step.",
    "simclr-intra": "Intra-sample SimCLR: the two views of a crop find each other among those of the other crops of the same scan.",
    "simsiam": "SimSiam: what is predicted from one view of a crop points where its other view does; crops are not compared.",
    "simsiam-intra": "Intra-sample SimSiam: what is predicted from one view of a crop points where its other view does.",
    "vicreg": "VICReg: views of a crop are near, each channel varies over the crops of the step, channels do not repeat one another.",
    "vicreg-intra": "Intra-sample VICReg: views of a crop are near, each channel varies over the crops of a scan, channels do not repeat one another.",
}
_PATH = re.compile(r"(?<![^\s'\"(:=])[~.]{0,2}/(?:(?:(?!: ).)*/)?(?=\S)")


@dataclass(frozen=True)
class Run:
    """What lies in a run's folder.

    Attributes
    ----------
    recipe : as data.
    rows, warnings : of ``metrics.jsonl``.
    quarantined : scans left out, with reasons.
    kept : steps of the checkpoints that are there.
    probe : rows of one probe in ``probe.jsonl`` (``step``, ``dice``, ``low``, ``high``), by step.
    record : ``run.json``, where it belongs to the last step.
    device : that it trains on.
    """

    recipe: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]
    quarantined: Sequence[Mapping[str, Any]]
    kept: Sequence[int]
    probe: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any]
    device: str

    @property
    def last(self) -> Mapping[str, Any]:
        """The last log line."""
        return self.rows[-1] if self.rows else {}

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The probed checkpoint with the highest Dice, the earlier of equals."""
        return max(self.probe, key=lambda row: float(row["dice"]), default=None)


@dataclass(frozen=True)
class Verdict:
    """Whether a run is collapsing, in words: `state` is ``collapsing``, ``sound``, ``early`` or ``unwatched``."""

    state: str
    title: str
    text: str


def write_report(run: str | Path, *, device: str = "") -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all, and return its path.

    Parameters
    ----------
    device : that the run trains on, as it shall be called; by default what ``run.json`` says.

    Raises UsageError for a folder that no pretraining run has begun in, or without matplotlib and jinja2.
    """
    folder = Path(run)
    missing = [name for name in ("matplotlib", "jinja2") if not importable(name)]
    if missing:
        raise UsageError(f"a report needs {' and '.join(missing)}", do="pip install matplotlib jinja2")
    path = folder / NAME
    page.write(path, build(read_run(folder, device=device)))
    return path


def keep_report(run: Path, *, device: str = "") -> None:
    """`write_report` for a run in progress: nothing that goes wrong with a report ends a training of weeks; it is said on stderr."""
    try:
        write_report(run, device=device)
    except Exception as error:
        _say(f"no {NAME}: {error if isinstance(error, UsageError) else repr(error)}")


@cache
def _say(text: str) -> None:
    """On stderr, once: a bare machine has many checkpoints."""
    print(text, file=sys.stderr)


def device_name(place: torch.device) -> str:
    """A device as it shall be called, such as ``cuda:0 (NVIDIA H100 80GB HBM3)``."""
    if place.type != "cuda":
        return str(place)
    import torch

    return f"{place} ({torch.cuda.get_device_name(place)})"


def importable(name: str) -> bool:
    """Whether a package is there, without importing it."""
    with suppress(ValueError):  # a package that was blocked has no spec
        return importlib.util.find_spec(name) is not None
    return False


def read_run(folder: Path, *, device: str = "") -> Run:
    """What lies in a run's folder; raises UsageError when there is no recipe or not one log line."""
    recipe, record = _json(folder / "recipe.json"), _json(folder / "run.json")
    rows, warnings = read_metrics(folder / "metrics.jsonl")
    if not recipe or not rows:
        raise UsageError("is no pretraining run with a log line", where=folder, do="run `ctfoundry pretrain` into it")
    if record.get("results", {}).get("steps") != rows[-1]["step"]:
        record = {}  # of an earlier call: the run has gone on
    return Run(
        recipe,
        rows,
        warnings,
        _quarantined(folder),
        checkpoint.steps(folder / "checkpoints"),
        _probed(folder),
        record,
        device or str(record.get("device", "")),
    )


def _quarantined(folder: Path) -> list[Mapping[str, Any]]:
    """Scans left out, each once: every process of a run has a list of its own."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("quarantine*.jsonl")):
        for line in read_lines(path):
            found.setdefault(str(line.get("id")), line)
    return list(found.values())


def _probed(folder: Path) -> list[Mapping[str, Any]]:
    """Rows of one probe by step, that with the most steps: numbers of other scans or settings do not compare."""
    probes: dict[Any, dict[int, Mapping[str, Any]]] = {}
    for line in read_lines(folder / "probe.jsonl"):
        if _finite(line.get("dice")):
            probes.setdefault(line.get("probe"), {})[line["step"]] = line
    rows = max(probes.values(), key=lambda rows: (len(rows), max(rows)), default={})
    return [rows[step] for step in sorted(rows)]


def verdict(run: Run) -> Verdict:
    """Whether the run is collapsing, from what it announced."""
    now: dict[str, Mapping[str, Any]] = {}
    for warning in run.warnings:
        kind, _, name = str(warning["warning"]).partition(" ")
        if kind == "collapse":
            now[name] = warning
        elif kind == "recovered":
            now.pop(name, None)
    if now:
        texts = [(w["text"].partition(": ")[2], w["step"]) for w in now.values()]
        said = "\n\n".join(f"{text[:1].upper()}{text[1:]}, announced at step {step}." for text, step in texts)
        way = (
            "lie along ever fewer of the directions they had"
            if set(now) == {"fall"}
            else "become the same whatever the crop"
        )
        return Verdict(
            "collapsing",
            "This run is collapsing",
            f"Its embeddings **{way}**.\n\n{said}\n\n"
            "A collapsed encoder is of no use, and runs seldom recover. Stop it; look at the learning rate, at the objective's guard against "
            "collapse (negatives, stop-gradient and predictor, the variance term) and at whether the views of different crops differ.",
        )
    last, rule = run.last, CollapseRule(**run.recipe.get("train", {}).get("collapse", {}))
    if not any(_finite(last.get(name)) for name in ("negative", "rank")):
        return Verdict("unwatched", "Collapse is not watched", "The log has no monitors of the embeddings.")
    warmup = run.recipe.get("train", {}).get("schedule", {}).get("warmup", 0)
    if sum(row["step"] > warmup for row in run.rows) < rule.patience:
        return Verdict(
            "early",
            "Too early to tell",
            f"Collapse is judged after the warm-up, over {rule.patience} log lines in a row.",
        )
    parts = []
    if _finite(last.get("positive")) and _finite(last.get("negative")):
        parts.append(
            f"views of one crop are {last['positive'] - last['negative']:.3g} more alike (cosine) than those of others"
        )
    if _finite(last.get("rank")):
        parts.append(f"the effective rank is {last['rank']:.1f} of {last['rank_of']:.0f}")
    before = (
        " It was announced before and has passed." if any("collapse" in str(w["warning"]) for w in run.warnings) else ""
    )
    return Verdict("sound", "No sign of collapse", f"At step {last['step']} {' and '.join(parts)}.{before}")


def build(run: Run) -> page.Page:
    """The page."""
    recipe, last = run.recipe, run.last
    total = run.record.get("results", {}).get("total") or recipe["train"]["schedule"]["steps"]
    state = "finished" if run.record and last["step"] >= total else "so far"
    return page.Page(
        f"Pretraining {recipe['name']}",
        [
            *_summary(run),
            *_learning(run),
            *_embedding(run),
            *_probe(run),
            *_speed(run),
            *_account(run),
            *_settings(run),
        ],
        subtitle=f"Step {last['step']} of {total}, {state}: {_time(last['seconds'])}{' on ' + run.device if run.device else ''}.",
        footer=f"ctfoundry {__version__}. Written from the run's own log up to step {last['step']}.",
    )


def _summary(run: Run) -> Iterator[Section]:
    found, last = verdict(run), run.last
    yield Callout(found.text, found.title, "warning" if found.state == "collapsing" else "note")
    scans = run.record.get("results", {}).get("scans") or round(
        last["step"] * run.recipe["train"]["batch"] / max(last["epoch"], 1e-9)
    )
    items = [(f"{last['step']}", "steps"), (_number(last.get("loss")), "loss"), (f"{scans}", "scans")]
    if "patients" in run.record.get("results", {}):
        items.append((f"{run.record['results']['patients']}", "patients"))
    items.append((_number(last.get("samples_per_s")), "scans a second"))
    if run.best is not None:
        untrained = "" if run.best["step"] else ", untrained"
        items.append((f"{run.best['dice']:.3f}", f"best probe Dice, step {run.best['step']}{untrained}"))
    yield Numbers(items)
    yield Prose(_OBJECTIVES.get(run.recipe.get("objective", ""), ""))


def _learning(run: Run) -> Iterator[Section]:
    yield Heading("Learning")
    yield from _curves(run, {"loss": "loss"}, "loss", "Training loss. Lower is better; a collapse can lower it too.")
    yield from _curves(
        run,
        {"positive": "views of one crop", "negative": "views of other crops"},
        "cosine similarity",
        "Similarity of two views of one crop and of views of different crops. They should part; both at one value is a collapse.",
    )
    crops = run.recipe["crops"] * (1 if run.recipe["objective"].endswith("-intra") else run.recipe["train"]["batch"])
    chance = 1 / max(2 * crops - 1, 1)
    yield from _curves(
        run,
        {"matching": "views found"},
        "share",
        f"Views whose nearest neighbour is the other view of their crop; the line is chance on one device, {chance:.3f}.",
        reference=chance,
    )
    yield from _curves(run, {"rate": "rate"}, "learning rate", "Learning rate.")


def _embedding(run: Run) -> Iterator[Section]:
    """The monitors, of projections and of the encoder's own vectors."""
    if "rank" not in run.last:
        return
    both = ("projections", "encoder's vectors")
    yield Heading("Is it collapsing?")
    yield Prose(
        "Of one step's embeddings at each log line: **projections**, which the loss sees, and the **encoder's vectors**, which are kept. In a complete "
        "collapse all crops get one vector; in a dimensional one vectors differ, but along few directions only."
    )
    yield from _curves(
        run,
        {"rank": both[0], "vector_rank": both[1]},
        "effective rank",
        f"How many directions the vectors use, of {run.last.get('rank_of', 0):.0f} possible for the projections of a step (Roy and Vetterli 2007). "
        "1 is a collapse.",
    )
    yield from _curves(
        run,
        {"centred_rank": both[0], "vector_centred_rank": both[1]},
        "effective rank, centred",
        "The same about the vectors' mean: few directions beside a shared one are a dimensional collapse.",
    )
    yield from _curves(
        run,
        {"uniformity": both[0], "vector_uniformity": both[1]},
        "uniformity",
        "log of the mean of exp(-2 d^2) over pairs of different crops, d their distance on the unit sphere (Wang and Isola 2020). "
        "-4: at right angles; 0: all in one point.",
    )
    yield from _curves(
        run,
        {"alignment": both[0], "vector_alignment": both[1]},
        "alignment",
        "Mean squared distance of the two views of a crop on the unit sphere (Wang and Isola 2020). Lower is better while uniformity stays low.",
    )
    yield from _curves(
        run,
        {"neighbours": both[0], "vector_neighbours": both[1]},
        "log distance",
        "Mean log distance to the nearest view of another crop, which estimates entropy (Kozachenko and Leonenko 1987). It falls without bound "
        "when crops come together.",
    )
    yield from _curves(
        run,
        {"norm_spread": both[0], "vector_norm_spread": both[1]},
        "deviation / mean",
        "Coefficient of variation of the vectors' lengths. Far above 1: few crops carry all of it.",
    )


def _probe(run: Run) -> Iterator[Section]:
    if run.best is None:
        return
    steps = [row["step"] for row in run.probe]
    dice = [float(row["dice"]) for row in run.probe]
    low, high = ([_value(row.get(end)) for row in run.probe] for end in ("low", "high"))
    yield Heading("Probe")
    if run.best["step"] == 0:
        yield Callout(
            "The best row is step 0, the encoder with random weights: by this probe training has gained nothing so far.",
            "No checkpoint is better than the untrained encoder",
            "warning",
        )
    yield Figure(
        charts.lines(
            {"Dice": (steps, dice)},
            bands={"Dice": (low, high)},
            marks=[(run.best["step"], float(run.best["dice"]), f"step {run.best['step']}")],
            xlabel="step",
            ylabel="Dice",
        ),
        "Dice of a light decoder on the frozen encoder, on validation patients, with its interval; the dot is the best checkpoint.",
        f"line through {len(steps)} checkpoints, the best {max(dice):.3f} at step {run.best['step']}",
    )
    yield Table(
        ("step", "Dice", "low", "high"),
        [(row["step"], *(_dice(row.get(name)) for name in ("dice", "low", "high"))) for row in run.probe],
        align="rrrr",
        caption="Probed checkpoints; the marked one is the best. Step 0 is the encoder with random weights. Intervals that overlap do "
        "not tell checkpoints apart.",
        marked=[steps.index(run.best["step"])],
    )


def _speed(run: Run) -> Iterator[Section]:
    yield Heading("Speed")
    yield from _curves(run, {"samples_per_s": "scans"}, "scans a second", "Throughput.", low=0)
    shares = {"wait_share": "waiting for data", "peak_share": "of the device's peak"}
    yield from _curves(
        run, shares, "share", "Share of the time spent waiting for data; of the device's peak arithmetic used.", low=0
    )
    yield from _curves(
        run, {"memory_gib": "memory"}, "GiB", "Largest memory so far, of the device (on a CPU, of the process).", low=0
    )


def _account(run: Run) -> Iterator[Section]:
    """Checkpoints, and what went wrong."""
    yield Heading("Account")
    best = run.best["step"] if run.best is not None else None
    dice = {row["step"]: _dice(row["dice"]) for row in run.probe}
    if run.kept:
        yield Table(
            ("step", "probe Dice"),
            [(step, dice.get(step)) for step in run.kept],
            align="rr",
            caption="Checkpoints kept" + ("; the marked one probes best." if best in run.kept else "."),
            marked=[run.kept.index(best)] if best in run.kept else [],
        )
    skipped = run.last.get("skipped") or 0
    share = skipped / max(run.last["step"], 1)
    yield Prose(
        f"Steps skipped because gradients were not finite: **{skipped}** ({share:.2%}). Scans left out because they could not be read: "
        f"**{len(run.quarantined)}**."
    )
    if run.warnings:
        yield Table(
            ("step", "warning"),
            [(w["step"], _clean(w["text"])) for w in run.warnings[-MOST:]],
            align="rl",
            caption=f"Warnings{_of(len(run.warnings))}.",
        )
    if run.quarantined:
        rows = [(str(q["id"]), q.get("position"), _clean(str(q.get("reason", "")))) for q in run.quarantined[-MOST:]]
        yield Table(
            ("scan", "since sample", "reason"), rows, align="lrl", caption=f"Scans left out{_of(len(run.quarantined))}."
        )


def _settings(run: Run) -> Iterator[Section]:
    recipe, train = run.recipe, run.recipe["train"]
    yield Heading("Recipe")
    if recipe.get("source"):
        yield Prose(recipe["source"])
    yield Facts(
        {
            "objective": recipe["objective"],
            "crops": f"{recipe['crops']} a scan, {' x '.join(map(str, recipe['crop']))} voxels, {recipe['preparation']}",
            "scans a step": f"{train['batch']}",
            "encoder": f"{recipe['model']['filters']} filters, blocks {', '.join(map(str, recipe['model']['blocks']))}",
            "head": " -> ".join(map(str, recipe["model"]["head"])),
            "batch norm": recipe["batch_norm"],
            "rate, weight decay": f"{train['optimiser']['rate']:g}, {train['optimiser']['weight_decay']:g}",
            "schedule": f"{train['schedule']['steps']} steps, warm-up {train['schedule']['warmup']}",
            "precision": str(run.record.get("results", {}).get("precision", train["precision"])),
            "seed": f"{train['seed']}",
        }
    )
    yield Details("The whole recipe", [Facts(dict(_flat(recipe)))])
    yield Heading("Versions and device")
    memory = run.record.get("peak_memory_mib")
    yield Facts(
        {
            "device": run.device or "not recorded",
            **({"peak memory of the process": f"{memory / 1024:.2f} GiB"} if memory else {}),
            "ctfoundry": str(run.record.get("ctfoundry", __version__)),
            **run.record.get("versions", versions()),
        }
    )


def _curves(
    run: Run,
    names: Mapping[str, str],
    ylabel: str,
    caption: str,
    *,
    reference: float | None = None,
    low: float | None = None,
) -> Iterator[Section]:
    """One figure of the log's columns that are there, thinned to `POINTS`; none where no line has a number."""
    size = math.ceil(len(run.rows) / POINTS)
    parts = [run.rows[i : i + size] for i in range(0, len(run.rows), size)]
    steps = [part[-1]["step"] for part in parts]
    series = {}
    for name, label in names.items():
        values = [[_value(row.get(name)) for row in part if _finite(row.get(name))] for part in parts]
        if any(values):
            series[label] = steps, [sum(v) / len(v) if v else math.nan for v in values]
    if not series or len(steps) < 2:
        return
    ends = ", ".join(f"{label} {_number(y[0])} to {_number(y[-1])}" for label, (_, y) in series.items())
    thinned = f" Each point is the mean of {size} log lines." if size > 1 else ""
    yield Figure(
        charts.lines(series, xlabel="step", ylabel=ylabel, reference=reference if low is None else low, height=2.1),
        caption + thinned,
        ends,
    )


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing or not whole."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _clean(text: str) -> str:
    """An error's text with folders of this machine taken out of its paths.

    >>> _clean("StoreError: /home/a b/store/x.bin: is damaged")
    'StoreError: x.bin: is damaged'
    """
    return _PATH.sub("", text)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _value(value: Any) -> float:
    return float(value) if _finite(value) else math.nan


def _number(value: Any) -> str:
    return f"{value:.3g}" if _finite(value) else "–"


def _dice(value: Any) -> str:
    return f"{value:.3f}" if _finite(value) else "–"


def _of(count: int) -> str:
    return f", the last {MOST} of {count}" if count > MOST else ""


def _time(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{hours:.1f} hours" if hours >= 2 else f"{minutes:.1f} minutes" if minutes >= 2 else f"{seconds:.0f} seconds"
    )
