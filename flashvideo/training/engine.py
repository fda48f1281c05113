"""DeepSpeed, and nothing of it anywhere else: ranks, ZeRO, mixed precision, clipping, optimizer state on disk.

The loop sees ranks, a callable model, `backward`, `step`, `save`, `load`. On CPUs gloo carries the gradients, and no
C++ extension is compiled at start: plain torch AdamW, and DeepSpeed's shared-memory collectives switched off (their
build takes half a minute).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from flashvideo.config import EngineConfig, OptimizerConfig
from flashvideo.models.transformer import CogVideoXTransformer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (picklable), by rank."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def gather_equal(self, values: Tensor) -> Tensor:
        """Every rank's 1-D fp32 tensor of one length, joined by rank, on the CPU."""
        own = values.detach().float().to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(parts, own)
        return torch.cat(parts).cpu()


@contextmanager
def joined(config: EngineConfig, rank: int = 0, num_ranks: int = 1, rendezvous: str | None = None) -> Iterator[Ranks]:
    """This process as a rank, for the duration. `rendezvous` is torch's init_method (file:///path, tcp://host:port).

    None: the process group exists already, or is made from torchrun's environment; then rank and num_ranks are the group's.
    """
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    device = _device(config)
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    own_group = not distributed.is_initialized()
    if own_group:
        backend = "nccl" if device.type == "cuda" else "gloo"
        if rendezvous is None:
            distributed.init_process_group(backend)
        else:
            distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=num_ranks)
    try:
        os.environ.setdefault("LOCAL_RANK", str(distributed.get_rank()))  # DeepSpeed asks for it; launchers set it
        _attach_deepspeed()
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        if own_group:
            distributed.destroy_process_group()
            _detach_deepspeed()


def _device(config: EngineConfig) -> torch.device:
    if config.gpus_per_rank <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(f"engine.gpus_per_rank = {config.gpus_per_rank:g}, but this process sees no GPU; set it to 0")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _attach_deepspeed() -> None:
    """DeepSpeed on the existing process group, quiet, and without its just-in-time builds."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def _detach_deepspeed() -> None:
    """Forgets the process group, so that one process can train several times (tests do)."""
    import deepspeed.comm.comm
    from deepspeed.utils import groups

    deepspeed.comm.comm.cdb = None
    groups._WORLD_GROUP = None


@contextmanager
def _without_muon() -> Iterator[None]:
    """DeepSpeed asks whether the optimizer is its Muon, whose import compiles (4 s a rank). It takes ImportError for no."""
    name = "deepspeed.runtime.zero.muon.muon_optimizer"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


class Engine:
    """A model under ZeRO, with AdamW over its trainable parameters (with LoRA, only the adapters)."""

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig, config: EngineConfig, ranks: Ranks) -> None:
        import deepspeed

        self.ranks, self.config = ranks, config
        self.dtype = DTYPES[config.precision]
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if isinstance(model, CogVideoXTransformer):
            model.activation_checkpointing = config.activation_checkpointing
        adam = torch.optim.AdamW(
            trainable, lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay, foreach=True
        )
        numel = sum(parameter.numel() for parameter in trainable)
        with _without_muon():
            self._engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=trainable,
                optimizer=adam,
                config=deepspeed_config(config, optimizer.clip_grad_norm, ranks.size, numel),
                dist_init_required=False,
            )
        self._trainable = trainable

    @property
    def model(self) -> nn.Module:
        """The callable to train with; ZeRO's hooks run in its forward."""
        module: nn.Module = self._engine
        return module

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of a micro-batch's part of the global mean loss; `last` for the train_step's last one."""
        self._engine.set_gradient_accumulation_boundary(last)
        # The mean over ranks is taken by DeepSpeed; the mean over micro-batches is in the loss already.
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """One clipped AdamW step; returns the gradient norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        plain = self.config.zero_stage == 0 and self.config.precision == "fp32"  # no wrapper that measures the norm
        own_norm = nn.utils.get_total_norm([p.grad for p in self._trainable if p.grad is not None]) if plain else None
        self._engine.step()
        norm = own_norm if own_norm is not None else self._engine.get_global_grad_norm()
        if norm is None:
            raise RuntimeError(f"DeepSpeed gave no gradient norm at ZeRO stage {self.config.zero_stage}")
        return float(norm)

    def save(self, folder: Path) -> None:
        """Every rank writes its part of weights (trained ones only) and optimizer state into the folder."""
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """The state that `save` wrote with the same number of ranks and ZeRO stage."""
        path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
        if path is None:
            raise RuntimeError(f"checkpoint {folder} could not be loaded")

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The unwrapped model with whole parameters, on every rank (ZeRO-3 gathers them for the duration)."""
        import deepspeed

        module: nn.Module = self._engine.module
        with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=self.config.zero_stage == 3):
            yield module

    def close(self) -> None:
        """Frees the hooks and buffers."""
        self._engine.destroy()


def deepspeed_config(config: EngineConfig, clip_grad_norm: float, num_ranks: int, num_trainable: int) -> dict[str, Any]:
    """DeepSpeed's settings. The loop counts micro-batches itself, so accumulation is 1 here."""
    bucket = max(1, min(num_trainable, 200_000_000))  # the default, 500 million, is a 2 GB buffer for any small model
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": config.gpus_per_rank > 0,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.cpu_offload and config.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.gpus_per_rank > 0}
    return {
        "train_batch_size": num_ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
