module github.com/open-telemetry/opentelemetry-collector-contrib/exporter/prometheusexporter

go 1.24.0

require (
	go.opentelemetry.io/collector/component v1.46.0
	go.opentelemetry.io/collector/exporter v1.46.0
)
