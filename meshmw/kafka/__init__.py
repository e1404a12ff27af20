"""Kafka: one trace from the producer's span to the consumer's, with kafka-python, aiokafka and confluent-kafka."""
