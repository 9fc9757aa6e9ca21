"""Sentences about what a trace assumes of values that only data decides."""

BALANCED_CHOICE = (
    "choices that depend on the data (top-k, argmax, expert routing) are assumed to be balanced"
)
BEFORE_STEP = "before the step: "


def assumption_note(assumption: str, modules: int) -> str:
    """The sentence, with the number of modules that need the assumption if it is not one."""
    return assumption if modules == 1 else f"{assumption} (in {modules:,} modules)"
