"""A Chromium that opens pages of reports, and minds what goes wrong on them."""

import shutil

import pytest

FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--no-sandbox")


def chromium():
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[browser]'")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """`opened(file, width, **context)`: the page when all is drawn; ends by checking that nothing went wrong on it.

    `address` follows that of the file.
    """
    contexts, wrong = [], []

    def opened(file, width=1200, *, address="", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: wrong.append(request.url) if request.url.startswith(("http", "ws")) else None)
        tab.goto(file.as_uri() + address)
        tab.wait_for_selector(":root[data-ready=yes]", state="attached")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
