// Package prometheusexporter stands in for an exporter that brings Prometheus and three clouds along, for no test here.
package prometheusexporter

import (
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/exporter"
)

func NewFactory() exporter.Factory {
	return exporter.NewFactory(component.MustNewType("prometheus"), func() component.Config { return &struct{}{} })
}
