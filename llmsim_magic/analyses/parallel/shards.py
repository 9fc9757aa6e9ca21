"""The part of each parameter that one rank of a parallel model holds."""

from dataclasses import dataclass

from llmsim_magic.records.trace.trace import Parameter, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A parameter's full shape and its shape on one rank; None if another stage holds it."""

    name: str
    style: str | None
    full_shape: tuple[int, ...]
    shape: tuple[int, ...] | None
    full_bytes: int
    nbytes: int


def shards(full: Trace, rank: Trace) -> tuple[Shard, ...]:
    """Every parameter of a model with the shard that one rank holds; tied parameters appear once.

    Args:
        full: A trace of the model on one device.
        rank: A trace of one rank of the same model.
    """
    held = {p.name: p for p in rank.parameters}
    counted: set[str] = set()
    found = []
    for parameter in full.parameters:
        if parameter.is_buffer or parameter.tied_to is not None:
            continue
        part = _shard_of(held, full, parameter)
        nbytes = 0
        if part is not None and (part.tied_to or part.name) not in counted:
            counted.add(part.tied_to or part.name)
            nbytes = part.nbytes
        found.append(
            Shard(
                name=parameter.name,
                style=rank.model.plan.get(parameter.name),
                full_shape=parameter.shape,
                shape=None if part is None else part.shape,
                full_bytes=parameter.nbytes,
                nbytes=nbytes,
            )
        )
    return tuple(found)


def _shard_of(held: dict[str, Parameter], full: Trace, parameter: Parameter) -> Parameter | None:
    """The rank's parameter of that name, or one tied to it if the rank lacks the first owner."""
    names = [parameter.name]
    names += [p.name for p in full.parameters if p.tied_to == parameter.name]
    return next((held[name] for name in names if name in held), None)
