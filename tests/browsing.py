"""The pages as a browser asks for them, without a socket; and images to put in."""

import contextlib
import html
import io
import re
from urllib.parse import urlencode

import numpy as np
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from negindex.sampler.for_pages import ForPages
from negindex.service.app import make_app
from negindex.service.settings import Settings

SHAPE = (3, 16, 16)
HERE = "http://127.0.0.1"
NOTICE = {  # what the DMCA asks of one, as the form names it
    "field.signature": "Jane Roe",
    "field.work": "a painting",
    "field.material": "the third picture",
    "field.contact": "1 Main Street",
    "field.good_faith": "yes",
    "field.accuracy": "yes",
    "field.authority": "yes",
}
COUNTER = {
    "field.counter_signature": "John Doe",
    "field.counter_material": "the third picture",
    "field.counter_perjury": "yes",
    "field.counter_contact": "2 Side Street",
    "field.counter_jurisdiction": "yes",
}


def png(seed, side=96):
    """A picture with enough in it for PDQ."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def painting(seed, side=256):
    """A picture that people can look at: ellipses of all colours."""
    choose = np.random.default_rng(seed).integers
    image = Image.new("RGB", (side, side), tuple(choose(120, 255, 3).tolist()))
    for _ in range(24):
        (left, top), (width, height) = choose(-40, side, 2).tolist(), choose(20, side // 2, 2).tolist()
        ImageDraw.Draw(image).ellipse((left, top, left + width, top + height), tuple(choose(0, 255, 3).tolist()))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def again(content):
    """The same picture in other bytes: smaller, and as a JPEG."""
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).resize((80, 80)).save(file, "JPEG", quality=80)
    return file.getvalue()


def hidden(text, action):
    """(name, value) of the hidden fields of the form that goes to an action's end."""
    form = next(one for one in re.findall(r"<form.*?</form>", text, re.S) if re.search(rf'action="[^"]*{action}"', one))
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form)
    return [(html.unescape(name), html.unescape(value)) for name, value in found]


class Browser:
    """One person's."""

    def __init__(self, client):
        self.client = client

    def get(self, path, **more):
        return self.client.get(path, **more)

    def login(self, key, after="/pages"):
        token = dict(hidden(self.client.get("/pages/login").text, "/pages/login"))["token"]
        return self.client.post("/pages/login", data={"token": token, "key": key, "next": after})

    @property
    def token(self):
        return dict(hidden(self.client.get("/pages/receipts").text, "/logout"))["token"]

    def send(self, path, data=None, files=None, **more):
        """A form with its token; files: [(name, content)]."""
        told = {"token": self.token, **(data or {})}
        sent = None if files is None else [("files", one) for one in files]
        return self.client.post(path, data=told, files=sent, **more)

    def confirm(self, shown, action):
        """Send on what a page holds hidden."""
        kind = {"content-type": "application/x-www-form-urlencoded"}
        path = re.search(rf'action="([^"]*{action})"', shown.text)[1]
        return self.client.post(path, content=urlencode(hidden(shown.text, action)), headers=kind)

    def open_claim(self, name, files, **fields):
        """The whole way to a claim on images; gives its number."""
        data = {"regime": "dmca", "prefix": "", **NOTICE, **fields}
        shown = self.send(f"/pages/sets/{name}/new-claim", data, files)
        assert shown.status_code == 200, shown.text
        told = self.confirm(shown, "open-claim")
        assert told.status_code == 303, told.text
        return int(told.headers["location"].rpartition("/")[2])


@contextlib.contextmanager
def browsers(root, base=HERE, handed=None, **settings):
    """Gives a function that makes a browser, logged in where it is given a key."""
    told = Settings(root=root, log_level="error", **{"strangers": 1e6, **settings})
    app = make_app(told, False, ForPages(), handed)
    with contextlib.ExitStack() as all_of_them:
        first = all_of_them.enter_context(TestClient(app, base_url=base, follow_redirects=False))

        def browser(key=None, address=base):
            made = Browser(TestClient(app, base_url=address, follow_redirects=False))
            made.client.portal = first.portal
            if key is not None:
                assert made.login(key).status_code == 303
            return made

        yield browser
