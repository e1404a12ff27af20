"""Envoy's and Istio's default access log formats, and what people append to them."""

from __future__ import annotations

from typing import Final

ENVOY_DEFAULT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" '
    '"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"'
)
ISTIO_DEFAULT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%"
)
# What people append to a default: the names as they stand before the value.
_TAILS: Final = (
    "",
    " traceparent=%REQ(TRACEPARENT)%",
    " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%",
    " trace_id=%TRACE_ID% traceparent=%REQ(TRACEPARENT)%",
    " traceparent=%REQ(TRACEPARENT)% trace_id=%TRACE_ID%",
    " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)% trace_id=%TRACE_ID%",
    ' "%REQ(TRACEPARENT)%"',
    ' "%REQ(TRACEPARENT)%" "%REQ(TRACESTATE)%"',
    " %TRACE_ID%",
)
_SHORT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%" %RESPONSE_CODE% '
    "traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%"
)
KNOWN_FORMATS: Final = (*(base + tail for tail in _TAILS for base in (ISTIO_DEFAULT, ENVOY_DEFAULT)), _SHORT)
