"""Conversion: annealing is exact at both ends, runs resume bit for bit, bad input is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

REPO = Path(__file__).parents[1]
ZOO = REPO / "tl_bilinear" / "zoo"
TINYSTORIES = REPO.parent / "shared" / "data" / "text" / "tinystories_sample_2MiB.txt"


def tiny_llama(activation: str = "silu", **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "hidden_act": activation,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def log_probs(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits.log_softmax(-1)


def assert_is_bilinear(mlp: torch.nn.Module, x: torch.Tensor) -> None:
    gate, up, down = (mlp.get_submodule(f"{name}_proj") for name in ("gate", "up", "down"))
    assert torch.equal(mlp(x), down(gate(x) * up(x)))


TOKENS = torch.arange(3, 33).reshape(2, 15)


def tiny_config(**changes):
    from tl_bilinear.conversion import DistillationConfig

    settings: dict[str, Any] = {"n_steps": 6, "batch_size": 4, "window": 8, "warmup_steps": 2}
    return DistillationConfig(**(settings | changes))


def tiny_data() -> torch.Tensor:
    return torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(1))


# annealing


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_beta_one_is_the_original_model(activation):
    from tl_bilinear.conversion import anneal_

    model = tiny_llama(activation).double()
    before = log_probs(model, TOKENS)
    anneal_(model)
    torch.testing.assert_close(log_probs(model, TOKENS), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("beta", [1e-3, 0.3, 1.7])
def test_gate_is_activation_of_beta_g_over_beta(activation, beta):
    from transformers.activations import ACT2FN

    from tl_bilinear.conversion import AnnealedGate

    gate = torch.linspace(-20, 20, 101, dtype=torch.float64)
    expected = ACT2FN[activation](beta * gate) / beta
    torch.testing.assert_close(AnnealedGate(activation, beta)(gate), expected)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new"])
def test_beta_zero_is_half_the_gate_exactly(activation):
    from tl_bilinear.conversion import AnnealedGate

    gate = torch.randn(7, 5) * 1e3
    assert torch.equal(AnnealedGate(activation, 0.0)(gate), gate / 2)


def test_small_beta_approaches_the_folded_model():
    from tl_bilinear.conversion import anneal_, fold_gate_, set_beta_

    model = tiny_llama().double()
    anneal_(model, beta=0.0)
    folded = tiny_llama().double()
    anneal_(folded, beta=0.0)
    fold_gate_(folded)
    target, errors = log_probs(folded, TOKENS), []
    for beta in (0.1, 0.01, 0.001):
        set_beta_(model, beta)
        errors.append((log_probs(model, TOKENS) - target).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0  # first order in beta
    set_beta_(model, 1e-300)
    torch.testing.assert_close(log_probs(model, TOKENS), target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_fold_keeps_the_logits_and_survives_a_folder(mlp_bias, tmp_path):
    from tl_bilinear.conversion import anneal_, fold_gate_

    model = tiny_llama(mlp_bias=mlp_bias)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    names = list(model.state_dict())
    anneal_(model, beta=0.0)
    before = model(TOKENS).logits
    fold_gate_(model)
    assert model.config.hidden_act == "linear"
    assert list(model.state_dict()) == names
    assert torch.equal(model(TOKENS).logits, before)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(TOKENS).logits, before)
    assert_is_bilinear(loaded.get_submodule("model.layers.0.mlp"), torch.randn(3, 16))


@pytest.mark.parametrize("name", ["linear_schedule", "cosine_schedule"])
def test_schedules_fall_from_one_to_zero(name):
    import tl_bilinear.conversion as conversion

    schedule = getattr(conversion, name)
    betas = [schedule(step, 100, fraction=0.3) for step in range(101)]
    assert betas[0] == 1
    assert all(b > a for b, a in zip(betas[:30], betas[1:31], strict=True))
    assert betas[30:] == [0.0] * 71


# distillation


def test_bilinearize_learns_and_leaves_the_teacher_alone():
    from tl_bilinear.conversion import (
        anneal_,
        bilinearize,
        distillation_losses,
        fold_gate_,
        windows,
    )

    teacher = tiny_llama()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    config = tiny_config(n_steps=80, batch_size=32, learning_rate=3e-3)
    student = bilinearize(teacher, tiny_data(), config, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())
    assert student.config.hidden_act == "linear" and teacher.config.hidden_act == "silu"
    control = tiny_llama()
    anneal_(control, beta=0.0)
    fold_gate_(control)

    tokens = windows(tiny_data(), tiny_config(batch_size=64), step=10_000)

    def divergence(model):
        with torch.no_grad():
            return distillation_losses(model(tokens).logits, teacher(tokens).logits, tokens).kl

    assert divergence(teacher).abs() < 1e-6
    assert divergence(student) < 0.4 * divergence(control)


def test_losses_are_those_of_torch():
    from torch.nn import functional

    from tl_bilinear.conversion import distillation_losses

    student, teacher = torch.randn(2, 15, 40), torch.randn(2, 15, 40)
    losses = distillation_losses(student, teacher, TOKENS)
    divergence = functional.kl_div(
        student.log_softmax(-1).flatten(0, 1),
        teacher.log_softmax(-1).flatten(0, 1),
        reduction="batchmean",
        log_target=True,
    )
    next_token = functional.cross_entropy(student[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(losses.kl, divergence)
    torch.testing.assert_close(losses.next_token, next_token)


def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path):
    from tl_bilinear.conversion import bilinearize

    config, data = tiny_config(next_token_weight=0.2, weight_decay=0.1), tiny_data()
    whole = bilinearize(tiny_llama(), data, config, progress=False)
    # stopped at step 3; the global random state differs afterwards, as in a new process
    bilinearize(tiny_llama(), data, config, out_folder=tmp_path, stop_at=3, progress=False)
    torch.manual_seed(99)
    resumed = bilinearize(tiny_llama(), data, config, out_folder=tmp_path, progress=False)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(6))


def test_run_killed_between_checkpoints_resumes_from_the_last(tmp_path, monkeypatch):
    from tl_bilinear.conversion import bilinearize, distillation

    config, data = tiny_config(), tiny_data()
    whole = bilinearize(tiny_llama(), data, config, progress=False)
    train_step = distillation._train_step

    def killed(*args):
        if args[-1] == 5:
            raise KeyboardInterrupt
        return train_step(*args)

    monkeypatch.setattr(distillation, "_train_step", killed)
    options = {"out_folder": tmp_path, "checkpoint_every": 2, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        bilinearize(tiny_llama(), data, config, **options)
    monkeypatch.undo()
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 4
    resumed = bilinearize(tiny_llama(), data, config, **options)
    state = resumed.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())


def test_second_run_goes_on_from_a_bilinear_start(tmp_path):
    from tl_bilinear.conversion import bilinearize

    teacher, data = tiny_llama(), tiny_data()
    first = bilinearize(teacher, data, tiny_config(), progress=False)
    before = {k: v.clone() for k, v in first.state_dict().items()}
    config, options = tiny_config(seed=1), {"start": first, "progress": False}
    whole = bilinearize(teacher, data, config, **options)
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert whole.config.hidden_act == "linear"
    assert not torch.equal(
        whole.get_parameter("lm_head.weight"), first.get_parameter("lm_head.weight")
    )
    bilinearize(teacher, data, config, **options, out_folder=tmp_path, stop_at=3)
    resumed = bilinearize(teacher, data, config, **options, out_folder=tmp_path)
    state = resumed.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())
    still = bilinearize(
        teacher, data, tiny_config(learning_rate=1e-9, final_learning_rate=0.0), **options
    )
    x = TOKENS[:, :8]  # nothing is folded a second time
    torch.testing.assert_close(still(x).logits, first(x).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="`start` has the gate activation 'silu'"):
        bilinearize(teacher, data, config, start=teacher, progress=False)


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    from tl_bilinear.conversion import files

    path = tmp_path / "training.pt"
    files.replace_file(path, b"old")

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        files.replace_file(path, b"new, and longer")
    assert path.read_bytes() == b"old"


def test_folder_is_replaced_file_by_file(tmp_path):
    from tl_bilinear.conversion.files import replace_folder

    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "new" / "a").write_text("new")
    (tmp_path / "old" / "a").write_text("old")
    (tmp_path / "old" / "b").write_text("kept")
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "a").read_text() == "new"
    assert (tmp_path / "old" / "b").read_text() == "kept"
    assert not (tmp_path / "new").exists()


def test_windows_depend_on_seed_and_step_alone():
    from tl_bilinear.conversion import windows

    data, config = torch.arange(500), tiny_config()
    first = windows(data, config, 3)
    torch.manual_seed(5)
    assert torch.equal(windows(data, config, 3), first)
    assert not torch.equal(windows(data, config, 4), first)
    assert not torch.equal(windows(data, tiny_config(seed=1), 3), first)
    assert first.shape == (4, 8) and torch.equal(first.diff(dim=1), torch.ones(4, 7).long())
    assert windows(torch.arange(8), config, 0).tolist() == [list(range(8))] * 4


def test_learning_rate_rises_then_falls():
    config = tiny_config(n_steps=100, warmup_steps=10, final_learning_rate=1e-5)
    rates = [config.rate(step) for step in range(101)]
    assert max(rates) == rates[9] == rates[10] == config.learning_rate
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(1e-5)


# sampling


def test_samples_follow_the_model_and_its_seed(tmp_path):
    from tl_bilinear.conversion import sample_stories

    model = tiny_llama()
    options = {"max_tokens": 20, "batch_size": 4, "progress": False}
    drawn = sample_stories(model, 6, seed=3, **options, cache_folder=tmp_path)
    again = sample_stories(model, 6, seed=3, **options)
    cached = sample_stories(model, 6, seed=3, **options, cache_folder=tmp_path)
    assert drawn.rows() == again.rows() == cached.rows()
    assert drawn.rows() != sample_stories(model, 6, seed=4, **options).rows()
    assert all(row[0] == 1 and not {1, 2} & set(row[1:]) for row in drawn.rows())
    assert drawn.stream().tolist() == [token for row in drawn.rows() for token in row]
    for row, complete in zip(drawn.rows(), drawn.complete.tolist(), strict=True):
        assert complete or len(row) == 20
    with pytest.raises(ValueError, match="was drawn with seed=3, but seed=4"):
        sample_stories(model, 6, seed=4, **options, cache_folder=tmp_path)


def test_cold_samples_are_greedy_text():
    from tl_bilinear.conversion import sample_batch

    model = tiny_llama()
    row = sample_batch(model, 3, seed=0, temperature=1e-4, max_tokens=16).rows()[1]
    tokens = [1]
    while len(tokens) < len(row):  # without a cache
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert row == tokens


def test_sampled_frequencies_are_the_models():
    from tl_bilinear.conversion import sample_batch

    model = tiny_llama(initializer_range=0.5)
    samples = sample_batch(model, 20_000, seed=0, max_tokens=2)
    p = log_probs(model, torch.tensor([[1]]))[0, 0].exp()
    running = samples.lengths == 2
    assert 1 - running.float().mean().item() == pytest.approx((p[1] + p[2]).item(), abs=0.02)
    seen = torch.bincount(samples.tokens[running][:, 1], minlength=40) / len(samples)
    expected = p.clone()
    expected[1:3] = 0
    torch.testing.assert_close(seen, expected, atol=0.015, rtol=0)


# evaluation and the bundled models


def test_evaluation_is_the_mean_over_single_stories():
    from tl_bilinear.conversion.evaluation import (
        encode_stories,
        evaluate,
        load_folder,
        read_stories,
    )

    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    stories = read_stories(ZOO / "stories.txt")[:3]
    result = evaluate(model, tokenizer, stories, max_tokens=40, batch_size=2)
    total = 0.0
    for row in encode_stories(tokenizer, stories):
        ids = torch.tensor([row[:40]])
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert result.nats == pytest.approx(total, rel=1e-5)
    assert result.n_tokens == 3 * 39
    cut = [tokenizer.decode(r[1:40]) for r in encode_stories(tokenizer, stories)]
    assert all(story.startswith(text) for story, text in zip(stories, cut, strict=True))
    assert result.n_bytes == sum(len(text.encode()) for text in cut)


def test_bundled_bilinear_model_is_near_its_teacher():
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    stories = read_stories(ZOO / "stories.txt")[:20]
    losses = {}
    for name in ("stories-5l", "stories-5l-swiglu"):
        model, tokenizer = load_folder(ZOO / name)
        losses[name] = evaluate(model, tokenizer, stories).nats_per_token
    assert losses["stories-5l"] == pytest.approx(losses["stories-5l-swiglu"], abs=0.06)


def test_bundled_bilinear_model_is_bilinear():
    from tl_bilinear.conversion.evaluation import load_folder

    model, tokenizer = load_folder(ZOO / "stories-5l")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.hidden_act == "linear"
    assert_is_bilinear(model.get_submodule("model.layers.2.mlp"), torch.randn(4, 64))
    text = "Once upon a time, Zoë said: “hi!”\n1 + 1"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_teacher_writes_the_published_greedy_text():
    from tl_bilinear.conversion.evaluation import load_folder
    from tl_bilinear.conversion.stories import greedy_text

    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    # llama2.c, README and test_all.py: the greedy text of stories260K
    assert greedy_text(model, tokenizer, n_tokens=60).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )


def test_zoo_is_complete_and_small():
    for name in ("stories-5l", "stories-5l-swiglu"):
        files = {path.name: path.stat().st_size for path in (ZOO / name).iterdir()}
        assert set(files) == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "README.md",
            "LICENSE",
        }
        assert sum(files.values()) < 1_200_000
    assert (ZOO / "stories.txt").stat().st_size < 200_000
    assert not list(ZOO.rglob("*.py"))


def test_shipped_stories_are_whole_and_read_back():
    from tl_bilinear.conversion.evaluation import read_stories

    stories = read_stories(ZOO / "stories.txt")
    assert len(stories) == len(set(stories)) == 200
    assert not any("\ufffd" in story or "<" in story for story in stories)


@pytest.mark.skipif(
    not TINYSTORIES.is_file(),
    reason=f"the TinyStories sample is not on this machine: {TINYSTORIES}",
)
def test_bundled_models_on_real_stories():
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    stories = read_stories(TINYSTORIES)[:150]
    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    teacher = evaluate(model, tokenizer, stories)
    assert teacher.n_tokens == 58510
    assert teacher.nats_per_token == pytest.approx(1.4629, abs=1e-3)
    model, tokenizer = load_folder(ZOO / "stories-5l")
    assert evaluate(model, tokenizer, stories).nats_per_token <= 1.505


def test_recipe_runs_from_end_to_end_and_resumes(tmp_path, monkeypatch):
    import shutil

    from tl_bilinear.conversion import stories

    zoo = tmp_path / "zoo"
    shutil.copytree(ZOO / stories.TEACHER, zoo / stories.TEACHER)
    shipped = (ZOO / "stories.txt").read_text().split("<|endoftext|>")[:2]
    (zoo / "stories.txt").write_text("<|endoftext|>".join(shipped))
    monkeypatch.setattr(stories, "SAMPLING_BATCH", 4)
    recipe = {"config": tiny_config(n_steps=2, window=16), "n_stories": 4}
    recipe["polish"] = tiny_config(n_steps=3, window=16, learning_rate=1e-3)
    losses = stories.build(tmp_path / "work", zoo=zoo, **recipe)
    assert set(losses["stories.txt"]) == {"teacher (SwiGLU)", "beta = 0, untrained", "stories-5l"}
    files = {path.name for path in (zoo / "stories-5l").iterdir()}
    assert files == {path.name for path in (ZOO / "stories-5l").iterdir()}
    card = (zoo / "stories-5l" / "README.md").read_text()
    assert "--n-stories 4 --steps 2" in card and "MIT" in card
    weights = (zoo / "stories-5l" / "model.safetensors").read_bytes()
    stories.build(tmp_path / "work", zoo=zoo, **recipe)
    assert (zoo / "stories-5l" / "model.safetensors").read_bytes() == weights
    assert not list(zoo.glob(".*"))


# bad input


def test_unsuitable_activations_are_refused():
    from tl_bilinear.conversion import AnnealedGate, bilinearize

    with pytest.raises(ValueError, match="'relu' cannot be annealed: expected one of silu"):
        AnnealedGate("relu")
    with pytest.raises(ValueError, match="bilinear already"):
        bilinearize(tiny_llama("linear"), tiny_data(), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="finite number from 0"):
        AnnealedGate("silu", -0.1)
    with pytest.raises(ValueError, match="finite number from 0"):
        AnnealedGate("silu", float("nan"))


def test_models_without_gated_mlps_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    from tl_bilinear.conversion import anneal_, set_beta_

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no gated MLP"):
        anneal_(model)
    with pytest.raises(ValueError, match=r"call anneal_\(model\) first"):
        set_beta_(model, 0.0)


@pytest.mark.parametrize("family", ["Qwen2Moe", "Mixtral", "Phi3"])
def test_experts_and_fused_gates_are_refused(family):
    import transformers

    from tl_bilinear.conversion import anneal_

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, eos_token_id=2)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ValueError, match=f"{family}ForCausalLM has (no gated|activations in)"):
        anneal_(model)


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"])
def test_other_families_fold_and_load_again(family, tmp_path):
    import transformers

    from tl_bilinear.conversion import anneal_, fold_gate_

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, vocab_size=40)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    anneal_(model, beta=0.0)
    before = model(TOKENS).logits
    fold_gate_(model)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert torch.equal(loaded(TOKENS).logits, before)
    assert_is_bilinear(loaded.get_submodule("model.layers.1.mlp"), torch.randn(3, 16))


def test_folding_before_the_end_is_refused():
    from tl_bilinear.conversion import anneal_, fold_gate_

    model = tiny_llama()
    with pytest.raises(ValueError, match="not an AnnealedGate"):
        fold_gate_(model)
    anneal_(model, beta=0.25)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="beta 0.25: only beta 0 is linear"):
        fold_gate_(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 0}, "`n_steps` is 0"),
        ({"window": 1}, "`window` is 1"),
        ({"anneal_fraction": 1.5}, "`anneal_fraction` is 1.5"),
        ({"schedule": "cubic"}, "'cubic': expected one of linear, cosine"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"next_token_weight": -1.0}, "`next_token_weight` is -1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_bad_data_is_refused():
    from tl_bilinear.conversion import bilinearize

    model = tiny_llama()
    with pytest.raises(ValueError, match="has 5 tokens, fewer than a window of 8"):
        bilinearize(model, torch.arange(5), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="ids from 0 to 99, but the model has the ids 0 to 39"):
        bilinearize(model, torch.arange(100), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="`window` is 64, but the model's context is 32"):
        bilinearize(model, tiny_data(), tiny_config(window=64), progress=False)


def test_another_run_or_a_damaged_one_is_not_resumed(tmp_path):
    from tl_bilinear.conversion import bilinearize

    options = {"out_folder": tmp_path, "progress": False}
    bilinearize(tiny_llama(), tiny_data(), tiny_config(), stop_at=1, **options)
    with pytest.raises(ValueError, match="holds a run with seed=0, but this one has seed=7"):
        bilinearize(tiny_llama(), tiny_data(), tiny_config(seed=7), **options)
    (tmp_path / "training.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="cannot be read .*: delete it"):
        bilinearize(tiny_llama(), tiny_data(), tiny_config(), **options)


def test_bad_sampling_and_evaluation_input_is_refused(tmp_path):
    from tl_bilinear.conversion import sample_stories
    from tl_bilinear.conversion.evaluation import evaluate, load_folder, read_stories

    with pytest.raises(ValueError, match="`max_tokens` is 33, but the model's context is 32"):
        sample_stories(tiny_llama(), 2, seed=0, max_tokens=33)
    with pytest.raises(ValueError, match="`temperature` is 0"):
        sample_stories(tiny_llama(), 2, seed=0, temperature=0, max_tokens=8)
    with pytest.raises(ValueError, match="no text file"):
        read_stories(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text(" <|endoftext|>\n")
    with pytest.raises(ValueError, match="holds no story"):
        read_stories(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="not a model folder"):
        load_folder(tmp_path)
    model, tokenizer = load_folder(ZOO / "stories-5l-swiglu")
    with pytest.raises(ValueError, match="nothing to predict in 0 stories"):
        evaluate(model, tokenizer, [])
