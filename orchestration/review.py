"""`flashvideo review`: what the page needs of the recipe, and the command that makes labels take effect."""

from __future__ import annotations

import getpass
import shlex

from orchestration.summary import shown
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.latent_plan import MOTION_WORDS
from pipelines.recipe import Recipe


def run_review(
    recipe: Recipe,
    workspace: Workspace,
    where: str,
    annotator: str | None,
    kind: str,
    order: str,
    limit: int | None,
    summary: bool,
    host: str,
    port: int,
    browser: bool,
) -> None:
    """Serves the page until Ctrl-C, or prints the summary. Raises UserError or QueryError for a mistake."""
    from curation.review.command import print_summary, review
    from curation.review.labels import ReviewError
    from curation.review.session import ReviewSettings

    policy, command = recipe.curation.policy, next_command(recipe, workspace)
    try:
        if summary:
            print_summary(workspace.root, policy.preference_size, command)
            return
        settings = ReviewSettings(
            root=workspace.root,
            annotator=annotator or getpass.getuser(),
            where=where,
            order=order,
            kind=kind,
            limit=limit,
            motion_edges=recipe.latents.motion_edges,
            motion_words=MOTION_WORDS,
            subset_size=policy.preference_size,
            next_command=command,
        )
        review(settings, host, port, browser)
    except ReviewError as error:
        raise UserError(str(error)) from None


def next_command(recipe: Recipe, workspace: Workspace) -> str:
    """The command after which the subset is what people chose; `debug` takes the top of a score until it is told otherwise."""
    words = ["flashvideo", "curate", "--root", shown(workspace.root)]
    if recipe.curation.policy.preference_subset != "labels":
        words += ["--set", "curation.policy.preference_subset=labels"]
    return shlex.join(words)
