from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctfoundry.errors import UsageError
from ctfoundry.pretrain import report
from ctfoundry.pretrain.recipe import LossSettings, ModelSettings
from ctfoundry.pretrain.run import pretrain
from ctfoundry.settings import to_data
from ctfoundry.store import Store
from ctfoundry.train import Optimiser
from ctfoundry.train.monitor import CollapseRule, read_metrics
from pretrain.toys import loop, make_store, recipe

SIAMESE = recipe(
    name="siamese",
    objective="simsiam-intra",
    crops=6,
    model=ModelSettings(filters=4, blocks=(1, 1, 1), head=(32, 32, 32), predictor=(16, 32)),
    train=loop(60, log_every=3, optimiser=Optimiser(rate=1e-2), seed=1, collapse=CollapseRule(patience=3)),
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


def words(path: Path) -> str:
    """The page's text without its tags."""
    return " ".join(
        html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)).split()
    )


def row(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 2,
        "loss": 3 - step / 100,
        "positive": 0.9,
        "negative": 0.4,
        "rank": 8.0,
        "rank_of": 16.0,
        "uniformity": -2.0,
        "rate": 1e-3,
        "samples_per_s": 2.5,
        "wait_share": 0.01,
        "skipped": 0,
        "seconds": step * 2.0,
        **changes,
    }


def make_run(folder: Path, rows: list[dict[str, Any]], **files: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "recipe.json").write_text(
        json.dumps(to_data(replace(SIAMESE, train=loop(1000, collapse=CollapseRule()))))
    )
    for name, lines in {"metrics": rows, **files}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_made_to_collapse_is_announced_and_a_healthy_one_is_not(
    scans: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SimSiam without its stop-gradient (Chen and He 2021, figure 2), and with it, all else the same."""
    found = {}
    for name, stop in (("collapsing", False), ("healthy", True)):
        own = replace(SIAMESE, loss=LossSettings(stop_gradient=stop))
        done = pretrain(own, scans, tmp_path / name, device="cpu", quiet=True)
        _, warnings = read_metrics(tmp_path / name / "metrics.jsonl")
        found[name] = warnings, capfd.readouterr().err, words(tmp_path / name / "report.html"), done.train.warnings
    warnings, stderr, text, told = found["collapsing"]
    assert "collapse (fall)" in {warning["warning"] for warning in warnings}
    assert "siamese: warning: collapse (fall): effective rank has fallen from" in stderr
    assert "This run is collapsing" in text
    assert "Effective rank has fallen from" in text
    assert told == tuple(warning["text"] for warning in warnings)
    warnings, stderr, text, told = found["healthy"]
    assert (warnings, told) == ([], ())
    assert "collaps" not in stderr
    assert "No sign of collapse" in text
    assert "This run is collapsing" not in text


def test_it_is_there_at_each_checkpoint(scans: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    write = report.write_report

    def spy(run: Path, *, device: str = "") -> Path:
        path = write(run, device=device)
        seen.append(
            (words(path).split("Step ")[1].split(",")[0], json.loads((run / "recipe.json").read_text())["name"])
        )
        return path

    monkeypatch.setattr(report, "write_report", spy)
    own = recipe(train=loop(6, log_every=2, checkpoint_every=2))
    pretrain(own, scans, tmp_path, device="cpu", quiet=True)
    assert [step for step, _ in seen] == ["2 of 6", "4 of 6", "6 of 6", "6 of 6"]
    text = words(tmp_path / "report.html")
    assert "Step 6 of 6, finished" in text
    assert "Checkpoints kept" in text
    for name in ("torch", "numpy", "python", "ctfoundry"):
        assert name in text
    page = (tmp_path / "report.html").read_text()
    assert str(tmp_path) not in page
    assert str(scans.path) not in page
    assert not list(tmp_path.glob(".*report*"))


def test_a_report_that_fails_does_not_end_the_training(
    scans: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "build", lambda run: 1 / 0)
    own = recipe(train=loop(3, log_every=1, checkpoint_every=1))
    assert pretrain(own, scans, tmp_path, device="cpu", quiet=True).train.steps == 3
    assert capsys.readouterr().err.count("no report.html: ZeroDivisionError") == 1
    assert not (tmp_path / "report.html").exists()


def test_the_probe_curve_marks_the_best_and_shows_intervals(tmp_path: Path) -> None:
    curve = ((20, 0.41), (40, 0.553), (60, 0.55), (60, 0.547))
    probe = [{"step": step, "dice": dice, "low": dice - 0.06, "high": dice + 0.05} for step, dice in curve]
    probe.append({"step": 80, "dice": None, "low": None, "high": None})
    run = make_run(tmp_path / "run", [row(step) for step in range(10, 101, 10)], probe=probe)
    text = words(report.write_report(run))
    page = (run / "report.html").read_text()
    assert "best probe Dice, step 40" in text
    assert sum("step 40" in chart for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL)) == 1  # beside its dot
    assert re.search(
        r'<tr class="marked"><th[^>]*>40</th><td[^>]*>0.553</td><td[^>]*>0.493</td><td[^>]*>0.603</td>', page
    )
    assert "0.547" in text  # a step probed again counts with its last line
    assert "untrained" not in text


def test_an_untrained_encoder_that_probes_best_is_called_one(tmp_path: Path) -> None:
    probe: list[dict[str, Any]] = [
        {"step": step, "dice": 0.5 - step / 1000, "low": None, "high": None, "probe": "a"} for step in (0, 20)
    ]
    probe.append({"step": 20, "dice": 0.9, "low": None, "high": None, "probe": "of other scans"})
    text = words(report.write_report(make_run(tmp_path / "run", [row(20)], probe=probe)))
    assert "No checkpoint is better than the untrained encoder" in text
    assert "best probe Dice, step 0, untrained" in text
    assert "0.900" not in text  # numbers of two probes never meet


def test_what_went_wrong_is_told_without_paths(tmp_path: Path) -> None:
    reasons = (
        "StoreError: /home/some one/data/store/scans/a1.bin: checksum differs  -> run `x`",
        "FileNotFoundError: [Errno 2] No such file or directory: '/srv/secret/b.bin'",
        "OSError: ~/hidden/c.bin and n/a of 3/4",
    )
    bad = [{"id": f"scan{i}", "position": i, "reason": reason} for i, reason in enumerate(reasons)]
    lists = {"quarantine": bad[:2], "quarantine-1": bad[1:]}  # of two processes
    rows = [
        row(10),
        row(20, skipped=3),
        {"step": 20, "warning": "skipped", "text": "skipped: 3 steps without finite gradients"},
    ]
    text = words(report.write_report(make_run(tmp_path / "run", rows, **lists)))
    assert "not finite: 3 (15.00%)" in text
    assert "could not be read: 3 ." in text
    assert "skipped: 3 steps without finite gradients" in text
    assert "StoreError: a1.bin: checksum differs" in text
    assert "directory: 'b.bin'" in text
    for hidden in ("home", "some one", "one/", "secret", "hidden"):
        assert hidden not in text


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ([], "No sign of collapse"),
        (["collapse (gap)"], "This run is collapsing"),
        (["collapse (gap)", "recovered (gap)"], "No sign of collapse"),
        (["collapse (gap)", "collapse (fall)", "recovered (gap)"], "This run is collapsing"),
        (["collapse (gap)", "recovered (gap)", "collapse (gap)"], "This run is collapsing"),
    ],
)
def test_the_verdict_follows_what_was_announced(tmp_path: Path, said: list[str], title: str) -> None:
    rows = [row(step) for step in range(10, 101, 10)]
    warnings = [{"step": 50, "warning": name, "text": f"{name}: effective rank 1.2 of 16"} for name in said]
    found = report.verdict(report.read_run(make_run(tmp_path / "run", rows + warnings)))
    assert found.title == title
    assert ("has passed" in found.text) == (said[-1:] == ["recovered (gap)"] and title == "No sign of collapse")


def test_it_is_too_early_in_the_warm_up(tmp_path: Path) -> None:
    run = report.read_run(make_run(tmp_path / "run", [row(step) for step in (10, 20, 30)]))
    assert report.verdict(run).state == "early"
    bare = {name: value for name, value in row(10).items() if name not in ("negative", "rank")}
    assert report.verdict(replace(run, rows=[bare] * 20)).state == "unwatched"


def test_long_logs_are_thinned_and_odd_values_leave_gaps(tmp_path: Path) -> None:
    rows = [row(step, loss=None if step == 7 else 1.0, rank=None if step < 500 else 4.0) for step in range(1, 2002)]
    run = make_run(tmp_path / "run", rows)
    path = report.write_report(run)
    assert "Each point is the mean of 6 log lines" in words(path)
    assert path.stat().st_size < 300_000
    first = path.read_bytes()
    assert report.write_report(run).read_bytes() == first


def test_a_run_of_an_earlier_record_is_not_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(10), row(20)])
    for steps, state in ((10, "so far"), (20, "finished")):
        (run / "run.json").write_text(json.dumps({"device": "cpu", "results": {"steps": steps, "total": steps}}))
        assert f"Step 20 of {1000 if steps == 10 else 20}, {state}" in words(report.write_report(run))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pretraining run"):
        report.write_report(tmp_path)
    run = make_run(tmp_path / "run", [])
    (run / "metrics.jsonl").write_text('{"step": 1, "lo')
    with pytest.raises(UsageError, match="no pretraining run"):
        report.write_report(run)


BARE = """
import sys
for name in ("matplotlib", "jinja2", "PIL"):
    sys.modules[name] = None
from ctfoundry.pretrain.report import keep_report
from pathlib import Path
for _ in range(3):
    keep_report(Path(sys.argv[1]))
"""


def test_a_bare_machine_says_once_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(10)])
    done = subprocess.run([sys.executable, "-c", BARE, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a report needs matplotlib and jinja2") == 1
    assert not (run / "report.html").exists()
