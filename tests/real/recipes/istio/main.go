// Istio's control plane from files, without Kubernetes, and two commands of istioctl:
//
//	istio serve --mesh FILE --config FILE [--objects FILE]
//	istio analyze|validate ...
//
// `pilot-discovery` itself cannot serve files alone since Istio 1.30: it asks a cluster for its namespaces. So `serve`
// runs the discovery server that Istio's own tests run, whose configuration, generators and xDS are istiod's; in the
// place of the cluster is a client that holds the objects of a file.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"istio.io/istio/istioctl/pkg/analyze"
	"istio.io/istio/istioctl/pkg/cli"
	"istio.io/istio/istioctl/pkg/validate"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
)

func main() {
	root := &cobra.Command{Use: "istio", SilenceUsage: true, SilenceErrors: true}
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return log.Configure(log.DefaultOptions()) }
	context := cli.NewCLIContext(cli.AddRootFlags(root.PersistentFlags()))
	root.AddCommand(serve(), analyze.Analyze(context), validate.NewValidateCommand(context))
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() *cobra.Command {
	var meshFile, configFile, objectsFile string
	command := &cobra.Command{Use: "serve", Args: cobra.NoArgs}
	command.Flags().StringVar(&meshFile, "mesh", "", "MeshConfig")
	command.Flags().StringVar(&configFile, "config", "", "Istio's objects")
	command.Flags().StringVar(&objectsFile, "objects", "", "Kubernetes' objects")
	command.RunE = func(*cobra.Command, []string) error {
		options, err := read(meshFile, configFile, objectsFile)
		if err != nil {
			return err
		}
		return test.Wrap(func(t test.Failer) { run(t, options) })
	}
	return command
}

func read(meshFile, configFile, objectsFile string) (options xds.FakeOptions, err error) {
	// An error here ends the program; istiod would go on with its defaults.
	if options.MeshConfig, err = mesh.ReadMeshConfig(meshFile); err != nil {
		return options, err
	}
	if options.ConfigString, err = textOf(configFile); err != nil {
		return options, err
	}
	options.KubernetesObjectString, err = textOf(objectsFile)
	return options, err
}

func textOf(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	content, err := os.ReadFile(file)
	return string(content), err
}

func run(t test.Failer, options xds.FakeOptions) {
	options.ListenerBuilder = func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	server := xds.NewFakeDiscoveryServer(t, options)
	debug, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = http.Serve(debug, server.DiscoveryDebug) }()
	fmt.Println("serving", server.Listener.Addr(), debug.Addr())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
