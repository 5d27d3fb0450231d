"""Command line of the model server: `python -m kerasdl.serving saved_models --rest-port 8501`."""

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import tyro
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from kerasdl import processor
from kerasdl.command_line import parse
from kerasdl.errors import UserError
from kerasdl.serving import configuration
from kerasdl.serving.access import Access, Keys, check_certificate, hosts, read_keys, request_id
from kerasdl.serving.batch_parameters import Parameters, read_parameters
from kerasdl.serving.discovery import find_models
from kerasdl.serving.errors import ServingError
from kerasdl.serving.limits import Limits
from kerasdl.serving.metrics import Metrics, monitoring_path
from kerasdl.serving.query import main as ask

_log = logging.getLogger("kerasdl.serving")


@dataclass(frozen=True, kw_only=True)
class Options(Limits):
    """Serves exported models through TensorFlow Serving's REST API, and its gRPC API.

    These are the newest version of every model below a folder, or what a model config file asks for.
    The folders are watched: a new version takes over without a failed request, a new model appears.
    /healthz answers while the process lives, /readyz once every model is loaded. Ctrl-C stops.
    `python -m kerasdl.serving query --help` says how to ask such a server.
    """

    models: tyro.conf.Positional[Path | None] = None
    """Folder with MODELS/<name>/<integer version>/saved_model.pb, such as saved_models."""
    model_config_file: Path | None = None
    """File in place of the folder: models, versions and labels as TensorFlow Serving's ModelServerConfig."""
    model_config_file_poll_wait_seconds: float = 0.0
    """Pause in seconds between two readings of that file; 0 reads it once."""
    file_system_poll_wait_seconds: float = 1.0
    """Pause in seconds between two looks for new versions; 0 looks once."""
    max_num_load_retries: int = 5
    """How often a load that failed is tried again; a changed file is tried at once."""
    load_retry_interval_micros: int = 60_000_000
    """Pause in microseconds before such a retry; without one below 0."""
    allow_version_labels_for_unavailable_models: bool = False
    """Let a new label of the config file name a version that is not loaded."""
    enable_batching: bool = False
    """Compute requests together for every signature with a batch dimension, as TensorFlow Serving does; else only where
    the export says that examples do not depend on each other."""
    batching_parameters_file: Path | None = None
    """File with the sizes of batches, as TensorFlow Serving's BatchingParameters; goes with --enable-batching."""
    enable_per_model_batching_params: bool = False
    """Let a batching_params.pbtxt in the folder of a version replace that file."""
    monitoring_config_file: Path | None = None
    """File that says where on the REST port Prometheus finds the metrics, as TensorFlow Serving's MonitoringConfig."""
    enable_cors_support: bool = False
    """Let browsers hand the replies to pages of other hosts."""
    api_key_file: Path | None = None
    """File with a key on each line, of which a client must show one: `Authorization: Bearer KEY` or `X-API-Key: KEY`,
    in a header or in the metadata of gRPC. /healthz, /readyz, the page's files and gRPC's health service need none."""
    ssl_certificate: Path | None = None
    """File with the certificate of this server in PEM format, for HTTPS and gRPC over TLS; goes with --ssl-key."""
    ssl_key: Path | None = None
    """File with the private key of that certificate in PEM format, without a passphrase."""
    allowed_hosts: tuple[str, ...] = ()
    """Names and addresses in the Host header of requests; others are refused with status 400, and * takes any. By
    default any, but on a loopback address only localhost, 127.0.0.1 and [::1]: no page of the web can ask then."""
    access_log: bool = False
    """Write a line of JSON to stdout for each request: time (UTC), X-Request-ID, client, path, status, milliseconds,
    bytes of the reply."""
    rest_port: int = 8501
    """TCP port of the REST API; 0 takes a free one."""
    grpc_port: int | None = None
    """TCP port of the gRPC API, which TensorFlow Serving has on 8500; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in; --api-key-file keeps strangers out."""


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGINT (Ctrl-C) or SIGTERM; asks a server if the first word is `query`.

    Args:
        arguments: words of the command line.

    Returns:
        Exit status: 0, or 2 for a mistake of the user; those of `query`.
    """
    if list(arguments[:1]) == ["query"]:
        return ask(arguments[1:])
    try:
        options = parse(Options, arguments, "python -m kerasdl.serving")
        _check(options)
        source = _source(options)
        metrics_path = monitoring_path(options.monitoring_config_file) if options.monitoring_config_file else None
        path = options.batching_parameters_file
        if path is not None and not options.enable_batching:
            raise UserError("--batching-parameters-file has no effect without --enable-batching")
        parameters = read_parameters(path) if path is not None else None
        guards = _guards(options)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listen(options.host, options.rest_port, "--rest-port"))
            grpc_listener = None
            if options.grpc_port is not None:
                grpc_listener = stack.enter_context(listen(options.host, options.grpc_port, "--grpc-port"))
            _serve(options, source, parameters, metrics_path, guards, listener, grpc_listener)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check(options: Options) -> None:
    for flag, port in (("--rest-port", options.rest_port), ("--grpc-port", options.grpc_port)):
        if port is not None and not 0 <= port <= 65535:
            raise UserError(f"{flag} must be from 0 to 65535, not {port}")
    for name in ("model_config_file_poll_wait_seconds", "file_system_poll_wait_seconds", "max_num_load_retries"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(options, name)}")


class _Guards(NamedTuple):
    """Who may ask."""

    hosts: frozenset[str] | None
    keys: Keys | None
    certificate: tuple[Path, Path] | None


def _guards(options: Options) -> _Guards:
    """Who may ask; told before anything slow happens if that cannot be."""
    if (options.ssl_certificate is None) != (options.ssl_key is None):
        raise UserError("--ssl-certificate and --ssl-key go together; give both or neither")
    certificate = (options.ssl_certificate, options.ssl_key) if options.ssl_certificate and options.ssl_key else None
    if certificate:
        check_certificate(*certificate)
    keys = read_keys(options.api_key_file) if options.api_key_file else None
    return _Guards(hosts(options.host, options.allowed_hosts), keys, certificate)


def _source(options: Options) -> Path | ModelServerConfig:
    """What is to be served; told before anything slow happens if it cannot be."""
    root, path = options.models, options.model_config_file
    if (root is None) == (path is None):
        raise UserError("expected either a folder of exported models or --model-config-file")
    if path is not None:
        return _configuration(path, options.allow_version_labels_for_unavailable_models)
    assert root is not None
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the exported models")
    if not find_models(root):
        raise UserError(
            f"no model below {root}; expected {root}/<name>/<integer version>/saved_model.pb, as an export writes it"
        )
    return root


def _configuration(path: Path, free_labels: bool) -> ModelServerConfig:
    config = configuration.read(path, ModelServerConfig())
    try:
        models = configuration.models(config)
    except ServingError as error:
        raise UserError(f"{path}: {error.message}") from None
    for name, model in models.items():
        if model.labels and not free_labels:
            raise UserError(
                f"{path}: model {name} has version labels, but no version is loaded at the start; "
                "--allow-version-labels-for-unavailable-models permits them"
            )
    return config


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Takes a port before anything slow happens, so that a port in use is told at once.

    Args:
        host: address.
        port: number; 0 for a free one.
        flag: that gave it.

    Raises:
        UserError: it cannot be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise UserError(
            f"cannot listen on {host} port {port} ({reason}); choose another {flag} (0 takes a free one) or --host"
        ) from None
    # Accepted connections inherit it. Otherwise each reply on a kept connection waits 40 ms: its head and body
    # are two packets, and the second would be held until the client acknowledges the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _serve(
    options: Options,
    source: Path | ModelServerConfig,
    parameters: Parameters | None,
    metrics_path: str | None,
    guards: "_Guards",
    listener: socket.socket,
    grpc_listener: socket.socket | None,
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)

    from kerasdl.startup import import_tensorflow

    processor.leave_a_thread(import_tensorflow(inference=True))
    for noisy in ("tensorflow", "absl"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    _configure_log()

    from kerasdl.serving.grpc import GrpcServer
    from kerasdl.serving.http import server
    from kerasdl.serving.predictor import Predictor
    from kerasdl.serving.repository import ModelRepository
    from kerasdl.serving.rest import create_app

    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http{'s' if guards.certificate else ''}://{host}:{listener.getsockname()[1]}"

    def begins(name: str, version: int) -> None:
        _log.info("%s version %d: loading", name, version)

    def report(name: str, version: int, error: ServingError | None) -> None:
        if error is None:
            _log.info("%s version %d: %s/v1/models/%s:predict", name, version, address, name)
        else:
            _log.error("%s version %d cannot be loaded: %s", name, version, " ".join(error.message.split()))

    metrics = Metrics()
    repository = ModelRepository(
        source,
        report,
        begins,
        options.file_system_poll_wait_seconds,
        max_retries=options.max_num_load_retries,
        retry_seconds=options.load_retry_interval_micros / 1e6,
        free_labels=options.allow_version_labels_for_unavailable_models,
        metrics=metrics,
    )
    predictor = Predictor(
        repository,
        options,
        metrics,
        parameters,
        every=options.enable_batching,
        per_model=options.enable_per_model_batching_params,
    )
    path, seconds = options.model_config_file, options.model_config_file_poll_wait_seconds
    followed = configuration.followed(path, seconds, repository.reload) if path else contextlib.nullcontext()
    beside = None
    if grpc_listener is not None:
        beside = GrpcServer(predictor, grpc_listener, guards.keys, guards.certificate)
        _log.info("gRPC: %s:%d", host, grpc_listener.getsockname()[1])
    _log.info("Page: %s/", address)
    with followed, repository:
        keyed, cors = guards.keys is not None, options.enable_cors_support
        log = functools.partial(os.write, sys.stdout.fileno()) if options.access_log else None
        app = create_app(predictor, metrics_path=metrics_path, cors=cors, keyed=keyed)
        app = Access(app, hosts=guards.hosts, keys=guards.keys, log=log)
        with contextlib.suppress(SystemExit):  # of `_stop`: the library raises the signal again when it has shut down
            server(app, options, guards.certificate, beside).run(sockets=[listener])
        ended = predictor.close(seconds=5)
    if not ended:  # an operation that cannot be interrupted would hold the process at its end
        sys.stdout.flush()
        os._exit(0)


class _Formatter(logging.Formatter):
    """Says which request met with trouble, by the name that its reply bears."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"request {request_id.get()}: {text}" if request_id.get() else text


def _configure_log() -> None:
    """News go to stdout, trouble to stderr."""
    news, trouble = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    news.addFilter(lambda record: record.levelno < logging.WARNING)
    trouble.setLevel(logging.WARNING)
    trouble.setFormatter(_Formatter())
    _log.setLevel(logging.INFO)
    _log.propagate = False  # a library may give the root logger a handler later: each line would stand there twice
    _log.addHandler(news)
    _log.addHandler(trouble)


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)  # it ends already
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
