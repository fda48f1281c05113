"""What longer trainings learned: Stage II models of one root side by side, in the shape of the paper's Tables 6, 8, 9, 10.

    .venv/bin/python benchmarks/learning_run.py --root ROOT
    .venv/bin/python benchmarks/learning_run.py --root ROOT --model "pixel + latent=ROOT/logs/A/recipe.json@48d39ccebf75c0c5" \\
        --model "pixel only=ROOT/logs/B/recipe.json"

Without --model: the newest finished training with latent degradation and the newest without, by the recipes and logs of
the root's runs. `@FINGERPRINT` names a folder of artifacts/train_stage2 whatever the code's settings are now. Prints the
loss by bin, and sharpness over truth's, PSNR and frame metrics by NFE, guidance and noise step; writes pictures, tables and
a page under ROOT/sweep/learning/. A relaunch goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from printed_table import print_table

from flashvideo.config import SweepConfig
from flashvideo.evaluation.sweeps import SweepName, SweepResults, SweepRow, shown_metrics
from orchestration.charts import marked
from orchestration.report_data import Chart
from orchestration.sweep_report import FIDELITY, Page, Part, curve_of, strips_of, write_page
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.recipe import RecipeError, load
from pipelines.sweep import plans_of, sweep
from pipelines.sweep_cells import Trained

SWEEPS: tuple[SweepName, ...] = ("nfe", "guidance", "noise")
VALUES = SweepConfig(nfe=(1, 2, 3, 4, 5, 6, 7, 8), guidance=(1, 2, 4, 7, 10, 13), noise=(2, 3, 4, 5, 6, 8, 10))
PAPER_SHAPE = ("MUSIQ", "NIQE")


@dataclass(frozen=True)
class Model:
    """One finished training."""

    label: str
    trained: Trained
    validation: dict[str, Any]
    iterations: int

    @property
    def fingerprint(self) -> str:
        return self.trained.reports["train_stage2"].fingerprint

    @property
    def folder(self) -> Path:
        """Its results."""
        return self.trained.folder / "learning" / "-".join(re.findall(r"\w+", self.label))


def models_of(root: Path, named: list[str]) -> list[Model]:
    """The models that are named, or the newest of each degradation. Raises SystemExit with one line."""
    workspace = Workspace(root)
    if named:
        return [_named(workspace, text) for text in named]
    found: dict[str, Model] = {}
    for path in sorted(root.glob("logs/*/recipe.json")):
        fingerprint = trained_in(path.parent)
        if fingerprint is None or not (workspace.folder("train_stage2", fingerprint) / "report.json").is_file():
            continue
        try:
            recipe = load(str(path))
            label = "pixel + latent" if recipe.stage2.latent_degradation else "pixel only"
            found[label] = _model(label, Trained.at(recipe, workspace, fingerprint))
        except (UserError, RecipeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
    if not found:
        raise SystemExit(f"no run of {root} has trained a Stage II to its end; give --model LABEL=RECIPE@FINGERPRINT")
    return [found[label] for label in sorted(found, reverse=True)]


def trained_in(logs: Path) -> str | None:
    """The Stage II that a run trained or found trained, by its log; the code may have changed since."""
    log = logs / "train_stage2.log"
    said = re.findall(r"train_stage2 (?:starts|is done already) \((\w+)\)", log.read_text()) if log.is_file() else []
    return str(said[-1]) if said else None


def _named(workspace: Workspace, text: str) -> Model:
    label, _, rest = text.partition("=")
    recipe_file, _, fingerprint = rest.partition("@")
    try:
        recipe = load(recipe_file)
        return _model(label, Trained.at(recipe, workspace, fingerprint) if fingerprint else Trained.of(recipe, workspace))
    except (UserError, RecipeError) as error:
        raise SystemExit(f"--model {text}: {error}") from None


def _model(label: str, trained: Trained) -> Model:
    recipe = trained.recipe.model_copy(update={"sweep": VALUES})
    trained = Trained(recipe, trained.workspace, trained.reports)
    folder = trained.workspace.folder("train_stage2", trained.reports["train_stage2"].fingerprint)
    validation = json.loads((folder / "validation.json").read_text())
    return Model(label, trained, validation, sum(phase.iterations for phase in recipe.stage2.phases))


def swept(model: Model) -> dict[SweepName, SweepResults]:
    """Every sweep of one model; the noise step of a model without latent noise is no setting."""
    names = SWEEPS if model.trained.recipe.stage2.latent_degradation else SWEEPS[:2]
    out = model.folder
    plans, left_out = plans_of(names, model.trained, {}, out)
    for line in left_out:
        print(line, file=sys.stderr)
    return {results.name: results for results in sweep(plans)}


# ---- tables ----------------------------------------------------------------------------------------------------------


Rows = list[list[object]]


def loss_table(models: list[Model]) -> Rows:
    """Validation loss on held-out samples with fixed noise, by place on the path and by noise step."""
    rows: Rows = [["validation loss", *(f"{model.label}: {when}" for model in models for when in ("before", "after"))]]
    bins = list(dict.fromkeys(name for model in models for name in model.validation["by_bin"]))
    rows.append(["mean of the t bins", *(model.validation[when] for model in models for when in ("before", "after"))])
    for name in bins:
        rows.append([name, *(model.validation["by_bin"].get(name, {}).get(when, "–") for model in models for when in ("before", "after"))])
    for key, label in (("std_ratio", "spread of the clean estimate over truth's"), ("sharpness_ratio", "sharpness of it over truth's")):
        middle = "t 0.5"
        rows.append([f"{label}, {middle}", *(model.validation[key][middle][when] for model in models for when in ("before", "after"))])
    return rows


def sweep_table(name: SweepName, models: list[Model], results: dict[str, dict[SweepName, SweepResults]]) -> Rows:
    """One row a value: sharpness, PSNR and metrics of every model, the paper's metrics behind them for the shape."""
    shown = [model for model in models if name in results[model.label]]
    first = results[shown[0].label][name]
    metrics = shown_metrics(first.rows[0].quality.metrics)
    own = ["sharpness", "PSNR dB", *metrics]
    groups = [(group, metric) for group in first.published for metric in PAPER_SHAPE]
    head = [first.setting, *(f"{model.label}: {column}" for model in shown for column in own)]
    rows: Rows = [[*head, *(f"paper {group} {metric}".replace("  ", " ") for group, metric in groups)]]
    labels = list(dict.fromkeys(row.label for model in shown for row in results[model.label][name].rows))
    for label in labels:
        cells: list[object] = [label]
        for model in shown:
            cells += _numbers(results[model.label][name].row(label), metrics)
        ours = first.row(label)
        cells += [(ours.published.get(group, {}).get(metric, "–") if ours else "–") for group, metric in groups]
        rows.append(cells)
    return rows


def _numbers(row: SweepRow | None, metrics: list[str]) -> list[object]:
    if row is None:
        return ["–"] * (2 + len(metrics))
    quality = row.quality
    values = [quality.gradient_ratio, quality.psnr_db, *(quality.metrics.get(name) for name in metrics)]
    return ["–" if value is None else value for value in values]


# ---- the page --------------------------------------------------------------------------------------------------------


def page_of(models: list[Model], results: dict[str, dict[SweepName, SweepResults]], tables: dict[str, Rows], root: Path) -> Page:
    """Tables, plots of all models over a value, and the same frame at every value and model."""
    parts = [Part("Validation loss", columns=[str(cell) for cell in tables["loss"][0]], rows=_page_rows(tables["loss"]))]
    for name in SWEEPS:
        shown = [model for model in models if name in results[model.label]]
        if not shown:
            continue
        first = results[shown[0].label][name]
        part = Part(f"{first.title} (Table {first.table} in small)", [f"On {first.inputs}."], list(first.notes))
        part.columns, part.rows = [str(cell) for cell in tables[name][0]], _page_rows(tables[name])
        for metric in [*FIDELITY, *shown_metrics(first.rows[0].quality.metrics)]:
            curves = [
                curve
                for model in shown
                for curve in [curve_of(_plain(results[model.label][name]), metric, model.label)]
                if curve is not None and len(curve.x) > 1
            ]
            if curves:
                label = FIDELITY.get(metric, metric.upper())
                part.charts.append(Chart(label, marked_svg(curves, first.setting, label), label))
        for model in shown:
            own = results[model.label][name].model_dump(mode="json")
            part.strips += strips_of(
                model.folder / name, [{**strip, "about": f"{model.label}: {strip['about']}"} for strip in own["strips"][:2]]
            )
        parts.append(part)
    about = [f"{model.label}: {model.iterations} train_steps, train_stage2/{model.fingerprint}" for model in models]
    return Page(f"What the trainings of {root.name} learned", parts, about, "Paper: FlashVideo, arXiv 2502.05179.")


def write_pictures(models: list[Model], results: dict[str, dict[SweepName, SweepResults]]) -> list[Path]:
    """One PNG a pictured clip: a row a model (NFE 1, 2, 4, 8), and below them input, autoencoder, truth, strongest guidance."""
    from flashvideo.video_files import grid, write_picture

    written = []
    first = results[models[0].label]["nfe"]
    for strip in first.strips:
        tiles = {model.label: _tiles(model, results[model.label]["nfe"], strip.item) for model in models}
        last = models[-1]
        guided = _tiles(last, results[last.label]["guidance"], strip.item)
        own = tiles[last.label]
        rows = [[found[label] for label in ("1", "2", "4", "8")] for found in tiles.values()]
        rows.append([own["input"], own["codec"], own["truth"], guided[f"{max(VALUES.guidance):g}"]])
        path = last.trained.folder / "learning" / f"{strip.item}.png"
        write_picture(path, grid(rows))
        written.append(path)
    return written


def _tiles(model: Model, results: SweepResults, item: str) -> dict[str, Any]:
    """Label -> picture, H W C."""
    import numpy as np
    from PIL import Image

    strip = next(strip for strip in results.strips if strip.item == item)
    return {label: np.asarray(Image.open(model.folder / results.name / file).convert("RGB")) for label, file in strip.tiles}


def marked_svg(curves: list[Any], x_label: str, y_label: str) -> Any:
    from markupsafe import Markup

    return Markup(marked(curves, x_label, y_label))


def _plain(results: SweepResults) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results.model_dump(mode="json")["rows"]
    return [row for row in rows if row["value"] is not None]


def _page_rows(table: Rows) -> list[tuple[str, list[str]]]:
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table[1:]]
    return [("reference" if row[0] in ("input", "codec", "truth") else "ours", row) for row in texts]


def main() -> None:
    """Sweeps every model, prints the tables, writes the page."""
    parser = argparse.ArgumentParser(description="Stage II models of one root side by side.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="LABEL=RECIPE[@FINGERPRINT]")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    root = arguments.root.resolve()
    models = models_of(root, arguments.model)
    for model in models:
        print(f"{model.label}: {model.iterations} train_steps, train_stage2/{model.fingerprint}")
    results = {model.label: swept(model) for model in models}
    tables = {"loss": loss_table(models)}
    print()
    print_table(tables["loss"])
    for name in SWEEPS:
        if any(name in found for found in results.values()):
            tables[name] = sweep_table(name, models, results)
            print_table(tables[name])
    page = write_page(page_of(models, results, tables, root), root / "sweep" / "learning" / "index.html")
    for path in write_pictures(models, results):
        print(f"picture: {path} (rows: {', '.join(model.label for model in models)} at NFE 1, 2, 4, 8; input, codec, truth, guided)")
    print(f"page: {page}")


if __name__ == "__main__":
    main()
