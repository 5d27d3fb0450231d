"""What the server bears of its clients; one list for its command line and for all that holds to it."""

from dataclasses import dataclass

from kerasdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests and connections."""

    max_body_mib: float = 64
    """Longest request body in MiB, after decompression; a longer one is refused with status 413."""
    max_examples: int = 128
    """Examples in a request that are computed at once, as the captioner's `attention`; more are status 400.
    Where requests are computed together, many examples of one are computed in parts."""
    max_megapixels: float = 50.0
    """Largest picture in millions of pixels; a larger one is refused by its header, with status 400."""
    max_waiting: int = 128
    """Requests of a model that wait beside those that run; a further one is refused with status 429."""
    max_connections: int = 1024
    """Open connections, and requests; what comes beyond is refused with status 503."""
    batch_seconds: float = 0.5
    """Longest time in seconds that requests are computed together, as far as what was measured so far tells."""
    long_seconds: float = 1.0
    """Time in seconds after which a call begins anew in a process of lower priority, so that it holds up no others."""
    timeout_seconds: float = 30.0
    """Longest wait for the answer of a model in seconds; then the reply is status 504, and the work ends."""
    read_seconds: float = 30.0
    """Longest time in seconds in which the head of a request arrives, and as much again for its body (status 408)."""
    grace_seconds: float = 30.0
    """Time in seconds for the requests under way when the server is told to stop; then they are ended."""

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in Limits.__dataclass_fields__:
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if name in ("max_waiting", "grace_seconds"):
                if value < 0:
                    raise UserError(f"{flag} must be 0 or more, not {value}")
            elif value <= 0:
                raise UserError(f"{flag} must be above 0, not {value}")
