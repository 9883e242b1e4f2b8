"""The commands that are more than one function; `dialogue.cli` puts them together."""
