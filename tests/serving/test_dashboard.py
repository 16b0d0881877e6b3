"""The dashboard in a real Chromium, on a real server: its numbers, its faults, its manners."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from processes import until

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.schema import load_dataset

# Names on more than one line, tiles that leave their last row open, and what lies beyond the page.
BROKEN = """() => [
    ...[...document.querySelectorAll('.feature h3 span')].filter(e => e.offsetHeight > 30),
    ...[document.querySelector('.tile:last-child')].filter(
        e => Math.abs(e.getBoundingClientRect().right - e.parentElement.getBoundingClientRect().right) > 2),
].map(e => e.textContent)"""
OUTSIDE = """() => [...document.querySelectorAll('main *')].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.table')).map(e => e.textContent)"""

TABLE = load_table(load_dataset("boston"), Settings(data_path=None))


class Visit:
    """A page that was opened, and all that went wrong or out of it."""

    def __init__(
        self, browser: Browser, server: Any, path: str = "/dashboard", **context: Any
    ) -> None:
        self.server = server
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page: Page = browser.new_context(**context).new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(server.address + path)

    def _console(self, message: ConsoleMessage) -> None:
        # a container that starts changes this machine's interfaces: Chromium drops what it was
        # loading, and the page asks again
        if message.type == "error" and "ERR_NETWORK_CHANGED" not in message.text:
            self.errors.append(message.text)

    def strangers(self) -> list[str]:
        """Whatever was asked of anyone but the server."""
        return [u for u in self.asked if not u.startswith((self.server.address + "/", "data:"))]

    def text(self, name: str) -> str:
        return self.page.locator(f"#{name}").inner_text()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    made: list[Visit] = []

    def open_page(server: Any, **context: Any) -> Visit:
        made.append(Visit(browser, server, **context))
        return made[-1]

    yield open_page
    for one in made:
        one.page.context.close()


def price(server: Any, rows: int, seed: int, request: str = "", **shift: float) -> list[str]:
    """The ids of `rows` predictions for houses of the table, some columns moved."""
    chosen = TABLE.features.sample(rows, replace=True, random_state=seed)
    houses = [
        {k: v + shift.get(k, 0.0) for k, v in row.items()} for row in chosen.to_dict("records")
    ]
    with httpx.Client(base_url=server.address, headers={"X-Request-ID": request}) as client:
        ids = []
        for house in houses:
            answer = client.post("/predict", json=house)
            assert answer.status_code == 200, answer.text
            ids.append(answer.json()["prediction_id"])
    return ids


def test_it_shows_the_numbers_of_the_log(serve: Callable[..., Any], visit: Any) -> None:
    server = serve(HOUSING_DRIFT_INTERVAL_S="0.5")
    ids = price(server, 250, seed=1, request="morning-run")
    with httpx.Client(base_url=server.address) as client:
        for i in ids[:40]:
            client.post("/feedback", json={"prediction_id": i, "price": 20.0})
        client.post("/predict", json={"nothing": 1})
    seen = visit(server)
    expect(seen.page.locator("#tiles")).to_contain_text("250 in this time")
    expect(seen.page.locator("#state")).to_have_text("healthy")
    expect(seen.page.locator("#model")).to_have_text("Ridge, version 1")
    expect(seen.page.locator("#prices-unit")).to_have_text("1000 USD, newest 250 predictions")

    slices = server.get("/monitoring/traffic?minutes=60")["slices"]
    drawn = seen.page.locator("#traffic rect.fill")
    assert drawn.count() == sum(bool(s["count"]) for s in slices)
    assert seen.page.locator("#latency path.stroke").count() == 2
    prices = server.get("/monitoring/prices")
    bars = seen.page.locator("#prices rect.under")
    assert bars.count() == sum(bool(n) for n in prices["window"])
    assert seen.page.locator("#prices path.stroke").count() == 2

    [live] = server.get("/monitoring/live-error")["versions"]
    row = seen.page.locator("#error tbody tr").inner_text().split()
    assert row[:3] == ["1", "Ridge", "40"]
    told = server.get("/monitoring/live-error")["judgement"]["told"]
    expect(seen.page.locator("#error p")).to_contain_text(told, timeout=20_000)
    assert float(row[3]) == pytest.approx(live["mae"], rel=5e-3)
    assert float(row[5]) == pytest.approx(live["bias"], rel=5e-3)

    recent = server.get("/monitoring/predictions?limit=15")["predictions"]
    lines = seen.page.locator("#recent tbody tr")
    assert lines.count() == 15
    assert "morning-run" in lines.first.inner_text() and "/predict" in lines.first.inner_text()
    first = float(lines.first.locator("td").nth(1).inner_text())
    assert first == pytest.approx(recent[0]["price"], rel=1e-3)
    lines.first.locator("summary").click()
    for name in load_dataset("boston").columns:
        assert lines.first.locator("dt", has_text=re.compile(f"^{name}$")).is_visible()
    refused = server.get("/metrics")["requests"]["errors"]
    expect(seen.page.locator("#tiles")).to_contain_text(f"{refused} of")

    seen.page.locator("#traffic svg").hover()
    expect(seen.page.locator("#tip")).to_contain_text("predictions")
    seen.page.locator("#minutes").select_option("360")
    expect(seen.page.locator("#traffic-unit")).to_contain_text("per 6 minutes")
    assert seen.errors == [] and seen.strangers() == []


def test_it_follows_what_happens(serve: Callable[..., Any], visit: Any) -> None:
    server = serve()
    seen = visit(server)
    expect(seen.page.locator("#recent")).to_contain_text("No prediction is on record yet")
    expect(seen.page.locator("#traffic")).to_contain_text("No prediction in this time")
    expect(seen.page.locator("#drift")).to_contain_text("No prediction of this version yet")
    expect(seen.page.locator("#error")).to_contain_text("No price really paid")
    expect(seen.page.locator("#prices")).to_contain_text("no prediction yet")
    expect(seen.page.locator("#prices path.stroke.old")).to_have_count(1)
    price(server, 3, seed=1)
    expect(seen.page.locator("#recent tbody tr")).to_have_count(3, timeout=15_000)
    expect(seen.page.locator("#tiles")).to_contain_text("3 in this time", timeout=15_000)
    assert seen.errors == [] and seen.strangers() == []


def test_a_drift_turns_up_by_the_name_of_the_feature(serve: Callable[..., Any], visit: Any) -> None:
    server = serve(HOUSING_DRIFT_INTERVAL_S="0.5")
    price(server, 400, seed=1, LSTAT=8.0)
    seen = visit(server)
    card = seen.page.locator("article.feature").first
    expect(card).to_contain_text("LSTAT")
    expect(card).to_have_attribute("data-state", "drift")
    assert "alarm" in (card.get_attribute("class") or "")
    assert card.locator("path.stroke").count() == 2
    expect(seen.page.locator("#drift-said")).to_contain_text("LSTAT")
    names = {f["name"] for f in server.get("/monitoring/drift")["report"]["features"]}
    shown = seen.page.locator("article.feature h3 span:first-child").all_inner_texts()
    assert set(shown) == names and names > set(load_dataset("boston").columns)
    assert seen.errors == [] and seen.strangers() == []


def ask_as_traffic_does(server: Any, rounds: int) -> int:
    """How many rows it were: houses one by one, a poller between them, and batches of neighbours."""
    rows = TABLE.features.to_dict("records")
    begins = np.random.default_rng(0).integers(0, len(rows) - 25, rounds)
    with httpx.Client(base_url=server.address) as client:
        for i, begin in enumerate(begins):
            price(server, 25, seed=i)
            for _ in range(10):
                client.post("/predict", json=rows[0])
            client.post("/predict/batch", json=rows[begin : begin + 25])
    return 60 * rounds


def test_a_poller_and_a_batch_client_alarm_nobody_and_other_houses_do(
    serve: Callable[..., Any], visit: Any
) -> None:
    server = serve(HOUSING_DRIFT_INTERVAL_S="0.5")
    asked = ask_as_traffic_does(server, 20)
    quiet = until(lambda: (d := server.get("/monitoring/drift"))["asked"] == asked and d)
    assert quiet["verdict"] == "ok" and quiet["effective"] < quiet["houses"] < asked
    seen = visit(server)
    expect(seen.page.locator("#drift-said")).to_contain_text("are like those of the training")
    expect(seen.page.locator("article.feature.alarm")).to_have_count(0)
    assert server.get("/health")["checks"]["drift"]["state"] == "healthy"
    price(server, 400, seed=1, LSTAT=8.0)
    expect(seen.page.locator("#drift-said")).to_contain_text("LSTAT", timeout=30_000)
    expect(seen.page.locator("article.feature.alarm").first).to_contain_text("LSTAT")
    assert server.get("/health")["checks"]["drift"]["state"] == "degraded"
    assert seen.errors == [] and seen.strangers() == []


def test_it_fits_and_can_be_read(serve: Callable[..., Any], visit: Any) -> None:
    server = serve(HOUSING_DRIFT_INTERVAL_S="0.5")
    price(server, 230, seed=2, request="r" * 64)
    for width, scheme in itertools.product((320, 390, 1280), ("light", "dark")):
        seen = visit(server, viewport={"width": width, "height": 844}, color_scheme=scheme)
        expect(seen.page.locator("article.feature")).not_to_have_count(0)
        expect(seen.page.locator("#recent tbody tr")).to_have_count(15)
        inner, outer = seen.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert inner <= outer == width
        ground, ink = seen.page.evaluate(
            """() => { const s = getComputedStyle(document.body);
            return [s.backgroundColor, s.color].map(c => c.match(/\\d+/g).slice(0, 3).map(Number)) }"""
        )
        assert seen.page.evaluate(BROKEN) == []
        assert seen.page.evaluate(OUTSIDE) == []
        assert (sum(ground) < sum(ink)) == (scheme == "dark")
        assert abs(sum(ground) - sum(ink)) > 400
        assert seen.errors == []
        seen.page.context.close()


def test_it_is_used_by_keys_and_told_by_a_reader(serve: Callable[..., Any], visit: Any) -> None:
    server = serve()
    price(server, 5, seed=1)
    seen = visit(server)
    chart = seen.page.get_by_role("slider", name="Predictions over time")
    expect(chart).to_have_attribute(
        "aria-valuetext", re.compile(": 5 predictions, so far|: 0 pred")
    )
    seen.page.locator("#minutes").focus()
    seen.page.keyboard.press("Tab")
    expect(chart).to_be_focused()
    expect(seen.page.locator("#tip")).to_be_visible()
    seen.page.keyboard.press("Home")
    expect(chart).to_have_attribute("aria-valuenow", "0")
    expect(seen.page.locator("#tip")).to_contain_text("0 predictions")
    seen.page.keyboard.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuenow", "1")
    price(server, 4, seed=2)
    expect(seen.page.locator("#tiles")).to_contain_text("9 in this time", timeout=15_000)
    expect(chart).to_be_focused()
    expect(chart).to_have_attribute("aria-valuenow", "1")
    seen.page.keyboard.press("Escape")
    expect(seen.page.locator("#tip")).to_be_hidden()
    seen.page.get_by_role("region", name="Recent predictions").get_by_role("button").last.focus()
    seen.page.keyboard.press("Enter")
    reasons = seen.page.get_by_role("img", name="What each feature adds to the price: ")
    expect(reasons).to_have_attribute("aria-label", re.compile(r"[+\u2212]\d"))
    expect(seen.page.get_by_role("slider", name="The price along RM")).to_have_count(1)
    assert seen.errors == [] and seen.strangers() == []


def test_categories_have_their_names_beside_their_bars(
    serve: Callable[..., Any], visit: Any
) -> None:
    server = serve(HOUSING_DRIFT_INTERVAL_S="0.5")
    price(server, 60, seed=1)
    until(lambda: server.get("/monitoring/drift")["report"]["rows"])
    seen = visit(server)
    flag = seen.page.locator("article.feature", has=seen.page.get_by_text("CHAS", exact=True))
    expect(flag.locator("text.reason")).to_have_text([re.compile("^0"), re.compile("^1")])
    expect(flag.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile("^CHAS: 0 [0-9.]+ %, 1 ")
    )
    many = seen.page.locator(
        "article.feature", has=seen.page.get_by_text("combination", exact=True)
    )
    expect(many.locator("text.reason")).to_have_count(6)
    expect(many.locator("text.reason").last).to_contain_text("others")
    expect(many.locator("rect")).to_have_count(10)
    assert seen.errors == []


def test_what_a_client_sends_is_text(serve: Callable[..., Any], visit: Any) -> None:
    server = serve()
    with httpx.Client(base_url=server.address) as client:
        house = load_dataset("boston").example
        client.post("/predict", json=house, headers={"X-Request-ID": "<img src=x onerror=a()>"})
    seen = visit(server)
    expect(seen.page.locator("#recent tbody tr")).to_have_count(1)
    assert seen.page.locator("main img, main script").count() == 0
    evil = {"predictions": [], "next": None}
    row = server.get("/monitoring/predictions?limit=1")["predictions"][0]
    tag = "<img src=x onerror=\"document.title='taken'\">"
    evil["predictions"] = [row | {"request_id": tag, "route": tag, "features": {tag: tag}}]
    seen.page.route("**/monitoring/predictions*", lambda r: r.fulfill(json=evil))
    seen.page.reload()
    expect(seen.page.locator("#recent tbody tr")).to_contain_text("<img src=x")
    assert seen.page.locator("main img").count() == 0 and seen.page.title() != "taken"
    assert seen.errors == [] and seen.strangers() == []


def test_without_a_model_it_says_so(serve: Callable[..., Any], visit: Any) -> None:
    seen = visit(serve(model=False, path="/livez"))
    expect(seen.page.locator("#state")).to_have_text("unhealthy")
    expect(seen.page.locator("#model")).to_have_text("no model yet")
    expect(seen.page.locator("#drift")).to_contain_text("No model to price with")
    expect(seen.page.locator("#prices")).to_contain_text("no model to compare with")
    assert seen.strangers() == []


def test_without_a_database_it_says_so(serve: Callable[..., Any], visit: Any) -> None:
    gone = "postgresql://nobody@/none?host=/nowhere"
    server = serve(HOUSING_DATABASE_URL=gone)
    price(server, 5, seed=1)
    seen = visit(server)
    expect(seen.page.locator("#state")).to_have_text("degraded", timeout=15_000)
    for name in ("traffic", "latency", "prices", "drift", "error", "recent"):
        expect(seen.page.locator(f"#{name}")).to_contain_text("does not answer")
    expect(seen.page.locator("#health")).to_contain_text("records are kept in the journal")
    expect(seen.page.locator("#tiles")).to_contain_text("5 rows")
    assert seen.strangers() == []


def test_without_a_log_it_says_so(serve: Callable[..., Any], visit: Any) -> None:
    seen = visit(serve(HOUSING_LOG="off"))
    expect(seen.page.locator("#recent")).to_contain_text("HOUSING_LOG is off")
    expect(seen.page.locator("#state")).to_have_text("healthy")


def test_it_asks_for_a_key_when_one_is_needed(serve: Callable[..., Any], visit: Any) -> None:
    server = serve(HOUSING_API_KEYS="another", HOUSING_HISTORY_KEYS="open-sesame")
    seen = visit(server)
    expect(seen.page.locator("#unlock")).to_be_visible()
    expect(seen.page.locator("#recent")).to_contain_text("X-API-Key")
    seen.page.locator("#key").fill("open-sesame")
    seen.page.locator("#unlock button").click()
    expect(seen.page.locator("#recent")).to_contain_text("No prediction is on record yet")
    expect(seen.page.locator("#unlock")).to_be_hidden()


def test_an_end_of_the_service_is_told(serve: Callable[..., Any], visit: Any) -> None:
    server = serve()
    seen = visit(server)
    expect(seen.page.locator("#state")).to_have_text("healthy")
    server.kill()
    expect(seen.page.locator("#state")).to_have_text("no answer", timeout=15_000)


def test_the_documentation_loads_nothing_from_elsewhere(
    serve: Callable[..., Any], visit: Any
) -> None:
    seen = visit(serve(), path="/docs")
    predict = seen.page.locator("#operations-pricing-predict_predict_post")
    predict.locator(".opblock-summary-control").click()
    predict.get_by_role("button", name="Try it out").click()
    predict.get_by_role("button", name="Execute").click()
    expect(predict.locator(".live-responses-table")).to_contain_text('"prediction"')
    assert seen.strangers() == [] and seen.errors == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_price_says_why_when_it_is_clicked(
    serve: Callable[..., Any], visit: Any, width: int
) -> None:
    server = serve()
    price(server, 3, seed=1)
    seen = visit(server, viewport={"width": width, "height": 900})
    expect(seen.page.locator("#recent tbody tr")).to_have_count(3)
    expect(seen.page.locator("#why-panel")).to_be_hidden()
    row = server.get("/monitoring/predictions?limit=1")["predictions"][0]
    told = httpx.post(server.address + "/explain", json=row["features"]).json()["explanation"]
    seen.page.locator("#recent tbody tr").first.locator("button").click()
    expect(seen.page.locator("#why-said")).to_contain_text("the reference house")
    named = seen.page.locator("#why text.reason")
    expect(named.first).to_contain_text(told["reasons"][0]["feature"])
    assert named.count() == min(9, sum(r["contribution"] != 0 for r in told["reasons"]))
    assert seen.page.locator("#why rect").count() == named.count()
    assert seen.page.locator("#why path.under").count() == len(told["contrasts"]) == 1
    assert seen.page.locator("#why circle").count() == 1
    expect(seen.page.locator("#why")).to_contain_text("what that adds to the price")
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert seen.page.evaluate(wide) == 0
    assert seen.errors == [] and seen.strangers() == []


def test_a_key_that_may_not_ask_is_told_so_beside_the_price(
    serve: Callable[..., Any], visit: Any
) -> None:
    server = serve(HOUSING_API_KEYS="ask", HOUSING_HISTORY_KEYS="read")
    with httpx.Client(base_url=server.address, headers={"X-API-Key": "ask"}) as client:
        client.post("/predict", json=load_dataset("boston").example)
    seen = visit(server)
    seen.page.locator("#key").fill("read")
    seen.page.locator("#unlock button").click()
    seen.page.locator("#recent tbody button").click()
    expect(seen.page.locator("#why")).to_contain_text("the role predict")
    assert seen.strangers() == []
