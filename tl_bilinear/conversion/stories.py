"""The recipe of `stories-5l`: stories260K, a SwiGLU Llama, made bilinear.

Everything it needs lies in the package: the teacher (`zoo/stories-5l-swiglu`) writes the training
text itself. A run is kept in the work folder; when stopped, the same command goes on. At the end
the model and its card replace those in `zoo/stories-5l`, file by file.

    python -m tl_bilinear.conversion.stories --work-dir .cache/models
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Int
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from tl_bilinear.conversion.annealing import anneal_, fold_gate_
from tl_bilinear.conversion.distillation import bilinearize
from tl_bilinear.conversion.evaluation import (
    SEPARATOR,
    Evaluation,
    encode_stories,
    evaluate,
    load_folder,
    read_stories,
    story_stream,
)
from tl_bilinear.conversion.memory import keep_freed_memory
from tl_bilinear.conversion.sampling import SampledStories, sample_stories
from tl_bilinear.conversion.story_card import StoryCard, card_text
from tl_bilinear.conversion.story_stages import STAGES, FinishedStage, Stage
from tl_bilinear.conversion.widening import widen_
from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import (
    fingerprint_settings,
    fingerprint_tokens,
    replace_file,
    whole_folder,
)

ZOO = Path(__file__).parents[1] / "zoo"
TEACHER, STUDENT, SHIPPED_TEXT = "stories-5l-swiglu", "stories-5l", "stories.txt"
HELD_OUT = 150  # the first stories of a text, never trained on
TRAINING_SEED, SHIPPED_SEED = 0, 1  # of the stories that the teacher writes
SAMPLING_BATCH = 512
N_SHIPPED = 200
PROMPT = "Once upon a time"
CURVE_STORIES = 100  # of the shipped text, read for the curve while training


def shippable_texts(samples: SampledStories, tokenizer, n_stories: int) -> list[str]:
    """Return the first `n_stories` texts of `samples` that are complete and read back the same.

    A story passes where it ended by itself and its text, tokenized again, gives its own tokens:
    that leaves out broken UTF-8 and spellings that the tokenizer would not choose.

    Raises:
        ValueError: where fewer stories pass.
    """
    rows = [row for row, ok in zip(samples.rows(), samples.complete.tolist(), strict=True) if ok]
    texts = tokenizer.batch_decode([r[1:] for r in rows], clean_up_tokenization_spaces=False)
    again = encode_stories(tokenizer, texts)
    passed = [
        text
        for text, row, reread in zip(texts, rows, again, strict=True)
        if row == reread and text == text.strip() and text and SEPARATOR not in text
    ]
    if len(passed) < n_stories:
        raise ValueError(
            f"only {len(passed)} of {len(samples)} stories are complete and read back the same, "
            f"but {n_stories} were asked for: sample more."
        )
    return passed[:n_stories]


def write_shipped_text(teacher: PreTrainedModel, tokenizer, work_dir: Path, zoo: Path) -> None:
    """Write `stories.txt`, held-out stories of the teacher's, unless it is there already."""
    path = zoo / SHIPPED_TEXT
    if path.exists():
        return
    samples = sample_stories(
        teacher,
        SAMPLING_BATCH,
        seed=SHIPPED_SEED,
        batch_size=SAMPLING_BATCH,
        cache_folder=work_dir / "samples-shipped",
    )
    texts = shippable_texts(samples, tokenizer, N_SHIPPED)
    replace_file(path, (f"\n{SEPARATOR}\n".join(texts) + "\n").encode())


def training_stream(
    teacher: PreTrainedModel, tokenizer, stage: Stage, text: Path | None, work_dir: Path
) -> Int[Tensor, " n_tokens"]:
    """Return the tokens of a stage: stories the teacher writes, then those of `text`.

    The first 150 stories of `text` are left out, and its last one, which may be cut.
    """
    parts = []
    if stage.n_stories:
        samples = sample_stories(
            teacher,
            stage.n_stories,
            seed=TRAINING_SEED,
            batch_size=SAMPLING_BATCH,
            cache_folder=work_dir / "samples-training",
        )
        parts.append(samples.stream())
    if text is not None:
        stream = story_stream(tokenizer, read_stories(text)[HELD_OUT:-1])
        parts += [stream] * stage.text_copies
    if not parts:
        raise ValueError("a stage of 0 stories needs --text: there is nothing to train on")
    return torch.cat(parts)


@torch.no_grad()
def greedy_text(
    model: PreTrainedModel, tokenizer, prompt: str = PROMPT, n_tokens: int = 200
) -> str:
    """Return the prompt and the model's most likely continuation, to the story's end at most."""
    tokens = encode_stories(tokenizer, [prompt])[0]
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for _ in range(n_tokens):
        ids = torch.tensor([tokens], device=model.device)
        likeliest = int(model(ids, use_cache=False).logits[0, -1].argmax())
        if likeliest in ends:
            break
        tokens.append(likeliest)
    return tokenizer.decode(tokens, skip_special_tokens=True)


def folded_untrained(teacher_folder: Path) -> PreTrainedModel:
    """Return the teacher with beta set to 0 at once and no training: the control."""
    model, _ = load_folder(teacher_folder)
    anneal_(model, beta=0.0)
    fold_gate_(model)
    return model


def save_student(model: PreTrainedModel, card: str, teacher_folder: Path, folder: Path) -> None:
    """Write weights, tokenizer, licence and card to `folder`, each file whole."""
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
            shutil.copyfile(teacher_folder / name, temporary / name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / "model.safetensors").chmod(0o644)


def build(
    work_dir: Path,
    *,
    zoo: Path = ZOO,
    text: Path | None = None,
    held_out: Path | None = None,
    stages: Sequence[Stage] = STAGES,
) -> dict[str, dict[str, Evaluation]]:
    """Make `stories-5l` and its card; return the losses by text and model.

    Each stage and training text has a run of its own in `work_dir`.

    Args:
        work_dir: samples and checkpoints, for resuming.
        zoo: holds the teacher's folder; the model and the shipped text are written here.
        text: more stories to train on, mixed in; its first 150 are held out.
        held_out: a text whose first 150 stories are only evaluated on; `text` if not given.
        stages: the conversion, and the runs that go on from its end.
    """
    teacher, tokenizer = load_folder(zoo / TEACHER)
    write_shipped_text(teacher, tokenizer, work_dir, zoo)
    sets = {SHIPPED_TEXT: read_stories(zoo / SHIPPED_TEXT)}
    held_out = held_out or text
    if held_out is not None:
        sets[held_out.name] = read_stories(held_out)[:HELD_OUT]

    def curve(student: PreTrainedModel) -> dict[str, float]:
        some = {**sets, SHIPPED_TEXT: sets[SHIPPED_TEXT][:CURVE_STORIES]}
        return {k: evaluate(student, tokenizer, s).nats_per_token for k, s in some.items()}

    student, done = None, []
    for stage in stages:
        data = training_stream(teacher, tokenizer, stage, text, work_dir)
        run = work_dir / f"run-{fingerprint_tokens(data)}-{fingerprint_settings(stage.config)}"
        done.append(FinishedStage(stage, run, len(data)))
        if stage.d_mlp is not None and student is not None:
            widen_(student, stage.d_mlp)
        student = bilinearize(
            teacher,
            data,
            stage.config,
            start=student,
            out_folder=run,
            evaluate=curve,
            evaluate_every=max(1, stage.config.n_steps // 4),
        )
    assert student is not None, "the first stage always runs"
    losses = {name: {} for name in sets}
    for which, model in [
        ("teacher (SwiGLU)", teacher),
        ("beta = 0, untrained", folded_untrained(zoo / TEACHER)),
        ("stories-5l", student),
    ]:
        for name, stories in sets.items():
            losses[name][which] = evaluate(model, tokenizer, stories)
    card = StoryCard(
        stages=tuple(done),
        losses=losses,
        text=text,
        held_out=held_out,
        n_held_out=HELD_OUT,
        sample=greedy_text(student, tokenizer),
        d_mlp=student.config.intermediate_size,
        n_weights=sum(each.numel() for each in student.parameters()),
    )
    save_student(student, card_text(card), zoo / TEACHER, zoo / STUDENT)
    return losses


def _main(
    work_dir: Annotated[Path, typer.Option(help="Samples and checkpoints; resumes from here.")],
    text: Annotated[
        Path | None,
        typer.Option(help=f"Also train on these stories, all but the first {HELD_OUT}."),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help=f"Only evaluate on this text's first {HELD_OUT} stories.")
    ] = None,
    zoo: Annotated[Path, typer.Option(help="Where the models lie.")] = ZOO,
    n_stages: Annotated[
        int, typer.Option("--stages", help="Stop behind so many of the recipe's runs.")
    ] = len(STAGES),
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Rebuild the bilinear story model from the bundled SwiGLU teacher, without the network."""
    console = Console()
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    with errors_in_one_line(work_dir=work_dir):
        if not 1 <= n_stages <= len(STAGES):
            raise ValueError(f"--stages is {n_stages}: give 1 to {len(STAGES)}")
        losses = build(work_dir, zoo=zoo, text=text, held_out=held_out, stages=STAGES[:n_stages])
    for name, by_model in losses.items():
        for which, loss in by_model.items():
            console.print(f"{name}: {which}: {loss.nats_per_token:.4f} nats per token")
    console.print(f"written: {zoo / STUDENT}")


if __name__ == "__main__":
    typer.run(_main)
