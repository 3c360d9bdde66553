"""The built site: it loads nothing from elsewhere, its parts are in order, and a real browser shows it as it should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import mtopt

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md"))

pytestmark = pytest.mark.timeout(900)  # the first test waits for the visits to all pages


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once for all tests. A broken link or a formula that cannot be read stops it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return target


def url_of(page: str) -> str:
    folder = page.removesuffix("index").strip("/")
    return f"{folder}/" if folder else ""


def html_of(site: Path, page: str) -> str:
    return (site / url_of(page) / "index.html").read_text(encoding="utf-8")


# -- what the pages are made of ----------------------------------------------------------------------------------------


LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
OUTSIDE = re.compile(r"(?i)\s*(https?:)?//")


class Page(HTMLParser):
    """A page's tags, and what a browser loads by itself for it, apart from the links that a reader may follow."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.images: list[dict[str, str]] = []
        self.urls: list[str] = []
        self.css: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img":
            self.images.append(given)
        if tag == "link" and not LOADING_LINKS & set(given.get("rel", "").split()):
            return
        loading = ("src", "srcset", "data", "poster") if tag != "link" else ("href",)
        self.urls += [given[name] for name in loading if name in given]
        if tag in ("image", "use"):
            self.urls += [given[name] for name in ("href", "xlink:href") if name in given]
        self.css.append(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style":
            self.css.append(data)


def css_urls(css: str) -> list[str]:
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", css)


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {page: Page(html_of(site, page)) for page in PAGES}


def test_the_site_loads_nothing_from_another_host(site):
    for path in site.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        urls = page.urls + [url for css in page.css for url in css_urls(css)]
        assert urls, path
        assert not [url for url in urls if OUTSIDE.match(url)], path
    for sheet in site.rglob("*.css"):
        assert not [url for url in css_urls(sheet.read_text(encoding="utf-8")) if OUTSIDE.match(url)], sheet


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://badge.example/b.svg">',
    ],
)
def test_an_outside_url_would_be_seen(html):
    assert [url for url in Page(html).urls if OUTSIDE.match(url)]


def test_a_font_from_another_host_would_be_seen():
    (css,) = [css for css in Page("<style>@font-face { src: url('https://a.example/f.woff2') }</style>").css if css]
    assert css_urls(css) == ["https://a.example/f.woff2"]


def test_every_formula_is_mathml(pages, site):
    assert not [page for page in PAGES if re.search(r'class="arithmatex">\\', html_of(site, page))]
    written = {page for page in PAGES if "\n$$" in (DOCS / f"{page}.md").read_text(encoding="utf-8")}
    assert not [page for page in {"api/gramian", *written} if "math" not in pages[page].tags]


def test_the_three_tables_of_properties_are_on_their_page(pages):
    written = re.findall(r"^\|[-:| ]+\|$", (DOCS / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert pages["methods"].tags.count("table") == len(written) + 3


@pytest.mark.parametrize("page", PAGES)
def test_headings_are_in_order(page, pages):
    levels = [int(tag[1]) for tag in pages[page].tags if re.fullmatch("h[1-6]", tag)]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(level <= before + 1 for before, level in pairwise(levels))


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_says_what_is_seen(page, pages):
    logo = "logo"  # the theme's own word for that of the header
    assert not [image for image in pages[page].images if len(image.get("alt", "")) < 10 and image.get("alt") != logo]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_site_leads_somewhere(page, pages, site):
    targets = [urlsplit(urljoin(f"http://site/{url_of(page)}", link)) for link in pages[page].links]
    at = {url_of(name): found for name, found in pages.items()}
    for target in {target for target in targets if target.netloc == "site"}:
        name = target.path.lstrip("/")
        assert name in at or (site / unquote(name)).is_file(), target
        assert not target.fragment or unquote(target.fragment) in at[name].anchors, target


# -- the API, and what machines read -----------------------------------------------------------------------------------


API = [page for page in PAGES if page.startswith("api/")]
CONFIG = ROOT / "mkdocs.yml"
ADDRESS = "https://docs.example/mtopt/"


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_every_name_of_the_api_says_when_to_use_it(site):
    told = [
        text_of(found)
        for page in API
        for found in re.findall("<strong>Use it when</strong>.*?</p>", html_of(site, page), re.S)
    ]
    assert len(told) == len(mtopt.__all__) - 1
    assert all(len(line) > 25 and line.endswith(".") for line in told)


def test_the_api_shows_nothing_internal(pages, site):
    names = {anchor.split(".")[1] for page in API for anchor in pages[page].anchors if anchor.startswith("mtopt.")}
    assert names == set(mtopt.__all__) - {"__version__"}
    own = {
        name
        for path in (ROOT / "mtopt").rglob("*.py")
        for name in re.findall(r"^(?:class )?(\w+)(?: =|[(:])", path.read_text(), re.M)
    }
    own -= {*mtopt.__all__, "Stream", "Writer"}  # the last two are what a user may write, and what TensorBoard has
    for page in API:
        signatures = re.findall(r'<div class="doc-signature.*?</div>', html_of(site, page), re.S)
        words = {word for signature in signatures for word in re.findall(r"\b[A-Z]\w+", text_of(signature))}
        assert not words & own, page
        assert not [anchor for anchor in pages[page].anchors if "._" in anchor]


def test_a_long_signature_has_a_line_for_each_argument(site):
    signature = text_of(html_of(site, "api/optimizer").split('<div class="doc-signature')[1].split("</div>")[0])
    assert "\n    *,\n    at: str" in signature  # without ruff it is one line


def config_with(monkeypatch, **environment: str) -> MkDocsConfig:
    for name in ("MTOPT_SITE_URL", "MTOPT_REPO_URL", "MTOPT_VERSIONS", "READTHEDOCS_CANONICAL_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(str(CONFIG))
    return config.plugins.on_config(config)


def test_without_an_address_the_site_is_for_a_placeholder_and_links_to_no_repository(monkeypatch):
    config = config_with(monkeypatch)
    assert (config.site_url, config.repo_url, config.edit_uri) == ("https://example.org/mtopt/", None, None)
    assert not config.extra["version"]["provider"]


@pytest.mark.parametrize("name", ["MTOPT_SITE_URL", "READTHEDOCS_CANONICAL_URL"])
def test_the_environment_has_the_addresses(monkeypatch, name):
    config = config_with(
        monkeypatch, MTOPT_REPO_URL="https://git.example/us/mtopt", MTOPT_VERSIONS="mike", **{name: ADDRESS}
    )
    assert (config.site_url, config.repo_url, config.edit_uri) == (
        ADDRESS,
        "https://git.example/us/mtopt",
        "edit/main/docs/",
    )
    assert config.extra["version"]["provider"] == "mike"


def test_the_sitemap_and_the_cards_have_the_address_of_each_page(site):
    sitemap = (site / "sitemap.xml").read_text(encoding="utf-8")
    canonical = {page: re.search('<link rel="canonical" href="(.*?)">', html_of(site, page))[1] for page in PAGES}
    assert set(re.findall("<loc>(.*?)</loc>", sitemap)) == set(canonical.values())
    for page, address in canonical.items():
        card = dict(re.findall('<meta property="og:(\\w+)" content="(.*?)">', html_of(site, page)))
        assert (card["url"], address) == (address, address.removesuffix(url_of(page)) + url_of(page))
        assert (site / urlsplit(card["image"]).path.removeprefix("/mtopt/")).is_file()
        assert card["title"]
        assert len(card["description"]) > 30


def leaves(nav: list[Any] | dict[str, Any] | str) -> Iterator[str]:
    """The pages of a nav, in their order."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(part)


def test_the_list_for_language_models_has_each_page_of_the_nav_in_its_order_under_its_title(site):
    linked = re.findall(r"^- \[(.+)\]\((\S*)\): \S", (site / "llms.txt").read_text(encoding="utf-8"), re.M)
    nav = [
        page.removesuffix(".md") for page in leaves(yaml.load(CONFIG.read_text(encoding="utf-8"), yaml_loader())["nav"])
    ]
    titles = [re.search("<h1.*?>(.*?)<", html_of(site, page), re.S)[1] for page in nav]
    assert linked == [(unescape(title), url_of(page) or "./") for title, page in zip(titles, nav, strict=True)]


def yaml_loader() -> type[yaml.SafeLoader]:
    """One that takes `!ENV` for its value."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!ENV", lambda loader, node: None)
    return loader


def test_the_command_mkdocs_finds_the_extensions_of_the_site_too(tmp_path):
    code = (
        "import sys; from mkdocs.config import load_config; config = load_config(sys.argv[1]);"
        "print(*config.plugins.on_config(config).markdown_extensions)"
    )
    run = [sys.executable, "-P", "-c", code, str(CONFIG)]  # without the current folder on the path, as commands are
    found = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "MathML" in found
    assert "Properties" in found


def test_the_changelog_is_on_the_site(pages, site):
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert pages["changelog"].tags.count("h2") == sum(line.startswith("## ") for line in lines)
    assert html_of(site, "changelog").count("<li>") == sum(line.startswith("- ") for line in lines)


# -- in a real browser -------------------------------------------------------------------------------------------------


WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}
SCHEMES = {"light": "default", "dark": "slate"}
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
AXE = "axe-core@4.14.1"  # from npm: it looks at a page as a screen reader does, and at its contrasts
AXE_OPTIONS = {
    # The browsers let a reader reach what scrolls by its keyboard; axe does not know.
    ("desktop", "light"): {"preload": False, "rules": {"scrollable-region-focusable": {"enabled": False}}},
    ("phone", "dark"): {"preload": False, "runOnly": ["color-contrast"]},  # what differs: a run takes a second a page
}
SEEN = r"""
const hidden = [...document.querySelectorAll("math")].filter(formula => {
  if (formula.closest("details:not([open])")) return false
  const box = formula.getBoundingClientRect()
  return box.width === 0 || box.height === 0
})
const broken = [...document.querySelectorAll("td code, th code")].filter(name =>
  !/[\s-]/.test(name.textContent) && name.getClientRects().length > 1)
const root = document.documentElement
return [document.body.dataset.mdColorScheme, root.scrollWidth, root.clientWidth,
  hidden.map(math => math.textContent), broken.map(name => name.textContent)]
"""


class Visit(NamedTuple):
    """What a page was like in one window and one colour scheme."""

    scheme: str
    width: int
    room: int
    hidden: list[str]
    broken: list[str]
    faults: list[str]
    errors: list[str]
    requests: list[str]


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def lacking(reason: str) -> NoReturn:
    """Without a browser its tests are skipped, but not in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        lacking("Chromium and its driver are not there. On Debian: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    with Chrome(options, ChromeService(driver)) as chrome:
        # A choice of the colour scheme is not kept, so that the next page is shown in that of the system.
        chrome.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument", {"source": "Storage.prototype.setItem = () => 0"}
        )
        chrome.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
        chrome.set_script_timeout(120)
        yield chrome


def resize(browser: Chrome, window: str) -> None:
    width, height = WINDOWS[window]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": window == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def show(browser: Chrome, url: str, scheme: str = "light") -> None:
    resize(browser, "desktop")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(url)


def errors_of(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def requests_of(browser: Chrome) -> list[str]:
    """What was asked of any host since the last call, by scripts, too."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if urlsplit(url).scheme not in ("data", "blob", "chrome", "chrome-untrusted")]


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The source of axe-core; empty where npm cannot fetch it."""
    folder, npm = tmp_path_factory.mktemp("axe"), shutil.which("npm")
    if npm is None or subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, check=False).returncode:
        return ""
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


def faults_of(browser: Chrome, axe: str, options: dict[str, object]) -> list[str]:
    """What axe finds in the text of a page; the frame around it is the theme's."""
    browser.execute_script(axe)
    script = "axe.run(document.querySelector('.md-content'), arguments[0]).then(arguments[1])"
    found = browser.execute_async_script(script, options)["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {node['html']} {node['failureSummary']}" for fault in serious for node in fault["nodes"]]


@pytest.fixture(scope="module")
def visits(browser, address, axe) -> dict[str, Visit]:
    made = {}
    for page, scheme in product(PAGES, SCHEMES):
        show(browser, address + url_of(page), scheme)
        for window in WINDOWS:
            resize(browser, window)
            seen = browser.execute_script(SEEN)
            options = AXE_OPTIONS.get((window, scheme))
            faults = faults_of(browser, axe, options) if axe and options else []
            made[f"{page}, {window}, {scheme}"] = Visit(*seen, faults, errors_of(browser), requests_of(browser))
    return made


def test_every_page_is_shown_in_the_scheme_of_the_system(visits):
    assert {(name.split(", ")[2], visit.scheme) for name, visit in visits.items()} == set(SCHEMES.items())


def test_no_page_writes_an_error_to_the_console(visits):
    assert not {name: visit.errors for name, visit in visits.items() if visit.errors}


def test_the_browser_asks_no_other_host(visits, address):
    assert all(visit.requests for name, visit in visits.items() if "desktop" in name)  # the phone's are the same load
    assert not {url for visit in visits.values() for url in visit.requests if not url.startswith(address)}


def test_no_page_is_wider_than_its_window(visits):
    assert not {name: visit.width for name, visit in visits.items() if visit.width > visit.room}


def test_every_formula_is_visible(visits):
    assert not {name: visit.hidden for name, visit in visits.items() if visit.hidden}


def test_no_name_in_a_table_is_broken(visits):
    assert not {name: visit.broken for name, visit in visits.items() if visit.broken}


def test_the_first_example_is_seen_whole_on_a_desktop(browser, address):
    show(browser, address)
    for block in browser.find_elements(By.CSS_SELECTOR, "pre > code")[:2]:  # the change as a diff, and a whole script
        assert block.get_property("scrollWidth") <= block.get_property("clientWidth")


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgba(0, 0, 0, 0)"), ("dark", "rgba(255, 255, 255, 1)")])
def test_a_picture_lies_on_white_in_the_dark(browser, address, scheme, ground):
    show(browser, f"{address}methods/", scheme)
    picture = browser.find_element(By.CSS_SELECTOR, ".md-content img")
    assert picture.value_of_css_property("background-color") == ground


def test_no_text_of_the_chooser_leaves_its_box(browser, address):
    show(browser, f"{address}pictures/chooser.svg")
    rooms = browser.execute_script("""
        return [...document.querySelectorAll("g")].flatMap(group => {
          const box = group.querySelector("rect").getBBox()
          return [...group.querySelectorAll("text")].map(text => box.width - text.getBBox().width)
        })""")
    assert len(rooms) > 20
    assert min(rooms) > 4


def test_an_error_and_a_request_to_another_host_would_be_seen(browser, address):
    show(browser, address)
    browser.execute_async_script("""
        console.error("on purpose")
        fetch("http://elsewhere.example/").catch(() => null).then(arguments[0])""")
    assert any("on purpose" in error for error in errors_of(browser))
    assert "http://elsewhere.example/" in requests_of(browser)


def test_every_page_can_be_read_by_everyone(visits, axe):
    if not axe:
        lacking(f"npm cannot fetch {AXE}")
    assert not {name: visit.faults for name, visit in visits.items() if visit.faults}


def test_a_pale_text_would_be_seen(browser, address, axe):
    if not axe:
        lacking(f"npm cannot fetch {AXE}")
    show(browser, address)
    browser.execute_script("document.querySelector('.md-content p').style.color = '#aaa'")
    assert any(fault.startswith("color-contrast") for fault in faults_of(browser, axe, AXE_OPTIONS["phone", "dark"]))


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("sign_purity", "api/engine/#mtopt.sign_purity"),
        ("conflict", "seeing-conflict/"),
        ("multi-task learning", "glossary/"),
        ("gradient accumulation", "recipes/"),
        ("loss weights", "api/weightings/"),
        ("gradient conflict", "seeing-conflict/"),
        ("PINN", "tutorials/physics/"),
    ],
)
def test_the_search_finds(browser, address, query, page):
    show(browser, address)
    browser.find_element(By.CSS_SELECTOR, "input.md-search__input").send_keys(query)
    WebDriverWait(browser, 20).until(lambda chrome: page in found_by(chrome))


def found_by(browser: Chrome) -> set[str]:
    """The pages, and the places in them, that the search lists; without the words that it marks there."""
    script = "return [...document.querySelectorAll('.md-search-result a')].map(link => [link.pathname, link.hash])"
    return {part for path, place in browser.execute_script(script) for part in (path[1:], path[1:] + place)}


def clipboard_of(browser: Chrome) -> str:
    return browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")


def test_each_code_block_is_copied_by_its_button(browser, address):
    show(browser, address)
    blocks = browser.find_elements(By.CSS_SELECTOR, "pre:has(> code)")
    buttons = (By.CSS_SELECTOR, "pre button[data-clipboard-target]")
    WebDriverWait(browser, 20).until(lambda chrome: len(chrome.find_elements(*buttons)) == len(blocks) > 3)
    for block, button in zip(blocks, browser.find_elements(*buttons), strict=True):
        code = block.find_element(By.TAG_NAME, "code").get_property("textContent")
        button.click()
        WebDriverWait(browser, 20).until(lambda chrome, code=code: clipboard_of(chrome).strip() == code.strip())
