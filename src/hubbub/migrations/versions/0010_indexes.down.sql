-- Deletes: nothing

CREATE INDEX CONCURRENTLY idx_rooms_name_to_0009 ON rooms (name);

CREATE INDEX CONCURRENTLY idx_messages_user_id_to_0009 ON messages (user_id);

CREATE INDEX CONCURRENTLY idx_messages_created_at_to_0009 ON messages (created_at DESC);

CREATE INDEX CONCURRENTLY idx_room_users_user_id_to_0009 ON room_users (user_id);

BEGIN;

DROP INDEX IF EXISTS idx_rooms_name;
ALTER INDEX idx_rooms_name_to_0009 RENAME TO idx_rooms_name;

DROP INDEX IF EXISTS idx_messages_user_id;
ALTER INDEX idx_messages_user_id_to_0009 RENAME TO idx_messages_user_id;

DROP INDEX IF EXISTS idx_messages_created_at;
ALTER INDEX idx_messages_created_at_to_0009 RENAME TO idx_messages_created_at;

DROP INDEX IF EXISTS idx_room_users_user_id;
ALTER INDEX idx_room_users_user_id_to_0009 RENAME TO idx_room_users_user_id;

DROP INDEX idx_message_read_receipts_user_id;

ALTER TABLE rooms RESET (fillfactor);

UPDATE hubbub_schema_version SET version_num = '0009' WHERE version_num = '0010';

COMMIT;
