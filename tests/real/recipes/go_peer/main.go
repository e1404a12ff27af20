// A service with OpenTelemetry Go and the instrumentation of its day, which takes a JSON object per line, and answers
// each with one. What it is told to start with, and what it sees, are headers: the propagator reads and writes them.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

const patience = 60 * time.Second

var exporter = tracetest.NewInMemoryExporter()

type question struct {
	Command, Protocol, Address, Method, Destination string
	Body                                            *string
	Headers                                         map[string]string
}

// What is current, as headers.
func seen(ctx context.Context) map[string]string {
	found := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, found)
	return found
}

func listen(protocol string) (any, error) {
	port, err := map[string]func() (int, error){"grpc": listenGRPC, "http": listenHTTP}[protocol]()
	return map[string]int{"port": port}, err
}

func call(ctx context.Context, asked question) (any, error) {
	switch asked.Protocol {
	case "grpc":
		return callGRPC(ctx, asked.Address, asked.Method)
	case "http":
		return callHTTP(ctx, asked.Address)
	case "kafka":
		return nil, sendKafka(ctx, asked.Address, asked.Destination, asked.Body)
	}
	return nil, fmt.Errorf("no protocol is named %q", asked.Protocol)
}

// Calls or sends in a span of its own, below what the headers say.
func order(asked question) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ctx = otel.GetTextMapPropagator().Extract(ctx, propagation.MapCarrier(asked.Headers))
	ctx, span := otel.Tracer("peer").Start(ctx, "order")
	defer span.End()
	found, err := call(ctx, asked)
	return map[string]any{"sent": seen(ctx), "found": found}, err
}

func spans() (any, error) {
	found := []map[string]any{}
	for _, span := range exporter.GetSpans() {
		found = append(found, map[string]any{
			"trace_id":  span.SpanContext.TraceID().String(),
			"span_id":   span.SpanContext.SpanID().String(),
			"parent_id": span.Parent.SpanID().String(),
			"kind":      int(span.SpanKind) - 1, // as OpenTelemetry JS counts them
		})
	}
	return map[string]any{"spans": found}, nil
}

func answer(line []byte) (any, error) {
	asked := question{}
	if err := json.Unmarshal(line, &asked); err != nil {
		return nil, err
	}
	switch asked.Command {
	case "listen":
		return listen(asked.Protocol)
	case "receive":
		return receiveKafka(asked.Address, asked.Destination)
	case "spans":
		return spans()
	default:
		return order(asked)
	}
}

func main() {
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)))
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		found, err := answer(lines.Bytes())
		if err != nil {
			found = map[string]string{"error": err.Error()}
		}
		if err := out.Encode(found); err != nil {
			panic(err)
		}
	}
}
