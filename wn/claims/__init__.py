"""Every claim of the paper: a criterion, fixed before anything is measured, rows, and a computed verdict.

``experiments/claims/ID.yaml`` states the claim and its criterion (:mod:`wn.claims.criteria`). A module per
family measures rows (:mod:`wn.claims.measuring`), and a rule makes verdicts of them
(:mod:`wn.report.claims.verdicts`). ``python -m wn.claims`` measures what is missing.
"""
