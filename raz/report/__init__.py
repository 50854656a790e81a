"""Reports of tables and studies: content, statistics and formats. They read the store and train nothing."""
