"""`MeshPropagator`: the strict reader and the replacing writer as one OpenTelemetry propagator.

OpenTelemetry and other instrumentations call `extract`, `inject` and `fields`. What stands below these is for the
adapters of this package, which know more: the raw lines, the destination, whether a host has read the request before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableMapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.context import get_current as get_current_context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from meshmw._context.carriers import Lines, are_same, header_lines
from meshmw._context.extraction import B3_KEY, READ_KEY, Extraction, HeaderReader
from meshmw._context.read_baggage import BaggageReader
from meshmw._context.read_trace import TraceReader
from meshmw._context.write import HeaderWriter, OutgoingHeaders, can_be_replaced_in
from meshmw._notices import DEFAULT_WARN_WINDOW, Rejections, SilentRejections
from meshmw._otel import SPAN_KEY
from meshmw._policy.outbound import (
    DEFAULT_BAGGAGE_TO,
    DEFAULT_HEADER_BUDGET,
    DEFAULT_PASSTHROUGH_HEADERS,
    DEFAULT_PROPAGATE_TO,
    HeaderBudget,
    OutboundScope,
    Pairs,
    passable,
)
from meshmw._policy.patterns import DEFAULT_BAGGAGE_KEYS, BaggageKeys
from meshmw._policy.words import (
    DEFAULT_DUPLICATES,
    DEFAULT_PREFER,
    DEFAULT_PROPAGATORS,
    DEFAULT_TRUST,
    Duplicates,
    Format,
    Prefer,
    Trust,
    items_of,
    limit_of,
    one_of,
    words_of,
)
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS
from meshmw.wire.headers import B3_HEADERS, PROPAGATION_HEADERS, SENT_HEADER, TRACE_HEADERS
from meshmw.wire.traceparent import DEFAULT_TRACEPARENT_POLICY, TraceParentPolicy

if TYPE_CHECKING:
    from meshmw.settings import Settings

__all__ = ["Extraction", "MeshPropagator", "Rejections"]


def __dir__() -> list[str]:
    return sorted(__all__)


class MeshPropagator(TextMapPropagator):
    """Propagates W3C Trace Context Level 2, W3C Baggage and optionally B3, strictly.

    A malformed trace header is refused with a warning and a counter, and the operation starts a new trace. Where a
    valid traceparent and B3 disagree, the traceparent decides, in whatever order the formats are listed. Set as the
    global propagator, it makes every instrumentation that uses the global one strict.

    Args:
        propagators: The formats: `tracecontext`, `baggage`, `b3` (single header), `b3multi`. Either B3 format reads
            both.
        traceparent_policy: `strict` takes version 00 alone; `w3c` also takes 01 to fe as Level 2 asks.
        duplicates: Of several traceparents, `restart` takes none; `same-trace` the first, where all name one trace.
        prefer: Which of `w3c` and `b3` decides where they disagree; `auto` takes the one that was written last, where
            B3 tells.
        trust: `continue` trusts the sender; `restart` starts a new trace that links to the sender's; `ignore` does
            not look.
        baggage_max_members: Members taken and sent at most.
        baggage_max_bytes: Bytes of baggage taken and sent at most, all header lines together.
        baggage_keys: Patterns of the keys that are taken and sent; one with a `!` before it leaves keys out.
        propagate_to: Patterns of the hosts that get trace headers; `*` is every host, `mesh` what is in the mesh.
        baggage_to: Patterns of the hosts, of those, that get baggage.
        header_budget: The bytes and the number of request headers that every proxy on the way accepts; bytes alone go
            with 100 headers.
        passthrough_headers: Headers that outbound requests carry on as they came in.
        warn_window: Seconds between two warnings of the same reason.

    Raises:
        ValueError: A word is none of the named ones, a list is a text, a pattern is malformed, a limit is no number or
            too small, or a header may not be passed through.

    Attributes:
        formats: What is read and written.
        trust: How far every sender is trusted.
        passthrough: The headers that are carried on, in lower case.
        rejections: Counts what was refused.
        names_read: The names, in lower case, of the headers that `read` takes something from.
        names_checked: Those, and the names of every format: what is malformed of one must not stay, whoever reads it.
        watched: The names, in lower case, of the headers that outbound calls replace, remove or check.
    """

    def __init__(
        self,
        propagators: Collection[Format] = DEFAULT_PROPAGATORS,
        *,
        traceparent_policy: TraceParentPolicy = DEFAULT_TRACEPARENT_POLICY,
        duplicates: Duplicates = DEFAULT_DUPLICATES,
        prefer: Prefer = DEFAULT_PREFER,
        trust: Trust = DEFAULT_TRUST,
        baggage_max_members: int = MAX_MEMBERS,
        baggage_max_bytes: int = MAX_BYTES,
        baggage_keys: Sequence[str] = DEFAULT_BAGGAGE_KEYS,
        propagate_to: Sequence[str] = DEFAULT_PROPAGATE_TO,
        baggage_to: Sequence[str] = DEFAULT_BAGGAGE_TO,
        header_budget: tuple[int, int] | int = DEFAULT_HEADER_BUDGET,
        passthrough_headers: Collection[str] = DEFAULT_PASSTHROUGH_HEADERS,
        warn_window: float = DEFAULT_WARN_WINDOW,
    ) -> None:
        self.formats: tuple[Format, ...] = words_of(Format, propagators, "propagators")
        self.trust: Trust = one_of(Trust, trust, "trust")
        self.passthrough = passable(items_of(passthrough_headers, "passthrough_headers"))
        self.rejections = Rejections(warn_window)
        self.names_read = _names_read(self.formats, self.passthrough)
        self.names_checked = self.names_read | PROPAGATION_HEADERS
        self._unread = PROPAGATION_HEADERS - self.names_read
        self.watched = frozenset(
            name.encode("ascii") for name in (*PROPAGATION_HEADERS, SENT_HEADER, *self.passthrough)
        )
        keys = BaggageKeys(items_of(baggage_keys, "baggage_keys"))
        max_members = limit_of(baggage_max_members, "baggage_max_members")
        max_bytes = limit_of(baggage_max_bytes, "baggage_max_bytes")
        scope = _outbound_scope(propagate_to, baggage_to, header_budget, self.rejections)
        trace = _trace_reader(self.formats, traceparent_policy, duplicates, prefer)
        baggage = BaggageReader(keys, max_members, max_bytes)
        self._reader = self._header_reader(trace, baggage, self.rejections)
        self._checker = self._header_reader(trace, baggage, SilentRejections())
        self._writer = HeaderWriter(
            formats=self.formats,
            baggage_keys=keys,
            baggage_max_members=max_members,
            baggage_max_bytes=max_bytes,
            rejections=self.rejections,
        )
        self._outgoing = OutgoingHeaders(
            writer=self._writer,
            checker=self._checker,
            scope=scope,
            rejections=self.rejections,
            watched=self.watched,
        )

    def _header_reader(self, trace: TraceReader, baggage: BaggageReader, rejections: Rejections) -> HeaderReader:
        return HeaderReader(
            trace=trace,
            baggage=baggage,
            takes_baggage="baggage" in self.formats,
            passthrough=self.passthrough,
            rejections=rejections,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> MeshPropagator:
        """Make the propagator that the settings ask for."""
        return cls(
            settings.propagators,
            traceparent_policy=settings.traceparent_policy,
            duplicates=settings.duplicates,
            prefer=settings.prefer,
            trust=settings.trust,
            baggage_max_members=settings.baggage_max_members,
            baggage_max_bytes=settings.baggage_max_bytes,
            baggage_keys=settings.baggage_keys,
            propagate_to=settings.propagate_to,
            baggage_to=settings.baggage_to,
            header_budget=settings.header_budget,
            passthrough_headers=settings.passthrough_headers,
            warn_window=settings.warn_window,
        )

    @property
    def fields(self) -> set[str]:
        """Return the names of the headers that `inject` writes."""
        return set(self._writer.fields)

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Return *context* with what the carrier's headers say; an empty one is the base where none is given.

        A span in *context* is left alone where the carrier has no valid parent. Never raises for what a carrier
        holds: a header that is refused is counted and warned of.
        """
        lines = header_lines(carrier, getter, self.names_read)
        extraction = trusted = self._reader.read(lines)
        if self.trust != "continue":
            trusted = extraction.trusted(self.trust)
        _last_extract.set((self, lines, extraction, trusted))
        entries = trusted.entries()
        if context and SPAN_KEY in entries:
            # What B3 said of another request's parent, or of none, is not said of this one.
            entries.setdefault(B3_KEY, None)
        # A span that was there before may be anybody's.
        if context is None or SPAN_KEY not in context:
            entries[READ_KEY] = trusted
        return Context({**context, **entries} if context else entries)

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Write the headers of *context* (the current one by default), and remove stale ones from a mapping or a list.

        Whatever the carrier or the setter raise goes on to the caller.
        """
        context = get_current_context() if context is None else context
        # A dict is asked for first: to ask for anything else costs more.
        if isinstance(carrier, dict) or can_be_replaced_in(carrier):
            self._outgoing.replace_in(carrier, context, setter, None)
        else:
            for name, value in self.write(context).items():
                setter.set(carrier, name, value)

    def inject_for(self, host: str, carrier: MutableMapping[str, str], context: Context | None = None) -> None:
        """Write as `inject` does, but only what *host* is to get; for HTTP libraries that have no transport of ours.

        Args:
            host: Where the request goes, without the port.
            carrier: The request's headers.
            context: What to write; the current context by default.
        """
        context = get_current_context() if context is None else context
        self._outgoing.replace_in(carrier, context, default_setter, host)

    def read(self, lines: Lines) -> Extraction:
        """Return what header lines, by name in lower case, say after validation. Never raises."""
        return self._reader.read(lines)

    def read_once(self, lines: Lines) -> tuple[Extraction, Extraction | None]:
        """Read lines, or take the result of a host that has just read the same request, so that it counts once.

        Returns:
            What the lines say, and what of it a host that had read them was to trust.
        """
        read_before = _last_extract.get()
        if read_before is not None:
            _last_extract.set(None)
            reader, lines_before, extraction, trusted = read_before
            if reader is self and self._are_same(lines_before, lines):
                # A host has asked for the headers of our formats alone, and of any other too nothing malformed stays.
                if unread := {name: lines[name] for name in self._unread & lines.keys()}:
                    extraction.rewrites.update(self._reader.read(unread).rewrites)
                return extraction, trusted
        return self._reader.read(lines), None

    def _are_same(self, before: Lines, now: Lines) -> bool:
        # As a whole first: nearly always a host has read just these.
        if before.items() <= now.items() and len(before) == len(self.names_read & now.keys()):
            return True
        for name in self.names_read:
            one, other = before.get(name), now.get(name)
            if one != other and not are_same(one, other):
                return False
        return True

    def check(self, lines: Lines) -> Extraction:
        """Read lines that are no request's, such as those that this process wrote: nothing is counted or warned of."""
        read_before = _last_extract.get()
        # Of the same lines, the same reader has just said the same.
        if read_before is not None and read_before[0] is self and read_before[1] == lines:
            return read_before[2]
        return self._checker.read(lines)

    def write(self, context: Context) -> dict[str, str]:
        """Return the propagation headers of *context* by name in lower case."""
        return self._writer.write(context)

    def outgoing(
        self, context: Context, present: Iterable[tuple[str, str]], host: str | None = None
    ) -> tuple[dict[str, str], frozenset[str]]:
        """Return the headers to write, and the names in lower case of those to remove first.

        Args:
            context: The context that the operation runs in.
            present: The headers that the caller has put on the carrier, as pairs of name and value.
            host: Where they go, without the port; None where that is not known, and nothing is withheld.
        """
        return self._outgoing.replace(context, present, host)

    def replace_lines(self, lines: Pairs, context: Context, *, host: str, method: str, target: bytes) -> Pairs:
        """Return a request's header lines with those of *context* in place of all trace headers that were there.

        Args:
            lines: The lines as the caller has put them, in order; the list may be changed.
            context: The context that the operation runs in.
            host: Where the request goes, without the port.
            method: The request's method. Proxies on the way count the first line too, and baggage gives way where they
                would refuse the request.
            target: The request's target, as its first line names it.
        """
        return self._outgoing.replace_lines(lines, context, host, method, target)

    def replace_in_request(
        self, headers: MutableMapping[Any, Any], context: Context, *, host: str, method: str, target: bytes
    ) -> None:
        """Do the same in a mapping, such as clients keep a request's headers in."""
        self._outgoing.replace_in_request(headers, context, host, method, target)


def _names_read(formats: Collection[Format], passthrough: Collection[str]) -> frozenset[str]:
    names = set(passthrough)
    if "tracecontext" in formats:
        names |= TRACE_HEADERS | {SENT_HEADER}
    if "baggage" in formats:
        names.add("baggage")
    if "b3" in formats or "b3multi" in formats:
        names |= B3_HEADERS
    return frozenset(names)


def _trace_reader(
    formats: Collection[Format], traceparent_policy: TraceParentPolicy, duplicates: Duplicates, prefer: Prefer
) -> TraceReader:
    return TraceReader(
        formats=formats,
        traceparent_policy=one_of(TraceParentPolicy, traceparent_policy, "traceparent_policy"),
        duplicates=one_of(Duplicates, duplicates, "duplicates"),
        prefer=one_of(Prefer, prefer, "prefer"),
    )


def _outbound_scope(
    propagate_to: Sequence[str],
    baggage_to: Sequence[str],
    header_budget: tuple[int, int] | int,
    rejections: Rejections,
) -> OutboundScope:
    return OutboundScope(
        propagate_to=items_of(propagate_to, "propagate_to"),
        baggage_to=items_of(baggage_to, "baggage_to"),
        budget=HeaderBudget.parse(header_budget),
        rejections=rejections,
    )


# A host that reads a request need not make the result current: Starlette takes the parent out of it, and no more.
_last_extract: ContextVar[tuple[MeshPropagator, Lines, Extraction, Extraction] | None] = ContextVar(
    "meshmw-extract", default=None
)
