"""What is asked: search spaces, ablation tables, and the ledger of what was found."""
