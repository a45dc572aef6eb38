"""Several tables of identifiers of one catalog, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from genrec.evaluation.identifier_controls import controls
from genrec.evaluation.identifier_inputs import Subject, check_one_catalog
from genrec.evaluation.identifiers import Figures, IdentifierReport, InspectSettings, inspect_codes

CONTROL = "(random)"
_LOOSE = 0.5
"""Codes an item, from which on the vectors behind them say more of their number than of the codes."""
_RAW = ("collision_rate", "collision_share", "largest_group", "traffic_share", "collision_pair_rate", "identifier_gini")


def tokenizer_reports(
    subjects: Sequence[Subject],
    settings: InspectSettings,
    *,
    held_out: bool = False,
    step: Callable[[], object] = lambda: None,
) -> dict[str, IdentifierReport]:
    """A report for each subject, and for random codes of the first one's sizes (``CONTROL``) (experimental).

    Keys ``raw.`` hold the collisions before the collision policy, for subjects of which these are known. step: called
    after each report. Subjects of one name are told apart by a number. Raises FingerprintMismatch for identifiers of
    different catalogs.
    """
    check_one_catalog(subjects)
    found: dict[str, IdentifierReport] = {}
    names = _told_apart([subject.name for subject in subjects])
    for number, subject in enumerate(subjects):
        inputs = subject.inputs(held_out=held_out)
        report = inspect_codes(subject.codes, settings=settings, **inputs)
        figures = report.figures | _raw_figures(subject, report)
        found[names[number]] = replace(report, figures=figures)
        step()
    alike = replace(settings, quantised="implied")
    inputs = subjects[0].inputs(held_out=held_out)
    drawn = controls(subjects[0].codes, settings.seed).random
    found[CONTROL] = inspect_codes(drawn, settings=alike, **inputs)
    step()
    return found


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names; one that stands there more than once gets numbers that make no other name."""
    found: list[str] = []
    for name in names:
        taken, number = name, 1
        while taken in found or (names.count(name) > 1 and (number == 1 or taken in names)):
            taken, number = f"{name}-{number}", number + 1
        found.append(taken)
    return found


def notes_of_comparison(subjects: Sequence[Subject], reports: Mapping[str, IdentifierReport]) -> list[str]:
    """What makes the columns of a comparison unlike, one sentence each (experimental)."""
    own = [report.context for name, report in reports.items() if name != CONTROL]
    notes = []
    if len({context["data"]["vectors"] for context in own}) > 1:
        notes.append(
            "the item vectors differ: fidelity and hit rates judge each by its own (--vectors judges all by one)"
        )
    if len({context["data"]["train"] for context in own}) > 1:
        notes.append("the training parts differ: figures of behaviour cannot be compared")
    if len({tuple(context["level_sizes"]) for context in own}) > 1:
        notes.append("the level sizes differ: entropies, prefix rates and usage depend on them")
    loose = [name for name, report in reports.items() if name != CONTROL and _codes_per_item(report) > _LOOSE]
    if loose:
        notes.append(
            f"so many codes for so few items that their means follow the vectors whatever the codes mean: fidelity and "
            f"hit rates of {', '.join(loose)} say little (`genrec inspect` shows random codes of the same sizes)"
        )
    lost = [subject.name for subject in subjects if subject.raw is None and not subject.raw_is_same]
    if lost:
        notes.append(f"collisions before the policy are not known of {', '.join(lost)}")
    return notes


def _codes_per_item(report: IdentifierReport) -> float:
    """Codes in use, of all levels, for every item, where the vectors behind them are fitted to the items; else 0."""
    if report.context["quantised"] != "implied":
        return 0.0
    shares = zip(report.figures["usage"], report.context["level_sizes"], strict=True)
    return float(sum((share or 0.0) * size for share, size in shares)) / int(report.context["n_items"])


def _raw_figures(subject: Subject, report: IdentifierReport) -> Figures:
    if subject.raw_is_same:
        source = report.figures
    elif subject.raw is not None:
        train = None if subject.split is None else subject.split.train()
        source = inspect_codes(subject.raw, train=train).figures
    else:
        return {}
    return {f"raw.{key}": source[key] for key in _RAW if key in source}
