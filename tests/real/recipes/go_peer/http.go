package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

func listenHTTP() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	answering := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(seen(r.Context()))
	})
	go http.Serve(listener, otelhttp.NewHandler(answering, "serve"))
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func callHTTP(ctx context.Context, address string) (any, error) {
	client := http.Client{Transport: otelhttp.NewTransport(&http.Transport{DisableKeepAlives: true})}
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+address+"/", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer := json.RawMessage{}
	err = json.NewDecoder(response.Body).Decode(&answer)
	return []json.RawMessage{answer}, err
}
