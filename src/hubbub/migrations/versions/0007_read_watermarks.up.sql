-- The seq up to which each member has read, and the room of each read receipt.

CREATE INDEX CONCURRENTLY idx_room_users_last_read_message_id_to_0007 ON room_users (last_read_message_id)
    WHERE last_read_message_id IS NOT NULL;

BEGIN;

ALTER TABLE room_users
    ADD COLUMN IF NOT EXISTS last_read_seq bigint NOT NULL DEFAULT 0;

-- The foreign key of the original schema allows a last read message of another room. It has no seq in this one.
UPDATE room_users
SET last_read_message_id = NULL
FROM messages
WHERE messages.id = room_users.last_read_message_id
    AND messages.room_id <> room_users.room_id;

UPDATE room_users
SET last_read_seq = messages.seq
FROM messages
WHERE messages.id = room_users.last_read_message_id;

ALTER TABLE message_read_receipts
    ADD COLUMN IF NOT EXISTS room_id uuid;

UPDATE message_read_receipts
SET room_id = messages.room_id
FROM messages
WHERE messages.id = message_read_receipts.message_id
    AND message_read_receipts.room_id IS NULL;

ALTER TABLE message_read_receipts
    ALTER COLUMN room_id SET NOT NULL;

DROP INDEX IF EXISTS idx_room_users_last_read_message_id;

ALTER INDEX idx_room_users_last_read_message_id_to_0007 RENAME TO idx_room_users_last_read_message_id;

-- Both tables are locked for the exchange only. The rows satisfied the old foreign key, and are checked against the
-- new one after that is committed, while the application keeps running.
ALTER TABLE room_users
    DROP CONSTRAINT room_users_last_read_message_id_fkey,
    ADD CONSTRAINT room_users_last_read_message_id_fkey
        FOREIGN KEY (last_read_message_id) REFERENCES messages (id) ON DELETE SET NULL NOT VALID;

COMMIT;

BEGIN;

ALTER TABLE room_users VALIDATE CONSTRAINT room_users_last_read_message_id_fkey;

UPDATE hubbub_schema_version SET version_num = '0007' WHERE version_num = '0006';

COMMIT;
