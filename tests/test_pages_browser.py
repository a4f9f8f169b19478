"""The pages in a real browser: Debian's chromium, driven over a socket; and axe's rules of accessibility."""

import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from browsing import COUNTER, NOTICE, again, painting
from PIL import Image
from serving import serving

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.sampler.for_pages import ForPages
from negindex.service.access import create_key
from negindex.service.pages.noted import reveals

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium"),
]
SHAPE = (3, 64, 64)
PICTURES = os.environ.get("NEGINDEX_SCREENSHOTS")  # a folder that screenshots are written into


@pytest.fixture(scope="module")
def chromium():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with driver.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def office(tmp_path):
    keys = {role: create_key(tmp_path, [role])[0] for role in ("curator", "sampler", "admin")}
    keys["first"], keys["second"] = (create_key(tmp_path, ["approver"])[0] for _ in range(2))
    with Collection.create(tmp_path / "art.set", SHAPE, "pixels") as art:
        art.add(torch.zeros(1, *SHAPE).numpy(), ["flat.png"])
    with serving(tmp_path, keyless=False, images=ForPages()) as url:
        yield tmp_path, url, keys


def visitor(chromium, url, key, **looks):
    """A page of somebody who has logged in; anything that the browser finds amiss fails the test."""
    page = chromium.new_context(base_url=url, **looks).new_page()
    amiss = page.amiss = []
    page.on("console", lambda said: amiss.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: amiss.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:")) else amiss.append(asked.url))
    page.goto("/pages")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Sets").wait_for()
    return page


def shot(page, name):
    """A screenshot of few colours, where they are asked for."""
    if PICTURES:
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        image.quantize(96, dither=Image.Dither.NONE).save(Path(PICTURES) / f"{name}.png", optimize=True)


def fill_notice(page):
    for name, value in NOTICE.items():
        field = page.locator(f'[name="{name}"]')
        field.select_option(value) if field.evaluate("e => e.tagName") == "SELECT" else field.fill(value)


def open_claim(page, folder, name, content):
    (folder / name).write_bytes(content)
    page.goto("/pages/sets/art.set/new-claim?regime=dmca")
    page.set_input_files("#files", folder / name)
    assert name in page.locator(".chosen").inner_text()
    fill_notice(page)
    page.get_by_role("button", name="Look for near-duplicates").click()


def test_from_a_notice_to_an_erasure(office, chromium, tmp_path_factory):
    root, url, keys = office
    folder, first_image = tmp_path_factory.mktemp("mail"), painting(1)
    looks = {"viewport": {"width": 1000, "height": 620}}
    curator, first, second = (visitor(chromium, url, keys[who], **looks) for who in ("curator", "first", "second"))
    remote = RemoteNegatives(url, "art.set", keys["sampler"])

    open_claim(curator, folder, "copy.png", first_image)
    curator.get_by_role("button", name="Open the claim").click()
    curator.get_by_role("heading", name="Claim 2").wait_for()
    at = curator.url
    assert len(remote.pin()) == 1

    open_claim(curator, folder, "again.jpg", again(first_image))  # another notice, on a near-copy
    near = curator.locator(".near")
    assert "bits apart" in near.inner_text()
    shot(curator, "pages-near-duplicates")
    image = near.locator("img")
    blurred = image.get_attribute("src")
    curator.get_by_role("button", name="Reveal row 2").click()
    curator.wait_for_function("() => document.querySelector('.near img').src.startsWith('data:')")
    assert image.get_attribute("src") != blurred
    assert [(one.what, one.number) for one in reveals(root)] == [("row", 2)]

    first.goto(at)
    first.get_by_text("Accept", exact=True).first.click()
    first.get_by_role("button", name="Accept").click()
    first.get_by_text("in force", exact=True).first.wait_for()
    shot(first, "pages-claim")
    pinned = remote.pin()
    assert len(pinned) == 2
    sample = torch.from_numpy(Collection.open(root / "art.set").stored([2]).rows.astype("float32"))
    told = pinned.posterior(sample, NoiseLevel(1.0, 0.05))
    assert torch.allclose(told.mean, sample.double(), atol=1e-2)

    curator.goto(at)
    curator.get_by_text("Dispute", exact=True).first.click()
    for name, value in COUNTER.items():
        field = curator.locator(f'#step-dispute [name="{name}"]')
        field.select_option(value) if field.evaluate("e => e.tagName") == "SELECT" else field.fill(value)
    curator.get_by_role("button", name="Dispute").click()
    curator.get_by_text("not before").first.wait_for()
    first.goto("/pages/sets/art.set/claims")
    first.get_by_text("put back").wait_for()

    first.goto(at)
    first.get_by_text("Withdraw", exact=True).first.click()
    first.locator("#step-withdraw [name=early]").check()
    first.get_by_role("button", name="Withdraw").click()
    first.get_by_text("withdrawn", exact=True).first.wait_for()
    assert len(remote.pin()) == 1

    first.get_by_text("Erase, by two people").click()
    first.get_by_role("button", name="Ask for the erasure").click()
    first.get_by_text("You asked").wait_for()
    assert first.get_by_role("button", name="Approve").count() == 0
    second.goto(at)
    second.get_by_role("button", name="Approve, and erase now").click()
    second.get_by_text("erased", exact=True).first.wait_for()
    record = Collection.open(root / "art.set").row(2)
    assert (record.state, record.stored, record.source_key) == ("erased", False, None)
    remote.close()
    assert curator.amiss == first.amiss == second.amiss == []


def test_a_dropped_file_is_taken_and_the_keyboard_is_enough(office, chromium):
    _, url, keys = office
    page = visitor(chromium, url, keys["curator"])
    page.goto("/pages/sets/art.set/new-claim?regime=dmca")
    page.evaluate("""() => {
        const given = new DataTransfer();
        given.items.add(new File([new Uint8Array(9)], 'dropped.png'));
        document.querySelector('.drop').dispatchEvent(new DragEvent('drop', { dataTransfer: given, bubbles: true }));
    }""")
    assert "dropped.png" in page.locator(".chosen").inner_text()
    page.goto("/pages/sets/art.set/claims")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.closest('main') !== null")
    assert page.amiss == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_every_page_is_accessible_and_fits_a_narrow_screen(office, chromium, tmp_path_factory, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing").Axe()
    root, url, keys = office
    with Collection.open(root / "art.set") as art:
        art.add(
            torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(0)).numpy(), [f"r{i}" for i in range(200)]
        )
        art.calibrate()
    page = visitor(chromium, url, keys["admin"], color_scheme=scheme, viewport={"width": width, "height": 900})
    folder = tmp_path_factory.mktemp("mail")
    open_claim(page, folder, "a.png", painting(1))
    page.get_by_role("button", name="Open the claim").click()
    page.get_by_role("heading", name="Claim 3").wait_for()
    open_claim(page, folder, "b.jpg", again(painting(1)))
    found = [] if width == 320 else [_amiss(axe, page)]
    ends = ("claims", "claims/3", "new-claim", "new-claim?regime=dmca", "rows/1", "search", "history?at=1", "status")
    for path in ["/pages", "/pages/receipts", "/pages/reveals", *(f"/pages/sets/art.set/{end}" for end in ends)]:
        page.goto(path)
        for step in page.locator("details.step").all():
            step.evaluate("e => { e.open = true; }")
        found.append(_amiss(axe, page))
        wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} is {wide} pixels too wide"
        shot(page, f"{path.strip('/').replace('/', '-').replace('?', '-')}-{scheme}-{width}")
    assert [one for one in found if one] == []
    assert page.amiss == []


def _amiss(axe, page):
    told = axe.run(page).response["violations"]
    return [(page.url, one["id"], [node["html"][:120] for node in one["nodes"]]) for one in told]
