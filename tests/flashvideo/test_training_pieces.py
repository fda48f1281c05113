import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashvideo.training.pieces import Piece, PieceError, PieceFolder, write_pieces


def weights(start: int, stop: int) -> dict[str, torch.Tensor]:
    """Element i of `weight` is i, of `exp_avg` 100 + i."""
    values = torch.arange(float(start), float(stop))
    return {"weight": values, "exp_avg": 100 + values}


def stored(folder: Path) -> PieceFolder:
    """A parameter of ten elements by three ranks, 0-4, 4-5 and 5-10, and a small one by the last."""
    write_pieces(folder, 0, [Piece("a", 0, weights(0, 4))], 7)
    write_pieces(folder, 1, [Piece("a", 4, weights(4, 5))], 7)
    write_pieces(folder, 2, [Piece("a", 5, weights(5, 10)), Piece("b", 0, weights(0, 1))], 7)
    return PieceFolder(folder)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 5), (3, 8), (4, 5), (9, 10)])
def test_any_run_is_put_together_from_whoever_wrote_it(tmp_path: Path, start: int, stop: int) -> None:
    wanted = {name: torch.full((stop - start,), -1.0) for name in ("weight", "exp_avg")}
    folder = stored(tmp_path)
    folder.fill(Piece("a", start, wanted))
    assert folder.updates == 7 and folder.names("weight") == {"a", "b"}
    for name, values in weights(start, stop).items():
        assert torch.equal(wanted[name], values)


def test_a_missing_part_or_kind_is_named(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "state-00001.safetensors").unlink()
    with pytest.raises(PieceError, match=r"holds 9 of 10 numbers of weight of a from 0 on"):
        PieceFolder(tmp_path).fill(Piece("a", 0, weights(0, 10)))
    with pytest.raises(PieceError, match=r"holds 0 of 1 numbers of ema of b"):
        PieceFolder(tmp_path).fill(Piece("b", 0, {"ema": torch.zeros(1)}))


def test_files_of_two_moments_are_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    write_pieces(tmp_path, 1, [Piece("a", 4, weights(4, 5))], 8)
    with pytest.raises(PieceError, match=r"2 moments \[7, 8\]"):
        PieceFolder(tmp_path)
    with pytest.raises(PieceError, match="0 moments"):
        PieceFolder(tmp_path / "empty")


def test_the_files_are_safetensors_views_included(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    write_pieces(tmp_path, 3, [Piece("a.b.weight", 2, {"weight": flat[4:9]})], 1)
    path = tmp_path / "state-00003.safetensors"
    assert {key: value.tolist() for key, value in load_file(path).items()} == {"weight:a.b.weight:2": [4.0, 5.0, 6.0, 7.0, 8.0]}
    assert json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"] == {"updates": "1"}
