"""Recipes: every preset validates and survives a round trip, mistakes get one clear line, the paper's numbers are the paper's."""

from __future__ import annotations

import json

import pytest

from curation.config import PAPER_RULES
from pipelines.plan import JOBS
from pipelines.recipe import ABLATIONS, PRESETS, Recipe, RecipeError, dump, fingerprint, load, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_validate_and_come_back_equal(name, tmp_path):
    recipe = preset(name)
    assert recipe.name == name
    path = tmp_path / "recipe.json"
    path.write_text(dump(recipe))
    assert load(str(path)) == recipe
    assert Recipe.model_validate(recipe.model_dump()) == recipe  # validators see presets that were made with model_copy, too


ABLATED = {
    "full_finetune": {"stage1.full_finetune": True},
    "sincos": {"stage2.transformer.positions": "sincos"},
    "pixel_only": {"stage2.latent_degradation": False},
}


@pytest.mark.parametrize("name", PRESETS)
def test_ablations_change_one_setting_of_any_preset(name):
    for ablation, change in ABLATED.items():
        overrides = tuple(f"{key}={json.dumps(value)}" for key, value in change.items())
        assert load(f"{name}+{ablation}") == load(name, (*overrides, f"name={name}+{ablation}"))
    shorter = load(f"{name}+no_preference").stage2
    assert [phase.name for phase in shorter.phases] == ["image_patches", "mixed_patches", "full_resolution"]
    assert shorter == load(name).stage2.model_copy(update={"phases": load(name).stage2.phases[:3]})
    assert [phase.shape.frames for phase in load(f"{name}+five_frames").stage2.phases] == [1, 5, 5, 5]
    longer = {
        f"stage2.phases.{phase.name}.shape.frames": phase.shape.frames for phase in load(name).stage2.phases if phase.shape.frames > 1
    }
    assert load(f"{name}+five_frames", tuple(f"{key}={value}" for key, value in longer.items())).stage2 == load(name).stage2
    assert set(ABLATED) | {"no_preference", "five_frames"} == set(ABLATIONS)


def test_ablations_add_up_and_lie_under_a_file(tmp_path):
    both = load("debug+pixel_only+no_preference").stage2
    assert (both.latent_degradation, len(both.phases)) == (False, 3)
    path = tmp_path / "mine.yaml"
    path.write_text("preset: paper+sincos\nname: mine\nstage2: {seed: 7}\n")
    stage2 = load(str(path)).stage2
    assert (stage2.transformer.positions, stage2.seed) == ("sincos", 7)


def test_positions_are_named_in_a_file_only_where_they_are_not_rope():
    """So a fingerprint of before there was a choice is the same now."""
    assert '"positions":' not in dump(load("debug"))
    assert '"positions": "sincos"' in dump(load("debug+sincos"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_job_has_a_fingerprint_for_every_preset(name):
    recipe = preset(name)
    names = [fingerprint(job.name, job.version, job.settings(recipe)) for job in JOBS]
    assert len(set(names)) == len(JOBS) and all(len(text) == 16 for text in names)


def test_overrides_by_key_index_and_name():
    recipe = load("debug", ("stage1.iterations=7", "stage2.phases.3.iterations=5", "stage2.phases.mixed_patches.iterations=6", "seed=9"))
    assert recipe.stage1.iterations == 7
    assert [phase.iterations for phase in recipe.stage2.phases][1::2] == [6, 5]
    assert recipe.seed == 9
    changed = recipe.model_dump()
    plain = preset("debug").model_dump()
    assert {key for key in plain if plain[key] != changed[key]} == {"stage1", "stage2", "seed"}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("stage1.optimizer.learning_rate=1e-4", 1e-4),
        ("stage1.optimizer.learning_rate=0.5", 0.5),
        ("stage1.base_weights=folder/of weights", "folder/of weights"),
        ("stage1.base_weights=null", None),
    ],
)
def test_override_values(override, value):
    recipe = load("debug", (override,))
    node: object = recipe
    for part in override.partition("=")[0].split("."):
        node = getattr(node, part)
    assert node == value


def test_policy_rules_are_reached_by_name():
    recipe = load("debug", ("curation.policy.rules.motion.at_least=2.5",))
    rule = next(rule for rule in recipe.curation.policy.rules if rule.name == "motion")
    assert rule.at_least == 2.5 and rule.column == "motion_proxy"


def test_a_yaml_file_lies_over_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: debug\nname: mine\nsources: [clips]\nstage1: {iterations: 3}\n")
    recipe = load(str(path), ("stage2.seed=5",), sources=("other",))
    assert (recipe.name, recipe.sources, recipe.stage1.iterations, recipe.stage2.seed) == ("mine", ("other",), 3, 5)
    assert recipe.stage1.lora == preset("debug").stage1.lora
    assert recipe.vae.kind == "patch_pca"


MISTAKES = {
    "a preset": (("debgu",), (), "no recipe named 'debgu'; did you mean \"debug\"?"),
    "an ablation": (("debug+sincoz",), (), "no ablation named 'sincoz'; did you mean \"sincos\"?"),
    "a key": (("debug",), ("stage1.iteratons=5",), 'did you mean "iterations"?'),
    "a key at the top": (("debug",), ("stage9.iterations=5",), 'did you mean "stage'),
    "a key of a phase": (("debug",), ("stage2.phases.0.iteration=5",), 'did you mean "iterations"?'),
    "an entry": (("debug",), ("stage2.phases.9.iterations=5",), "0 to 3"),
    "no value": (("debug",), ("stage1.iterations",), "write key=value"),
    "a value's kind": (("debug",), ("stage1.iterations=many",), "stage1.iterations: Input should be a valid integer"),
    "a key below a value": (("debug",), ("seed.deeper=1",), "is a value"),
    "no such file": (("nowhere/mine.yaml",), (), "No such file"),
}


@pytest.mark.parametrize(("arguments", "overrides", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_get_one_line(arguments, overrides, message):
    with pytest.raises(RecipeError) as caught:
        load(*arguments, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


FILE_MISTAKES = {
    "misspelt": ("preset: debug\nstage1: {iteratons: 3}\n", "unknown key 'stage1.iteratons'; did you mean \"iterations\"?"),
    "misspelt in a list": (
        "preset: debug\nstage2: {phases: [{name: a, iterations: 1, shape: {frames: 1, height: 64, width: 64}, imagse: 1}]}\n",
        'did you mean "images"?',
    ),
    "not a mapping": ("- debug\n", "must hold a mapping"),
    "not YAML": ("preset: [debug\n", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), FILE_MISTAKES.values(), ids=list(FILE_MISTAKES))
def test_mistakes_in_a_file_get_one_line(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SIZES = {
    "frames are 8k+1": ("stage1.shape.frames=10", "frames = 10 is neither 8k+1 nor 5"),
    "height divides by 16": ("stage1.shape.height=270", "height = 270 px does not divide by 16 (8x VAE times 2x patch); use 256 or 272"),
    "width divides by 16": ("stage2.phases.0.shape.width=100", "width = 100 px does not divide by 16"),
    "the batch divides over the ranks": ("stage1.batch_size=15", "batch size 15 does not divide over 2 ranks; use 14"),
    "a phase's batch divides": ("stage2.phases.2.batch_size=3", "stage2.phases.2: batch size 3 does not divide over 2 ranks"),
    "rotary axes fill the head": ("stage1.transformer.rope_axes=[16, 24, 22]", "sum to 62, but attention_head_dim is 64"),
    "text width": ("text_encoder.embed_dim=32", "text_embed_dim = 64 but text_encoder.embed_dim = 32"),
    "a phase selects something": ("stage2.phases.0.images=0", "selects nothing"),
}


@pytest.mark.parametrize(("override", "message"), SIZES.values(), ids=list(SIZES))
def test_sizes_that_do_not_fit_say_so(override, message):
    with pytest.raises(RecipeError) as caught:
        load("debug", (override,))
    assert message in str(caught.value)


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        preset("debug").stage1.iterations = 1  # type: ignore[misc]


def test_a_stage2_change_leaves_curation_and_stage1_alone():
    before, after = preset("debug"), load("debug", ("stage2.phases.3.iterations=99",))
    same = {job.name for job in JOBS if fingerprint(job.settings(before)) == fingerprint(job.settings(after))}
    assert {job.name for job in JOBS} - same == {"train_stage2"}


def test_runtime_changes_no_fingerprint():
    before, after = preset("debug"), load("debug", ("runtime.workers=7", "runtime.runner=local"))
    assert all(fingerprint(job.settings(before)) == fingerprint(job.settings(after)) for job in JOBS)


# ---- the paper's numbers, typed from arXiv 2502.05179 sections 3.2, 3.3, 4.1 and 4.2 and from the released code


def test_paper_stage1():
    stage1 = preset("paper").stage1
    assert (stage1.iterations, stage1.batch_size) == (50_000, 32)
    assert (stage1.lora.rank, stage1.lora.alpha, stage1.lora.scale) == (128, 1, 1 / 128)
    assert stage1.lora.targets == "paper"
    assert (stage1.shape.frames, stage1.shape.height, stage1.shape.width) == (49, 256, 480)  # "270p"
    assert stage1.shape.latent_shape == (13, 32, 60)
    assert stage1.shape.num_tokens == 6_240
    assert stage1.text_dropout == 0.1


def test_paper_optimizer_is_the_same_for_both_stages():
    recipe = preset("paper")
    assert recipe.stage1.optimizer == recipe.stage2.optimizer
    optimizer = recipe.stage1.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay, optimizer.clip_grad_norm, optimizer.warmup_steps) == (
        4e-5, (0.9, 0.95), 1e-4, 0.1, 0,
    )  # fmt: skip


def test_paper_curriculum():
    stage2 = preset("paper").stage2
    assert [phase.iterations for phase in stage2.phases] == [25_000, 30_000, 5_000, 700]
    assert [phase.batch_size for phase in stage2.phases] == [64] * 4
    images, mixed, full, preference = stage2.phases
    assert (images.images, images.videos, images.shape.frames) == (1, 0, 1)
    assert (mixed.images, mixed.videos, mixed.shape.frames) == (1, 2, 49)
    for phase in (images, mixed):  # 540x960 patches, cut to a multiple of 16
        assert (phase.shape.height, phase.shape.width) == (528, 960)
    for phase in (full, preference):  # 1080p, cut to a multiple of 16
        assert (phase.shape.frames, phase.shape.height, phase.shape.width) == (49, 1072, 1920)
    assert full.shape.num_tokens == 104_520
    assert preference.subset == "preference" and images.subset is None


def test_paper_latent_degradation_narrows_after_1000_iterations_of_full_resolution():
    images, mixed, full, preference = preset("paper").stage2.phases
    assert images.noise_steps == mixed.noise_steps == full.noise_steps == (600, 900)
    assert full.noise_steps_after == (1_000, (650, 750))
    assert preference.noise_steps == (650, 750)
    assert images.noise_steps_after is mixed.noise_steps_after is preference.noise_steps_after is None


def test_paper_models():
    recipe = preset("paper")
    first, second = recipe.stage1.transformer, recipe.stage2.transformer
    assert (first.num_layers, first.num_attention_heads, first.hidden_size) == (42, 48, 3072)  # CogVideoX-5B
    assert (second.num_layers, second.num_attention_heads, second.hidden_size) == (30, 30, 1920)  # CogVideoX-2B's blocks
    assert second.noise_strength_embedding and not first.noise_strength_embedding
    assert first.rope_axes == second.rope_axes == (16, 24, 24)
    assert (recipe.vae.kind, recipe.vae.scale_stage1, recipe.vae.scale_stage2) == ("cogvideox", 0.7, 1.15258426)
    assert (recipe.text_encoder.max_length, recipe.text_encoder.embed_dim) == (226, 4096)


def test_paper_sampling():
    generate = preset("paper").generate
    assert (generate.stage2.num_steps, generate.stage2.guidance_scale) == (4, 13)
    assert (generate.stage2.noise_step, generate.stage2.shift) == (675, 2.5)
    assert generate.stage1.guidance_scale == 8


def test_paper_data():
    recipe = preset("paper")
    rules = {rule.name: rule for rule in recipe.curation.policy.rules}
    assert recipe.curation.policy.rules == PAPER_RULES
    assert rules["resolution"].at_least == 1080
    assert (rules["image_size"].at_least, rules["image_size"].media) == (2048, "image")
    assert (rules["motion"].column, rules["motion"].at_least) == ("motion_raft", 1.1)
    assert recipe.curation.policy.preference_size == 50_000
    assert (recipe.latents.frame_rate_hz, recipe.curation.shots.clip_duration_s) == (8, 49 / 8)


@pytest.mark.parametrize("name", ["debug", "single_gpu"])
def test_smaller_presets_keep_the_curriculum(name):
    """The same four phases, kinds of sample and order; only sizes differ."""
    paper, small = preset("paper").stage2.phases, preset(name).stage2.phases
    assert [phase.name for phase in small] == [phase.name for phase in paper]
    assert [(phase.images, phase.videos, phase.subset) for phase in small] == [(p.images, p.videos, p.subset) for p in paper]
    assert [phase.noise_steps_after is None for phase in small] == [p.noise_steps_after is None for p in paper]
    assert all(small[i].iterations < paper[i].iterations for i in range(4))


def test_dump_is_plain_json():
    data = json.loads(dump(preset("paper")))
    assert data["stage2"]["phases"][3]["iterations"] == 700


def test_five_frames_are_a_shape_too():
    """The paper's 1080p ablation: two latents."""
    from flashvideo.config import FrameShape

    assert FrameShape(frames=5, height=1072, width=1920).latent_shape == (2, 134, 240)


@pytest.mark.parametrize(
    "setting",
    [
        "stage1.iterations=-5",
        "stage1.batch_size=0",
        "stage1.optimizer.learning_rate=-1",
        "stage1.text_dropout=3",
        "stage2.engine.num_ranks=0",
        "stage1.engine.watch.sample_steps=1001",
    ],
)
def test_numbers_that_no_training_can_have_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=f"{setting.partition('=')[0]}: Input should be"):
        load("debug", (setting,))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("stage2.phases.0.noise_steps=[900, 600]", r"noise_steps: \[900, 600\] must be a low and a high end; use \[600, 900\]"),
        ("stage2.phases.0.noise_steps=[0, 2000]", "noise_steps.1: Input should be less than or equal to 999"),
        ("stage2.phases.2.noise_steps_after=[1000, [750, 650]]", r"use \[650, 750\]"),
        ("stage2.pixel_degradation.downscale=[8, 4]", r"downscale: \[8, 4\] must be a low and a high end; use \[4, 8\]"),
        ("stage2.pixel_degradation.downscale=[0, 4]", "downscale.0: Input should be greater than 0"),
        ("stage2.pixel_degradation.jpeg_quality=[30, 950]", "jpeg_quality.1: Input should be less than or equal to 100"),
        ("stage2.pixel_degradation.blur_sizes=[8]", "blur_sizes.0: 8 px must be odd, so that the kernel has a middle; use 9"),
        ("stage2.pixel_degradation.video_codecs={libx264: 0}", "video_codecs: .* must be shares of 0 or more, not all 0"),
        ("stage2.pixel_degradation.blur_kernels={box: 1}", "blur_kernels.box.*: Input should be 'iso'"),
        ("stage2.optimizer.betas=[0.9, 1.5]", "betas.1: Input should be less than 1"),
        ("stage2.phases=[]", "stage2.phases: Tuple should have at least 1 item"),
    ],
)
def test_ranges_and_shares_that_would_fail_in_training_are_refused_before_it(setting: str, said: str) -> None:
    """Not after hours of curation, in the first rank that draws from them."""
    with pytest.raises(RecipeError, match=said):
        load("debug", (setting,))
