"""The texts of a report: beginnings of the bundled stories, which may be shown."""

from tl_bilinear.checkpoints.bundled import beginning, bundled_stories

N_STORIES = 100
N_CHARACTERS = 400
SOURCE = (
    f"the beginnings (up to {N_CHARACTERS} characters) of {N_STORIES} stories that the bundled "
    "model stories-5l-swiglu wrote (weights: karpathy's stories260K, MIT licence), shipped with "
    "tl_bilinear"
)


def story_beginnings() -> tuple[str, ...]:
    """The first stories, cut at a space: a page has half a minute."""
    return tuple(beginning(story, N_CHARACTERS) for story in bundled_stories()[:N_STORIES])
