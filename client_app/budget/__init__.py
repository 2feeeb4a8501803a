"""`hospital ledger`: what the patients' budget was spent on and what is left, in words and figures."""
