"""Output for people: text cleaning, units, and streams that tolerate write errors."""
