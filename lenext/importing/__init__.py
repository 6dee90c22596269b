"""Other libraries' checkpoints to workdirs, and back."""

from lenext.importing.convert import export_checkpoint, import_checkpoint
from lenext.importing.recipes import KINDS

__all__ = ["KINDS", "export_checkpoint", "import_checkpoint"]
