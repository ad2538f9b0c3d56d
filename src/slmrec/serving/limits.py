"""Limits of the server."""

from dataclasses import dataclass, field, fields

from slmrec.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Upper bounds that protect a server; each is an option of `slmrec serve`."""

    max_body_bytes: int = field(default=1 << 20, metadata={"help": "maximum size of a request body in bytes"})
    max_requests: int = field(default=256, metadata={"help": "maximum number of histories in one request"})
    max_history: int = field(
        default=1000, metadata={"help": "maximum number of items in a history, and of events kept in a session"}
    )
    max_k: int = field(default=1000, metadata={"help": "maximum number of recommended items per history"})
    max_candidates: int = field(
        default=10_000, metadata={"help": "maximum number of candidates, and of excluded items"}
    )
    max_because: int = field(
        default=8,
        metadata={"help": "maximum number of histories with because in one request, and computed in one batch"},
    )
    max_batch: int = field(default=64, metadata={"help": "maximum number of histories computed in one batch"})
    max_waiting: int = field(
        default=512, metadata={"help": "maximum number of waiting histories; further requests are answered with 503"}
    )
    max_sessions: int = field(
        default=4096, metadata={"help": "maximum number of sessions; the least recently used one is evicted"}
    )
    max_connections: int = field(
        default=1024,
        metadata={"help": "maximum number of connections; the one that waits longest for a request is closed first"},
    )
    max_header_bytes: int = field(
        default=1 << 14, metadata={"help": "maximum size of the address and the headers of a request in bytes"}
    )
    max_headers: int = field(default=100, metadata={"help": "maximum number of headers of a request"})
    max_unsent_bytes: int = field(
        default=1 << 25,
        metadata={"help": "maximum size of all bodies that are arriving together; the oldest one is given up first"},
    )
    max_unread_bytes: int = field(
        default=1 << 26,
        metadata={
            "help": "maximum size of all answers that their clients do not read; the oldest connection is closed first"
        },
    )
    timeout_s: float = field(
        default=10.0,
        metadata={
            "help": "seconds for a request to arrive, to start to be computed, and for a client to read a part of "
            "its answer"
        },
    )

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            if getattr(self, name) <= 0:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} is {getattr(self, name)}; give a number above 0")
        if self.max_waiting < self.max_requests:
            raise ConfigError(
                f"--max-waiting is {self.max_waiting}, less than --max-requests {self.max_requests}, so that "
                "the largest request could never be accepted; raise the first or lower the second"
            )
        if self.max_unsent_bytes < self.max_body_bytes:
            raise ConfigError(
                f"--max-unsent-bytes is {self.max_unsent_bytes}, less than --max-body-bytes {self.max_body_bytes}, so "
                "that the largest body could never arrive; raise the first or lower the second"
            )
