"""PostgreSQL and Valkey for a laptop and for tests: started and stopped by hubbub, on loopback, with passwords."""

from hubbub.embedded.commands import FOLDER, ServerStatus, Status, delete_data, down, find, status, up
from hubbub.embedded.servers import Servers

__all__ = ["FOLDER", "ServerStatus", "Servers", "Status", "delete_data", "down", "find", "status", "up"]
