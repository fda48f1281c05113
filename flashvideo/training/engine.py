"""DeepSpeed, and nothing of it anywhere else: ranks, ZeRO, mixed precision, clipping, where the optimizer state lies.

The loop sees ranks, a callable model, `backward`, `step`, `writer`, `load`. On CPUs gloo carries the gradients, and no
C++ extension is compiled at start: plain torch AdamW, and DeepSpeed's shared-memory collectives switched off (their
build takes half a minute).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from flashvideo.config import EngineConfig, OptimizerConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.objectives.batch import Batch
from flashvideo.training.activations import prepare_blocks
from flashvideo.training.pieces import Piece, PieceError, PieceFolder, write_pieces
from flashvideo.training.throughput import Throughput, throughput

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


def _import_muon_uncompiled() -> None:
    """DeepSpeed's ZeRO imports its Muon optimizer, whose decorators start torch's compiler (4 s a rank). We train with AdamW."""
    from deepspeed.runtime import compiler

    right = compiler.compile
    compiler.compile = lambda *args, **settings: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = right


class Engine:
    """A model under ZeRO, with AdamW over its trainable parameters (with LoRA, only the adapters)."""

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig, config: EngineConfig, ranks: Ranks) -> None:
        import deepspeed

        self.ranks, self.config = ranks, config
        self.dtype = DTYPES[config.precision]
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._adapters = len(trainable) < len(list(model.parameters()))
        if isinstance(model, CogVideoXTransformer):
            self._transformer = model.config
            prepare_blocks(model, config)
        adam = torch.optim.AdamW(
            trainable, lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay, foreach=True
        )
        numel = sum(parameter.numel() for parameter in trainable)
        _import_muon_uncompiled()
        self._engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=trainable,
            optimizer=adam,
            config=deepspeed_config(config, optimizer.clip_grad_norm, ranks.size, numel),
            dist_init_required=False,
        )
        self._trainable = trainable
        self._names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._adam = adam
        self._updates = 0
        self._undo_first_step()
        self._ema_decay = optimizer.ema_decay
        self._averages = [] if optimizer.ema_decay is None else [master.detach().clone() for master in self._masters()]

    @property
    def model(self) -> nn.Module:
        """The callable to train with; ZeRO's hooks run in its forward."""
        module: nn.Module = self._engine
        return module

    @property
    def _plain(self) -> bool:
        """No wrapper of DeepSpeed around AdamW: it steps the parameters themselves."""
        return self.config.zero_stage == 0 and self.config.precision == "fp32"

    def backward(self, loss: Tensor, last: bool, discard: bool = False) -> None:
        """Adds the gradients of a micro-batch's part of the global mean loss; `last` for the train_step's last one.

        `discard`, with the last one, makes the whole gradient NaN, which `step` throws away at every ZeRO stage.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # The mean over ranks is taken by DeepSpeed; the mean over micro-batches is in the loss already.
        self._engine.backward(loss * math.nan if discard else loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """One clipped AdamW step; returns the gradient norm before clipping.

        A gradient that is not finite is thrown away: nothing changes, and the norm is infinite, on every rank.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._plain:
            norm = float(nn.utils.get_total_norm([p.grad for p in self._trainable if p.grad is not None]))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return math.inf
            self._engine.step()
        else:
            self._engine.step()
            if not self._engine.was_step_applied():  # DeepSpeed leaves out the step of a norm that is not finite
                return math.inf
            measured = self._engine.get_global_grad_norm()
            if measured is None:
                raise RuntimeError(f"DeepSpeed gave no gradient norm at ZeRO stage {self.config.zero_stage}")
            norm = float(measured)
        self._updates += 1
        self._average()
        return norm

    def _undo_first_step(self) -> None:
        """DeepSpeed's wrapper of bf16 without ZeRO makes AdamW's state by a step without gradients: it counts, and decays weights."""
        if self.config.zero_stage == 0 and not self._plain:
            self._engine.optimizer.refresh_fp32_params()
            for state in self._adam.state.values():
                state["step"].zero_()

    @torch.no_grad()
    def _average(self) -> None:
        if self._ema_decay is not None:
            decay = min(self._ema_decay, (1 + self._updates) / (10 + self._updates))
            for average, master in zip(self._averages, self._masters(), strict=True):
                average.lerp_(master, 1 - decay)

    @property
    def keeps_average(self) -> bool:
        """Whether the optimizer settings ask for averaged weights."""
        return self._ema_decay is not None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has its averaged weights for the duration; after it, its own, bit for bit."""
        masters = self._masters()
        own = [master.detach().clone() for master in masters]
        try:
            self._set_masters(self._averages)
            yield
        finally:
            self._set_masters(own)

    @torch.no_grad()
    def _set_masters(self, values: Sequence[Tensor]) -> None:
        for master, value in zip(self._masters(), values, strict=True):
            master.copy_(value)
        self._take_over_masters()

    def writer(self, folder: Path, copied: bool) -> Callable[[], None]:
        """What writes this rank's pieces of weights (trained ones only) and optimizer state to a folder; it may raise OSError.

        `copied`: of the present state, copied to memory, so that it can be called while training goes on.
        """
        repeated = self.config.zero_stage == 0 and not self.ranks.is_first
        pieces, updates = [] if repeated else self._pieces(), self._updates
        if copied:
            pieces = [piece.copied() for piece in pieces]
        return lambda: write_pieces(folder, self.ranks.rank, pieces, updates)

    def load(self, folder: Path) -> None:
        """The state that `writer` wrote, with any number of ranks and at any ZeRO stage. Raises PieceError."""
        stored = PieceFolder(folder)
        if stored.names("weight") != set(self._names.values()):
            different = sorted(stored.names("weight") ^ set(self._names.values()))
            raise PieceError(f"checkpoint {folder} holds other weights than the model trains, e.g. {different[0]}")
        for piece in self._pieces():
            stored.fill(piece)
        self._updates = stored.updates
        for master in self._masters():
            self._adam.state[master]["step"].fill_(self._updates)
        self._take_over_masters()

    def _masters(self) -> Sequence[Tensor]:
        """The fp32 tensors that AdamW steps: this rank's flat partitions, or (ZeRO 0) one a parameter, the same on every rank."""
        if self._plain:
            return self._trainable
        wrapped = self._engine.optimizer
        if self.config.zero_stage == 0:
            (copies,) = wrapped.fp32_groups
            return list(copies)
        # ZeRO 1 and 2; ZeRO 1 in bf16; ZeRO 3
        names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
        masters: Sequence[Tensor] = next(getattr(wrapped, name) for name in names if hasattr(wrapped, name))
        return masters

    def _pieces(self) -> list[Piece]:
        """Views of this rank's weights and optimizer state, parameter by parameter."""
        masters = self._masters()
        kinds = [{"weight": master.data, **self._moments(master)} for master in masters]
        for tensors, average in zip(kinds, self._averages, strict=False):
            tensors["ema"] = average
        pieces = []
        for place, parameter in enumerate(self._trainable):
            run = self._run(parameter, place)
            if run is not None:
                number, offset, start, count = run
                views = {kind: tensor.view(-1).narrow(0, offset, count) for kind, tensor in kinds[number].items()}
                pieces.append(Piece(self._names[id(parameter)], start, views))
        return pieces

    def _moments(self, master: Tensor) -> dict[str, Tensor]:
        """AdamW's two moments of a master; made where it has not stepped yet, as it makes them."""
        state = self._adam.state[master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return {"exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}

    def _run(self, parameter: nn.Parameter, place: int) -> tuple[int, int, int, int] | None:
        """(number of the master, offset in it, first element of the parameter, count) of what this rank holds of it."""
        if self.config.zero_stage == 0:
            return place, 0, 0, parameter.numel()
        if self.config.zero_stage == 3:
            wrapped = self._engine.optimizer
            number, offset, length = wrapped.grad_position[wrapped.get_param_id(parameter)]
            start = self.ranks.rank * length
            count = min(length, parameter.ds_numel - start)  # type: ignore[attr-defined]
            return (number, offset, start, count) if count > 0 else None
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        inside, own = mapping.hp_fragment_address, mapping.lp_fragment_address
        return mapping.param_group_index, inside.start, own.start, own.numel

    def _take_over_masters(self) -> None:
        """Makes the model's weights those of the masters, on every rank."""
        wrapped = self._engine.optimizer
        if self.config.zero_stage == 3:
            wrapped._partition_all_parameters()
            for number in range(len(wrapped.fp16_groups)):
                wrapped._reassign_or_swap_out_partitioned_parameters(number)
            if wrapped.persistent_parameters:
                wrapped.persistent_parameters[0].all_gather(wrapped.persistent_parameters)
        elif self.config.zero_stage > 0:
            wrapped.update_lp_params()
        elif not self._plain:
            for parameter, master in zip(self._trainable, self._masters(), strict=True):
                parameter.data.copy_(master.data)

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The unwrapped model with whole parameters, on every rank (ZeRO-3 gathers them for the duration)."""
        import deepspeed

        module: nn.Module = self._engine.module
        with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=self.config.zero_stage == 3):
            yield module

    @property
    def peak_memory_gib(self) -> float | None:
        """How much of the GPU the run has needed so far; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.ranks.device.type == "cuda" else None

    def throughput(self, batch: Batch, seconds: float) -> Throughput:
        """Of a train_step that took so long. The model must be a CogVideoXTransformer."""
        peak = self.config.watch.peak_teraflops
        return throughput(self._transformer, batch, self._adapters, self.ranks.size, seconds, peak)

    def close(self) -> None:
        """Frees the hooks and buffers."""
        self._engine.destroy()


def deepspeed_config(config: EngineConfig, clip_grad_norm: float, num_ranks: int, num_trainable: int) -> dict[str, Any]:
    """DeepSpeed's settings. The loop counts micro-batches itself, so accumulation is 1 here."""
    # The default, 500 million, is a 2 GB buffer for any small model; odd ones are refused.
    bucket = min(num_trainable + num_trainable % 2, 200_000_000)
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
