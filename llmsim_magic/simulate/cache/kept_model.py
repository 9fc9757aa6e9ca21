"""What the disk keeps of one model: limits, traces and formulas, or why a workload has none."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.records.errors import CannotTrace, InvalidValue, LlmsimError, NoDecode
from llmsim_magic.records.trace.context_limits import ContextLimits
from llmsim_magic.records.trace.trace import Module, Parameter, Trace
from llmsim_magic.records.trace.valid_indices import has_valid_indices
from llmsim_magic.simulate.cache.disk_cache import DiskCache
from llmsim_magic.simulate.cache.environment import (
    State,
    changed_since_import,
    file_states,
)
from llmsim_magic.simulate.cache.session_cache import Kind, Question

Value = TypeVar("Value")
_ERRORS: dict[str, type[LlmsimError]] = {
    error.__name__: error for error in (CannotTrace, InvalidValue, NoDecode)
}
# Causes that may be gone the next time.
_PASSING = (OSError, MemoryError, RecursionError, ImportError)


class Hierarchy(msgspec.Struct):
    """The modules and parameters of a model, which its traces have in common."""

    modules: tuple[Module, ...]
    parameters: tuple[Parameter, ...]


class KeptTrace(msgspec.Struct):
    """A trace without its modules and parameters, and the digest of those."""

    hierarchy: str
    trace: Trace


class KeptFormulas(msgspec.Struct):
    """Formulas, and for each region the digest of its modules and parameters."""

    hierarchies: tuple[str, ...]
    symbolic: SymbolicTrace


class Reach(msgspec.Struct):
    """The number of tokens beyond which a forward fails; None if it runs on all that were asked."""

    longest: int | None


class KeptError(msgspec.Struct):
    """Why a model cannot be built, or a workload cannot be traced."""

    kind: str
    message: str


class Entry(msgspec.Struct):
    """What is kept, and the files of code that it depends on.

    Attributes:
        files: the name of the list of these files.
        states: a digest of their sizes and times of change.
        content: what is kept, encoded.
    """

    files: str
    states: str
    content: msgspec.Raw


@dataclass
class KeptModel:
    """The entries of one model, as far as the code that this process would run has made them.

    Attributes:
        cache: where the entries are.
        identity: the config of the model and how it is built, as text.
        environment: a digest of what is installed.
        origin: where the config came from this time.
        notes: what the report says about how the config was found this time.
        reads: whether to answer from entries that exist; if not, they are replaced.
    """

    cache: DiskCache
    identity: str
    environment: str
    origin: str
    notes: tuple[str, ...] = ()
    reads: bool = True
    _states: dict[str, State] = field(default_factory=dict, init=False)  # by name of the list
    _hierarchies: dict[str, Hierarchy] = field(default_factory=dict, init=False)  # by digest

    def limits(self) -> ContextLimits | None:
        """The longest contexts of the model; None if they are not kept.

        Raises:
            LlmsimError: the model cannot be built, as was found before.
        """
        self._raise_kept("model")
        found = self._read("limits", ContextLimits)
        return found if found is not None and found.is_possible else None

    def keep_limits(self, limits: ContextLimits, files: Iterable[str]) -> None:
        """Keep the limits of a model that was built from the code in `files`."""
        self._write("limits", limits, files)

    def reach(self, tokens: int) -> Reach | None:
        """How far below `tokens` the forward was found to run; None if it is not kept."""
        return self._read(f"runs {tokens}", Reach)

    def keep_reach(self, tokens: int, reach: Reach, files: Iterable[str]) -> None:
        """Keep how far below `tokens` the forward runs."""
        self._write(f"runs {tokens}", reach, files)

    def trace(self, question: Question) -> Trace | None:
        """The trace that answers a question; None if it is not kept.

        Raises:
            LlmsimError: the workload cannot be traced, as was found before.
        """
        self._raise_kept(str(question))
        kept = self._read(f"trace {question}", KeptTrace)
        hierarchy = None if kept is None else self._hierarchy(kept.hierarchy)
        if kept is None or hierarchy is None:
            return None
        if kept.trace.workload != question.workload or not has_valid_indices(kept.trace):
            return None
        return self._restored(kept.trace, hierarchy)

    def has_trace(self, question: Question) -> bool:
        """Whether an entry that may answer a question exists."""
        return self.reads and self.cache.has(self._key(f"trace {question}"))

    def keep_trace(self, question: Question, trace: Trace, files: Iterable[str]) -> None:
        """Keep the trace that answers a question, which the code in `files` made."""
        files = tuple(files)
        name = self._keep_hierarchy(trace, files)
        self._write(f"trace {question}", KeptTrace(name, self._body(trace)), files)

    def derived(self, question: Question, what: str, kind: type[Value]) -> Value | None:
        """What was computed of the trace that answers a question; None if it is not kept.

        Args:
            question: what the trace answers.
            what: what was computed, with all else that it depends on.
            kind: its type.
        """
        return self._read(f"{what} of trace {question}", kind)

    def keep_derived(self, question: Question, what: str, value: object) -> None:
        """Keep what was computed of a trace that is kept, as long as that is up to date."""
        entry = self._decoded(self._key(f"trace {question}"), Entry)
        states = None if entry is None else self._states_of(entry.files)
        if entry is None or states is None or _digest(states) != entry.states:
            return
        if not changed_since_import(states):
            content = msgspec.Raw(msgspec.msgpack.encode(value))
            made = Entry(entry.files, entry.states, content)
            key = self._key(f"{what} of trace {question}")
            self.cache.write(key, msgspec.msgpack.encode(made))

    def symbolic(self, kind: Kind) -> SymbolicTrace | None:
        """The formulas of a phase; None if they are not kept."""
        kept = self._read(f"symbolic {kind}", KeptFormulas)
        if kept is None:
            return None
        regions = []
        for name, region in zip(kept.hierarchies, kept.symbolic.regions, strict=False):
            template, hierarchy = region.template, self._hierarchy(name)
            is_whole = has_valid_indices(template) and region.has_valid_indices()
            if hierarchy is None or template.workload.phase != kind[0] or not is_whole:
                return None
            regions.append(replace(region, template=self._restored(template, hierarchy)))
        return replace(kept.symbolic, regions=tuple(regions))

    def keep_symbolic(self, kind: Kind, symbolic: SymbolicTrace, files: Iterable[str]) -> None:
        """Keep the formulas of a phase, which the code in `files` made."""
        files = tuple(files)
        names = tuple(self._keep_hierarchy(each.template, files) for each in symbolic.regions)
        bodies = tuple(
            replace(region, template=self._body(region.template)) for region in symbolic.regions
        )
        kept = KeptFormulas(names, replace(symbolic, regions=bodies))
        self._write(f"symbolic {kind}", kept, files)

    def keep_error(self, what: str, error: LlmsimError, files: Iterable[str]) -> None:
        """Keep why a question has no trace, or the model (`what` is `model`) cannot be built.

        An error that may pass, such as a lack of memory, is not kept.
        """
        is_lasting = type(error) in _ERRORS.values() and not isinstance(error.__cause__, _PASSING)
        if is_lasting:
            self._write(f"error {what}", KeptError(type(error).__name__, str(error)), files)

    def _body(self, trace: Trace) -> Trace:
        """A trace without what many traces of the model have in common."""
        notes = tuple(note for note in trace.notes if note not in self.notes)
        return replace(trace, modules=(), parameters=(), notes=notes)

    def _restored(self, body: Trace, hierarchy: Hierarchy) -> Trace:
        """The trace whose `_body` was kept, of a config that was found as it was this time."""
        return replace(
            body,
            model=replace(body.model, origin=self.origin),
            modules=hierarchy.modules,
            parameters=hierarchy.parameters,
            notes=tuple(dict.fromkeys((*self.notes, *body.notes))),
        )

    def _hierarchy(self, name: str) -> Hierarchy | None:
        found = self._hierarchies.get(name) or self._read(f"hierarchy {name}", Hierarchy)
        if found is not None:
            self._hierarchies[name] = found
        return found

    def _keep_hierarchy(self, trace: Trace, files: tuple[str, ...]) -> str:
        """Keep the modules and parameters of a trace; returns the name of their entry."""
        for name, known in self._hierarchies.items():
            if known.modules is trace.modules and known.parameters is trace.parameters:
                return name
        hierarchy = Hierarchy(trace.modules, trace.parameters)
        name = hashlib.sha256(msgspec.msgpack.encode(hierarchy)).hexdigest()
        if self._read(f"hierarchy {name}", Hierarchy) is None:
            self._write(f"hierarchy {name}", hierarchy, files)
        self._hierarchies[name] = hierarchy
        return name

    def _raise_kept(self, what: str) -> None:
        kept = self._read(f"error {what}", KeptError)
        if kept is not None and kept.kind in _ERRORS:
            raise _ERRORS[kept.kind](kept.message)

    def _read(self, what: str, kind: type[Value]) -> Value | None:
        """The content of an entry; None if it is missing, or if the code has changed."""
        if not self.reads:
            return None
        entry = self._decoded(self._key(what), Entry)
        if entry is None or entry.states != _digest(self._states_of(entry.files)):
            return None
        return _decode(entry.content, kind)

    def _write(self, what: str, value: object, files: Iterable[str]) -> None:
        """Write an entry, unless this process may run other code than what the files hold."""
        paths = tuple(sorted(files))
        states = file_states(paths)
        name = _digest(paths)
        if changed_since_import(states) or self._states.setdefault(name, states) != states:
            return
        if self.cache.read(name) is None:
            self.cache.write(name, msgspec.msgpack.encode(paths))
        entry = Entry(name, _digest(states), msgspec.Raw(msgspec.msgpack.encode(value)))
        self.cache.write(self._key(what), msgspec.msgpack.encode(entry))

    def _states_of(self, name: str) -> State | None:
        """The states of the files of a list; None if there is no such list."""
        known = self._states.get(name)
        if known is not None:
            return file_states(path for path, _, _ in known)
        paths = self._decoded(name, tuple[str, ...])
        if paths is None:
            return None
        states = file_states(paths)
        self._states.setdefault(name, states)
        return states

    def _decoded(self, key: str, kind: type[Value]) -> Value | None:
        content = self.cache.read(key)
        return None if content is None else _decode(content, kind)

    def _key(self, what: str) -> str:
        return _digest((self.identity, self.environment, what))


def _decode(content: bytes | msgspec.Raw, kind: type[Value]) -> Value | None:
    """The value that bytes encode; None if they are of a program that keeps something else."""
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, LlmsimError, RecursionError, UnicodeError):
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()
