"""The parts of a hub besides the repositories. Most of them are in Redis.

accounts            registration, login and passwords
cache               frequent reads, stored in Redis until a change invalidates them
changes             the feed of the changes in all rooms, for programs
feed                the feeds of clients: the log of each of their rooms
health              the state of a hub and its servers
presence            the users who are online
rate_limits         limits that all processes share
realtime            channels of the application's own
sessions            logins, in Redis or in PostgreSQL
typing_indicators   the users who are typing in a room
"""
