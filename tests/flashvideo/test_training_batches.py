from collections import Counter

import pytest
import torch
from tiny_training import MadeUpLatents

from flashvideo.training.batches import BatchOrder, BatchReader, EmptySetError, fixed_batches, micro_batch_sizes

ORDER = BatchOrder(seed=3, phase="mixed", num_images=5, num_videos=7, images=1, videos=2, batch_size=4, image_batch_size=8)


def reader(rank: int, num_ranks: int, micro_batch_size: int = 2, dropout: float = 0.1, order: BatchOrder = ORDER) -> BatchReader:
    return BatchReader(MadeUpLatents(7), order, dropout, rank, num_ranks, micro_batch_size)


def test_one_of_three_train_steps_is_of_images_in_every_three() -> None:
    kinds = [ORDER.modality(train_step) for train_step in range(300)]
    assert all(kinds[first : first + 3].count("image") == 1 for first in range(0, 300, 3))
    assert len({tuple(kinds[first : first + 3]) for first in range(0, 300, 3)}) == 3  # the place within the three is drawn


def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order() -> None:
    order = BatchOrder(seed=1, phase="videos", num_images=0, num_videos=12, batch_size=4)
    shown = [index for train_step in range(6) for index in order.indices(train_step)]
    assert sorted(shown[:12]) == sorted(shown[12:]) == list(range(12))
    assert shown[:12] != shown[12:] and shown[:12] != list(range(12))


def test_images_and_videos_go_through_their_own_epochs() -> None:
    shown: dict[str, list[int]] = {"image": [], "video": []}
    for train_step in range(105):
        shown[ORDER.modality(train_step)] += ORDER.indices(train_step)
    assert set(Counter(shown["image"][: 5 * 56]).values()) == {56}  # 35 train_steps of 8 are 56 epochs of 5
    assert set(Counter(shown["video"][: 7 * 40]).values()) == {40}  # 70 train_steps of 4 are 40 epochs of 7


def test_a_set_smaller_than_the_batch_fills_it_evenly() -> None:
    order = BatchOrder(seed=1, phase="preference", num_images=0, num_videos=3, batch_size=8)
    assert sorted(Counter(order.indices(0)).values()) == [2, 3, 3]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_samples_and_their_draws_do_not_depend_on_the_ranks(num_ranks: int) -> None:
    for train_step in range(4):
        pieces = [batch for rank in range(num_ranks) for batch in reader(rank, num_ranks).micro_batches(train_step)]
        (whole,) = reader(0, 1, micro_batch_size=64).micro_batches(train_step)
        assert [sample for piece in pieces for sample in piece.sample_ids] == list(whole.sample_ids)
        assert list(whole.sample_ids) == reader(0, 1).sample_ids(train_step)
        for name in ("clean", "degraded", "text", "positions"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
        later = [torch.rand(1, generator=generator).item() for piece in pieces for generator in piece.generators]
        assert later == [torch.rand(1, generator=generator).item() for generator in whole.generators]


def test_every_train_step_and_place_draws_anew() -> None:
    order = BatchOrder(seed=1, phase="one", num_images=0, num_videos=1, batch_size=2)
    one = reader(0, 1, order=order)
    batches = [one.micro_batches(train_step)[0] for train_step in (0, 1)]
    noises = [batch.clean[place] for batch in batches for place in (0, 1)]
    assert all(not torch.equal(noises[0], noise) for noise in noises[1:])


def test_text_is_dropped_to_zeros_at_its_share() -> None:
    order = BatchOrder(seed=1, phase="videos", num_images=0, num_videos=7, batch_size=8)
    texts = [text for train_step in range(250) for batch in reader(0, 1, 8, 0.1, order).micro_batches(train_step) for text in batch.text]
    assert sum(not text.any() for text in texts) / len(texts) == pytest.approx(0.1, abs=0.02)


def test_micro_batches_are_equal_parts() -> None:
    assert micro_batch_sizes(8, 8) == [8]
    assert micro_batch_sizes(6, 4) == [3, 3]
    assert micro_batch_sizes(5, 2) == [1, 1, 1, 1, 1]


def test_a_phase_without_samples_says_which_kind() -> None:
    with pytest.raises(EmptySetError, match=r"phase mixed trains on images \(1:2\)"):
        BatchOrder(seed=0, phase="mixed", num_images=0, num_videos=4, images=1, videos=2)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="4 videos does not divide over 3 ranks"):
        reader(0, 3, order=BatchOrder(seed=0, phase="x", num_images=0, num_videos=4, batch_size=4))


def test_validation_batches_are_the_same_each_time() -> None:
    first, second = (fixed_batches(MadeUpLatents(), "video", 9, 4) for _ in range(2))
    assert [batch.sample_ids for batch in first] == [(f"video-{index}",) for index in range(4)]
    assert all(torch.equal(a.clean, b.clean) for a, b in zip(first, second, strict=True))
    assert torch.rand(1, generator=first[0].generators[0]) == torch.rand(1, generator=second[0].generators[0])
