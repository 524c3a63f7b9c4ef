"""The pages of mathematics are true: their blocks run in order, print what they show, and links lead somewhere."""

import contextlib
import io
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"derivation.md": 10, "systems.md": 5}  # -> sections
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")

# Random numbers and sums differ a little between processors and versions of torch.
RELATIVE_TOLERANCE = 0.05


class Block(NamedTuple):
    line: int
    code: str
    output: str


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def read_blocks(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(text.count("\n", 0, match.start("code")), match["code"], match["output"] or "")
        for match in BLOCK.finditer(text)
    ]


def same_but_for_rounding(printed: str, shown: str) -> bool:
    """Equal words, and numbers that differ by 5 % or by two units of the last digit shown."""
    if NUMBER.split(printed) != NUMBER.split(shown):
        return False
    for a, b in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        last_digit = 10.0 ** -len(b.partition(".")[2])
        if not math.isclose(float(a), float(b), rel_tol=RELATIVE_TOLERANCE, abs_tol=2.001 * last_digit):
            return False
    return True


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs_from_top_to_bottom_and_prints_what_it_shows(page):
    namespace = {"__name__": page}
    with torch.random.fork_rng(devices=[]):
        for block in read_blocks(page):
            # Blank lines in front make a traceback name the line of the page.
            code = compile("\n" * block.line + block.code, page, "exec")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            assert same_but_for_rounding(printed.getvalue(), block.output), (
                f"{page}, line {block.line} shows\n{block.output}\nbut printed\n{printed.getvalue()}"
            )


@pytest.mark.parametrize("page", PAGES)
def test_every_block_but_the_imports_asserts_something(page):
    blocks = read_blocks(page)
    assert len(blocks) == read(page).count("```python")  # none escapes the pattern
    assert len(blocks) > PAGES[page]
    for block in blocks[1:]:
        assert re.search(r"^\s*assert ", block.code, re.MULTILINE), f"the block at line {block.line} proves nothing"


@pytest.mark.parametrize("page", PAGES)
def test_every_section_of_formulas_has_a_block(page):
    sections = re.split(r"^## ", read(page), flags=re.MULTILINE)[1:]
    assert len(sections) == PAGES[page]
    for section in sections:
        assert "```python" in section, section.splitlines()[0]


def test_every_equation_of_the_derivation_is_on_the_page():
    text = read("derivation.md")
    formulas = "".join(re.findall(r"^```math\n.*?^```\n", text, re.DOTALL | re.MULTILINE))
    numbered = {int(n) for group in re.findall(r"\\qquad \(([\d, ]+)\)", formulas) for n in group.split(",")}
    assert numbered == {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_sections_files_and_figures(page):
    text = read(page)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) == anchors

    for place in re.findall(r"[^!]\[[^]]*\]\((?!http)([^)#]+)\)", text):
        assert (DOCS / place).is_file(), place
    for figure in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (DOCS / figure).stat().st_size < 150_000, figure


@pytest.mark.parametrize(
    "printed, shown, same",
    [
        ("sum 0.99, n 10\n", "sum 0.98, n 10\n", True),
        ("loss 0.118\n", "loss 0.113\n", True),
        ("loss 0.13\n", "loss 0.10\n", False),
        ("mean 7.32\n", "mean 8.32\n", False),
        ("mean 7.32\n", "mean 7.32, 1\n", False),
        ("average 7.32\n", "mean 7.32\n", False),
        ("x\n", "", False),
    ],
)
def test_outputs_are_compared_by_words_and_numbers(printed, shown, same):
    assert same_but_for_rounding(printed, shown) == same
