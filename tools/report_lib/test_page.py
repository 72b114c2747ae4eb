"""docs/report.html and the README's charts in a headless Chromium, where there is one (`apt-get install chromium`, which takes too long for CI)."""

import sys
import tempfile
import unittest
from pathlib import Path

from .browser import Browser, program
from .cli import PAGE
from .page import page
from .pictures import PICTURES
from .results import REPO, load
from .test_report import examples

#: Texts of drawings that are shown and reach out of their drawing, or lie on another text of it.
CUT = """[...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length).flatMap(svg => {
    const box = svg.viewBox.baseVal;
    return [...svg.querySelectorAll('text')].filter(text => {
        const b = text.getBBox();
        return b.x < box.x - 1 || b.y < box.y - 1 || b.x + b.width > box.x + box.width + 1 || b.y + b.height > box.y + box.height + 1;
    }).map(text => svg.closest('figure')?.id + ': ' + text.textContent);
})"""
OVER = """[...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length).flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBBox()]);
    return texts.flatMap(([a, p], i) => texts.slice(i + 1).filter(([b, q]) =>
        p.x + p.width > q.x + 1 && q.x + q.width > p.x + 1 && p.y + p.height > q.y + 4 && q.y + q.height > p.y + 4)
        .map(([b]) => svg.closest('figure')?.id + ': ' + a + ' | ' + b));
})"""
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
#: Drawings that take no room, or have no description.
EMPTY = """[...document.querySelectorAll('figure')].filter(figure => {
    const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.getClientRects().length);
    return !shown.length || shown.some(svg => svg.clientHeight < 40 || !svg.getAttribute('aria-label'));
}).map(figure => figure.id)"""
#: Elements that are wider than the window, but for those in a box that scrolls by itself.
WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg') 
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)"""


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not program():
            print("docs/report.html was not looked at: no chromium on PATH (apt-get install chromium)", file=sys.stderr)
            raise unittest.SkipTest("no chromium on PATH")

    def whole(self, tab: Browser, path: Path, width: int, dark: bool = False):
        with self.subTest(path=path.name, width=width, dark=dark):
            tab.open(path, width, dark=dark)
            self.assertEqual(tab.value(BROKEN), [])
            self.assertEqual(tab.value(EMPTY), [])
            self.assertGreater(tab.value("document.querySelectorAll('figure').length"), 3)
            self.assertEqual(tab.value("document.documentElement.scrollWidth"), width)
            self.assertEqual(tab.value(WIDE), [])
            self.assertEqual(tab.value(CUT), [])
            self.assertEqual(tab.value(OVER), [])
            self.assertEqual(tab.complaints(), [])
            self.assertEqual(tab.requests(), [path.resolve().as_uri()])

    def test_the_page_is_whole_on_a_desk_and_on_a_phone(self):
        with Browser(program()) as tab:
            grounds = set()
            for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
                self.whole(tab, REPO / PAGE, width, dark)
                grounds.add(tab.value("getComputedStyle(document.body).backgroundColor"))
            self.assertEqual(len(grounds), 2, "light and dark")

    def test_so_is_a_page_of_results_that_are_still_to_come(self):
        with tempfile.TemporaryDirectory() as folder, Browser(program()) as tab:
            examples(Path(folder))
            made = Path(folder) / "page.html"
            made.write_text(page(load(Path(folder))), encoding="utf-8")
            for width in (1280, 390):
                self.whole(tab, made, width)

    def test_links_lead_to_places(self):
        with Browser(program()) as tab:
            tab.open(REPO / PAGE, 1280)
            self.assertEqual(tab.value("[...document.links].filter(a => !document.getElementById(a.hash.slice(1))).map(a => a.href)"), [])
            self.assertEqual(
                tab.value("document.querySelectorAll('[id]').length"),
                tab.value("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"),
            )

    def test_the_readmes_charts_open_by_themselves(self):
        with Browser(program()) as tab:
            for path, _ in PICTURES:
                if (REPO / path).is_file():
                    tab.open(REPO / Path(path), 800)
                    self.assertEqual(tab.complaints(), [])
                    self.assertEqual(tab.value("document.documentElement.tagName"), "svg")
                    self.assertEqual((tab.value(CUT), tab.value(OVER)), ([], []))
