// A gRPC server and client with OpenTelemetry Go and its instrumentation of gRPC. The program takes a JSON object per
// line, and answers each with one.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const patience = 60 * time.Second

var (
	exporter = tracetest.NewInMemoryExporter()
	talking  = &grpc.StreamDesc{StreamName: "stream_stream", ServerStreams: true, ClientStreams: true}
)

// Messages are bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "raw" }

// What a handler sees: what is current, and the metadata.
func seen(ctx context.Context) *[]byte {
	md, _ := metadata.FromIncomingContext(ctx)
	members := map[string]string{}
	for _, member := range baggage.FromContext(ctx).Members() {
		members[member.Key()] = member.Value()
	}
	current := trace.SpanContextFromContext(ctx)
	answer, _ := json.Marshal(map[string]any{
		"trace_id": current.TraceID().String(), "span_id": current.SpanID().String(), "baggage": members, "metadata": md,
	})
	return &answer
}

func unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new([]byte)); err != nil {
		return nil, err
	}
	return seen(ctx), nil
}

func streaming(_ any, stream grpc.ServerStream) error {
	for {
		if err := stream.RecvMsg(new([]byte)); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(seen(stream.Context())); err != nil {
			return err
		}
	}
}

func listen() (any, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.StatsHandler(otelgrpc.NewServerHandler()))
	answering := *talking
	answering.Handler = streaming
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "lab.S",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "unary_unary", Handler: unary}},
		Streams:     []grpc.StreamDesc{answering},
	}, struct{}{})
	go server.Serve(listener)
	return map[string]int{"port": listener.Addr().(*net.TCPAddr).Port}, nil
}

// Calls a method once, or talks twice over one stream.
func call(ctx context.Context, address, method string) (any, error) {
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler()),
	)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	path, request := "/lab.S/"+method, []byte("{}")
	if method == "unary_unary" {
		answer := []byte{}
		err = connection.Invoke(ctx, path, &request, &answer)
		return []json.RawMessage{answer}, err
	}
	stream, err := connection.NewStream(ctx, talking, path)
	if err != nil {
		return nil, err
	}
	found := []json.RawMessage{}
	for len(found) < 2 {
		answer := []byte{}
		if err := stream.SendMsg(&request); err != nil {
			return nil, err
		}
		if err := stream.RecvMsg(&answer); err != nil {
			return nil, err
		}
		found = append(found, answer)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	if err := stream.RecvMsg(new([]byte)); err != io.EOF {
		return nil, fmt.Errorf("the stream has not ended: %v", err)
	}
	return found, nil
}

func withBaggage(ctx context.Context, members map[string]string) (context.Context, error) {
	all := []baggage.Member{}
	for key, value := range members {
		member, err := baggage.NewMemberRaw(key, value)
		if err != nil {
			return nil, err
		}
		all = append(all, member)
	}
	bag, err := baggage.New(all...)
	return baggage.ContextWithBaggage(ctx, bag), err
}

func order(address, method string, members map[string]string) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ctx, err := withBaggage(ctx, members)
	if err != nil {
		return nil, err
	}
	ctx, span := otel.Tracer("peer").Start(ctx, "order")
	defer span.End()
	found, err := call(ctx, address, method)
	sent := map[string]string{"trace_id": span.SpanContext().TraceID().String()}
	return map[string]any{"sent": sent, "found": found}, err
}

func spans() (any, error) {
	found := []map[string]any{}
	for _, span := range exporter.GetSpans() {
		found = append(found, map[string]any{
			"trace_id":  span.SpanContext.TraceID().String(),
			"span_id":   span.SpanContext.SpanID().String(),
			"parent_id": span.Parent.SpanID().String(),
			"kind":      int(span.SpanKind) - 1, // as the other peers count
		})
	}
	return map[string]any{"spans": found}, nil
}

func answer(line []byte) (any, error) {
	question := struct {
		Command, Address, Method string
		Baggage                  map[string]string
	}{}
	if err := json.Unmarshal(line, &question); err != nil {
		return nil, err
	}
	switch question.Command {
	case "listen":
		return listen()
	case "spans":
		return spans()
	default:
		return order(question.Address, question.Method, question.Baggage)
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
