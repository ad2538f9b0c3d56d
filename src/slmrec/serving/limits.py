"""What a server accepts at most."""

from dataclasses import dataclass, field, fields

from slmrec.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each is an option of `slmrec serve`."""

    max_body_bytes: int = field(default=1 << 20, metadata={"help": "bytes of a request's body"})
    max_requests: int = field(default=256, metadata={"help": "histories in one request"})
    max_history: int = field(
        default=1000, metadata={"help": "items of a history, or events of a session that are kept"}
    )
    max_k: int = field(default=1000, metadata={"help": "items that may be asked for"})
    max_candidates: int = field(default=10_000, metadata={"help": "candidates, and excluded items"})
    max_batch: int = field(default=64, metadata={"help": "histories that are computed together"})
    max_waiting: int = field(default=512, metadata={"help": "histories that wait; more are answered with 503"})
    max_sessions: int = field(default=4096, metadata={"help": "sessions that are kept; the longest unused one goes"})
    timeout_s: float = field(default=10.0, metadata={"help": "seconds until a request that still waits is given up"})

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            if getattr(self, name) <= 0:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} is {getattr(self, name)}; give a number above 0")
        if self.max_waiting < self.max_requests:
            raise ConfigError(
                f"--max-waiting is {self.max_waiting}, less than --max-requests {self.max_requests}, so that "
                "the largest request could never be accepted; raise the one or lower the other"
            )
