-- Deletes: nothing

CREATE UNIQUE INDEX CONCURRENTLY idx_messages_room_id_to_0011 ON messages (room_id, seq);

BEGIN;

ALTER TABLE messages DROP CONSTRAINT idx_messages_room_id;
ALTER TABLE messages ADD CONSTRAINT idx_messages_room_id UNIQUE USING INDEX idx_messages_room_id_to_0011;

ALTER TABLE messages RESET (autovacuum_vacuum_insert_scale_factor);

UPDATE hubbub_schema_version SET version_num = '0011' WHERE version_num = '0012';

COMMIT;
