"""Every assumption about what another package calls private, on an object that the real package has made."""

NOWHERE = "127.0.0.1:9"


def test_kafka_pythons_clients_show_the_servers_that_they_were_made_with(kafka_broker):
    for make in (kafka.KafkaProducer, kafka.KafkaConsumer):
        with closing(make(bootstrap_servers=kafka_broker)) as client:
            assert _foreign.kafka_servers(client) == [kafka_broker]


@pytest.mark.asyncio
async def test_aiokafkas_clients_show_them_too_and_those_of_confluent_kafka_do_not():
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=f"{NOWHERE}, b:1")
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=[NOWHERE])
    assert _foreign.kafka_servers(producer) == [NOWHERE, "b:1"]
    assert _foreign.kafka_servers(consumer) == [NOWHERE]
    await producer.stop()
    await consumer.stop()
    assert _foreign.kafka_servers(confluent_kafka.Producer({"bootstrap.servers": NOWHERE, "log_level": 0})) == []


@pytest.mark.parametrize("make", [confluent_kafka.Producer, SerializingProducer])
def test_a_producer_of_confluent_kafka_holds_the_callbacks_that_its_configuration_names(make):
    options = {"bootstrap.servers": NOWHERE, "log_level": 0}
    assert not _foreign.has_delivery_callback(make(options))
    assert _foreign.has_delivery_callback(make({**options, "on_delivery": lambda *_: None}))
    assert not _foreign.has_delivery_callback(7)


def test_pikas_channels_show_where_their_broker_is(rabbitmq_broker):
    parameters = pika.URLParameters(rabbitmq_broker)
    with pika.BlockingConnection(parameters) as blocking:
        assert _foreign.amqp_address(blocking.channel()) == (parameters.host, parameters.port)
    connection = pika.SelectConnection(parameters, internal_connection_workflow=False)
    channel = pika.channel.Channel(connection, 1, lambda _: None)
    assert _foreign.amqp_address(channel) == (parameters.host, parameters.port)
    connection.ioloop.close()


@pytest.mark.asyncio
async def test_aio_pikas_channels_exchanges_and_queues_show_where_their_broker_is():
    channel = aio_pika.Channel(aio_pika.Connection(URL("amqp://broker:1234/")))
    exchange = aio_pika.Exchange(channel, "orders")
    queue = aio_pika.Queue(channel, "orders", False, False, False, None)
    assert {_foreign.amqp_address(each) for each in (channel, exchange, queue)} == {("broker", 1234)}


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError(name)


def test_a_client_that_shows_nothing_or_raises_has_no_address():
    for client in (object(), 7, Hostile()):
        assert _foreign.kafka_servers(client) == []
        assert _foreign.amqp_address(client) == (None, None)


"""What `_foreign` assumes of other packages' private names, each with the real package."""


class TestGrpcio:
    @contextmanager
    def served(self, one: Callable[..., Any], many: Callable[..., Any] | None = None) -> Iterator[str]:
        """Serve one method of each kind, and yield the server's address."""
        server = grpc.server(futures.ThreadPoolExecutor(2))
        methods = {"one": grpc.unary_unary_rpc_method_handler(one)}
        if many is not None:
            methods["many"] = grpc.unary_stream_rpc_method_handler(many)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(30)

    def call(self, address: str) -> bytes:
        with grpc.insecure_channel(address) as channel:
            return channel.unary_unary("/lab.S/one")(b"x", timeout=30)

    @pytest.mark.parametrize("name", ["ExecuteBatchError", "_ServerStoppedError"])
    def test_grpcio_raises_these_where_a_call_is_over(self, name):
        assert _foreign.is_end_of_call(getattr(cygrpc, name)())
        assert name not in grpc.__all__ + grpc.aio.__all__

    @pytest.mark.parametrize("error", [grpc.RpcError(), cygrpc.AbortError(), LookupError()])
    def test_another_exception_is_the_handlers_own(self, error):
        assert not _foreign.is_end_of_call(error)

    def test_grpcio_finds_a_methods_own_threads_on_a_function_in_its_place(self):
        def own(_request, _context):
            return threading.current_thread().name.encode()

        with futures.ThreadPoolExecutor(1, "own") as pool:
            own.experimental_thread_pool = pool

            def in_its_place(request, context):
                return own(request, context)

            _foreign.copy_grpcio_marks(in_its_place, own)
            with self.served(in_its_place) as address:
                assert self.call(address).startswith(b"own")

    def test_grpcio_hands_a_marked_function_what_sends_responses(self):
        def own(request, _context, send):
            for response in (request, b"y", None):
                send(response)

        own.experimental_non_blocking = True

        def in_its_place(request, context, send):
            own(request, context, send)

        _foreign.copy_grpcio_marks(in_its_place, own)
        with (
            self.served(lambda request, _: request, in_its_place) as address,
            grpc.insecure_channel(address) as channel,
        ):
            assert list(channel.unary_stream("/lab.S/many")(b"x", timeout=30)) == [b"x", b"y"]

    def test_a_function_is_marked_or_it_is_not(self):
        def own(_request, _context, _send):
            pass

        assert not _foreign.is_non_blocking(own)
        own.experimental_non_blocking = True
        assert _foreign.is_non_blocking(own)

    def test_a_pair_is_one_of_those_that_grpcio_hands_out(self):
        found = []

        def one(request, context):
            metadata = context.invocation_metadata()
            found.append((metadata[0], _foreign.metadata_pair(metadata, "x-k", "1")))
            return request

        with self.served(one) as address:
            self.call(address)
        ((theirs, ours),) = found
        assert type(ours) is type(theirs)
        assert (ours.key, ours.value) == ours == ("x-k", "1")

    def test_where_pairs_are_plain_tuples_one_of_these_is_made(self):
        assert _foreign.metadata_pair([("a", "b")], "x-k", "1") == ("x-k", "1")

    def test_an_ended_call_knows_its_status(self):
        with self.served(lambda request, _: request) as address, grpc.insecure_channel(address) as channel:
            _, call = channel.unary_unary("/lab.S/one").with_call(b"x", timeout=30)
            assert _foreign.status_of_ended_call(call) is grpc.StatusCode.OK

    def test_an_ended_call_of_aio_knows_its_status_without_waiting(self):
        async def talk(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary("/lab.S/one")(b"x", timeout=30)
                await call
                return _foreign.status_of_ended_call(call)

        with self.served(lambda request, _: request) as address:
            assert asyncio.run(talk(address)) is grpc.StatusCode.OK

    def test_a_call_of_aio_that_would_wait_has_no_status(self):
        async def talk(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary("/lab.S/one")(b"x", timeout=30)
                found = _foreign.status_of_ended_call(call)
                await call
                return found

        with self.served(lambda request, _: request) as address:
            assert asyncio.run(talk(address)) is None
