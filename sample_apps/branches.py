"""The spans that one request through the demonstration leaves, branch by branch: each one's service and kind."""

# The chain of one request with meshmw: each span is the parent of the next.
CHAIN = [
    ("client", "CLIENT"),
    ("edge", "SERVER"),
    ("checkout-sidecar", "SERVER"),
    ("checkout-service", "SERVER"),
    ("checkout-service", "CLIENT"),
    ("checkout-sidecar", "CLIENT"),
    ("inventory-sidecar", "SERVER"),
    ("inventory-service", "SERVER"),
]
# What branches off below checkout-service's SERVER span for the gRPC call.
PRICED = [
    ("checkout-service", "CLIENT"),
    ("checkout-sidecar", "CLIENT"),
    ("pricing-sidecar", "SERVER"),
    ("pricing-service", "SERVER"),
]
# What branches off there for each broker.
ORDERED = [
    ("checkout-service", "PRODUCER"),
    ("order-worker", "CONSUMER"),
    ("order-worker", "CLIENT"),
    ("worker-sidecar", "CLIENT"),
    ("inventory-sidecar", "SERVER"),
    ("inventory-service", "SERVER"),
]
# Without meshmw nobody makes a span for the call from one service to the other.
BARE = [span for span in CHAIN if span != ("checkout-service", "CLIENT")]
