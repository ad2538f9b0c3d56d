"""Tiny models with titles, and a server of them in a thread of its own."""

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import torch
from decoders import tiny_decoder

from slmrec.data.dataset import Dataset
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import load_recommender, replace_vocabulary, save_recommender
from slmrec.serving.limits import Limits
from slmrec.serving.loading import load
from slmrec.serving.run import HttpServer
from slmrec.serving.server import ServedModel, Server

ITEMS = [f"i{n:02d}" for n in range(40)]
MAX_HISTORY = 8
LIMITS = Limits(
    max_body_bytes=20_000, max_requests=8, max_history=20, max_k=50, max_candidates=30, max_waiting=64, max_because=4
)


def decoder(seed: int = 0, num_layers: int = 2) -> DecoderRecommender:
    """Over 40 items, with a prompt and a response."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": num_layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    architecture = {"model_type": "llama", "pad_token_id": 0, **sizes, **heads}
    model = tiny_decoder(architecture, 40, prompt=(3, 2), max_history_items=MAX_HISTORY)
    if seed:
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.item_embeddings.weight)
    return model


def write_model(folder: Path, dataset: Dataset, seed: int = 0) -> Path:
    """A model folder with titles."""
    save_recommender(decoder(seed), dataset, folder, "tiny student", {"valid/ndcg@10": 0.25})
    titles = [f"Thing number {n} in {'red' if n % 2 else 'blue'}" for n in range(dataset.num_items)]
    _, vocabulary = load_recommender(folder)
    replace_vocabulary(vocabulary._replace(titles=pa.array(titles)), folder)
    return folder


@dataclass
class Client:
    """Speaks to a server, one connection a request."""

    port: int
    server: Server
    token: str | None = None
    connections: Any = ()
    """Open connections of the server."""

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and content of an answer; a body that is no text is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if isinstance(body, dict | list):
            body = json.dumps(body)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        connection.request(method or ("GET" if body is None else "POST"), path, body, sent | headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.status, answer.headers, json.loads(content) if is_json else content.decode()

    def get(self, path: str) -> Any:
        status, _, content = self.ask(path)
        assert status == 200, content
        return content

    def recommend(self, **query: Any) -> Any:
        status, _, content = self.ask("/recommend", query)
        assert status == 200, content
        return content


@contextmanager
def serving(folder: Path, limits: Limits = LIMITS, teacher: Path | None = None, **options: Any) -> Iterator[Client]:
    """A server over real sockets."""
    models: dict[Any, ServedModel] = {"student": ServedModel(folder, load(folder))}
    if teacher is not None:
        models["teacher"] = ServedModel(teacher, load(teacher))
    server = Server(models, limits, **options)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        running = HttpServer(server)
        thread = Thread(target=lambda: asyncio.run(running.serve([bound])))
        thread.start()
        try:
            client = Client(bound.getsockname()[1], server, options.get("token"), running.server_state.connections)
            assert client.ask("/health")[0] == 200
            yield client
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
