"""The search for titles: what a model would say next, over the titles of a catalogue."""
