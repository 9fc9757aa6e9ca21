"""The hyper-parameters of the models that people ask for first."""

import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model: `config` is what `config.json` holds, `source` how it is known.

    `params` is the number of parameters that transformers builds from it, `published_params`
    what its checkpoint is said to hold. `difference` names the parts that make up the difference,
    with their numbers of elements: positive if only the published number counts them. `note` says
    what is particular about the model.
    """

    name: str
    aliases: tuple[str, ...]
    config: dict[str, Any]
    params: int
    published_params: int
    source: str
    note: str | None
    difference: dict[str, int]


@cache
def entries() -> dict[str, Entry]:
    """Every model of the catalogue by its hub id."""
    text = resources.files(__package__).joinpath("models.json").read_text("utf-8")
    return {
        name: Entry(
            name=name,
            aliases=tuple(facts["aliases"]),
            config=facts["config"],
            params=facts["params"],
            published_params=facts["published_params"],
            source=facts["source"],
            note=facts["note"],
            difference=facts.get("difference", {}),
        )
        for name, facts in json.loads(text)["models"].items()
    }


@cache
def _names() -> dict[str, str]:
    """Every spelling, in lower case: the id, its aliases, and both without the owner."""
    spellings: dict[str, str] = {}
    for entry in entries().values():
        for spelling in (entry.name, *entry.aliases):
            spellings.setdefault(spelling.lower(), entry.name)
    return spellings


def find(name: str) -> Entry | None:
    """The entry of that id or alias, case aside."""
    known = _names().get(name.lower())
    return None if known is None else entries()[known]


def nearest(name: str, count: int = 3) -> list[str]:
    """The ids most like a misspelt one, best first."""
    wanted = name.lower()
    spellings = {**{known.rpartition("/")[2]: full for known, full in _names().items()}, **_names()}
    close = difflib.get_close_matches(wanted, spellings, n=3 * count, cutoff=0.6)
    short = difflib.get_close_matches(wanted.rpartition("/")[2], spellings, n=3 * count, cutoff=0.6)
    holding = [spelling for spelling in spellings if wanted and wanted in spelling]
    ranked = sorted(
        dict.fromkeys((*close, *short, *holding)),
        key=lambda spelling: -difflib.SequenceMatcher(None, wanted, spelling).ratio(),
    )
    return list(dict.fromkeys(spellings[spelling] for spelling in ranked))[:count]
