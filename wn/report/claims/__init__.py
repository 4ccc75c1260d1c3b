"""The page of the paper's claims: verdicts by rule, tables and figures."""
