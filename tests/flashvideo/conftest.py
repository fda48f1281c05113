"""What the model tests share: one torch thread, and torch's own linear layer for every test."""

from collections.abc import Iterator

import pytest
import torch

# Tiny tensors gain nothing from more threads, and spinning threads slow shared cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def torchs_own_linear() -> Iterator[None]:
    """DeepSpeed's ZeRO 3 replaces torch.nn.functional.linear for the whole process and leaves it so; later tests count its views."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear
