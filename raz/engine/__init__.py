"""Where trials run: inline, or as light coordinators under Ray Tune. The only place that imports Ray."""
