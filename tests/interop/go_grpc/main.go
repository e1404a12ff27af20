// A gRPC server and client with OpenTelemetry Go, as Debian packages both. It takes a JSON object per line, and answers
// each with one. There is no package of OpenTelemetry's interceptors, so those of here do what they do.
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

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const patience = 60 * time.Second

var (
	exporter   = tracetest.NewInMemoryExporter()
	provider   = sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	tracer     = provider.Tracer("peer")
	propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	talking    = &grpc.StreamDesc{StreamName: "stream_stream", ServerStreams: true, ClientStreams: true}
)

// Messages are bytes.
type raw struct{}

func (raw) Marshal(v interface{}) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v interface{}) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                               { return "raw" }
func (raw) String() string                             { return "raw" }

type carrier metadata.MD

func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }
func (c carrier) Keys() []string {
	keys := []string{}
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}

func extracted(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	return propagator.Extract(ctx, carrier(md))
}

func injected(ctx context.Context) context.Context {
	md := metadata.MD{}
	propagator.Inject(ctx, carrier(md))
	return metadata.NewOutgoingContext(ctx, md)
}

func started(ctx context.Context, method string, kind trace.SpanKind) (context.Context, trace.Span) {
	return tracer.Start(ctx, method, trace.WithSpanKind(kind))
}

type tracedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s tracedStream) Context() context.Context { return s.ctx }

func serveUnary(
	ctx context.Context, request interface{}, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (interface{}, error) {
	ctx, span := started(extracted(ctx), info.FullMethod, trace.SpanKindServer)
	defer span.End()
	return handler(ctx, request)
}

func serveStream(server interface{}, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, span := started(extracted(ss.Context()), info.FullMethod, trace.SpanKindServer)
	defer span.End()
	return handler(server, tracedStream{ss, ctx})
}

// What a handler sees: what is current, and the metadata.
func seen(ctx context.Context) *[]byte {
	md, _ := metadata.FromIncomingContext(ctx)
	members := map[string]string{}
	for _, member := range baggage.FromContext(ctx).Members() {
		members[member.Key()] = member.Value()
	}
	current := trace.SpanContextFromContext(ctx)
	answer, _ := json.Marshal(map[string]interface{}{
		"trace_id": current.TraceID().String(), "span_id": current.SpanID().String(), "baggage": members, "metadata": md,
	})
	return &answer
}

func unary(
	_ interface{}, ctx context.Context, decode func(interface{}) error, interceptor grpc.UnaryServerInterceptor,
) (interface{}, error) {
	request := new([]byte)
	if err := decode(request); err != nil {
		return nil, err
	}
	handler := func(ctx context.Context, _ interface{}) (interface{}, error) { return seen(ctx), nil }
	return interceptor(ctx, request, &grpc.UnaryServerInfo{FullMethod: "/lab.S/unary_unary"}, handler)
}

func streaming(_ interface{}, stream grpc.ServerStream) error {
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

func listen() (interface{}, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(
		grpc.CustomCodec(raw{}), grpc.UnaryInterceptor(serveUnary), grpc.StreamInterceptor(serveStream),
	)
	answering := *talking
	answering.Handler = streaming
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "lab.S",
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "unary_unary", Handler: unary}},
		Streams:     []grpc.StreamDesc{answering},
	}, struct{}{})
	go server.Serve(listener)
	return map[string]int{"port": listener.Addr().(*net.TCPAddr).Port}, nil
}

// Calls a method once, or talks twice over one stream.
func call(ctx context.Context, address, method string) (interface{}, error) {
	connection, err := grpc.DialContext(
		ctx, address, grpc.WithInsecure(), grpc.WithBlock(), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
	)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	path, request := "/lab.S/"+method, []byte("{}")
	ctx, span := started(ctx, path, trace.SpanKindClient)
	defer span.End()
	ctx = injected(ctx)
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
		member, err := baggage.NewMember(key, value)
		if err != nil {
			return nil, err
		}
		all = append(all, member)
	}
	bag, err := baggage.New(all...)
	return baggage.ContextWithBaggage(ctx, bag), err
}

func order(address, method string, members map[string]string) (interface{}, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ctx, err := withBaggage(ctx, members)
	if err != nil {
		return nil, err
	}
	ctx, span := tracer.Start(ctx, "order")
	defer span.End()
	found, err := call(ctx, address, method)
	sent := map[string]string{"trace_id": span.SpanContext().TraceID().String()}
	return map[string]interface{}{"sent": sent, "found": found}, err
}

func spans() (interface{}, error) {
	found := []map[string]interface{}{}
	for _, span := range exporter.GetSpans() {
		found = append(found, map[string]interface{}{
			"trace_id":  span.SpanContext.TraceID().String(),
			"span_id":   span.SpanContext.SpanID().String(),
			"parent_id": span.Parent.SpanID().String(),
			"kind":      int(span.SpanKind) - 1, // as the other peers count
		})
	}
	return map[string]interface{}{"spans": found}, nil
}

func answer(line []byte) (interface{}, error) {
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
