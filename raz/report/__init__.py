"""What was found: tables beside the paper's numbers, and studies with their best trials. Reads, never trains."""
