"""What was asked of this hospital, answered, refused and charged, in a chain that shows tampering."""

from client_app.audit.entry import Entry
from client_app.audit.log import Audit, AuditError

__all__ = ["Audit", "AuditError", "Entry"]
