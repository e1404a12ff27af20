import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpServer;
import io.grpc.CallOptions;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.ServerServiceDefinition;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import io.opentelemetry.api.GlobalOpenTelemetry;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.Scope;
import io.opentelemetry.context.propagation.TextMapGetter;
import io.opentelemetry.context.propagation.TextMapPropagator;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * A service under OpenTelemetry's Java agent, which takes a JSON object per line, and answers each with one. What it is
 * told to start with, and what it sees, are headers: the propagator reads and writes them.
 */
final class Peer {
  private static final Duration PATIENCE = Duration.ofSeconds(60);
  private static final ObjectMapper JSON = new ObjectMapper();
  private static final MethodDescriptor<String, String> UNARY = method(MethodType.UNARY, "unary_unary");
  private static final MethodDescriptor<String, String> STREAM = method(MethodType.BIDI_STREAMING, "stream_stream");

  public static void main(String[] args) throws IOException {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      Object found;
      try {
        found = answer(JSON.readTree(line));
      } catch (Exception fault) {
        found = Map.of("error", fault.toString());
      }
      System.out.println(text(found));
    }
    System.exit(0); // servers still listen
  }

  private static Object answer(JsonNode asked) throws Exception {
    String protocol = asked.path("protocol").asText();
    return switch (asked.path("command").asText()) {
      case "listen" -> Map.of("port", protocol.equals("grpc") ? listenGrpc() : listenHttp());
      case "receive" -> receiveKafka(asked.path("address").asText(), asked.path("destination").asText());
      default -> order(asked);
    };
  }

  /** Calls or sends in a span of its own, below what the headers say. */
  private static Object order(JsonNode asked) throws Exception {
    Map<String, String> headers = new HashMap<>();
    asked.path("headers").properties().forEach(each -> headers.put(each.getKey(), each.getValue().asText()));
    Context parent = propagator().extract(Context.root(), headers, new OfMap());
    Span span = GlobalOpenTelemetry.getTracer("peer").spanBuilder("order").setParent(parent).startSpan();
    try (Scope ignored = parent.with(span).makeCurrent()) {
      Map<String, Object> told = new HashMap<>();
      told.put("sent", seen());
      told.put("found", call(asked));
      return told;
    } finally {
      span.end();
    }
  }

  private static Object call(JsonNode asked) throws Exception {
    String address = asked.path("address").asText();
    return switch (asked.path("protocol").asText()) {
      case "grpc" -> callGrpc(address, asked.path("method").asText());
      case "http" -> callHttp(address);
      default -> sendKafka(address, asked.path("destination").asText(), asked.path("body").textValue());
    };
  }

  // HTTP

  private static int listenHttp() throws IOException {
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
    server.createContext(
        "/",
        exchange -> {
          byte[] body = text(seen()).getBytes(StandardCharsets.UTF_8);
          exchange.sendResponseHeaders(200, body.length);
          exchange.getResponseBody().write(body);
          exchange.close();
        });
    server.start();
    return server.getAddress().getPort();
  }

  private static Object callHttp(String address) throws Exception {
    HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + address + "/")).timeout(PATIENCE).build();
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    return List.of(JSON.readTree(client.send(request, BodyHandlers.ofString()).body()));
  }

  // gRPC, whose messages are bytes here

  private static MethodDescriptor<String, String> method(MethodType type, String name) {
    MethodDescriptor.Marshaller<String> bytes = new Bytes();
    String path = MethodDescriptor.generateFullMethodName("lab.S", name);
    return MethodDescriptor.newBuilder(bytes, bytes).setType(type).setFullMethodName(path).build();
  }

  private static int listenGrpc() throws IOException {
    ServerServiceDefinition service =
        ServerServiceDefinition.builder("lab.S")
            .addMethod(UNARY, ServerCalls.asyncUnaryCall(Peer::replyOnce))
            .addMethod(STREAM, ServerCalls.asyncBidiStreamingCall(Peer::replyToEach))
            .build();
    InetSocketAddress anywhere = new InetSocketAddress("127.0.0.1", 0);
    return NettyServerBuilder.forAddress(anywhere, InsecureServerCredentials.create())
        .addService(service)
        .build()
        .start()
        .getPort();
  }

  private static void replyOnce(String request, StreamObserver<String> replies) {
    replies.onNext(text(seen()));
    replies.onCompleted();
  }

  private static StreamObserver<String> replyToEach(StreamObserver<String> replies) {
    return new StreamObserver<>() {
      @Override
      public void onNext(String request) {
        replies.onNext(text(seen()));
      }

      @Override
      public void onError(Throwable fault) {}

      @Override
      public void onCompleted() {
        replies.onCompleted();
      }
    };
  }

  /** Calls a method once, or talks twice over one stream. */
  private static Object callGrpc(String address, String method) throws Exception {
    ManagedChannel channel = NettyChannelBuilder.forTarget(address, InsecureChannelCredentials.create()).build();
    try {
      CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(PATIENCE.toSeconds(), TimeUnit.SECONDS);
      if (method.equals("unary_unary")) {
        return List.of(JSON.readTree(ClientCalls.blockingUnaryCall(channel, UNARY, options, "{}")));
      }
      Replies replies = new Replies();
      StreamObserver<String> requests = ClientCalls.asyncBidiStreamingCall(channel.newCall(STREAM, options), replies);
      requests.onNext("{}");
      requests.onNext("{}");
      requests.onCompleted();
      return replies.all.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
    } finally {
      channel.shutdownNow();
    }
  }

  private static final class Replies implements StreamObserver<String> {
    final CompletableFuture<List<JsonNode>> all = new CompletableFuture<>();
    private final List<JsonNode> found = new ArrayList<>();

    @Override
    public void onNext(String reply) {
      try {
        found.add(JSON.readTree(reply));
      } catch (JsonProcessingException fault) {
        onError(fault);
      }
    }

    @Override
    public void onError(Throwable fault) {
      all.completeExceptionally(fault);
    }

    @Override
    public void onCompleted() {
      all.complete(found);
    }
  }

  private static final class Bytes implements MethodDescriptor.Marshaller<String> {
    @Override
    public InputStream stream(String value) {
      return new ByteArrayInputStream(value.getBytes(StandardCharsets.UTF_8));
    }

    @Override
    public String parse(InputStream stream) {
      try {
        return new String(stream.readAllBytes(), StandardCharsets.UTF_8);
      } catch (IOException fault) {
        throw new UncheckedIOException(fault);
      }
    }
  }

  // Kafka

  /** Sends a message, or a tombstone where there is no body. */
  private static Object sendKafka(String address, String topic, String body) throws Exception {
    Map<String, Object> options = Map.of("bootstrap.servers", address);
    StringSerializer texts = new StringSerializer();
    try (KafkaProducer<String, String> producer = new KafkaProducer<>(options, texts, texts)) {
      producer.send(new ProducerRecord<>(topic, 0, "key", body)).get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
      return List.of();
    }
  }

  /** Processes the first message of a topic, and tells what is current meanwhile. */
  private static Object receiveKafka(String address, String topic) {
    Map<String, Object> options = Map.of("bootstrap.servers", address);
    StringDeserializer texts = new StringDeserializer();
    try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(options, texts, texts)) {
      List<TopicPartition> first = List.of(new TopicPartition(topic, 0));
      consumer.assign(first);
      consumer.seekToBeginning(first);
      // The agent keeps a message's span current in the loop's body, and ends it when the loop asks for the next one.
      Map<String, Object> told = new HashMap<>();
      for (ConsumerRecord<String, String> message : consumer.poll(PATIENCE)) {
        told.putIfAbsent("found", seen());
        told.putIfAbsent("body", message.value());
      }
      return told;
    }
  }

  // Headers

  private static TextMapPropagator propagator() {
    return GlobalOpenTelemetry.getPropagators().getTextMapPropagator();
  }

  /** What is current, as headers. */
  private static Map<String, String> seen() {
    Map<String, String> found = new HashMap<>();
    propagator().inject(Context.current(), found, (headers, name, value) -> headers.put(name, value));
    return found;
  }

  private static final class OfMap implements TextMapGetter<Map<String, String>> {
    @Override
    public Iterable<String> keys(Map<String, String> headers) {
      return headers.keySet();
    }

    @Override
    public String get(Map<String, String> headers, String name) {
      return headers.get(name);
    }
  }

  private static String text(Object value) {
    try {
      return JSON.writeValueAsString(value);
    } catch (JsonProcessingException fault) {
      throw new UncheckedIOException(fault);
    }
  }
}
