from onnxslim_tk.plan.proposal import Proposal, Refusal
from onnxslim_tk.plan.why import explained, given_up

OFFERS = [
    Proposal(("a",), "share", 16, bytes_saved=50, error=0.2),
    Proposal(("a",), "share", 32, bytes_saved=40, error=0.1),
    Proposal(("a",), "share", 8, bytes_saved=60, error=0.4),
    Proposal(("b", "c"), "quantize", "integer", error=0.1),
    Proposal(("b",), "factorize", 0.5, error=0.3),
    Proposal(("d",), "fuse", "scale"),
]


def whys(*rows: Proposal) -> list[str]:
    return [row.why for row in explained(rows, OFFERS)]


def test_a_chosen_row_says_why() -> None:
    asked, finer, coarser, *_, lossless = OFFERS
    assert whys(asked, lossless) == ["as asked for", "as asked for; it changes no output"]
    assert whys(finer) == ["16 was asked for; that would err too much here"]
    assert whys(coarser) == [
        "16 was asked for; the outputs feel little of it here, and it saves more"
    ]


def test_errors_that_were_measured_do_not_change_what_was_asked_for() -> None:
    measured = Proposal(("a",), "share", 32, bytes_saved=40, error=9.0, measured=True)
    assert whys(measured) == ["16 was asked for; that would err too much here"]


def test_a_reason_that_a_plan_brings_stays() -> None:
    assert whys(Proposal(("a",), "share", 16, why="mine")) == ["mine"]


def test_what_was_on_offer_and_not_chosen_says_why() -> None:
    assert given_up([OFFERS[3], OFFERS[5]], OFFERS) == [
        Refusal("a", "share", "given up to hold the budget"),
        Refusal("b", "factorize", "quantize was taken in its place: it saves more"),
    ]
    assert given_up(OFFERS[:1] + OFFERS[3:4] + OFFERS[5:], OFFERS[:4] + OFFERS[5:]) == []
