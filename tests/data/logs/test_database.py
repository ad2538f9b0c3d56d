"""Tables of a PostgreSQL that the tests start on loopback: values, types, cancelled queries, and time."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from runs import refused

import slmrec
from slmrec.commands.main import main
from slmrec.errors import ConfigError, DataError

pytestmark = pytest.mark.heavy

PASSWORD = "pw/of@ann"
FILES = ("interactions.parquet", "items.parquet", "users.parquet", "histories.npy")
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian leaves it out of the PATH
EVENTS = """
    CREATE TABLE events AS
    SELECT 'u' || u AS user_id, 'é' || (u * 7 + n * n) % 60 AS item_id, u * 100 + n AS number,
           u AS shopper, (u * 7 + n * n) % 60 - 5 AS product,
           timestamptz '2024-02-28 23:00:00.25+01' + (n * 3 + u) * interval '1 second' AS time, (u + n) % 5 AS rating
    FROM generate_series(1, 60) u, generate_series(1, 9) n
"""


class Server(NamedTuple):
    """A running PostgreSQL."""

    url: str
    """The URL with the password."""
    connection: Any

    def run(self, query: str) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query)
        return list(cursor.fetchall()) if cursor.description else []

    @property
    def without_password(self) -> str:
        scheme, _, host = self.url.partition("ann:")
        return f"{scheme}ann@{host.partition('@')[2]}"


def program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, INSTALLED)]))
    if found is None:
        pytest.skip("PostgreSQL is not installed (no postgres on the PATH or in /usr/lib/postgresql)")
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'slmrec[postgres]'")
    initdb, postgres = program("initdb"), program("postgres")
    folder = Path(mkdtemp(prefix="slmrec-postgres-"))
    user = None
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user for it")
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "password").write_text(PASSWORD)
    if user is not None:
        shutil.chown(folder / "password", user)
    settings = ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(
        [initdb, "-D", folder / "data", "-U", "ann", "--pwfile", folder / "password", *settings],
        check=True,
        capture_output=True,
        user=user,
        cwd=folder,
    )
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    process = subprocess.Popen(
        [postgres, "-D", folder / "data", *(f"--{name}={value}" for name, value in options.items())],
        user=user,
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        connection, deadline = None, time.monotonic() + 60
        while connection is None:
            try:
                connection = psycopg.connect(
                    host="127.0.0.1", port=port, user="ann", password=PASSWORD, dbname="postgres", autocommit=True
                )
            except psycopg.OperationalError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        with connection:
            connection.execute(EVENTS)
            yield Server(f"postgres://ann:pw%2Fof%40ann@127.0.0.1:{port}/postgres", connection)
    finally:
        process.send_signal(signal.SIGINT)  # stops without waiting for clients
        process.wait(timeout=30)
        shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def ids(folder: Path, name: str) -> list[Any]:
    return list(pq.read_table(folder / f"{name}s.parquet")[f"{name}_id"].to_pylist())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_rating": 2, "min_item_events": 4, "repeats": "drop"},
        {"split": "temporal", "valid_share": 0.2},
        {"max_history": 5, "core": "single_pass"},
    ],
)
@pytest.mark.parametrize("numbers", [False, True])
def test_a_table_gives_the_files_that_a_log_of_the_same_rows_gives(
    server: Server, tmp_path: Path, settings: dict[str, Any], numbers: bool
) -> None:
    time = "to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
    names = ("user_id", "item_id", "shopper", "product", "number", "time", "rating")
    rows = server.run(
        f"SELECT user_id, item_id, shopper, product, number, {time}, rating FROM events ORDER BY random()"
    )
    log = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    pyarrow.csv.write_csv(log, tmp_path / "log.csv")
    columns = {"tie_col": "number", "time_col": "time"}
    columns |= {"user_col": "shopper", "item_col": "product"} if numbers else {}
    there = slmrec.prepare("events", tmp_path / "there", engine=server.url, **columns, **settings)
    here = slmrec.prepare(tmp_path / "log.csv", tmp_path / "here", **columns, **settings)
    assert contents(there) == contents(here)


def test_names_of_schemas_tables_and_columns_are_quoted(server: Server, tmp_path: Path) -> None:
    server.run('CREATE SCHEMA IF NOT EXISTS "The Shop"')
    server.run('CREATE VIEW "The Shop"."All ""Events""" AS SELECT user_id AS "The User", item_id, number FROM events')
    folder = slmrec.prepare(
        'The Shop.All "Events"', tmp_path / "data", engine=server.url, user_col="The User", time_col="number"
    )
    assert len(ids(folder, "user")) == 60


@pytest.mark.parametrize(
    ("dtype", "user", "expected"),
    [
        ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1' || n % 4", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a10"),
        ("varchar(20)", "'007' || n % 4", "0070"),
        ("char(9)", "'u' || n % 4", "u0"),
        ("mood", "('{sad,ok,happy,odd}'::text[])[n % 4 + 1]", "happy"),
        ("smallint", "n % 4", 0),
        ("numeric(20, 0)", "n % 4", 0),
        ("bigint", "9007199254740993 + n % 4", 9007199254740993),
    ],
)
def test_types_of_ids(server: Server, tmp_path: Path, dtype: str, user: str, expected: Any) -> None:
    server.run(
        "DROP TABLE IF EXISTS typed; DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'odd')"
    )
    server.run(f"CREATE TABLE typed AS SELECT ({user})::{dtype} AS user_id, n AS item_id, n AS timestamp "
               "FROM generate_series(1, 40) n")  # fmt: skip
    assert ids(slmrec.prepare("typed", tmp_path / "data", engine=server.url), "user")[0] == expected


@pytest.mark.parametrize("dtype", ["int[]", "text[]", "bool", "bytea", "jsonb"])
def test_types_that_are_no_ids(server: Server, tmp_path: Path, dtype: str) -> None:
    values = {"int[]": "ARRAY[n % 4, 2]", "text[]": "ARRAY['a', 'b']", "bool": "n % 2 = 0", "bytea": "'ab'::bytea",
              "jsonb": """'{"a": 1}'::jsonb"""}  # fmt: skip
    server.run("DROP TABLE IF EXISTS other")
    server.run(f"CREATE TABLE other AS SELECT n % 4 AS user_id, {values[dtype]} AS item_id, n AS timestamp "
               "FROM generate_series(1, 40) n")  # fmt: skip
    with pytest.raises(
        DataError, match=r"^other: column 'item_id' has the type .*, (expected ids|a list or an object)"
    ):
        slmrec.prepare("other", tmp_path / "data", engine=server.url)


@pytest.mark.parametrize("dtype", ["timestamp", "timestamptz", "date", "bigint", "numeric", "text"])
def test_types_of_times(server: Server, tmp_path: Path, dtype: str) -> None:
    day = "'1969-12-30'::date + n"
    value = {"text": f"({day})::text", "timestamptz": f"({day})::timestamp AT TIME ZONE 'UTC'"}.get(dtype, day)
    if dtype in {"bigint", "numeric"}:
        value = "(n - 2) * 86400"
    server.run("DROP TABLE IF EXISTS timed")
    server.run(f"CREATE TABLE timed AS SELECT n % 4 AS user_id, n AS item_id, ({value})::{dtype} AS timestamp "
               "FROM generate_series(0, 39) n")  # fmt: skip
    server.run("SET TIME ZONE 'Asia/Tokyo'")
    folder = slmrec.prepare("timed", tmp_path / "data", engine=server.url)
    times = sorted(pq.read_table(folder / "interactions.parquet")["timestamp"].to_pylist())
    assert times == [(n - 2) * 86400 for n in range(40)]


def test_invalid_rows_are_named_or_skipped_and_counted(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.run("CREATE TABLE faulty AS SELECT user_id, item_id, time AS timestamp FROM events")
    server.run("INSERT INTO faulty VALUES (NULL, 'a', now()), ('u1', 'a', 'infinity')")
    command = ["prepare", "--input", "faulty", "--output", str(tmp_path / "data"), f"prepare.engine={server.url}"]
    assert "faulty: a row: user_id is None: expected an id" in refused(command, capsys)
    assert main([*command, "--on-bad-row", "skip"]) == 0
    assert pq.read_table(tmp_path / "data" / "rejected.parquet").num_rows == 2
    assert main(["data", "validate", "events", f"prepare.engine={server.url}", "prepare.time_col=time"]) == 0


def test_nothing_is_written_into_the_database(server: Server, tmp_path: Path) -> None:
    tables = "SELECT count(*) FROM pg_class"
    before = server.run(tables)
    slmrec.prepare("events", tmp_path / "data", engine=server.url, time_col="time")
    assert server.run(tables) == before
    server.run("CREATE OR REPLACE FUNCTION spoil() RETURNS text AS 'DELETE FROM events; SELECT ''u'';' LANGUAGE sql")
    server.run("CREATE VIEW spoiled AS SELECT spoil() AS user_id, item_id, time FROM events")
    with pytest.raises(DataError, match=r"spoiled: the engine postgres cannot read the table .*read-only transaction"):
        slmrec.prepare("spoiled", tmp_path / "data", engine=server.url, time_col="time")


def test_the_password_is_in_no_file_and_no_message(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "prepare",
        "--config",
        "tiny",
        "--input",
        "events",
        "--output",
        str(tmp_path / "run"),
        "prepare.time_col=time",
    ]
    wrong = server.url.replace("ann:pw", "ann:wrong")
    message = refused([*command, f"prepare.engine={wrong}"], capsys)
    assert "password authentication failed" in message and "SLMREC_ENGINE_PASSWORD" in message
    assert not {"wrong%2Fof", "wrong/of"} & set(message.split()) and "wrong" not in message
    assert main([*command, f"prepare.engine={server.url}"]) == 0
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert files and not any(b"pw/of@" in file.read_bytes() or b"pw%2Fof" in file.read_bytes() for file in files)
    printed = capsys.readouterr()
    assert not any(secret in printed.out + printed.err for secret in ("pw/of@", "pw%2Fof"))


@pytest.mark.parametrize("source", ["variable", "file", "driver"])
def test_passwords_beside_the_url(server: Server, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    url = f"{server.without_password}?application_name={source}"  # another URL than that of the other tests
    assert "pw" not in url
    settings = {"engine": url, "time_col": "time"}
    with pytest.raises(ConfigError, match="no password supplied; give it in the URL, in SLMREC_ENGINE_PASSWORD"):
        slmrec.prepare("events", tmp_path / "data", **settings)
    if source == "file":
        settings["engine_password_file"] = str(file)
    else:
        monkeypatch.setenv("SLMREC_ENGINE_PASSWORD" if source == "variable" else "PGPASSWORD", PASSWORD)
    assert len(ids(slmrec.prepare("events", tmp_path / "data", **settings), "user")) == 60


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_query_ends_with_its_client(server: Server, tmp_path: Path, sent: signal.Signals) -> None:
    server.run("CREATE OR REPLACE VIEW slow AS SELECT user_id, item_id, time AS timestamp FROM events "
               "WHERE pg_sleep(60) IS NOT NULL")  # fmt: skip
    active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slmrec' AND state = 'active'"
    command = [sys.executable, "-m", "slmrec", "prepare", "--input", "slow", "--output", str(tmp_path / "data")]
    client = subprocess.Popen([*command, f"prepare.engine={server.url}"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while server.run(active) == [(0,)]:
        assert client.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    client.send_signal(sent)
    start = time.monotonic()
    _, error = client.communicate(timeout=20)
    while server.run(active) != [(0,)]:
        assert time.monotonic() < start + 15, "the query still runs"
        time.sleep(0.1)
    assert client.returncode == (130 if sent == signal.SIGINT else -sent), error


@pytest.mark.timeout(1200)
def test_a_million_events_take_at_most_three_times_the_time_of_a_csv(server: Server, tmp_path: Path) -> None:
    server.run("""
        CREATE TABLE million AS
        SELECT 'user-' || (random() * 50000)::int AS user_id, 'item-' || (random() * random() * 20000)::int AS item_id,
               timestamptz '2024-01-01+00' + n * interval '1 second' AS timestamp
        FROM generate_series(1, 1000000) n""")
    times = "to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
    query = f"COPY (SELECT user_id, item_id, {times} AS timestamp FROM million) TO STDOUT (FORMAT csv, HEADER)"
    with (tmp_path / "log.csv").open("wb") as file, server.connection.cursor().copy(query) as rows:
        file.writelines(rows)
    durations: dict[str, list[float]] = {"csv": [], "table": []}
    for _ in range(2):  # the first measurement includes the import of libraries
        for name, log, engine in (("csv", tmp_path / "log.csv", "duckdb"), ("table", "million", server.url)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            start = time.perf_counter()
            slmrec.prepare(log, tmp_path / name, engine=engine)
            durations[name].append(time.perf_counter() - start)
    assert min(durations["table"]) <= 3 * min(durations["csv"]), durations
    assert contents(tmp_path / "csv") == contents(tmp_path / "table")
    print(durations)
