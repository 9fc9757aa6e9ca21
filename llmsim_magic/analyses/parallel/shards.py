"""What one rank holds of a model that is spread over several."""

from dataclasses import dataclass

from llmsim_magic.records.trace.trace import Parameter, Trace


@dataclass(frozen=True, slots=True)
class Shard:
    """A parameter, whole and on the rank: `shape` is None where another stage holds it."""

    name: str
    style: str | None
    whole: tuple[int, ...]
    shape: tuple[int, ...] | None
    whole_bytes: int
    nbytes: int


def shards(whole: Trace, rank: Trace) -> tuple[Shard, ...]:
    """Every parameter of a model, tied ones once, beside what one rank of it holds."""
    held = {p.name: p for p in rank.parameters}
    counted: set[str] = set()
    found = []
    for parameter in whole.parameters:
        if parameter.is_buffer or parameter.tied_to is not None:
            continue
        part = _part(held, whole, parameter)
        nbytes = 0
        if part is not None and (part.tied_to or part.name) not in counted:
            counted.add(part.tied_to or part.name)
            nbytes = part.nbytes
        found.append(
            Shard(
                parameter.name,
                rank.model.plan.get(parameter.name),
                parameter.shape,
                None if part is None else part.shape,
                parameter.nbytes,
                nbytes,
            )
        )
    return tuple(found)


def _part(held: dict[str, Parameter], whole: Trace, parameter: Parameter) -> Parameter | None:
    """The rank's own, under that name or one that is tied to it: a head may outlive its table."""
    names = [parameter.name]
    names += [p.name for p in whole.parameters if p.tied_to == parameter.name]
    return next((held[name] for name in names if name in held), None)
