"""The command line, `flashvideo`. Light: a command imports what it needs when it runs.

Exit codes: 0 done; 1 failed (the log says why); 2 a user's mistake (one line); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from pipelines.artifacts import Workspace
    from pipelines.recipe import Recipe

EXAMPLES = """
From raw 1080p video to a trained and evaluated FlashVideo model.

\b
  flashvideo retrain --recipe debug                         the whole story on two cores, on rendered samples
  flashvideo retrain --recipe debug --sources ~/videos      the same with your own videos and images
  flashvideo retrain --set stage1.iterations=300            one number changed: only what depends on it is redone
  flashvideo retrain --recipe paper --dry-run               every job of the paper's recipe, nothing is started
  flashvideo query "motion_proxy >= 1.1" --order-by=-aesthetic_proxy --limit 10
  flashvideo schedule curate --cron "0 2 * * *"             curate what is new, every night

The same command again goes on where the last one stopped; a finished run answers at once.
"""

app = typer.Typer(
    name="flashvideo",
    help=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(help="Train one stage, or both. What it needs is made first.", rich_markup_mode=None, invoke_without_command=True)
schedule_app = typer.Typer(help="Run a flow on a schedule, until Ctrl-C.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(schedule_app, name="schedule")

PROGRESS_S = 5.0

RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="debug, single_gpu, paper, or a YAML/JSON file. Default: what the root was last run with, else debug."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one number, e.g. stage1.iterations=300. Repeatable.")
]
RootOption = Annotated[Path | None, typer.Option("--root", help="Run root: everything of a run lies here. Default: runs/<recipe>.")]
Stage2Option = Annotated[
    str | None,
    typer.Option("--stage2", metavar="FINGERPRINT", help="A finished folder of artifacts/train_stage2 that the recipe names no more."),
]
SourcesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sources",
        metavar="PATH [PATH ...]",
        help="Videos, images, folders, patterns, lists (.txt, .csv, .parquet; list.csv#COLUMN), here or at s3://, gs://, https://. "
        "Default: rendered samples.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print every job, its resources, inputs, outputs and state; start nothing.")]


@app.command()
def retrain(
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Raw video in, a trained and evaluated two-stage model out."""
    _run("retrain", *_given(recipe, overrides, root, sources), dry_run)


@app.command()
def curate(
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
    stale: Annotated[bool, typer.Option("--stale", help="Print what would be computed again and why; start nothing.")] = False,
) -> None:
    """Raw files to a scored, captioned, selected and tagged dataset."""
    loaded, workspace = _given(recipe, overrides, root, sources)
    if stale:
        import subprocess

        from pipelines.recipe import dump

        command = [sys.executable, "-m", "pipelines.stale", str(workspace.root)]
        raise typer.Exit(subprocess.run(command, input=dump(loaded), text=True, check=False).returncode)
    _run("curate", loaded, workspace, dry_run)


@app.command()
def query(
    where: Annotated[str | None, typer.Argument(help='Filter, e.g. "motion_proxy >= 1.1 and aesthetic_proxy >= 4".')] = None,
    order_by: Annotated[
        str | None, typer.Option(help="Columns with commas between; -name is descending: --order-by=-aesthetic_proxy.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many rows.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, with commas between; all: every one but vectors.")] = None,
    by: Annotated[str | None, typer.Option(help="Count rows by these columns, e.g. state,media_type.")] = None,
    count: Annotated[bool, typer.Option("--count", help="Print only the number of rows.")] = False,
    table: Annotated[str, typer.Option(help="clips, sources, captions, errors, runs, ...")] = "clips",
    tag: Annotated[str | None, typer.Option(help="Read this release of the dataset.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Printed: table, json, csv. With --export: json, csv, parquet, lance, clips, webdataset.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE|DIR", help="Write the rows to a file (format by its suffix), or the clips to a folder.")
    ] = None,
    export_clips: Annotated[Path | None, typer.Option(metavar="DIR", help="Short for --export DIR --format clips.")] = None,
    cut: Annotated[
        str, typer.Option(metavar="copy|encode", help="Exported clips: copied from the key frame on where they can be, or encoded.")
    ] = "copy",
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet (PNG).")] = None,
    root: RootOption = None,
) -> None:
    """Ask the store by score.

    \b
    flashvideo query "motion_proxy >= 1.1 and aesthetic_proxy >= 4" --order-by=-aesthetic_proxy --limit 10
    flashvideo query --by state,reject_reason
    flashvideo query "state = 'kept'" --export kept.parquet
    flashvideo query "state = 'kept'" --export shards --format webdataset
    """
    from curation.query import run_query
    from pipelines.job import UserError

    if export_clips is not None:
        if export is not None or format is not None:
            raise UserError("--export-clips DIR is short for --export DIR --format clips; leave --export and --format out")
        export, format = export_clips, "clips"
    workspace = _workspace(root, None)
    print(
        run_query(
            workspace.store,
            where=where,
            order_by=order_by,
            limit=limit,
            columns=columns,
            tag=tag,
            count=count,
            by=by,
            format=format,
            sheet=sheet,
            thumbs_folder=workspace.tracks / "thumbs",
            table=table,
            export=export,
            cut=cut,
            say=_progress(),
        )
    )


@app.command()
def errors(
    code: Annotated[str | None, typer.Argument(help="Only this code, with more examples.")] = None,
    again: Annotated[
        bool, typer.Option("--retry", help="Mark everything of CODE that is open as not done, and curate: it is tried again.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="At most this many examples of a code. Default: 2, of one code 20.")
    ] = None,
    format: Annotated[str, typer.Option(metavar="table|json", help="How to print.")] = "table",
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
) -> None:
    """What could not be done, by code with examples; one code tried again.

    \b
    flashvideo errors
    flashvideo errors deadline --limit 100
    flashvideo errors deadline --retry --set curation.decode.deadline_s=300
    """
    from orchestration.errors import print_errors
    from pipelines.job import UserError

    if not again:
        print_errors(_workspace(root, None), code, limit, format)
        return
    if code is None:
        raise UserError("--retry tries one code again: flashvideo errors CODE --retry; without options the codes are listed")
    from orchestration.errors import retry

    retry(*_given(recipe, overrides, root, sources), code)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="Tag of a release.")],
    new: Annotated[str, typer.Argument(help="Tag of a later one.")],
    format: Annotated[str, typer.Option(metavar="table|json", help="json names every clip.")] = "table",
    root: RootOption = None,
) -> None:
    """What differs between two releases of the dataset: clips added, removed (and why), changed."""
    import json
    from dataclasses import asdict

    import curation
    from pipelines.job import UserError

    if format not in ("table", "json"):
        raise UserError(f"no format {format!r}; formats: table, json")
    found = curation.open(_workspace(root, None).store).diff(old, new)
    print(found if format == "table" else json.dumps(asdict(found), indent=1, ensure_ascii=False))


@app.command()
def review(
    where: Annotated[str, typer.Argument(help="Filter over the clips to label.")] = "state = 'kept'",
    annotator: Annotated[str | None, typer.Option(metavar="NAME", help="Who labels. Default: the user's name.")] = None,
    kind: Annotated[str, typer.Option(metavar="keep|pair", help="One clip at a time, or two to compare.")] = "keep",
    order: Annotated[
        str, typer.Option(metavar="uncertain|diverse|COLUMN", help="What comes first; --order=-aesthetic: the highest.")
    ] = "uncertain",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Choose from at most this many clips.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Print who labelled what and how far they agree; start nothing.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback the page wants the printed key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    recipe: RecipeOption = None,
    root: RootOption = None,
) -> None:
    """Label clips for the preference subset in the browser: keep, drop, compare; browse any query. Ctrl-C ends.

    \b
    flashvideo review --root runs/debug
    flashvideo review "motion_proxy >= 2" --order=-aesthetic_proxy --limit 500 --annotator anna
    flashvideo review --kind pair
    flashvideo review --summary
    """
    from orchestration.review import run_review

    loaded, workspace = _given(recipe, None, root, None)
    run_review(loaded, workspace, where, annotator, kind, order, limit, summary, host, port, not no_browser)


@train_app.callback()
def train(
    context: typer.Context,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    if context.invoked_subcommand is None:
        _run("train", *_given(recipe, overrides, root, sources), dry_run)


@train_app.command()
def stage1(
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Stage I: LoRA on the base model at low resolution."""
    _run("train stage1", *_given(recipe, overrides, root, sources), dry_run)


@train_app.command()
def stage2(
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Stage II: flow matching through the four phases."""
    _run("train stage2", *_given(recipe, overrides, root, sources), dry_run)


@app.command()
def generate(
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line. Default: captions of held-out clips.")] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Prompts to Stage I previews to Stage II videos (mp4)."""
    loaded, workspace = _given(recipe, overrides, root, sources)
    if prompts is not None:
        lines = _read_prompts(prompts)
        settings = loaded.generate.model_copy(update={"prompts": lines, "num_prompts": len(lines)})
        loaded = loaded.model_copy(update={"generate": settings})
    _run("generate", loaded, workspace, dry_run)


@app.command()
def enhance(
    videos: Annotated[list[Path], typer.Argument(help="Videos to enhance.")],
    prompt: Annotated[str, typer.Option(help="What the videos show.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the enhanced mp4 files.")],
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    stage2: Stage2Option = None,
    dry_run: DryRunOption = False,
) -> None:
    """Enhance your own videos with the root's trained Stage II."""
    from orchestration.single import enhance_videos

    loaded, workspace = _given(recipe, overrides, root, None)
    _need_root(workspace)
    options = ["--stage2", stage2] if stage2 is not None else []
    raise typer.Exit(enhance_videos(loaded, workspace, videos, prompt, out, options, dry_run))


@app.command()
def convert(
    files: Annotated[list[Path], typer.Argument(help="Released .pt files (read; written with --to official), or CogVideoX folders.")],
    source: Annotated[str, typer.Option("--from", metavar="official|cogvideox|DIR", help="What the files are; DIR with --to official.")],
    target: Annotated[str, typer.Option("--to", metavar="DIR|official", help="Pipeline folder that is made or added to.")],
) -> None:
    """Released checkpoints to a pipeline folder (diffusers' layout) and back.

    \b
    flashvideo convert --from official stage1.pt stage2.pt 3d-vae.pt --to flashvideo-folder
    flashvideo convert --from flashvideo-folder --to official stage1.pt
    flashvideo convert --from cogvideox CogVideoX-2b --to start-folder
    """
    from orchestration.convert import convert as run_convert

    raise typer.Exit(run_convert(source, target, files))


@app.command()
def totals(
    file: Annotated[Path, typer.Argument(help="The 16 dimensions (percent or 0-1), an eval_results.json, or a table of rows.")],
    format: Annotated[str, typer.Option("--format", metavar="table|json", help="How to print.")] = "table",
) -> None:
    """VBench's total, quality and semantic scores from its dimensions, in percent.

    \b
    flashvideo totals results_2026-11-20_eval_results.json
    flashvideo totals rows.json --format json
    """
    import subprocess

    raise typer.Exit(subprocess.call([sys.executable, "-m", "flashvideo.evaluation.totals", str(file), "--format", format]))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def vbench(context: typer.Context) -> None:
    """Score a folder of videos, or a run's, under VBench or VBench-Long; `flashvideo vbench --help` has the options.

    \b
    flashvideo vbench videos --prompts VBench_full_info.json --out scores --dry-run
    flashvideo vbench --root runs/debug --stand-ins --no-slow-fast
    """
    import subprocess

    from orchestration.processes import shell_code
    from orchestration.summary import shown
    from orchestration.vbench_page import build_page, out_of

    code = shell_code(subprocess.call([sys.executable, "-m", "pipelines.vbench", *context.args]), "vbench")
    out = out_of(context.args) if code in (0, 1) else None
    page = build_page(out) if out is not None else None
    if page is not None:
        print(f"report: {shown(page)}")
    raise typer.Exit(code)


@app.command()
def evaluate(
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Measure input, Stage I and Stage II; stand them beside the paper's tables."""
    _run("evaluate", *_given(recipe, overrides, root, sources), dry_run)


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="nfe, guidance, noise, resolution, stages, preference, degradation, enhancers, or all.")],
    values: Annotated[
        str | None, typer.Option("--values", help="Instead of the recipe's sweep.NAME: 1,2,4, or 256x448,336x592 for resolution.")
    ] = None,
    folders: Annotated[
        list[str] | None,
        typer.Option("--folder", metavar="LABEL=DIR", help="Another tool's videos, a column of enhancers. Repeatable."),
    ] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    stage2: Stage2Option = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every cell with its estimated cost; start nothing.")] = False,
) -> None:
    """Vary one setting of the root's trained Stage II; tabulate it as the paper does (Tables 2, 3, 5-10).

    \b
    flashvideo sweep nfe                                      Table 8, on held-out clips
    flashvideo sweep noise --values 2,4,6,8                   other values than the recipe's
    flashvideo sweep degradation --recipe debug+five_frames   Table 6, beside the same trained with +pixel_only
    flashvideo sweep all --dry-run                            every cell and what it will cost
    flashvideo sweep enhancers --folder RealBasicVSR=out/rb   Table 3, another tool beside ours
    flashvideo sweep guidance --set sweep.inputs=prompts      on Stage I's generated videos

    Each ends in ROOT/sweep/NAME: results.json, table.md, table.csv, index.html. The same command again goes on where it
    stopped. For a column of enhancers, give the other tool the files of ROOT/sweep/enhancers/inputs (the first run writes
    them), keep their names, and name its folder.
    """
    from orchestration.single import run_sweep

    loaded, workspace = _given(recipe, overrides, root, None)
    _need_root(workspace)
    options = [word for folder in folders or [] for word in ("--folder", folder)]
    options += ["--values", values] if values is not None else []
    options += ["--stage2", stage2] if stage2 is not None else []
    raise typer.Exit(run_sweep(loaded, workspace, name, options, dry_run))


@app.command()
def degrade(
    video: Annotated[Path, typer.Argument(help="A video, or an image.")],
    samples: Annotated[int, typer.Option("--samples", help="Degraded copies that are drawn.")] = 8,
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="FILE.png", help="Contact sheet of them, parameters below.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal pixels.")] = 0,
    weak: Annotated[bool, typer.Option("--weak", help="Weak ones only: one resize down and up.")] = False,
    strong: Annotated[bool, typer.Option("--strong", help="Strong ones only: two orders of blur, resize, noise, compression.")] = False,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: Annotated[Path | None, typer.Option("--root", help="Run root whose autoencoder shows DEG_latent, too.")] = None,
) -> None:
    """Draw the pixel degradations that Stage II trains on, and print what was drawn.

    \b
    flashvideo degrade clip.mp4 --samples 8 --sheet out.png
    flashvideo degrade clip.mp4 --strong --seed 3 --sheet out.png --root runs/debug
    flashvideo degrade clip.mp4 --weak --set stage2.pixel_degradation.downscale=[2,4]
    """
    from orchestration.single import degrade_video

    loaded, workspace = _given(recipe, overrides, root, None)
    if root is not None:
        _need_root(workspace)
    options = ["--samples", str(samples), "--seed", str(seed), *(["--sheet", str(sheet)] if sheet else [])]
    options += [word for word, given in (("--weak", weak), ("--strong", strong)) if given]
    raise typer.Exit(degrade_video(loaded, video, options, None if root is None else workspace))


@app.command()
def report(recipe: RecipeOption = None, overrides: SetOption = None, root: RootOption = None, sources: SourcesOption = None) -> None:
    """Build ROOT/report.html anew and print its headline. Runs no job."""
    from orchestration.reports import build_report, headline
    from orchestration.summary import shown

    loaded, workspace = _given(recipe, overrides, root, sources)
    _need_root(workspace)
    _need_known_jobs(workspace, loaded)
    page = build_report(workspace, loaded)
    for label, value in headline(workspace, loaded):
        print(f"  {label:<36} {value}")
    print(f"report: {shown(page)}")


@schedule_app.command("curate")
def schedule_curate(
    cron: Annotated[str | None, typer.Option(help='Five fields, e.g. "0 2 * * *" for 02:00 every day.')] = None,
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="Fire at this interval instead.")] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Curate what is new in the sources, again and again; old files are not redone."""
    from pipelines.job import UserError

    loaded, workspace = _given(recipe, overrides, root, sources)
    if (cron is None) == (every is None):
        raise UserError('say when: --cron "0 2 * * *" or --every SECONDS (one of them)')
    if every is not None and every <= 0:
        raise UserError(f"--every {every:g}: give a number of seconds above 0")
    if dry_run:
        from orchestration.preview import print_dry_run

        print_dry_run("curate", loaded, workspace)
        return
    from orchestration.deployments import schedule_curation

    schedule_curation(loaded, workspace, cron, every)


@app.command()
def samples(folder: Annotated[Path, typer.Argument(help="Folder for the files, made if absent.")]) -> None:
    """Render the default sources: 1080p clips with known camera moves, and their truth in truth.json."""
    from curation.samples import render_samples

    print(render_samples(folder, lambda done, total, name: print(f"{done}/{total} {name}", flush=True)))


@app.command()
def plan(
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Plan for so many GPUs. Default: the recipe's ranks.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Curate a few of the sources here first, and say what all will cost.")] = False,
    worker_price: Annotated[float | None, typer.Option(metavar="MONEY", help="With --measure: of an hour of one worker.")] = None,
    gpu_price: Annotated[
        float | None, typer.Option(metavar="MONEY", help="With --measure: of an hour of one worker that holds a GPU.")
    ] = None,
) -> None:
    """Print the whole plan of a recipe: jobs, phases, tokens, FLOPs, memory, hours, storage. Writes nothing to the root."""
    from orchestration.preview import print_plan

    given = _given(recipe, overrides, root, sources)
    if measure:
        from orchestration.curation_plan import print_curation_plan

        print_curation_plan(*given, worker_price, gpu_price)
    print_plan(*given, gpus)


@app.command()
def doctor(recipe: RecipeOption = None, overrides: SetOption = None, root: RootOption = None, sources: SourcesOption = None) -> None:
    """Say what this machine and this configuration can do; exit code 1 when the recipe cannot run whole."""
    from rich.table import Table

    from orchestration.doctor import examine
    from orchestration.preview import console

    loaded, workspace = _given(recipe, overrides, root, sources)
    findings = examine(loaded, workspace)
    table = Table("", "what", "found", "advice", box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        advice = finding.advice if finding.state != "ok" else ""
        table.add_row({"ok": "ok", "missing": "MISSING", "note": "note"}[finding.state], finding.what, finding.found, advice)
    console().print(table)
    missing = sum(finding.state == "missing" for finding in findings)
    print(f"recipe {loaded.name}: {'can run whole here' if not missing else f'{missing} things are missing'}")
    raise typer.Exit(1 if missing else 0)


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="Name of a job, e.g. score.")],
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    root: RootOption = None,
    sources: SourcesOption = None,
) -> None:
    """Run one job as a child process: no Prefect, no Ray of the run's own. The jobs before it must be done."""
    from orchestration.single import run_one

    raise typer.Exit(run_one(job, *_given(recipe, overrides, root, sources)))


# ---- what the commands share -------------------------------------------------------------------------------------


def _run(target: str, recipe: Recipe, workspace: Workspace, dry_run: bool) -> None:
    if dry_run:
        from orchestration.preview import print_dry_run

        print_dry_run(target, recipe, workspace)
        return
    from orchestration.runs import execute
    from orchestration.summary import print_summary

    print_summary(workspace, recipe, execute(target, recipe, workspace))


def _given(recipe: str | None, overrides: list[str] | None, root: Path | None, sources: list[str] | None) -> tuple[Recipe, Workspace]:
    """The recipe and the root that the options name. Paths of sources are made absolute, for jobs run elsewhere."""
    from pipelines.recipe import load

    if recipe is None:
        last = (root or Path("runs/debug")) / "recipe.json"
        recipe = str(last) if last.is_file() else "debug"
    loaded = load(recipe, tuple(overrides or ()), sources=tuple(sources) if sources else None)
    named = tuple(source if "://" in source else str(Path(source).expanduser().absolute()) for source in loaded.sources)
    return loaded.model_copy(update={"sources": named}), _workspace(root, loaded.name)


def _workspace(root: Path | None, recipe_name: str | None) -> Workspace:
    from pipelines.artifacts import Workspace

    return Workspace(root if root is not None else Path("runs") / (recipe_name or "debug"))


def _progress() -> Callable[[int, int | None, str], None]:
    """Tells how far a long command is, on the error stream, every 5 s."""
    last = time.monotonic()

    def say(done: int, total: int | None, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            print(f"{done} of {total} {what}" if total is not None else f"{done} {what}", file=sys.stderr, flush=True)

    return say


def _need_root(workspace: Workspace) -> None:
    from pipelines.job import UserError

    if not workspace.root.is_dir():
        raise UserError(f"there is no run in {workspace.root}; make one: flashvideo retrain --root {workspace.root}")


def _need_known_jobs(workspace: Workspace, recipe: Recipe) -> None:
    """A page of a run of which the recipe and the sources name no finished job would be an empty one in the place of a full one."""
    from pipelines.job import UserError
    from pipelines.plan import JOB_NAMES

    if not any((workspace.root / "artifacts").glob("*")):
        raise UserError(f"there is no run in {workspace.root}; make one: flashvideo retrain --root {workspace.root}")
    finished = any((workspace.root / "artifacts").glob("*/*/report.json"))
    if finished and all(state.report is None for state in workspace.states(recipe, JOB_NAMES)):
        raise UserError(
            f"no finished job of {workspace.root} is this recipe's with these sources (its settings or sources changed, or the folder was "
            f"moved); the report is left as it is. Do the jobs again: flashvideo retrain --root {workspace.root}"
        )


def _read_prompts(path: Path) -> tuple[str, ...]:
    from pipelines.job import UserError

    try:
        lines = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    if not lines:
        raise UserError(f"--prompts {path} holds no prompt; write one a line")
    return lines


def spread_sources(arguments: list[str]) -> list[str]:
    """`--sources A B C` as `--sources A --sources B --sources C`; the list ends at the next option or at `--`."""
    spread: list[str] = []
    taking = bare = False
    for argument in [*arguments, "--"]:
        if taking and not argument.startswith("-"):
            spread += ["--sources", argument]
            bare = False
            continue
        if bare:
            spread.append("--sources")  # it was given no path: the parser says so
        taking = bare = argument == "--sources"
        if not taking:
            spread.append(argument)
    return spread[:-1]


def main() -> NoReturn:
    """Entry point: runs the command and turns errors into exit codes."""
    try:
        app(spread_sources(sys.argv[1:]), standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(_explain(error))
    sys.exit(0)


def _explain(error: Exception) -> int:
    """Prints what went wrong and returns the exit code. What is nobody's mistake but ours keeps its stack trace."""
    from curation.expression import QueryError
    from curation.sources import SourceError
    from orchestration.jobs import JobCancelled, JobFailed
    from orchestration.services import ServiceError
    from orchestration.summary import print_mistake
    from pipelines.job import UserError
    from pipelines.recipe import RecipeError

    if isinstance(error, RecipeError | SourceError | UserError | QueryError):
        print_mistake(str(error))
        return 2
    if isinstance(error, JobCancelled):
        print_mistake(f"stopped during {error}; the same command goes on from there")
        return 130
    if isinstance(error, JobFailed | ServiceError):
        print_mistake(f"{error}; the same command goes on from there")
        return 1
    raise error


if __name__ == "__main__":
    main()
