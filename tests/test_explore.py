"""`ddm explore`: what the page shows of a run, and whom its server answers."""

# ruff: noqa: F811
from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import jax
import numpy as np
import pytest
from command import ddm as command
from explored import run, shown, started, workdir  # noqa: F401
from PIL import Image
from tiny_run import finished  # noqa: F401

import ddm_jax as ddm
from ddm_jax.explore import requests, server, view
from ddm_jax.run import questions

pytestmark = pytest.mark.slow


class Client:
    """One browser: an address, and the cookie that it was given."""

    def __init__(self, address):
        parts = urlsplit(address)
        self.host, self.port, self.query = parts.hostname, parts.port, parts.query
        self.cookie = ""

    def ask(self, path, body=None, **headers):
        sent = {"Cookie": self.cookie} | headers
        made = http.client.HTTPConnection(self.host, self.port, timeout=120)
        with closing(made) as connection:
            connection.request("GET" if body is None else "POST", path, body, sent)
            answer = connection.getresponse()
            return answer, answer.read()

    def json(self, path, body=None):
        answer, content = self.ask(path, None if body is None else json.dumps(body))
        assert answer.status == 200, content
        return json.loads(content)

    def enter(self):
        answer, _ = self.ask(f"/?{self.query}")
        assert (answer.status, answer.getheader("location")) == (303, "/")
        told = answer.getheader("set-cookie")
        assert "HttpOnly" in told
        assert "SameSite=strict" in told
        self.cookie = told.split(";")[0]
        return self


@pytest.fixture(scope="module")
def client(shown):
    return Client(started(shown)).enter()


def test_the_answer_is_that_of_the_command(run, shown):
    weights = np.ones(run.groups.count)
    weights[[2, 5]] = 0
    found = shown.what_if(weights, 4)
    wanted = questions.what_if(run, weights[None])
    np.testing.assert_allclose(found["outputs"], wanted.outputs[0], atol=1e-4)
    np.testing.assert_allclose(found["changes"], wanted.changes[0], atol=1e-4)
    np.testing.assert_allclose(found["half_widths"], wanted.half_widths[0], rtol=1e-2)
    summed = -run.attribution.scores[[2, 5]].sum(0)
    np.testing.assert_allclose(found["summed"], summed, atol=1e-6)
    assert sum(sure for _, sure in found["said"]) <= 1 + 1e-6
    double = np.ones(run.groups.count)
    double[3] = 2
    np.testing.assert_allclose(
        shown.what_if(double, None)["summed"], run.attribution.scores[3], atol=1e-6
    )


def test_what_the_check_retrained_stands_beside_it(run, shown):
    group = int(run.check.truth.groups[0])
    weights = np.ones(run.groups.count)
    weights[group] = 0
    before = shown.what_if(weights, 0)["retrained"]
    np.testing.assert_allclose(before, -run.check.truth.effects()[:, 0], atol=1e-6)
    weights[group] = 1
    weights[(group + 1) % 10] = weights[(group + 2) % 10] = 0
    assert shown.what_if(weights, 0)["retrained"] is None


def test_retraining_is_that_of_the_truth_and_is_kept(run, shown):
    """A single group that the check retrained without: the same seeds say the same."""
    group = int(run.check.truth.groups[1])
    weights = np.ones(run.groups.count)
    weights[group] = 0
    told = []
    found = shown.retrain(weights, lambda done, note: told.append(done))
    np.testing.assert_allclose(found["retrained"], -run.check.truth.effects()[:, 1], atol=1e-3)
    assert told[-1] == 4  # two seeds of everything, which were there, and two without it
    again = []
    shown.retrain(weights, lambda done, note: again.append(done))
    assert again == []


def test_a_damaged_retraining_is_made_again(run, shown):
    weights = np.ones(run.groups.count)
    weights[[0, 3]] = 0
    before = shown.retrain(weights, lambda done, note: None)["retrained"]
    folder = max((run.workdir / view.RETRAINED).iterdir(), key=lambda each: each.stat().st_mtime)
    (folder / "truth.json").write_text("{}")
    again = shown.retrain(weights, lambda done, note: None)["retrained"]
    np.testing.assert_array_equal(again, before)


def test_the_overview_has_a_place_for_each(run, shown):
    told = json.loads(json.dumps(ddm.files.plain(shown.overview)))
    assert (told["data"], told["kind"], told["outputs"]) == ("digits", "images", 40)
    assert {len(told["groups"][name]) for name in ("name", "size", "kind")} == {10}
    columns = ("output", "reach", "label", "said", "wrong", "confidence")
    assert {len(told["queries"][name]) for name in columns} == {40}
    wrong = [a != b for a, b in zip(told["queries"]["label"], told["queries"]["said"], strict=True)]
    assert wrong == told["queries"]["wrong"]
    found = shown.effects(7)
    np.testing.assert_array_equal(found["scores"], run.attribution.scores[:, 7])
    inside = shown.members(3, 7)
    assert set(inside) <= set(run.attribution.members(3).tolist())
    assert Image.open(io.BytesIO(shown.picture("train", inside[0]))).size == (8, 8)
    for wrong_one in (lambda: shown.effects(40), lambda: shown.members(10, None)):
        with pytest.raises(ValueError, match="must be"):
            wrong_one()


def test_suspects_are_ranked_and_what_is_left_is_trained_on(run, shown):
    found = shown.suspects()
    assert set(found["rankings"]) == {"mislabelled", "low quality", "redundant", "harmful"}
    for order in found["rankings"].values():
        scores = [score for _, score in order]
        assert scores == sorted(scores)
        assert len({place for place, _ in order}) == len(order) == 100
    split = run.plan.split
    place = found["rankings"]["mislabelled"][0][0]
    assert found["labels"][place] == split.classes[split.train.y[place].argmax()]
    assert found["ids"][place] == split.train_ids[place]
    same = shown.cleaned([], {place: found["labels"][place]})
    assert same["after"] == same["before"]
    assert same["queries"] == 20
    # What is dropped and what gets another class is what networks are trained on.
    y, weights = np.array(split.train.y), np.ones(120)
    y[[0, 1]] = np.eye(10)[[4, 5]]
    weights[60:] = 0
    told = shown.cleaned(list(range(60, 120)), {0: "4", 1: "5"})
    train, odd = jax.jit(run.plan.trainer.train), np.arange(1, 40, 2)
    keys = jax.random.split(jax.random.key(run.plan.config.seed + 2), 2)
    for key, found in zip(keys, told["after"], strict=True):
        params = train(key, split.train._replace(y=y), weights.astype(np.float32)).params
        logits = np.asarray(run.plan.task.apply(params, split.test.x[odd]))
        right = logits.argmax(1) == split.test.y[odd].argmax(1)
        assert found == pytest.approx(right.mean(), abs=1e-6)
    for wrong in ([120], {}), ([], {0: "no class"}), (list(range(120)), {}):
        with pytest.raises(ValueError, match=r"must be|no class|keep some"):
            shown.cleaned(*wrong)


def test_a_table_has_words_where_images_have_pixels(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["size,colour,kind"] + [
        f"{rng.normal() + (i % 2):.3f},{'red' if i % 3 else 'blue'},{'ab'[i % 2]}"
        for i in range(60)
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    study = ddm.study(
        ddm.models.MLP(2, (8,)),
        str(tmp_path / "t.csv"),
        groups=5,
        workdir=tmp_path / "run",
        train=ddm.TrainSettings(epochs=4, batch_size=10),
        distill=ddm.DistillSettings(items=2, steps=0),
        tune=ddm.tuning.TuneSettings(subsets=0),
        progress=ddm.run.workdir.SILENT,
    )
    study.report()
    made = view.make_view(study.results())
    assert made.overview["kind"] == "table"
    lines = made.words("test", 0)
    assert [line.split(" = ")[0] for line in lines] == ["size", "colour"]
    with pytest.raises(ValueError, match="no images"):
        made.picture("test", 0)
    assert len(made.what_if(np.array([0, 1, 1, 1, 2]), 0)["outputs"]) == 12


def test_a_page_is_asked_for_with_the_cookie_alone(client):
    stranger = Client(f"http://127.0.0.1:{client.port}/")
    for path in ("/", "/page/main.js", "/api/overview", "/api/picture/train/0"):
        assert stranger.ask(path)[0].status == 401
    assert stranger.ask(f"/?{client.query}")[0].status == 403  # the token is good once
    assert stranger.ask("/?token=guessed")[0].status == 403
    assert stranger.ask("/?token=%C3%A9")[0].status == 403
    answer, page = client.ask("/")
    assert answer.status == 200
    assert b"What if this data were gone?" in page
    assert "default-src 'none'" in answer.getheader("content-security-policy")
    for name in ("main.js", "page.css"):
        assert client.ask(f"/page/{name}")[0].status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Cookie": "ddm=guessed"}, 401),
        ({"Cookie": "é"}, 401),
        ({"Origin": "http://["}, 400),
    ],
)
def test_whoever_comes_from_elsewhere_is_refused(client, headers, status):
    body = json.dumps({"weights": {"0": 0}})
    assert client.ask("/api/what-if", body, **headers)[0].status == status


@pytest.mark.parametrize(
    "body",
    ["", "[", "[]", "{}", '{"weights": 3}', '{"weights": {"x": 0}}', '{"weights": {"10": 0}}',
     '{"weights": {"0": -1}}', '{"weights": {"0": NaN}}', '{"weights": {"0": "0x"}}',
     '{"weights": {"0": 0}, "query": 40}', '{"weights": {"0": 0}, "query": "1"}',
     '{"weights": {"0": 1e300}}', "[" * 100_000, "\xff"],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_a_line(client, body):
    answer, told = client.ask("/api/what-if", body.encode("latin-1"))
    assert answer.status == 400
    assert told
    assert b"\n" not in told
    assert b"Traceback" not in told


def test_two_servers_of_one_machine_have_a_cookie_each(client, shown):
    other = Client(started(shown)).enter()
    both = f"{client.cookie}; {other.cookie}"
    for each in (client, other):
        assert each.ask("/api/effects/0", Cookie=both)[0].status == 200


def test_a_server_that_is_open_goes_by_every_address_of_its_machine():
    assert (
        requests.names_of("127.0.0.1")
        == requests.names_of("localhost")
        == ["127.0.0.1", "localhost"]
    )
    assert requests.names_of("::1")[0] == "[::1]"
    found = requests.names_of("0.0.0.0")
    assert {"127.0.0.1", "localhost", socket.gethostname()} < set(found)
    assert len(found) > 4


def test_nothing_but_the_page_is_read(client):
    for path in (
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/view.py",
        "/page/x.js",
    ):
        assert client.ask(path)[0].status == 404
    for body in (b"", b'{"drop": 3, "labels": {}}', b'{"drop": ["x"], "labels": {}}'):
        assert client.ask("/api/cleaned", body)[0].status == 400
    for path in ("/api/picture/train/120", "/api/picture/all/0", "/api/effects/40"):
        assert client.ask(path)[0].status == 400
    assert client.ask("/api/what-if", b"x" * (server.LARGEST + 1))[0].status == 400


def test_a_hundred_at_once_are_answered_in_turn(client):
    def ask(place):
        return client.json("/api/what-if", {"weights": {str(place % 10): 0}, "query": 0})

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(ask, range(100)))
    for place, each in enumerate(found):
        assert each["outputs"] == found[place % 10]["outputs"]


def test_a_retraining_is_told_when_it_is_done(client):
    body = {"weights": {"1": 0, "4": 2}, "query": None}
    (job,) = client.json("/api/retrain", body)
    assert job["weights"] == {"1": 0, "4": 2}
    client.json("/api/retrain", body)  # the same again is the same job
    for _ in range(600):
        (job,) = client.json("/api/retrain")
        if job["answer"] or job["error"]:
            break
        time.sleep(0.1)
    assert job["error"] is None
    assert np.shape(job["answer"]["retrained"]) == (2, 40)


def test_the_command_needs_a_finished_run(tmp_path):
    done = command("explore", tmp_path / "none")
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['starlette'] = None; from ddm_jax.__main__ import main; "
    code += "sys.exit(main(['explore', 'runs/none']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("python -m pip install '.[explore]'")
