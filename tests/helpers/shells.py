"""How tests configure IPython's shell."""

from traitlets.config import Config

# The thread and the file of a history outlive the shell.
NO_HISTORY = Config({"HistoryManager": {"enabled": False}})
