"""Looking at studies and at this machine; nothing is changed."""
