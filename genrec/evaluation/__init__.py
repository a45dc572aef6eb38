"""Measure recommenders under one rule, compare them, export the results."""

from genrec.evaluation.compare import Comparison, compare, comparison_table
from genrec.evaluation.report import EvalReport
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.evaluation.tables import average_rows, average_table, reports_json, results_table
from genrec.evaluation.trec import write_trec

__all__ = [
    "Comparison",
    "EvalReport",
    "EvalSettings",
    "average_rows",
    "average_table",
    "compare",
    "comparison_table",
    "evaluate",
    "reports_json",
    "results_table",
    "write_trec",
]
