"""One torch thread a test process: tiny tensors gain nothing from more, and spinning threads slow shared cores."""

import torch

torch.set_num_threads(1)
