"""The user's own Trainer converts a model: annealed, folded, resumed, and finished afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gated import TOKENS, assert_is_bilinear, tiny_llama
from torch.utils.data import Dataset

import tl_bilinear as tlb

STEPS = 8


class Rows(Dataset):
    """Token rows as the Trainer wants them."""

    def __init__(self):
        rows = torch.randint(0, 40, (64, 12), generator=torch.Generator().manual_seed(1))
        self.rows = [{"input_ids": row, "labels": row} for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def trainer(folder: Path, model: Any, *, callbacks: Any = (), **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    arguments = TrainingArguments(**(settings | options))
    return Trainer(model, arguments, train_dataset=Rows(), callbacks=list(callbacks))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS[:, :12]).logits


@pytest.mark.parametrize("learned_scale", [False, True])
def test_trainer_converts_and_a_resumed_one_ends_the_same(learned_scale, tmp_path):
    from tl_bilinear.conversion import AnnealGates

    def make(folder: str) -> Any:
        callback = AnnealGates(fraction=0.5, learned_scale=learned_scale)
        return trainer(tmp_path / folder, tiny_llama(), callbacks=[callback])

    whole = make("whole")
    whole.train()
    betas = [entry["gate_beta"] for entry in whole.state.log_history if "loss" in entry]
    assert betas == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert whole.model.config.hidden_act == "linear"
    assert_is_bilinear(whole.model.get_submodule("model.layers.0.mlp"), torch.randn(3, 16))
    if learned_scale:
        assert not any("scale" in name for name in whole.model.state_dict())

    # As if killed after step 4: only its checkpoint is left.
    halfway = tmp_path / "whole" / "checkpoint-4"
    assert json.loads((halfway / "config.json").read_text())["gate_beta"] == 0.25
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(halfway))
    torch.testing.assert_close(logits(resumed.model), logits(whole.model), rtol=0, atol=0)

    resumed.save_model(str(tmp_path / "bilinear"))
    tlb.self_check(tlb.load(tmp_path / "bilinear"))


@pytest.mark.parametrize("learned_scale", [False, True])
def test_unfolded_training_is_finished_afterwards(learned_scale, tmp_path):
    from tl_bilinear.conversion import AnnealGates, finish_folder

    callback = AnnealGates(fraction=0.5, learned_scale=learned_scale, fold=False)
    made = trainer(tmp_path / "run", tiny_llama(), callbacks=[callback])
    made.train()
    made.save_model(str(tmp_path / "unfolded"))
    expected = logits(made.model)
    finished = finish_folder(tmp_path / "unfolded", tmp_path / "bilinear")
    host = tlb.load(finished)
    with torch.no_grad():
        found = host(TOKENS[:, :12])
    torch.testing.assert_close(
        found.log_softmax(-1), expected.log_softmax(-1), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="is not empty"):
        finish_folder(tmp_path / "unfolded", finished)
    with pytest.raises(ValueError, match="has gate_beta 0.25: only a conversion"):
        finish_folder(tmp_path / "run" / "checkpoint-4", tmp_path / "other")
    with pytest.raises(ValueError, match="has gate_beta None"):
        finish_folder(finished, tmp_path / "other")
    with pytest.raises(ValueError, match="expected a config.json"):
        finish_folder(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_stopped_early_is_not_folded(tmp_path):
    from transformers import TrainerCallback

    from tl_bilinear.conversion import AnnealGates

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    made = trainer(tmp_path, tiny_llama(), callbacks=[AnnealGates(), Stop()])
    made.train()
    assert made.model.config.hidden_act == "silu" and made.model.config.gate_beta > 0


def test_a_callback_that_comes_too_late_or_a_model_without_a_gate(tmp_path):
    from tl_bilinear.conversion import AnnealGates

    late = trainer(tmp_path, tiny_llama())
    late.add_callback(AnnealGates())
    with pytest.raises(ValueError, match="made already"):
        late.train()
    with pytest.raises(ValueError, match="bilinear already"):
        trainer(tmp_path, tiny_llama("linear"), callbacks=[AnnealGates()])
    with pytest.raises(ValueError, match="fraction above 0"):
        AnnealGates(fraction=0.0)
