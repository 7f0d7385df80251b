"""Findings are short on the terminal, whole in the report, and the worst of them decides."""

from t2im.advice.doctor.findings import Finding, lines, worst

FINDINGS = (
    Finding("captions", "OK", "no caption is cut"),
    Finding("images", "look", "copies", "keep one", tuple("abcde")),
    Finding("training", "wrong", "nothing is learned", "mend it"),
)


def test_the_worst_finding_of_a_topic_counts():
    assert worst(FINDINGS, ["captions"]) == "OK"
    assert worst(FINDINGS, ["captions", "images"]) == "look"
    assert worst(FINDINGS, ["training", "vae"]) == "wrong"
    assert worst((), ["vae"]) == "OK"


def test_the_terminal_shows_some_cases_and_the_report_all():
    shown, whole = list(lines(FINDINGS)), list(lines(FINDINGS, shown=None))
    assert shown[0].startswith("OK     captions") and shown[2].strip() == "-> keep one"
    assert sum(line.strip() in "abcde" for line in shown) == 3 and "... and 2 more in the report" in "\n".join(shown)
    assert sum(line.strip() in "abcde" for line in whole) == 5
