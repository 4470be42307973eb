"""The texts of a report: beginnings of the bundled stories, which may be shown."""

from tl_bilinear.checkpoints.bundled import bundled_stories

N_STORIES = 100
N_CHARACTERS = 400
SOURCE = (
    f"the beginnings (up to {N_CHARACTERS} characters) of {N_STORIES} stories that the bundled "
    "model stories-5l-swiglu wrote (weights: karpathy's stories260K, MIT licence), shipped with "
    "tl_bilinear"
)


def story_beginnings() -> tuple[str, ...]:
    """The first stories, cut at a space: a page has half a minute."""
    return tuple(_beginning(story) for story in bundled_stories()[:N_STORIES])


def _beginning(story: str) -> str:
    if len(story) <= N_CHARACTERS:
        return story
    return story[: N_CHARACTERS + 1].rsplit(maxsplit=1)[0]
