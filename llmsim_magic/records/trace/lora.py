"""The LoRA adapters that a training step adds to a model, as one word of a command line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmsim_magic.records.errors import InvalidValue, is_instance, shorten
from llmsim_magic.records.spelling import nearest

ALL_LINEAR = "all-linear"
MAX_RANK = 1 << 16

_DEFAULT_ALPHA = 8  # peft's own, as of `LoraConfig.lora_alpha`
_SWITCH_KEYS = ("dora", "rslora")
_KEYS = ("r", "alpha", "dropout", "targets", *_SWITCH_KEYS)
# Names of the keys in peft's `LoraConfig` and other libraries.
_OTHER_KEYS = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "lora_target": "targets",
    "modules": "targets",
    "use_dora": "dora",
    "use_rslora": "rslora",
}
_SWITCHES = {"": True, "true": True, "1": True, "false": False, "0": False}
_WHOLE = re.compile(r"[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"([0-9]+\.?|[0-9]*\.[0-9]+)(e-?[0-9]+)?", re.ASCII)
_TARGET = re.compile(r"[\w.-]+")
_AROUND_SIGNS = re.compile(r"\s*([=+])\s*")
_BETWEEN_PARTS = re.compile(r"""[\s,'"()\[\]]+""")
_EXAMPLE = "r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters (Hu et al., 2021): `W x + alpha / r · B A x`, of which only A, B train.

    The fields are those of peft's `LoraConfig`: `r`, `lora_alpha`, `lora_dropout`,
    `target_modules`, `use_dora` and `use_rslora`.

    Attributes:
        r: The rank: A has the shape `[r, in]`, B `[out, r]`.
        alpha: Scales the adapters' output by `alpha / r`.
        dropout: The probability that an input of A is zeroed, from 0 to below 1.
        targets: Names of the adapted modules, or the ends of their paths; `("all-linear",)` for
            each linear layer but the head. Empty for those that peft has for the type of model.
        dora: Also train the magnitude of each adapted weight (Liu et al., 2024).
        rslora: Scale by `alpha / √r` instead (Kalajdzievski, 2023).

    Raises:
        InvalidValue: If a value is outside its range.
    """

    r: int
    alpha: int = _DEFAULT_ALPHA
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_RANK:
                raise _must_be(name, value, f"a whole number from 1 to {MAX_RANK}")
        if not is_instance(self.dropout, float) or not 0 <= self.dropout < 1:
            raise _must_be("dropout", self.dropout, "a number from 0 to below 1")
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise InvalidValue(f"lora: targets={ALL_LINEAR} cannot be combined with other names")

    def __str__(self) -> str:
        """The text that parses to this value; defaults are left out."""
        return ",".join(self._parts())

    def _parts(self) -> Iterator[str]:
        yield f"r={self.r}"
        if self.alpha != _DEFAULT_ALPHA:
            yield f"alpha={self.alpha}"
        if self.dropout:
            yield f"dropout={self.dropout!r}"
        if self.targets:
            yield f"targets={'+'.join(self.targets)}"
        yield from (name for name in ("dora", "rslora") if getattr(self, name))


def parse_lora(given: object) -> Lora:
    """Read the value of `--lora`, or of `lora=` in Python.

    Args:
        given: A rank, such as `16`; or text of `key=value` with commas or spaces between them:
            `r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj,dora`. The names of targets have `+`,
            commas or spaces between them.

    Raises:
        InvalidValue: The text has an unknown key, no rank, or a value outside its range.
    """
    if is_instance(given, Lora):
        return given  # type: ignore[return-value]
    if type(given) is int:
        return Lora(r=given)
    text = str(given).strip() if is_instance(given, str) else ""
    if not text:
        raise InvalidValue.must_be("lora", given, f"a rank such as 16, or text such as {_EXAMPLE}")
    found: dict[str, str] = {}
    for key, value in _pairs(text):
        if key not in _KEYS:
            meant = nearest(key, _KEYS, _OTHER_KEYS)
            raise InvalidValue(
                f"lora: unknown key {shorten(key)} in {shorten(text)}; "
                f"{f'did you mean {meant}? ' if meant else ''}The keys are {', '.join(_KEYS)}, "
                f"such as {_EXAMPLE}"
            )
        if key in found:
            raise InvalidValue(f"lora: {key} is given twice in {shorten(text)}")
        found[key] = value
    if "r" not in found:
        raise InvalidValue(f"lora: the rank r is missing in {shorten(text)}, such as r=16")
    return Lora(
        r=_whole("r", found["r"]),
        alpha=_whole("alpha", found["alpha"]) if "alpha" in found else _DEFAULT_ALPHA,
        dropout=_decimal("dropout", found["dropout"]) if "dropout" in found else 0.0,
        targets=_targets(found["targets"]) if "targets" in found else (),
        dora=_switch("dora", found.get("dora")),
        rslora=_switch("rslora", found.get("rslora")),
    )


def is_lora_key(word: str) -> bool:
    """Whether a word of a line begins with a key of `--lora`, such as `targets=q_proj`."""
    key, sign, _ = word.partition("=")
    return key in _SWITCH_KEYS or (bool(sign) and key in (*_KEYS, *_OTHER_KEYS))


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Each key with its value; a word without a key is a rank, a switch or a further target."""
    pairs: list[tuple[str, str]] = []
    for word in _BETWEEN_PARTS.split(_AROUND_SIGNS.sub(r"\1", text)):
        if not word:
            continue
        key, sign, value = word.partition("=")
        if sign or key in _SWITCH_KEYS:
            pairs.append((key, value))
        elif not pairs and _WHOLE.fullmatch(word):
            pairs.append(("r", word))
        elif pairs and pairs[-1][0] == "targets":
            before = pairs[-1][1]
            pairs[-1] = ("targets", f"{before}+{word}" if before else word)
        else:
            pairs.append((key, ""))
    yield from pairs


def _whole(name: str, text: str) -> int:
    if not _WHOLE.fullmatch(text) or len(text) > 9:
        raise _must_be(name, text, f"a whole number from 1 to {MAX_RANK}")
    return int(text)


def _decimal(name: str, text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise _must_be(name, text, "a number from 0 to below 1")
    return float(text)


def _targets(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(each.strip() for each in text.split("+")))
    wrong = [name for name in names if not _TARGET.fullmatch(name)]
    if wrong:
        raise _must_be("targets", text, f"{ALL_LINEAR} or names of modules, such as q_proj+v_proj")
    return (ALL_LINEAR,) if len(names) == 1 and names[0].lower() == ALL_LINEAR else names


def _switch(name: str, text: str | None) -> bool:
    if text is None:
        return False
    if text.lower() not in _SWITCHES:
        raise _must_be(name, text, "true or false")
    return _SWITCHES[text.lower()]


def _must_be(name: str, given: object, legal: str) -> InvalidValue:
    return InvalidValue.must_be(f"lora: {name}", given, legal)
