"""The stored nouns, one per file, each with its SQL beside the method that runs it."""

from hubbub.repositories.messages import Messages, MessageWriter
from hubbub.repositories.read_receipts import ReadReceipts
from hubbub.repositories.room_users import RoomUsers
from hubbub.repositories.rooms import Rooms
from hubbub.repositories.users import Users

__all__ = ["MessageWriter", "Messages", "ReadReceipts", "RoomUsers", "Rooms", "Users"]
