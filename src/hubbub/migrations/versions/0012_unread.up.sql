-- Unread messages are counted, and rooms are ordered by their newest message, from an index alone.

CREATE UNIQUE INDEX CONCURRENTLY idx_messages_room_id_to_0012 ON messages (room_id, seq)
    INCLUDE (user_id, created_at, deleted_at);

BEGIN;

ALTER TABLE messages DROP CONSTRAINT idx_messages_room_id;
ALTER TABLE messages ADD CONSTRAINT idx_messages_room_id UNIQUE USING INDEX idx_messages_room_id_to_0012;

-- PostgreSQL reads the index alone for pages that VACUUM has seen. By default it runs once a fifth of all messages is
-- new, but unread messages are newer than that. It reads the new pages only.
ALTER TABLE messages SET (autovacuum_vacuum_insert_scale_factor = 0.02);

UPDATE hubbub_schema_version SET version_num = '0012' WHERE version_num = '0011';

COMMIT;
