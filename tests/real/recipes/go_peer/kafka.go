package main

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kotel"
)

func connectKafka(address string, options ...kgo.Opt) (*kgo.Client, *kotel.Tracer, error) {
	tracer := kotel.NewTracer()
	hooks := kotel.NewKotel(kotel.WithTracer(tracer)).Hooks()
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(address), kgo.WithHooks(hooks...))...)
	return client, tracer, err
}

// Sends a message, or a tombstone where there is no body.
func sendKafka(ctx context.Context, address, topic string, body *string) error {
	client, _, err := connectKafka(address, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.AllowAutoTopicCreation())
	if err != nil {
		return err
	}
	defer client.Close()
	record := &kgo.Record{Topic: topic, Key: []byte("key")}
	if body != nil {
		record.Value = []byte(*body)
	}
	return client.ProduceSync(ctx, record).FirstErr()
}

// Processes the first message of a topic, and tells what is current meanwhile.
func receiveKafka(address, topic string) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	from := map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}
	client, tracer, err := connectKafka(address, kgo.ConsumePartitions(from))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	fetches := client.PollRecords(ctx, 1)
	if err := fetches.Err(); err != nil {
		return nil, err
	}
	record := fetches.Records()[0]
	ctx, span := tracer.WithProcessSpan(record)
	defer span.End()
	var body *string
	if record.Value != nil {
		text := string(record.Value)
		body = &text
	}
	return map[string]any{"found": seen(ctx), "body": body}, nil
}
