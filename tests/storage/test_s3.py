"""A run in a store of the kind of S3 on this machine: every path is a URI, and the cache is the only local folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slmrec.recipes import find_recipe

pytestmark = pytest.mark.heavy
SECRET = "wJalrXUtnFEMIhidden"


class Store(NamedTuple):
    client: Any
    folder: Path
    """Folder of everything that commands leave on this machine."""
    environment: dict[str, str]

    def slmrec(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Execute a command in an empty working directory."""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "slmrec", *arguments],
            cwd=work,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def keys(self, prefix: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket="shop", Prefix=prefix).get("Contents", [])
        return [item["Key"] for item in found]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server on the loopback interface, with an empty bucket."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    folder = tmp_path_factory.mktemp("machine")
    keys = {"AWS_ACCESS_KEY_ID": "shop", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    places = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache"), "AWS_ENDPOINT_URL": address}
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="shop", aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="shop")
    environment = {**os.environ, **keys, **places, "AWS_EC2_METADATA_DISABLED": "true"}
    yield Store(client, folder, environment)
    server.stop()


def test_a_run_and_its_recommendations_have_no_local_paths(store: Store, shop_file: Path) -> None:
    put = store.client.put_object
    put(Bucket="shop", Key="log/", Body=b"")  # how the console of S3 makes a folder
    put(Bucket="shop", Key="log/part-0.txt", Body=shop_file.read_bytes())
    put(Bucket="shop", Key="tiny.yaml", Body=find_recipe("tiny").read_bytes())
    put(Bucket="shop", Key="users.csv", Body=b"user_id,item_id,timestamp\nann,i01,1\nann,i02,2\nbob,i07,1\n")
    common = ["--config", "s3://shop/tiny.yaml", "--input", "s3://shop/log/", "--output", "s3://shop/out"]
    for command in ("prepare", "run"):
        ended = store.slmrec(command, *common)
        assert ended.returncode == 0, ended.stderr
    assert "prepare: unchanged, nothing to do (s3://shop/out/prepare;" in ended.stdout
    assert "written to s3://shop/out/distill" in ended.stdout and str(store.folder) not in ended.stdout + ended.stderr
    model, users = ["--model", "s3://shop/out/distill"], ["--input", "s3://shop/users.csv"]
    ended = store.slmrec("recommend", *model, *users, "--output", "s3://shop/recs.csv", "--k", "3")
    assert ended.returncode == 0, ended.stderr
    lists = store.client.get_object(Bucket="shop", Key="recs.csv")["Body"].read().decode().splitlines()
    assert len(lists) == 7 and lists[1].startswith('"ann"')
    made = [path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file()]
    assert {path.parts[:2] for path in made} <= {("cache", "slmrec"), ("cache", "matplotlib")}
    assert [key for key in store.keys("out/") if "/." in key] == ["out/.links.json", "out/.writer"]
    for key in store.keys(""):
        content = store.client.get_object(Bucket="shop", Key=key)["Body"].read()
        assert SECRET.encode() not in content and str(store.folder).encode() not in content, key
    assert not [path for path in made if SECRET.encode() in (store.folder / path).read_bytes()]
    ended = store.slmrec("run", *common, XDG_CACHE_HOME=str(store.folder / "cache" / "slmrec" / "second"))
    assert ended.returncode == 0 and "done in" not in ended.stdout, ended.stdout


@pytest.mark.parametrize(
    ("key", "environment", "message"),
    [
        ("none", {}, "s3://shop/none: no such file, folder or bucket"),
        ("log", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "s3://shop/data: access refused ("),
        ("log", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://shop/data: cannot be reached, read or written ("),
    ],
)
def test_what_is_missing_is_one_line(store: Store, key: str, environment: dict[str, str], message: str) -> None:
    ended = store.slmrec("prepare", "--input", f"s3://shop/{key}", "--output", "s3://shop/data", **environment)
    assert ended.returncode == 2 and ended.stderr.startswith(f"slmrec: {message}"), ended.stderr
    assert ended.stderr.count("\n") == 1 and SECRET not in ended.stderr


def test_a_locked_run_is_refused(store: Store) -> None:
    from slmrec.storage import remote

    store.client.put_object(Bucket="shop", Key="locked/.lock", Body=b'{"command": "slmrec run", "host": "other"}')
    ended = store.slmrec("prepare", "--input", "s3://shop/users.csv", "--output", "s3://shop/locked")
    assert ended.returncode == 2 and "is being written by `slmrec run` (process None on other" in ended.stderr
    assert store.keys("locked/") == ["locked/.lock"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        folder = remote.Remote("s3://shop/exclusive")
        assert [folder.create(".lock", b"1"), folder.create(".lock", b"2")] == [True, False]
        assert folder.read(".lock") == b"1"
