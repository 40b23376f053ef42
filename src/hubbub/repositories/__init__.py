"""What is stored, one noun a file, with its SQL beside the method that runs it."""

from hubbub.repositories.messages import Messages
from hubbub.repositories.read_receipts import ReadReceipts
from hubbub.repositories.room_users import RoomUsers
from hubbub.repositories.rooms import Rooms
from hubbub.repositories.users import Users

__all__ = ["Messages", "ReadReceipts", "RoomUsers", "Rooms", "Users"]
