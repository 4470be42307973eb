"""AnnealGates where no process holds all weights: FSDP 2 on two CPU processes, through gloo.

accelerate itself shards on GPUs only, so the callback is driven by a loop as the Trainer drives it.
"""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gated import TOKENS, log_probs, tiny_llama

import tl_bilinear as tlb

pytestmark = pytest.mark.one_major(4)

STEPS = 4


def converted(model: Any, callback: Any, shard: Any = lambda model: None) -> Any:
    """The model after a Trainer's calls, by plain gradient descent on the same batch."""
    options = {"args": None, "control": None, "model": model}
    state = SimpleNamespace(global_step=0, max_steps=STEPS)
    callback.on_init_end(state=state, **options)
    shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback.on_train_begin(state=state, **options)
    for _ in range(STEPS):
        callback.on_step_begin(state=state, **options)
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
    callback.on_train_end(state=state, **options)
    return model


def work(rank: int, folder: str) -> None:
    """One of two processes; the first one saves what both hold."""
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tl_bilinear.conversion import AnnealGates

    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def shard(model: Any) -> None:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        held = sum(each.to_local().numel() for each in model.parameters())
        assert held < 0.6 * sum(each.numel() for each in model.parameters())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = converted(tiny_llama(), AnnealGates(learned_scale=True), shard)
    assert any("weights are sharded" in str(each.message) for each in caught)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=whole)
    if rank == 0:
        model.save_pretrained(Path(folder) / "trained", state_dict=state)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_run_is_finished_into_the_same_model(tmp_path: Path):
    from tl_bilinear.conversion import AnnealGates, finish_folder

    if not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    model = tlb.load(finish_folder(tmp_path / "trained", tmp_path / "bilinear"))
    tlb.self_check(model)
    alone = converted(tiny_llama(), AnnealGates(learned_scale=True))
    assert alone.config.hidden_act == "linear"
    with torch.no_grad():
        found = model(TOKENS).log_softmax(-1)
    torch.testing.assert_close(found, log_probs(alone, TOKENS), rtol=1e-4, atol=1e-4)
    start = log_probs(tiny_llama(), TOKENS)
    assert (found - start).abs().max() > 0.01  # something was trained
