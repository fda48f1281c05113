"""The paper's ablations, as changes to any preset: `--recipe paper+sincos`, `debug+pixel_only+no_preference`."""

from __future__ import annotations

from pipelines.recipe import Recipe


def full_finetune(recipe: Recipe) -> Recipe:
    """Table 4: Stage I trains every weight instead of adapters."""
    return recipe.model_copy(update={"stage1": recipe.stage1.model_copy(update={"full_finetune": True})})


def sincos(recipe: Recipe) -> Recipe:
    """Figure 8: Stage II with sinusoidal positions instead of RoPE."""
    transformer = recipe.stage2.transformer.model_copy(update={"positions": "sincos"})
    return recipe.model_copy(update={"stage2": recipe.stage2.model_copy(update={"transformer": transformer})})


def pixel_only(recipe: Recipe) -> Recipe:
    """Table 6: Stage II without DEG_latent."""
    return recipe.model_copy(update={"stage2": recipe.stage2.model_copy(update={"latent_degradation": False})})


def five_frames(recipe: Recipe) -> Recipe:
    """Table 6's length: Stage II on 5 frames of a video, two latents. Its iterations are not in print; the recipe's stay."""
    phases = tuple(
        phase.model_copy(update={"shape": phase.shape.model_copy(update={"frames": 5})}) if phase.videos else phase
        for phase in recipe.stage2.phases
    )
    return recipe.model_copy(update={"stage2": recipe.stage2.model_copy(update={"phases": phases})})


def no_preference(recipe: Recipe) -> Recipe:
    """Table 7: Stage II without the phases on a labelled subset."""
    phases = tuple(phase for phase in recipe.stage2.phases if phase.subset is None)
    return recipe.model_copy(update={"stage2": recipe.stage2.model_copy(update={"phases": phases})})
