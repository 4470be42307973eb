"""The models and texts that ship inside the package (`tl_bilinear/zoo`)."""

from pathlib import Path

ZOO = Path(__file__).parent.parent / "zoo"
STORY_SEPARATOR = "<|endoftext|>"


def bundled_models() -> tuple[str, ...]:
    """Names that `load` knows without a folder, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in ZOO.glob("*/config.json")))


def bundled_folder(name: str) -> Path | None:
    """The folder of a bundled model; None where `name` is not one."""
    return ZOO / name if name in bundled_models() else None


def beginning(story: str, n_characters: int) -> str:
    """The story's first whole words, `n_characters` at most."""
    if len(story) <= n_characters:
        return story
    return story[: n_characters + 1].rsplit(maxsplit=1)[0]


def bundled_stories() -> tuple[str, ...]:
    """Stories written by the bundled SwiGLU teacher, not trained on (see zoo/README.md)."""
    text = (ZOO / "stories.txt").read_text(encoding="utf-8")
    return tuple(story.strip() for story in text.split(STORY_SEPARATOR) if story.strip())
