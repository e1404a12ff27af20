package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var talking = &grpc.StreamDesc{StreamName: "stream_stream", ServerStreams: true, ClientStreams: true}

// Messages are bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "raw" }

func reply(ctx context.Context) *[]byte {
	text, _ := json.Marshal(seen(ctx))
	return &text
}

func unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new([]byte)); err != nil {
		return nil, err
	}
	return reply(ctx), nil
}

func streaming(_ any, stream grpc.ServerStream) error {
	for {
		if err := stream.RecvMsg(new([]byte)); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(reply(stream.Context())); err != nil {
			return err
		}
	}
}

func listenGRPC() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
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
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// Calls a method once, or talks twice over one stream.
func callGRPC(ctx context.Context, address, method string) (any, error) {
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
